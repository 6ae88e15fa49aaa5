"""What there is to read in a drawn picture: the columns of an identity, which of them can be seen, and the classes.

Shapes: n pictures, P parameters of an identity, D columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from e4t.tiny.accessories import ACCESSORIES
from e4t.tiny.captions import TRAINING_KINDS
from e4t.tiny.columns import Layout, identity_columns
from e4t.tiny.scenes import SCENES
from e4t.tiny.styles import STYLES
from e4t.tiny.transforms import TRANSFORMS
from e4t.tiny.world import EXPRESSIONS, PARAMETERS, Identity, Picture, is_visible

NOTHING = "none"
ARTIST = "an artist's"

CLASSES: dict[str, tuple[str, ...]] = {
    "scene": tuple(SCENES),
    "style": (*STYLES, ARTIST),
    "accessory": (NOTHING, *ACCESSORIES),
    "expression": tuple(EXPRESSIONS),
    "transform": (NOTHING, *TRANSFORMS),
}
"""What else a judge reads, and the possible answers."""

ANSWERS: dict[str, tuple[str, ...]] = {**CLASSES, "subject": TRAINING_KINDS}


def classes_of(kind: str) -> dict[str, tuple[str, ...]]:
    """What a judge of ``kind`` reads besides identity; of art also who is drawn, which is not what identity is."""
    return ANSWERS if kind == "art" else CLASSES


_UNDER_A_HAT = ("hair_volume", "fringe", "parting")

HIDDEN_BY: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("red hat", "top hat", "wizard hat", "santa hat"), _UNDER_A_HAT),
    "sunglasses": ("eye_colour", "eye_shade", "eye_size", "eye_tilt", "eye_roundness"),
    "headphones": ("ear_size",),
    "sleeping": ("eye_colour", "eye_shade", "eye_tilt", "eye_roundness"),
}
"""Accessory or expression to the beginnings of the names of the parameters that it hides."""


def concept_of(picture: Picture, kind: str) -> Identity:
    """The identity that a judge of ``kind`` reads: the artist for "art", else who is drawn."""
    if kind == "art":
        if picture.art is None:
            raise ValueError("a judge of art was given a picture without an artist")
        return picture.art
    return picture.subject


def shows(picture: Picture, kind: str) -> bool:
    """Whether the picture has an identity of ``kind``."""
    return picture.art is not None if kind == "art" else picture.subject.kind == kind


def visible_parameters(subject: Identity, picture: Picture | None = None) -> np.ndarray:
    """Which parameters of ``subject`` can be seen, bool ``[P]``: at all, and under what is worn in ``picture``."""
    hidden = _hidden_beginnings(picture) if picture is not None and subject.kind != "art" else ()
    return np.array([is_visible(p, subject.params) and not p.name.startswith(hidden) for p in PARAMETERS[subject.kind]])


def _hidden_beginnings(picture: Picture) -> tuple[str, ...]:
    return (*HIDDEN_BY.get(picture.accessory or NOTHING, ()), *HIDDEN_BY.get(picture.expression, ()))


def class_answers(picture: Picture) -> dict[str, str]:
    """The right answer of every class."""
    return {
        "scene": picture.scene,
        "style": ARTIST if picture.art else picture.style,
        "accessory": picture.accessory or NOTHING,
        "expression": picture.expression,
        "transform": picture.transform or NOTHING,
        "subject": picture.subject.kind,
    }


@dataclass(frozen=True)
class Truth:
    """The right reading of n pictures: identity ``[n, D]``, visible columns bool ``[n, D]``, classes ``[n]`` each."""

    identity: np.ndarray
    visible: np.ndarray
    classes: dict[str, np.ndarray]

    @classmethod
    def of(cls, pictures: Sequence[Picture], kind: str) -> Truth:
        """What a judge of ``kind`` should read in ``pictures``."""
        owners = Layout.of(kind).owners
        subjects = [concept_of(picture, kind) for picture in pictures]
        answers = [class_answers(picture) for picture in pictures]
        return cls(
            identity=np.stack([identity_columns(subject) for subject in subjects]),
            visible=np.stack([visible_parameters(s, p)[owners] for s, p in zip(subjects, pictures, strict=True)]),
            classes={
                name: np.array([options.index(answer[name]) for answer in answers])
                for name, options in classes_of(kind).items()
            },
        )


@dataclass(frozen=True)
class Readings:
    """What a judge reads in n pictures: identity ``[n, D]`` (shares for options) and a class ``[n]`` per question."""

    identity: np.ndarray
    classes: dict[str, np.ndarray]

    def answers(self, row: int) -> dict[str, str]:
        """The class names read in one picture."""
        return {name: ANSWERS[name][int(indices[row])] for name, indices in self.classes.items()}


def joined(readings: Sequence[Readings | None]) -> Readings:
    """Several readings as one, in order; there must be some, and none missing."""
    known = [one for one in readings if one is not None]
    assert len(known) == len(readings)
    classes = {name: np.concatenate([one.classes[name] for one in known]) for name in known[0].classes}
    return Readings(np.concatenate([one.identity for one in known]), classes)
