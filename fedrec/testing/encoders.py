"""The contract of a text encoder; subclass `EncoderContract` and give `encoder_name`."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from fedrec.content.encoders import Encoder, load_encoder

ODD = ["a\0b", "\ud800 broken", "🎬" * 50, "word " * 3000, "x" * 20_000, "ﬁlm", "\u202eabc"]


class EncoderContract:
    """What catalogues, caches and reviews rely on."""

    #: Name or import path.
    encoder_name: ClassVar[str]

    @pytest.fixture(scope="class")
    @classmethod
    def encoder(cls) -> Encoder:
        """The encoder; made once."""
        return load_encoder(cls.encoder_name, paths=True)

    def test_rows_are_unit_vectors_and_blank_texts_are_zero(self, encoder: Encoder) -> None:
        """Norm 1 makes products cosines; a text of white space says nothing."""
        vectors = encoder.encode(["Alien (1979) | Horror", "", " \t\n", "Alien (1979) | Horror", "\0\u200b"])
        assert vectors.shape == (5, encoder.dimensions) and vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 0, 0, 1, 0], atol=1e-5)
        np.testing.assert_array_equal(vectors[0], vectors[3])
        assert encoder.encode([]).shape == encoder.encode_queries([]).shape == (0, encoder.dimensions)

    def test_it_says_what_it_is(self, encoder: Encoder) -> None:
        """Name and version are the key of a cache."""
        assert encoder.name and encoder.version and encoder.languages

    def test_a_vector_does_not_depend_on_its_batch(self, encoder: Encoder) -> None:
        """Devices encode one text, servers a catalogue."""
        texts = ["Alien (1979)", "a very much longer text about nothing in particular " * 5, "爱情", "x"]
        together = encoder.encode(texts)
        alone = np.concatenate([encoder.encode([text]) for text in texts])
        np.testing.assert_allclose(together, alone, atol=1e-5)

    def test_different_texts_have_different_vectors(self, encoder: Encoder) -> None:
        """Otherwise it would be no encoder."""
        one, other = encoder.encode(["a scary film about a ship in space", "a recipe for apple pie"])
        assert float(one @ other) < 0.999

    def test_odd_texts_are_encoded(self, encoder: Encoder) -> None:
        """Catalogues hold whatever was typed into them."""
        vectors = encoder.encode(ODD)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
