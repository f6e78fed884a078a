"""A node is one user: loads the global item table, trains one epoch with torch, sends the whole table back.

Nothing is tuned against Flower: the model, the optimiser and the histories stay in the actor between messages, and
the examples are drawn by fedrec's compiled sampler, so that every engine sees the same ones and the resulting
models can be compared. What costs time here is what any such app pays: messages, Ray, arrays, autograd.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch.nn.functional import softplus

from benchmarks.workload import (
    EMBEDDING_SIZE,
    LEARNING_RATE,
    MINIBATCH,
    N_ITEMS,
    NEGATIVES,
    REG,
    SEED,
    ml1m_shape,
    recommender,
)
from fedrec.core.interactions import UserBatch
from fedrec.neural.views import build_views

app = ClientApp()


class Mf(torch.nn.Module):
    """Score of item i for this node's user: p · q_i + b_i."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(N_ITEMS, EMBEDDING_SIZE)
        self.bias = torch.nn.Embedding(N_ITEMS, 1)
        self.user = torch.nn.Parameter(torch.zeros(EMBEDDING_SIZE))

    def forward(self, items: torch.Tensor) -> torch.Tensor:
        """Scores of items of any shape."""
        return self.table(items) @ self.user + self.bias(items).squeeze(-1)


model = functools.cache(Mf)
histories = functools.cache(ml1m_shape)


def groups(user: int, round_: int) -> torch.Tensor:
    """[G, 1 + n] item indices: a positive and its negatives, in this round's order."""
    batch: UserBatch = histories().take(np.array([user]))
    views = build_views(batch, SEED, round_, N_ITEMS, NEGATIVES, 1)
    return torch.from_numpy(views.row[views.slot])


def private_vector(context: Context, user: int) -> torch.Tensor:
    """The user's own vector: the one kept on this node, or its initial value."""
    if "private" in context.state:
        return torch.from_numpy(context.state.array_records["private"]["user"].numpy())
    return torch.from_numpy(recommender().init_local(np.array([user]), SEED)["user_vector"][0])


@app.train()
def train(message: Message, context: Context) -> Message:
    """One epoch of minibatch SGD on this node's user."""
    torch.set_num_threads(1)
    user, mf = int(context.node_config["partition-id"]), model()
    shared = message.content.array_records["arrays"].to_torch_state_dict()
    mf.load_state_dict(shared | {"user": private_vector(context, user)})
    optimizer = torch.optim.SGD(mf.parameters(), lr=LEARNING_RATE)
    round_ = int(str(message.content.config_records["config"]["server-round"]))
    for minibatch in torch.split(groups(user, round_), MINIBATCH):
        scores = mf(minibatch)
        loss = softplus(-scores[:, 0]).sum() + softplus(scores[:, 1:]).sum()
        loss = loss + REG / 2 * len(minibatch) * mf.user.square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    trained = mf.state_dict()
    context.state["private"] = ArrayRecord({"user": Array(trained.pop("user").numpy())})
    # FedAvg weighs nodes by this number; fedrec's mean is over users.
    metrics = MetricRecord({"num-examples": 1})
    return Message(RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics}), reply_to=message)
