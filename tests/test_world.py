"""The drawn world: the same on every machine, closed namespaces, words that leave individuals apart."""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from e4t.tiny import world
from e4t.tiny.accessories import ACCESSORIES
from e4t.tiny.captions import NAMED, name_of, names, training_picture
from e4t.tiny.scenes import SCENES
from e4t.tiny.styles import STYLES
from e4t.tiny.transforms import TRANSFORMS
from e4t.tiny.world import EXPRESSIONS, PARAMETERS, Drawing, Picture, draw, identity, is_visible, twins, words

KINDS = ("face", "cat", "dog", "art")
LIVING = ("face", "cat", "dog")


def test_there_is_enough_to_draw() -> None:
    for kind in KINDS:
        parameters = PARAMETERS[kind]
        assert len(parameters) >= 20, kind
        assert len({p.name for p in parameters}) == len(parameters)
        assert sum(not p.options for p in parameters) > len(parameters) / 2, f"{kind} should be mostly continuous"
    assert len(SCENES) >= 10
    assert len(STYLES) >= 10
    assert len(ACCESSORIES) >= 8
    assert len(TRANSFORMS) >= 4
    assert len(EXPRESSIONS) >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_identities_come_from_their_name_alone(kind: str) -> None:
    first, again, other = identity("a", 3, kind), identity("a", 3, kind), identity("b", 3, kind)
    assert dict(first.params) == dict(again.params)
    assert dict(first.params) != dict(other.params)
    assert list(first.params) == [p.name for p in PARAMETERS[kind]]
    for parameter in PARAMETERS[kind]:
        assert 0 <= first.params[parameter.name] < (len(parameter.options) or 1)


def test_identities_do_not_depend_on_the_process() -> None:
    code = "from e4t.tiny.world import identity; print(sorted(identity('x', 7).params.items()))"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert seen.strip() == str(sorted(identity("x", 7).params.items()))


def test_requirements_name_categorical_parameters() -> None:
    for kind in KINDS:
        options = {p.name: len(p.options) for p in PARAMETERS[kind]}
        for parameter in PARAMETERS[kind]:
            if parameter.requires:
                name, allowed = parameter.requires
                assert max(allowed) < options[name], parameter.name


def test_namespaces_are_closed_and_names_belong_to_training() -> None:
    assert world.TRAINING_NAMESPACES == ("train", "judges")
    assert not set(world.TRAINING_NAMESPACES) & set(world.VALIDATION_NAMESPACES)
    for kind, count in NAMED.items():
        assert name_of(identity("train", 0, kind)) == names(kind)[0]
        assert name_of(identity("train", count - 1, kind)) == names(kind)[-1]
        assert name_of(identity("train", count, kind)) is None
        for namespace in ("validation", "held-out-1", "Train"):
            assert name_of(identity(namespace, 0, kind)) is None
        assert name_of(next(twins(identity("train", 0, kind), 1))) is None
        assert len(set(names(kind))) == count


def test_every_training_picture_is_of_the_training_namespace() -> None:
    for index in range(300):
        picture = training_picture(index)
        for one in filter(None, (picture.subject, picture.art)):
            assert one.key.split("/")[1] == "train"
        assert picture.subject.kind in ("face", "cat"), "dogs are never trained on"


@pytest.mark.parametrize("kind", ["face", "cat"])
def test_twins_share_every_word_and_differ_elsewhere(kind: str) -> None:
    subject = identity("twins", 1, kind)
    family = [subject, *twins(subject, 19)]
    assert len({one.key for one in family}) == 20
    for twin in family[1:]:
        assert words(twin) == words(subject)
        for parameter in PARAMETERS[kind]:
            same = twin.params[parameter.name] == subject.params[parameter.name]
            assert same == bool(parameter.options), parameter.name
    assert [dict(one.params) for one in twins(subject, 3)] == [dict(one.params) for one in twins(subject, 3)]


def test_words_are_of_visible_parameters() -> None:
    for index in range(50):
        subject = identity("words", index)
        visible = {p.name for p in PARAMETERS["face"] if is_visible(p, subject.params)}
        assert set(words(subject)) <= visible


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("index", range(6))
def test_drawing_is_deterministic(index: int, size: int) -> None:
    picture = training_picture(index)
    one, two = draw(picture, size), draw(picture, size)
    assert one.rgb.shape == (size, size, 3)
    assert one.rgb.dtype == np.uint8
    np.testing.assert_array_equal(one.rgb, two.rgb)
    np.testing.assert_array_equal(one.mask, two.mask)


def test_drawing_does_not_depend_on_the_process() -> None:
    code = (
        "import hashlib; from e4t.tiny.captions import training_picture; from e4t.tiny.world import draw;"
        "print([hashlib.sha256(draw(training_picture(i), 64).rgb.tobytes()).hexdigest() for i in range(4)])"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = [hashlib.sha256(draw(training_picture(i), 64).rgb.tobytes()).hexdigest() for i in range(4)]
    assert child.stdout == f"{here}\n"


def test_resolutions_show_the_same_picture() -> None:
    picture = Picture(identity("sizes", 0), scene="beach")
    small, large = draw(picture, 64), draw(picture, 128)
    shrunk = cv2.resize(large.rgb, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.abs(shrunk.astype(float) - small.rgb).mean() < 12
    assert abs(small.mask.mean() - large.mask.mean()) < 0.02


@pytest.mark.parametrize("kind", LIVING)
def test_masks_cover_the_subject_and_not_the_scene(kind: str) -> None:
    for index in range(4):
        mask = draw(Picture(identity("masks", index, kind), scene="forest"), 64).mask
        assert mask.shape == (64, 64)
        assert mask.dtype == np.float32
        assert 0 <= mask.min() < 0.01
        assert 0.99 < mask.max() <= 1
        assert 0.15 < mask.mean() < 0.85
        assert mask[32:, 24:40].mean() > 0.8, "the figure stands in the middle"


@functools.cache
def drawn(kind: str, **change: str) -> Drawing:
    return draw(Picture(identity("changes", 2, kind), **change), 64)


@pytest.mark.parametrize(
    "change",
    [{"scene": s} for s in SCENES if s != "studio"]
    + [{"style": s} for s in STYLES if s != "photo"]
    + [{"accessory": a} for a in ACCESSORIES]
    + [{"transform": t} for t in TRANSFORMS]
    + [{"expression": e} for e in EXPRESSIONS if e != "neutral"],
    ids=lambda change: next(iter(change.values())),
)
@pytest.mark.parametrize("kind", ["face", "cat"])
def test_everything_changes_the_picture(kind: str, change: dict[str, str]) -> None:
    changed = drawn(kind, **change)
    assert np.abs(drawn(kind).rgb.astype(float) - changed.rgb).max() > 24
    assert np.isfinite(changed.mask).all()
    assert 0 <= changed.mask.min() <= changed.mask.max() <= 1


def test_art_replaces_the_style() -> None:
    subject = identity("art", 0)
    one, two = (draw(Picture(subject, art=identity("art", i, "art")), 64).rgb for i in range(2))
    assert np.abs(one.astype(float) - two).mean() > 3
