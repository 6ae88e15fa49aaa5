"""Scores of the demo's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e4t.demo import ART_PROMPTS, SUBJECT_PROMPTS, caption_of, example_pictures, mask_of
from e4t.evaluation.evaluate import prompt_text, prompted
from e4t.evaluation.examples import score_examples, truth_of
from e4t.evaluation.truth import Readings, Truth
from e4t.images import load_image
from e4t.pictures import caption_beside
from e4t.tiny.album import AlbumConfig, snapshot, write_album
from e4t.tiny.captions import plain_caption
from e4t.tiny.columns import Layout
from e4t.tiny.world import Identity, Picture, identity

PROMPTS = list(SUBJECT_PROMPTS.values())


class Oracle:
    """A judge that knows which picture is which by the number in its first pixel."""

    kind, layout = "face", Layout.of("face")
    readable = np.ones(len(layout.names), bool)

    def __init__(self, pictures: Sequence[Picture]) -> None:
        self.pictures = pictures

    def read(self, rgb: np.ndarray) -> Readings:
        truth = Truth.of([self.pictures[int(image[0, 0, 0])] for image in rgb], "face")
        return Readings(truth.identity, truth.classes)


def numbered(first: int) -> list[list[Image.Image]]:
    return [[Image.new("RGB", (128, 128), (first + place, 0, 0)) for place in range(len(PROMPTS))]]


def test_truth_scores_one_and_a_stranger_without_prompts_nothing() -> None:
    subject = identity("demo", 0)
    right = [prompted(subject, asked) for asked in PROMPTS]
    wrong = [Picture(identity("strangers", place), style="mosaic") for place in range(len(PROMPTS))]
    drawn = {"right": numbered(0), "wrong": numbered(len(right))}
    scores = score_examples(Oracle([*right, *wrong]), [subject], PROMPTS, drawn)
    assert len(scores) == 3
    for row in scores.values():
        assert row["right"] == 1
        assert row["wrong"] < 0.2


@pytest.mark.parametrize("path", [path for kind in ("face", "cat", "art") for path in example_pictures(kind)])
def test_shipped_examples_say_who_they_are(path: Path) -> None:
    truth = truth_of(path)
    kind, number = path.stem.split("-")
    expected: Identity = identity("demo", int(number), kind)
    assert truth == expected
    assert truth.params == dict(expected.params)
    mask = mask_of(path)
    assert (mask is None) == (kind == "art")
    assert mask is None or mask.size == load_image(path).size
    assert mask_of(path.parent / "nobody.png") is None
    shown = snapshot("demo", int(number), kind)
    assert caption_of(path) == (plain_caption(shown, "S*") if kind == "art" else None)
    assert caption_of(path.parent / "nobody.png") is None


def test_artists_are_asked_for_what_can_be_read() -> None:
    artist = identity("demo", 0, "art")
    for text, asked in ART_PROMPTS.items():
        assert prompt_text(artist, asked, "S*") == text


def test_an_album_says_what_it_shows_also_of_pictures_that_are_there(tmp_path: Path) -> None:
    write_album(AlbumConfig(tmp_path, "album-test", 1, "art"))
    (picture,) = tmp_path.iterdir()
    drawn = picture.stat().st_mtime_ns
    write_album(AlbumConfig(tmp_path, "album-test", 1, "art", captions=True))
    assert picture.stat().st_mtime_ns == drawn
    assert caption_beside(picture) == plain_caption(snapshot("album-test", 0, "art"), "S*")
    assert "in the style of S*" in str(caption_beside(picture))
