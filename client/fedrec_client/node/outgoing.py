"""The one place through which everything that a node or device sends passes.

A reply leaves if it has the kind, names, types and shapes that the terms allow for its request, and an error leaves
as a code (`fedrec.core.refusals`). Nothing else leaves: a reply of another form is a bug of ours, and is held
back as one. Flower's app, the socket of a training session and the exchange of a simulation all send through `emit`.

    secagg      hello: users of the roster, configuration, name and place; the five stages: protocol arrays alone
    sealed      hello; one box of bytes
    plain       hello; an update and its numbers, or sums of metrics

Out of scope: what the values are (bounded by `train_users`, clamped by `Encoding`), masks, noise and charges.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping

from fedrec.core.errors import FedrecError
from fedrec.core.messages import Reply, Request
from fedrec.core.refusals import NodeRefused, code_of
from fedrec.secagg.terms import CohortTerms, SealedTerms, SecaggTerms, Terms

log = logging.getLogger("fedrec.node")

#: Of a train reply in the clear (`fedrec.core.updates.NUMBERS`, which imports what trains).
NUMBERS = ("users", "loss", "examples", "clipped", "norm", "zeroed")
_HELLO = {"users": int, "config": str, "node": str, "place": int}
#: name -> (kinds of dtype, number of dimensions)
Form = Mapping[str, tuple[str, int]]
_MASKED: dict[str, Form] = {
    "advertise": {"advert": ("u", 1)},
    "share": {"shares": ("u", 2)},
    "train": {"masked": ("u", 1)},
    "evaluate": {"masked": ("u", 1)},
    "confirm": {"signature": ("u", 1)},
    "unmask": {"opened": ("u", 2)},
}
_BOX: Form = {"sealed": ("u", 1)}
_INTEGERS: Form = {"integers": ("u", 1)}
_UPDATES: tuple[Form, ...] = ({"update": ("fi", 1)}, {"levels": ("u", 1), "scale": ("f", 1)})


class WrongForm(Exception):  # noqa: N818 - it names what happened
    """A reply that the terms do not allow: a bug of ours, so it stays here."""


def emit(serve: Callable[[], Reply], *, quiet: bool = False) -> Reply | str:
    """The reply, or the code under which an error leaves; the words of the error stay in this process's log.

    Args:
        serve: makes the reply, with `checked` as its last step.
        quiet: the log is the app's, which others may read: not even there is an error quoted.
    """
    try:
        return serve()
    except NodeRefused as error:  # said and logged by the process that holds the node
        return error.code
    except FedrecError as error:
        code, words = code_of(error), "" if quiet else f": {error}"
        log.warning("refused (%s): %s%s", code, type(error).__name__, words)
        return code
    except Exception as error:
        log.error("the node failed: %s", type(error).__name__, exc_info=None if quiet else error)
        return code_of(error)


def checked(terms: Terms, request: Request, reply: Reply, *, integers: bool = False) -> Reply:
    """The reply, if it has the form that the terms allow for this request.

    Args:
        terms: of the run, pinned on this node.
        request: what is answered.
        reply: the answer.
        integers: a simulation in one process, which hands integers over without masks.

    Raises:
        WrongForm: it has not; nothing may leave.
    """
    if (reply.kind, reply.round, reply.phase) != (request.kind, request.round, request.phase):
        raise WrongForm(f"{request.kind} was answered by {reply.kind}")
    if request.kind in ("hello", "persist"):
        _check(reply, ({},), _HELLO if request.kind == "hello" else {})
    elif integers and request.kind in ("train", "evaluate"):
        _check(reply, (_INTEGERS,), {})
    elif isinstance(terms, SecaggTerms | CohortTerms):
        _check(reply, (_MASKED.get(request.kind, {}),), {})
    elif isinstance(terms, SealedTerms):
        _check(reply, (_BOX,), {})
    elif request.kind == "train":
        _check(reply, _UPDATES, dict.fromkeys(NUMBERS, float))
    else:
        _check(reply, None, {})
    return reply


def _check(reply: Reply, forms: tuple[Form, ...] | None, meta: Mapping[str, type]) -> None:
    found = {name: (values.dtype.kind, values.ndim) for name, values in reply.arrays.items()}
    fits = forms is None or any(
        set(form) == set(found)
        and all(found[name][0] in kinds and found[name][1] == ndim for name, (kinds, ndim) in form.items())
        for form in forms
    )
    if not fits or any(kind not in "fiu" for kind, _ in found.values()):
        raise WrongForm(f"{reply.kind} has arrays {sorted(found)}")
    for name, value in reply.meta.items():
        kind = meta.get(name)
        wanted = (int, float) if kind is float else kind
        broken = isinstance(value, float) and not math.isfinite(value)
        if wanted is None or not isinstance(value, wanted) or broken:
            raise WrongForm(f"{reply.kind} has a field {name}")
