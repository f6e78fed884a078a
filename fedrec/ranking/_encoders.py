"""Networks that make a vector of a history, with numpy alone: the forward passes of the models that were trained.

Each takes the vectors of the own events, oldest first, and gives the vector that items are scored with. They follow
`fedrec.recommenders` line by line (tests compare the scores), for one user and without padding.

Letters: L events, d width, h hidden width, H heads. Out of scope: tables, scores, files (`network`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.ranking.folding import recency

Matrix = NDArray[Any]
Weights = Mapping[str, NDArray[Any]]
#: [L, d] events and [L] interaction weights to [d].
Encoder = Callable[[Weights, Mapping[str, Any], Matrix, Matrix], NDArray[Any]]


def sasrec(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """Causal self-attention; without an event nothing is known."""
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    x = x * np.float32(x.shape[1] ** 0.5) + w["position"][-len(x) :]
    past = np.tri(len(x), dtype=bool)
    for block in range(settings["blocks"]):
        x = _attention_block(w, f"block{block}", x, past, settings["heads"])
    return np.asarray(_norm(w, "last", x)[-1])


def bert4rec(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """Attention in both directions, asked for a hidden event behind the history."""
    x = np.concatenate([x, w["hidden_item"][None]])
    x = x * np.float32(x.shape[1] ** 0.5) + w["position"][-len(x) :]
    everywhere = np.ones((len(x), len(x)), dtype=bool)
    for block in range(settings["blocks"]):
        x = _attention_block(w, f"block{block}", x, everywhere, settings["heads"])
    return np.asarray(_norm(w, "last", x)[-1])


def gru4rec(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """Gated recurrent units."""
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    for layer in range(settings["layers"]):
        read = _linear(w, f"gru{layer}/read", x)
        state, states = np.zeros(x.shape[1], np.float32), np.empty_like(x)
        for t in range(len(x)):
            kept = state @ w[f"gru{layer}/remember"]
            (read_r, read_z, read_n), (kept_r, kept_z, kept_n) = np.split(read[t], 3), np.split(kept, 3)
            fresh = np.tanh(read_n + _sigmoid(read_r + kept_r) * kept_n)
            update = _sigmoid(read_z + kept_z)
            state = states[t] = (1.0 - update) * state + update * fresh
        x = states
    return np.asarray(_linear(w, "out", x)[-1])


def two_tower(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """Pooling by content and age, then a hidden layer."""
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    weight = _softmax(w["age"][: len(x)][::-1] + (x @ w["ask"])[:, 0])
    pooled = _norm(w, "pooled", (weight @ x)[None])
    return np.asarray((pooled + _linear(w, "out", np.maximum(_linear(w, "hidden", pooled), 0.0)))[0])


def text_attention(
    w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix
) -> NDArray[Any]:
    """One block of causal self-attention."""
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    x = x + w["position"][-len(x) :]
    x = _attention_block(w, "block0", x, np.tri(len(x), dtype=bool), settings["heads"])
    return np.asarray(_norm(w, "last", x)[-1])


def text_lstm(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """A long short-term memory."""
    if not len(x):
        return np.zeros(x.shape[1], np.float32)
    read, hidden, cell = _linear(w, "lstm/read", x), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for t in range(len(x)):
        enter, forget, show, value = np.split(read[t] + hidden @ w["lstm/remember"], 4)
        cell = _sigmoid(forget + 1.0) * cell + _sigmoid(enter) * np.tanh(value)
        hidden = _sigmoid(show) * np.tanh(cell)
    return np.asarray(_norm(w, "last", hidden[None])[0])


def mult_vae(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """The mean of the latent vector, taken back to the decoder's last layer; events [L, h]."""
    length = max(float(np.sqrt(np.square(interaction_weight).sum())), 1e-6)
    hidden = np.tanh((interaction_weight / length) @ x + w["read_bias"])
    mean = np.split(_linear(w, "latent", hidden[None]), 2, axis=1)[0]
    return np.asarray(np.tanh(_linear(w, "back", mean))[0])


def content(w: Weights, settings: Mapping[str, Any], x: Matrix, interaction_weight: Matrix) -> NDArray[Any]:
    """The profile, mapped to what is liked beside it."""
    weight = recency(len(x), settings["half_life"]) * interaction_weight
    return np.asarray((weight @ x.astype(np.float64)) @ w["map"])


ENCODERS: dict[str, Encoder] = {
    encoder.__name__: encoder
    for encoder in (sasrec, bert4rec, gru4rec, two_tower, text_attention, text_lstm, mult_vae, content)
}


def _attention_block(w: Weights, name: str, x: Matrix, allowed: NDArray[np.bool_], heads: int) -> Matrix:
    length, width = x.shape
    qkv = _linear(w, f"{name}/qkv", _norm(w, f"{name}/norm1", x))
    q, key, value = qkv.reshape(length, 3, heads, width // heads).transpose(1, 2, 0, 3)
    scores = q @ key.transpose(0, 2, 1) / np.float32((width // heads) ** 0.5)
    seen = _softmax(np.where(allowed, scores, -np.inf)) @ value
    x = x + _linear(w, f"{name}/out", seen.transpose(1, 0, 2).reshape(length, width))
    inner = _gelu(_linear(w, f"{name}/up", _norm(w, f"{name}/norm2", x)))
    return np.asarray(x + _linear(w, f"{name}/down", inner))


def _linear(w: Weights, name: str, x: NDArray[Any]) -> Matrix:
    return np.asarray(x @ w[f"{name}/weight"] + w[f"{name}/bias"])


def _norm(w: Weights, name: str, x: NDArray[Any]) -> Matrix:
    centred = x - x.mean(axis=-1, keepdims=True)
    spread = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + 1e-5)
    return np.asarray(centred / spread * w[f"{name}/scale"] + w[f"{name}/shift"])


def _softmax(x: NDArray[Any]) -> Matrix:
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def _sigmoid(x: NDArray[Any]) -> Matrix:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _gelu(x: Matrix) -> Matrix:
    """By tanh (Hendrycks and Gimpel 2016), as in training."""
    return np.asarray(0.5 * x * (1.0 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3))))
