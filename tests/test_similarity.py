"""CLIP-T and CLIP-I on the shipped CLIP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e4t.errors import ConfigError
from e4t.evaluation.similarity import Clip
from e4t.tiny.album import snapshot
from e4t.tiny.world import draw


def test_faces_are_nearer_to_the_word_face_and_cats_to_cat() -> None:
    clip = Clip.load("tiny")
    images = [Image.fromarray(draw(snapshot("similarity", i, kind)).rgb) for kind in ("face", "cat") for i in range(3)]
    vectors, texts = clip.images(images), clip.texts(["a photo of a face", "a photo of a cat"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness = vectors @ texts.T
    assert (likeness.argmax(1) == [0, 0, 0, 1, 1, 1]).all()


def test_pictures_of_another_size_are_resized() -> None:
    clip, image = Clip.load("tiny"), Image.fromarray(draw(snapshot("similarity", 0, "face"), 256).rgb)
    assert float((clip.images([image]) * clip.images([image.resize((128, 128))])).sum()) > 0.95


def test_a_folder_without_a_whole_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no whole CLIP"):
        Clip.load(tmp_path)
