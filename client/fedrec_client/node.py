"""A node: hosts one or more users, answers the coordinator, and lets only sums out.

Everything a node needs lies in its folder: `node.json` (recommender and settings), `shard.npz` (its users'
interactions), `local/` (their personal state). Out of scope: transport.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.data.interactions import IntArray, Interactions
from fedrec.data.split import Split
from fedrec.data.splits import load_shard, save_shard
from fedrec.errors import PrivacyRefused, ProtocolError, RunError
from fedrec.evaluation.evaluate import EvaluationSettings, evaluate
from fedrec.learning.local_training import in_cohort, train_users
from fedrec.learning.protocol import Phase, Reply, Request
from fedrec.learning.settings import NodeSettings
from fedrec.learning.updates import State
from fedrec.models.base import Recommender, RoundKey
from fedrec.models.registry import ModelConfig, build, parse
from fedrec.privacy.terms import PrivacyTerms
from fedrec.wire.files import read_arrays, write_arrays, write_json
from fedrec_client.local_state import LocalStore
from fedrec_client.private_training import PrivateTraining

Matrix = NDArray[np.float32]


class Node:
    """Answers requests for the users it hosts; a request is served completely or refused with one line."""

    def __init__(
        self,
        split: Split,
        model: ModelConfig,
        settings: NodeSettings,
        evaluation: EvaluationSettings,
        store: LocalStore,
        categories: Matrix | None = None,
        privacy: PrivacyTerms | None = None,
        folder: Path | None = None,
    ) -> None:
        self._split = split
        self._recommender: Recommender = build(model)
        self._settings = settings
        self._evaluation = evaluation
        self._store = store
        self._categories = categories
        self._n_items = split.train.n_items
        self.config_hash = config_hash(model, settings, evaluation, split.train.item_ids, privacy)
        self._learnable: dict[str, Interactions] = {}
        self._private = None
        if privacy is not None:
            assert split.user_key is not None
            self._private = PrivateTraining(
                self._recommender, settings, privacy, split.user_key, self._n_items, folder
            )
        self._privacy = privacy

    def handle(self, request: Request) -> Reply:
        """Serve one request.

        Raises:
            FedrecError: the request cannot be served; nothing has changed.
        """
        handlers: dict[str, Callable[[Request], Reply]] = {
            "hello": self._hello,
            "train": self._train,
            "evaluate": self._evaluate,
            "persist": self._persist,
        }
        if request.kind not in handlers:
            raise ProtocolError(f"request of kind {request.kind!r}: expected one of {', '.join(handlers)}")
        return handlers[request.kind](request)

    def local_state(self, shared: State, phase: Phase, round_: int) -> State:
        """What recommending to the hosted users needs beside the model, as of the end of `round_`.

        A user who has a history but took no part in training (there was nothing to learn from) is folded in.
        """
        state = self._state_before(phase, round_ + 1)
        history = self._split.batch(self._split.history(phase))
        unseen = np.flatnonzero((self._part(phase).counts == 0) & (history.counts > 0))
        if not state or not len(unseen):
            return state
        after = {name: values.copy() for name, values in state.items()}
        for name, values in self._recommender.fold_in(shared, history.take(unseen)).items():
            after[name][unseen] = values
        return after

    def _hello(self, request: Request) -> Reply:
        users = self._split.train.n_users
        return _reply(request, {}, {"users": users, "config": self.config_hash})

    def _train(self, request: Request) -> Reply:
        if self._private is not None:
            return self._train_privately(self._private, request)
        round_key = RoundKey(self._settings.seed, request.round)
        batch = self._split.batch(self._part(request.phase))
        local = self._state_before(request.phase, request.round)
        joins = (batch.counts > 0) & in_cohort(batch.user, self._settings.sampling_rate, round_key)
        cohort = np.flatnonzero(joins)
        total, changed = train_users(
            self._recommender,
            request.arrays,
            {name: values[cohort] for name, values in local.items()},
            batch.take(cohort),
            round_key,
            self._settings.clip_norm,
            self._n_items,
        )
        self._keep(request, local, changed, cohort, persist=bool(request.meta.get("persist", True)))
        layout = self._recommender.layout(self._n_items, request.round)
        update = layout.flatten(total.blocks).astype(np.float32)
        return _reply(request, {"update": update}, dict(total.numbers()))

    def _train_privately(self, private: PrivateTraining, request: Request) -> Reply:
        """The same under the run's privacy plan: bounded, charged before it leaves, and never computed twice."""
        earlier = private.earlier(request)
        if earlier is not None:
            return earlier
        batch = self._split.batch(self._part(request.phase))
        local = self._state_before(request.phase, request.round)
        reply, changed, cohort = private.train(request, local, batch)
        # Personal state first: a node killed here has released nothing and does the round again.
        self._keep(request, local, changed, cohort, persist=True)
        return private.release(request, reply)

    def _keep(
        self, request: Request, local: State, changed: State, cohort: IntArray, *, persist: bool
    ) -> None:
        after = {name: values.copy() for name, values in local.items()}
        for name, values in changed.items():
            after[name][cohort] = values
        self._store.put(request.phase, request.round, after, persist=persist)

    def _evaluate(self, request: Request) -> Reply:
        if self._privacy is not None and self._privacy.metrics == "none":
            raise PrivacyRefused(
                "evaluation is refused: sums of metrics are not covered by the privacy plan; "
                "set privacy.metrics = 'exact' to let them out unprotected"
            )
        target = self._split.target(request.phase)
        if target is None:
            raise ProtocolError(
                f"phase {request.phase!r} has nothing held out on this node: skip the evaluation"
            )
        history = self._split.batch(self._split.history(request.phase))
        sums = evaluate(
            self._recommender,
            request.arrays,
            self.local_state(request.arrays, request.phase, request.round),
            history,
            self._split.batch(target),
            self._evaluation if request.phase == "final" else self._evaluation.quick(),
            self._settings.seed,
            self._categories,
        )
        return _reply(request, dict(sums.to_arrays()), {})

    def _persist(self, request: Request) -> Reply:
        self._store.persist(request.phase, request.round)
        return _reply(request, {}, {})

    def _part(self, phase: Phase) -> Interactions:
        if phase not in self._learnable:
            self._learnable[phase] = self._split.learnable(phase)
        return self._learnable[phase]

    def _state_before(self, phase: str, round_: int) -> State:
        state = self._store.before(phase, round_)
        if state is not None:
            return state
        assert self._split.user_key is not None
        return self._recommender.init_local(self._split.user_key, self._settings.seed)


def _reply(request: Request, arrays: State, meta: dict[str, Any]) -> Reply:
    return Reply(request.kind, request.round, request.phase, arrays, meta)


def config_hash(
    model: ModelConfig,
    settings: NodeSettings,
    evaluation: EvaluationSettings,
    item_ids: np.ndarray[Any, Any],
    privacy: PrivacyTerms | None = None,
) -> str:
    """Fingerprint of everything that nodes and coordinator must agree on, catalogue and privacy plan included."""
    parts = [part.model_dump_json() for part in (model, settings, evaluation)]
    if privacy is not None:
        parts += [privacy.plan.model_dump_json(), privacy.run, privacy.metrics]
    digest = hashlib.sha256(json.dumps(parts).encode())
    digest.update("\0".join(item_ids.tolist()).encode())
    return digest.hexdigest()


def write_node(
    folder: Path,
    split: Split,
    model: ModelConfig,
    settings: NodeSettings,
    evaluation: EvaluationSettings,
    categories: Matrix | None = None,
    privacy: PrivacyTerms | None = None,
) -> None:
    """Lay out a node's folder; what it holds is for this node alone. categories [I, G] are public."""
    folder.mkdir(parents=True, exist_ok=True)
    if categories is not None:
        write_arrays(folder / "catalog.safetensors", {"categories": categories})
    save_shard(split, folder / "shard.npz")
    parts = {"model": model, "settings": settings, "evaluation": evaluation, "privacy": privacy}
    plain = {name: part and part.model_dump(mode="json") for name, part in parts.items()}
    write_json(folder / "node.json", plain)


def open_node(folder: Path) -> Node:
    """The node of a folder written by `write_node`, with the local state it had when it stopped.

    Raises:
        RunError: the folder is missing or incomplete.
    """
    try:
        config = json.loads((folder / "node.json").read_text())
    except (OSError, ValueError) as error:
        raise RunError(
            f"node folder {folder} has no readable node.json ({error}): prepare the run first"
        ) from error
    public = folder / "catalog.safetensors"
    return Node(
        load_shard(folder / "shard.npz"),
        parse(config["model"]),
        NodeSettings.model_validate(config["settings"]),
        EvaluationSettings.model_validate(config["evaluation"]),
        LocalStore(folder / "local"),
        read_arrays(public)[0]["categories"].astype(np.float32) if public.exists() else None,
        PrivacyTerms.model_validate(config["privacy"]) if config["privacy"] else None,
        folder,
    )
