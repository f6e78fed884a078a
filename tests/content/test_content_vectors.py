"""Files of vectors, and several views of the same items side by side."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from fedrec.content.fusion import late_fusion
from fedrec.content.vectors import ItemVectors, read_vectors
from fedrec.core.errors import ConfigError, DataError

IDS = np.array(["tt1", "tt2", "电影"])
VECTORS = np.arange(6, dtype=np.float32).reshape(3, 2)


def write(path: Path, form: str) -> Path:
    """The same vectors in each form that is understood."""
    file = path / f"vectors.{form.split('+')[0]}"
    match form:
        case "npz":
            np.savez(file, ids=IDS, vectors=VECTORS.astype(np.float64))
        case "npy+txt":
            np.save(file, VECTORS)
        case "safetensors":
            save_file({"vectors": VECTORS}, file, {"ids": json.dumps(IDS.tolist())})
        case "safetensors+txt":
            save_file({"vectors": VECTORS}, file)
    if form.endswith("+txt"):
        (path / "vectors.ids.txt").write_text("\n".join(IDS.tolist()) + "\n", encoding="utf-8")
    return file


FORMS = ["npz", "npy+txt", "safetensors", "safetensors+txt"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_reads_the_same(tmp_path: Path, form: str) -> None:
    read = read_vectors(write(tmp_path, form))
    assert read.ids.tolist() == IDS.tolist() and read.vectors.dtype == np.float32
    np.testing.assert_array_equal(read.vectors, VECTORS)


def test_numbers_as_ids(tmp_path: Path) -> None:
    save_file({"vectors": VECTORS, "ids": np.array([3, 1, 2])}, tmp_path / "v.safetensors")
    assert read_vectors(tmp_path / "v.safetensors").ids.tolist() == ["3", "1", "2"]


def test_align_matches_by_id_and_leaves_zeros() -> None:
    aligned = ItemVectors(IDS, VECTORS + 1).align(np.array(["电影", "no one", "tt1"]))
    assert aligned.tolist() == [[5, 6], [0, 0], [1, 2]]
    assert ItemVectors(IDS[:0], VECTORS[:0]).align(IDS).tolist() == [[0, 0]] * 3


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    cut=st.booleans(),
)
def test_damage_is_a_data_error_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, form: str, place: float, bit: int, cut: bool
) -> None:
    """Whatever one flipped bit or a cut does, a reader sees a DataError or a whole table of finite numbers."""
    path = write(tmp_path_factory.mktemp("damage"), form)
    content = bytearray(path.read_bytes())
    position = int(place * len(content))
    content[position] ^= 1 << bit
    path.write_bytes(content[:position] if cut else content)
    try:
        read = read_vectors(path)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert len(read.ids) == len(read.vectors) and np.isfinite(read.vectors).all()


def test_what_does_not_fit_is_one_line(tmp_path: Path) -> None:
    def refused(match: str, name: str, **content: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
        np.savez(tmp_path / name, **content)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=match):
            read_vectors(tmp_path / name)

    refused("one id and one row", "a.npz", ids=IDS[:2], vectors=VECTORS)
    refused("stands twice", "b.npz", ids=np.array(["x", "x", "y"]), vectors=VECTORS)
    refused("NaN or infinity", "c.npz", ids=IDS, vectors=np.full((3, 2), 1e60))
    refused("expected an array 'vectors'", "d.npz", ids=IDS, features=VECTORS)
    refused("expected numbers", "e.npz", ids=IDS, vectors=np.array([["a"], ["b"], ["c"]]))
    refused("one id and one row", "f.npz", ids=IDS, vectors=VECTORS[:, 0])
    refused("f.ids.txt, one id per line", "f.npz", vectors=VECTORS)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError):
        read_vectors(tmp_path / "v.npy")


def test_missing_files_and_other_forms(tmp_path: Path) -> None:
    for name in ("no.npz", "no.npy", "no.safetensors", "no.csv"):
        with pytest.raises(DataError, match=name):
            read_vectors(tmp_path / name)
    save_file({"vectors": VECTORS}, tmp_path / "v.safetensors", {"ids": "no json"})
    with pytest.raises(DataError, match="no JSON"):
        read_vectors(tmp_path / "v.safetensors")


def test_a_product_of_fused_rows_is_the_weighted_sum_of_cosines() -> None:
    rng = np.random.default_rng(1)
    text, image = rng.normal(size=(8, 5)).astype(np.float32), 1e4 * rng.normal(size=(8, 3)).astype(np.float32)
    fused = late_fusion({"text": text, "image": image}, {"text": 1.0, "image": 0.25})
    assert fused.shape == (8, 5 + 3 + 2) and fused.dtype == np.float32

    def cosine(part: np.ndarray[tuple[int, int], np.dtype[np.float32]], a: int, b: int) -> float:
        z = (part - part.mean(0)) / part.std(0)
        return float(z[a] @ z[b] / np.linalg.norm(z[a]) / np.linalg.norm(z[b]))

    expected = cosine(text, 2, 6) + 0.25 * cosine(image, 2, 6) + 2
    assert fused[2] @ fused[6] == pytest.approx(expected, abs=1e-5)


def test_unknown_rows_are_zero_and_marked_and_change_nothing_else() -> None:
    rng = np.random.default_rng(2)
    text, image = (rng.normal(size=(6, 4)).astype(np.float32) for _ in range(2))
    image[[1, 4]] = 0
    fused = late_fusion({"text": text, "image": image})
    np.testing.assert_array_equal(fused[[1, 4], 4:8], 0)
    assert fused[:, 8].tolist() == [1] * 6 and fused[:, 9].tolist() == [1, 0, 1, 1, 0, 1]
    known = [0, 2, 3, 5]
    np.testing.assert_allclose(fused[known, 4:8], late_fusion({"image": image[known]})[:, :4], atol=1e-6)


@settings(deadline=None)
@given(
    arrays(np.float32, (5, 3), elements=st.floats(-(2.0**60), 2.0**60, width=32)),
    st.floats(2.0**-20, 2.0**20),
)
def test_fused_numbers_are_finite_bounded_and_free_of_units(part: np.ndarray, weight: float) -> None:  # type: ignore[type-arg]
    fused = late_fusion({"a": part}, {"a": weight})
    assert np.isfinite(fused).all()
    assert (np.linalg.norm(fused[:, :3], axis=1) <= np.sqrt(weight) * (1 + 1e-5)).all()


def test_a_constant_column_says_nothing() -> None:
    part = np.array([[5, 1], [5, 2], [5, 4]], dtype=np.float32)
    np.testing.assert_array_equal(late_fusion({"a": part})[:, 0], 0)


def test_fusion_refuses_what_does_not_fit() -> None:
    part = np.ones((3, 2), dtype=np.float32)
    with pytest.raises(ConfigError, match="one for each"):
        late_fusion({"a": part}, {"b": 1.0})
    with pytest.raises(ConfigError, match="one for each"):
        late_fusion({})
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="above 0"):
            late_fusion({"a": part}, {"a": weight})
    with pytest.raises(DataError, match="one row per item"):
        late_fusion({"a": part, "b": part[:2]})
    with pytest.raises(DataError, match="NaN"):
        late_fusion({"a": part * np.float32("nan")})
