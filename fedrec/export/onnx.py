"""The serving graph of a model as ONNX, for phones and browsers without Python.

    inputs   taste    [1, d]  of the user; for item-item models [1, I], the weight of each item in the history
             blocked  [1, I]  what must not appear
             n        [1]     list length
    outputs  items    [1, n]  places, best first
             scores   [1, n]

Item tables are stored transposed, [d, I], because runtimes prepare a constant on the right of a product and not on
the left: the other way round the same list takes about 17 times as long. 8-bit tables stay 8-bit in the file.
Out of scope: folding a user in (`taste_of` does it here; on a phone it is a small linear system), sparse models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedrec.core.errors import DataError, EnvironmentProblem
from fedrec.ranking.factors import Factors
from fedrec.ranking.item_item import ItemItem
from fedrec.ranking.model import ServingModel, User
from fedrec.ranking.tables import ByteTable, Table
from fedrec.ranking.weights import DenseWeights

OPSET = 17
#: So that runtimes of some years ago read it.
IR_VERSION = 9


def export_onnx(model: ServingModel, path: Path) -> None:
    """Write the serving graph of a model.

    Raises:
        DataError: a model of a kind that has no such graph.
        EnvironmentProblem: the package onnx is not installed.
    """
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise EnvironmentProblem("ONNX needs its package: pip install 'fedrec[export]'") from error
    table, base = _parts(model)
    width, n_items = (table.shape[1], table.shape[0]) if isinstance(model, Factors) else table.shape
    nodes: list[Any] = []
    constants = [numpy_helper.from_array(np.array(-np.inf, dtype=np.float32), "nothing")]
    values, scale = _transposed(table, model)
    left, product = "taste", "product"
    if scale is None:
        constants.append(numpy_helper.from_array(values, "table"))
    else:
        # Not DequantizeLinear: runtimes fuse that with the product and round the taste, too.
        constants += [
            numpy_helper.from_array(values, "codes"),
            numpy_helper.from_array(scale[None, :], "scale"),
        ]
        nodes.append(helper.make_node("Cast", ["codes"], ["table"], to=TensorProto.FLOAT))
        if isinstance(model, Factors):
            product = "codes times taste"
        else:
            nodes.append(helper.make_node("Mul", ["taste", "scale"], ["scaled"]))
            left = "scaled"
    nodes.append(helper.make_node("MatMul", [left, "table"], [product]))
    if product != "product":
        nodes.append(helper.make_node("Mul", [product, "scale"], ["product"]))
    summed = "product"
    if base is not None:
        constants.append(numpy_helper.from_array(base.astype(np.float32)[None, :], "base"))
        nodes.append(helper.make_node("Add", ["product", "base"], ["all"]))
        summed = "all"
    nodes += [
        helper.make_node("Where", ["blocked", "nothing", summed], ["open"]),
        helper.make_node("TopK", ["open", "n"], ["scores", "items"], axis=1, largest=1, sorted=1),
    ]
    graph = helper.make_graph(
        nodes,
        "fedrec",
        [
            helper.make_tensor_value_info("taste", TensorProto.FLOAT, [1, width]),
            helper.make_tensor_value_info("blocked", TensorProto.BOOL, [1, n_items]),
            helper.make_tensor_value_info("n", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, "n"]),
            helper.make_tensor_value_info("items", TensorProto.INT64, [1, "n"]),
        ],
        constants,
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    made.producer_name = "fedrec"
    onnx.checker.check_model(made)
    onnx.save(made, str(path))


def taste_of(model: ServingModel, user: User) -> NDArray[np.float32]:
    """[1, d] or [1, I]: the input of the graph for a user whom the model has folded in.

    Raises:
        DataError: a model of a kind that has no such graph.
    """
    if isinstance(model, Factors):
        if user.state is None:
            return np.zeros((1, model.table.shape[1]), np.float32)
        return np.asarray(user.state.vector, dtype=np.float32)[None, :]
    _parts(model)
    taste = np.zeros((1, model.n_items), np.float32)
    if len(user.history):
        np.add.at(taste[0], user.history.item, np.asarray(user.state, dtype=np.float32))
    return taste


def _parts(model: ServingModel) -> tuple[Table, NDArray[np.float32] | None]:
    """Table and base of a model that is a product with a table."""
    if isinstance(model, Factors):
        return model.table, model.bias
    if isinstance(model, ItemItem) and isinstance(model.weights, DenseWeights):
        return model.weights.table, model.base
    raise DataError(
        f"a model of kind {model.kind!r} has no ONNX graph: export factors, or item-item weights that are not pruned"
    )


def _transposed(table: Table, model: ServingModel) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """The table as the right side of the product, and the scale of each item's row where it holds 8-bit codes."""
    turned = isinstance(model, Factors)  # item-item weights stand right already: rows are histories
    if isinstance(table, ByteTable):
        return np.ascontiguousarray(table.codes.T if turned else table.codes), table.scale
    values = table.rows(np.arange(table.shape[0]))
    return np.ascontiguousarray(values.T if turned else values), None
