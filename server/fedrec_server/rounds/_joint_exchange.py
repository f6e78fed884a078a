"""Two exchanges as one: sites over Flower and devices over the device service answer the same stage.

Both are asked at the same time, each from a thread of its own, so that neither waits for the other; vectors of both
become one sum. Out of scope: what is asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from fedrec.core.messages import Exchange, Failure, Reply, Request, Summed, SummingExchange


class JointExchange:
    """See the module's text.

    Args:
        sites: to nodes that stay.
        devices: to nodes of the cohort at work.
        of_sites: the nodes that `sites` is asked for; all others are devices.
    """

    def __init__(self, sites: Exchange, devices: Exchange, of_sites: Collection[str]) -> None:
        self._sites, self._devices, self._of_sites = sites, devices, frozenset(of_sites)

    def nodes(self) -> list[str]:
        """The sites that can be asked now."""
        return [node for node in self._sites.nodes() if node in self._of_sites]

    def exchange(
        self, requests: Mapping[str, Request], deadline_seconds: float
    ) -> dict[str, Reply | Failure]:
        """See `Exchange`."""
        sites, devices = self._split(requests)
        with ThreadPoolExecutor(1) as pool:
            of_sites = pool.submit(self._sites.exchange, sites, deadline_seconds)
            answers = self._devices.exchange(devices, deadline_seconds)
            answers |= of_sites.result()
        return {node: answers[node] for node in requests}

    def exchange_summed(
        self, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
    ) -> Summed:
        """See `SummingExchange`."""
        sites, devices = self._split(requests)
        with ThreadPoolExecutor(1) as pool:
            of_sites = pool.submit(summed, self._sites, sites, deadline_seconds, dtype, length)
            first = summed(self._devices, devices, deadline_seconds, dtype, length)
            second = of_sites.result()
        return Summed(
            np.add(first.total, second.total),
            (*first.nodes, *second.nodes),
            {**first.failures, **second.failures},
        )

    def _split(self, requests: Mapping[str, Request]) -> tuple[dict[str, Request], dict[str, Request]]:
        sites = {node: request for node, request in requests.items() if node in self._of_sites}
        return sites, {node: request for node, request in requests.items() if node not in sites}


def summed(
    exchange: Exchange, requests: Mapping[str, Request], deadline_seconds: float, dtype: str, length: int
) -> Summed:
    """The sum of the vectors of an exchange, by itself where it can add up; arguments as of `SummingExchange`."""
    if isinstance(exchange, SummingExchange):
        return exchange.exchange_summed(requests, deadline_seconds, dtype, length)
    total, nodes, failures = np.zeros(length, dtype=dtype), list[str](), dict[str, Failure]()
    answers = exchange.exchange(requests, deadline_seconds)
    for node in requests:
        answer = answers.get(node, Failure("no answer"))
        vector = answer.arrays.get("masked") if isinstance(answer, Reply) else None
        if isinstance(answer, Failure):
            failures[node] = answer
        elif vector is None or (vector.dtype, vector.shape) != (total.dtype, total.shape):
            failures[node] = Failure(f"no vector of {length} values of type {dtype}")
        elif (answer.kind, answer.round, answer.phase) != _envelope(requests[node]):
            failures[node] = Failure("the answer is to another question")
        else:
            np.add(total, vector, out=total)
            nodes.append(node)
    return Summed(total, tuple(nodes), failures)


def _envelope(request: Request) -> tuple[str, int, str]:
    return request.kind, request.round, request.phase
