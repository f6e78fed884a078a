"""The exported graph gives the lists of numpy, through a runtime that knows nothing of us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from fedrec.core.errors import DataError
from fedrec.export.onnx import export_onnx, taste_of
from fedrec.ranking.factors import Factors
from fedrec.ranking.folding import Newton, Ridge
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.model import History, ServingModel
from fedrec.ranking.popular import Popular
from fedrec.ranking.tables import FloatTable
from fedrec.ranking.top_scores import top_k
from fedrec.ranking.weights import DenseWeights

ITEMS, D = 120, 16
RNG = np.random.default_rng(0)
TABLE = FloatTable(RNG.normal(size=(ITEMS, D)))
SQUARE = FloatTable(RNG.normal(size=(ITEMS, ITEMS)))
BIAS = RNG.normal(size=ITEMS).astype(np.float32)
MODELS: dict[str, ServingModel] = {
    "factors": Factors(TABLE, Ridge(0.1, 0.01)),
    "factors with bias": Factors(TABLE, Newton("bce", 4, 0.01, 0.1), BIAS),
    "item-item": ItemItem(DenseWeights(SQUARE), 3.0),
    "item-item with base": ItemItem(DenseWeights(SQUARE), None, BIAS),
}
MODELS |= {f"{name}, int8": model.quantised() for name, model in MODELS.items()}


@pytest.mark.parametrize("history", [[], [3], [5, 80, 7, 44]])
@pytest.mark.parametrize("name", MODELS)
def test_the_graph_gives_the_lists_of_numpy(tmp_path: Path, name: str, history: list[int]) -> None:
    model, path = MODELS[name], tmp_path / "model.onnx"
    export_onnx(model, path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    user = model.fold_in(History(np.array(history, dtype=np.int64), np.ones(len(history), np.float32)))
    scores = model.scores(user).astype(np.float32)
    blocked = np.zeros((1, ITEMS), bool)
    blocked[0, [*history, 11, 12]] = True
    scores[blocked[0]] = -np.inf
    inputs = {"taste": taste_of(model, user), "blocked": blocked, "n": np.array([10], np.int64)}
    values, items = session.run(["scores", "items"], inputs)
    np.testing.assert_allclose(values[0], scores[top_k(scores, 10)], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(scores[items[0]], values[0], rtol=1e-4, atol=1e-4)
    assert not set(items[0].tolist()) & set(np.flatnonzero(blocked[0]).tolist())
    if len(set(np.round(scores[top_k(scores, 11)], 4).tolist())) == 11:
        assert items[0].tolist() == top_k(scores, 10).tolist()


def test_items_stand_transposed_and_8_bit_stays_8_bit(tmp_path: Path) -> None:
    export_onnx(MODELS["factors"], tmp_path / "float.onnx")
    export_onnx(MODELS["factors, int8"], tmp_path / "bytes.onnx")
    shapes = {
        tensor.name: numpy_helper.to_array(tensor)
        for name in ("float.onnx", "bytes.onnx")
        for tensor in onnx.load(tmp_path / name).graph.initializer
    }
    assert shapes["table"].shape == (D, ITEMS) and shapes["codes"].shape == (D, ITEMS)
    assert shapes["codes"].dtype == np.int8
    assert (tmp_path / "bytes.onnx").stat().st_size < 0.5 * (tmp_path / "float.onnx").stat().st_size


@pytest.mark.parametrize(
    "model", [Popular(BIAS), ItemItem(DenseWeights(SQUARE)).pruned(5)], ids=["popular", "sparse"]
)
def test_what_has_no_graph_says_so(tmp_path: Path, model: ServingModel) -> None:
    with pytest.raises(DataError, match="no ONNX graph"):
        export_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


def test_the_sdk_does_not_need_it() -> None:
    code = (
        "import sys, fedrec_client.app.client; print('onnx' in sys.modules, 'fedrec.export' in sys.modules)"
    )
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.split() == ["False", "False"]
