"""What the figures, scenes and accessories of the drawn world have in common: parameters, anchors, SVG.

Everything is drawn as SVG on a square canvas of 100 x 100 units (y grows downwards) and rasterised by resvg, so
that a picture exists at any resolution and is the same on every machine.
"""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import resvg_py

Params = Mapping[str, float]
"""An identity's numbers: continuous ones in [0, 1], categorical ones the index of their option."""


@dataclass(frozen=True)
class Parameter:
    """One number of an identity.

    ``options`` makes it categorical (the value is an index). ``words`` cuts a continuous one into equal bins that
    captions can name. With neither it is something no caption can say. ``first`` is the share of individuals with the
    first option, where options are not all equally common. ``requires`` names a categorical parameter and the option
    indices under which this one is visible at all. ``circular`` is a hue or a direction, whose 0 and 1 are the same.
    """

    name: str
    words: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    requires: tuple[str, tuple[int, ...]] | None = None
    first: float | None = None
    circular: bool = False

    def word(self, value: float) -> str | None:
        """The caption word for ``value``, or None when captions cannot say it."""
        if self.options:
            return self.options[int(value)]
        return self.words[min(int(value * len(self.words)), len(self.words) - 1)] if self.words else None


@dataclass(frozen=True)
class Pose:
    """Nuisance of a figure: ``yaw`` and ``pitch`` in [-1, 1] move the features over the head; the rest places it."""

    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0  # degrees
    scale: float = 1.0
    x: float = 0.0  # canvas units
    y: float = 0.0


@dataclass(frozen=True)
class Light:
    """``side`` in [-1, 1]: where the light comes from (left to right). ``warmth`` in [-1, 1]. ``level`` in [0, 1]."""

    side: float = -0.5
    warmth: float = 0.0
    level: float = 1.0


@dataclass(frozen=True)
class Anchors:
    """Where things can be put on a figure, in its own canvas units, after yaw and pitch."""

    cx: float  # centre line of the head
    face_x: float  # centre line of the features (moves with yaw)
    head_top: float  # top of the head, hair included
    skull_top: float  # top of the head without hair
    chin: float
    half_width: float  # half the head's width at the temples
    eye_y: float
    eye_dx: float  # half the distance between the eyes
    eye_size: float
    ear_y: float
    mouth_y: float
    neck_y: float
    neck_half_width: float


@dataclass(frozen=True)
class Figure:
    """A subject in three SVG layers, from the back to the front, and where accessories attach."""

    back: str
    body: str
    head: str
    anchors: Anchors


@dataclass(frozen=True)
class Attachment:
    """An accessory in three SVG layers: behind the figure, between body and head, in front of everything."""

    back: str = ""
    middle: str = ""
    front: str = ""


def hsl(hue: float, saturation: float, lightness: float) -> str:
    """``#rrggbb`` from hue, saturation and lightness in [0, 1] (hue wraps, the others are clipped)."""
    r, g, b = colorsys.hls_to_rgb(hue % 1, min(max(lightness, 0), 1), min(max(saturation, 0), 1))
    return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"


def mix(a: str, b: str, t: float) -> str:
    """The colour a share ``t`` of the way from ``#rrggbb`` ``a`` to ``b``."""
    parts = [(int(a[i : i + 2], 16), int(b[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{min(max(round(x + (y - x) * t), 0), 255):02x}" for x, y in parts)


def lighten(colour: str, t: float) -> str:
    """``colour`` moved a share ``t`` towards white, or towards black for negative ``t``."""
    return mix(colour, "#ffffff" if t > 0 else "#000000", abs(t))


def lerp(low: float, high: float, t: float) -> float:
    """The number a share ``t`` of the way from ``low`` to ``high``."""
    return low + (high - low) * t


def rasterise(fragment: str, size: int) -> np.ndarray:
    """Draw an SVG fragment. Returns ``[size, size, 4]`` float32 RGBA in [0, 1], straight (not premultiplied) alpha."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{fragment}</svg>'
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    bgra = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))
    if bgra.ndim == 2:
        bgra = cv2.cvtColor(bgra, cv2.COLOR_GRAY2BGRA)
    elif bgra.shape[2] == 3:
        bgra = cv2.cvtColor(bgra, cv2.COLOR_BGR2BGRA)
    rgba: np.ndarray = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA).astype(np.float32) / 255
    return rgba
