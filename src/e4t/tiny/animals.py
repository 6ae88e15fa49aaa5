"""Cats and dogs of the drawn world: head-and-chest portraits with fur, pattern and a face that can show a mood.

Coat, proportions and markings come from the identity; pose, light and expression are nuisance. Shapes are flat with
a few translucent shades over them, and everything strewn (strands, stripes, spots) is one path with many subpaths,
because that is what rasterises fast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from e4t.tiny.canvas import Anchors, Figure, Light, Parameter, Params, Pose, hsl, lerp, lighten, mix

_FURS = ("black", "grey", "white", "orange", "cream", "brown", "silver", "blue-grey")
_PATTERNS = ("plain", "tabby", "tuxedo", "calico", "pointed", "spotted")
_TWO_TONE = ("pattern", (3, 4, 5))
_NOT_TUXEDO = ("pattern", (0, 1, 3, 4, 5))  # whose chest and muzzle are white in any case

CAT_PARAMETERS: tuple[Parameter, ...] = (
    Parameter("fur_colour", options=_FURS),
    Parameter("fur_shade"),
    Parameter("pattern", options=_PATTERNS),
    Parameter("pattern_strength", requires=("pattern", (1, 4, 5))),
    Parameter("second_hue", requires=_TWO_TONE),
    Parameter("second_lightness", requires=_TWO_TONE),
    Parameter("stripe_count", requires=("pattern", (1,))),
    Parameter("stripe_width", requires=("pattern", (1,))),
    Parameter("patch_size", requires=("pattern", (2, 3, 4, 5))),
    Parameter("patch_shift", requires=("pattern", (2, 3, 5))),
    Parameter("eye_colour", options=("green", "yellow", "blue", "copper")),
    Parameter("eye_shade"),
    Parameter("eye_size"),
    Parameter("eye_distance"),
    Parameter("eye_tilt"),
    Parameter("eye_roundness"),
    Parameter("head_width"),
    Parameter("head_height"),
    Parameter("cheek_fluff"),
    Parameter("ear_size", words=("small ears", "", "big ears")),
    Parameter("ear_width"),
    Parameter("ear_angle"),
    Parameter("ear_tufts", words=("", "", "tufted ears")),
    Parameter("muzzle_size"),
    Parameter("muzzle_lightness", requires=_NOT_TUXEDO),
    Parameter("nose_colour", options=("a pink nose", "a brown nose", "a black nose")),
    Parameter("nose_size"),
    Parameter("blaze", words=("", "", "a white blaze")),
    Parameter("bib", words=("", "", "a white bib"), requires=_NOT_TUXEDO),
    Parameter("chin_patch", requires=_NOT_TUXEDO),
    Parameter("fur_length", words=("short fur", "", "long fur")),
    Parameter("whisker_length"),
    Parameter("tail_lean"),
)

DOG_PARAMETERS: tuple[Parameter, ...] = (
    Parameter("fur_colour", options=("black", "grey", "white", "golden", "cream", "brown", "red", "chocolate")),
    Parameter("fur_shade"),
    Parameter("pattern", options=("plain", "masked", "patched", "spotted", "two-tone")),
    Parameter("second_hue", requires=("pattern", (1, 2, 3, 4))),
    Parameter("second_lightness", requires=("pattern", (1, 2, 3, 4))),
    Parameter("patch_size", requires=("pattern", (2, 3))),
    Parameter("patch_shift", requires=("pattern", (2, 3))),
    Parameter("ears", options=("floppy ears", "pointed ears", "folded ears")),
    Parameter("ear_size"),
    Parameter("ear_width"),
    Parameter("eye_colour", options=("brown", "amber", "blue")),
    Parameter("eye_shade"),
    Parameter("eye_size"),
    Parameter("eye_distance"),
    Parameter("head_width"),
    Parameter("head_height"),
    Parameter("cheek_fluff"),
    Parameter("muzzle_size"),
    Parameter("muzzle_lightness"),
    Parameter("nose_size"),
    Parameter("blaze", words=("", "", "a white blaze")),
    Parameter("bib", words=("", "", "a white bib")),
    Parameter("fur_length", words=("short fur", "", "long fur")),
    Parameter("brow_spots"),
)

EXPRESSIONS: tuple[str, ...] = ("neutral", "smiling", "laughing", "sad", "angry", "surprised", "winking", "sleeping")

_COATS = {  # hue, saturation, darkest and lightest lightness
    "black": (0.68, 0.10, 0.13, 0.23),
    "grey": (0.08, 0.03, 0.40, 0.56),
    "white": (0.10, 0.30, 0.90, 0.96),
    "orange": (0.075, 0.78, 0.48, 0.62),
    "cream": (0.105, 0.62, 0.76, 0.85),
    "brown": (0.065, 0.38, 0.27, 0.40),
    "silver": (0.60, 0.10, 0.68, 0.80),
    "blue-grey": (0.60, 0.15, 0.42, 0.55),
    "golden": (0.105, 0.62, 0.52, 0.66),
    "red": (0.045, 0.60, 0.36, 0.48),
    "chocolate": (0.045, 0.42, 0.20, 0.29),
}
_EYES = {
    "green": (0.27, 0.36, 0.62, 0.50),
    "yellow": (0.125, 0.155, 0.92, 0.56),
    "blue": (0.54, 0.60, 0.72, 0.60),
    "copper": (0.055, 0.085, 0.78, 0.44),
    "brown": (0.05, 0.075, 0.60, 0.32),
    "amber": (0.09, 0.115, 0.80, 0.48),
}
_WHITE = "#fbf7f0"
_INK = "#241c20"
_SPOTS = ((-15, -9), (-8, -15), (1, -12), (9, -16), (15, -8), (-18, 2), (18, 3), (-13, 9), (14, 10), (-3, -18), (5, -7))
_BODY_SPOTS = ((-13, 29), (12, 31), (-16, 40), (16, 42), (-7, 36), (18, 54), (-18, 56), (6, 46), (10, 62), (-9, 66))

Point = tuple[float, float]
Curve = tuple[Point, Point]
"""Control point and end point of a quadratic curve."""


@dataclass(frozen=True)
class _Coat:
    """The colours of one animal. ``mark`` is what stripes, spots or patches are painted with."""

    base: str
    mark: str
    second: str
    light: str
    line: str
    ear: str
    strength: float


@dataclass(frozen=True)
class _Head:
    """The geometry of one posed head: outline centre, centre of the features, and sizes."""

    prefix: str
    cx: float
    cy: float
    fx: float
    fy: float
    half: float
    top: float  # height of the skull over the centre
    chin: float  # depth of the chin under the centre
    fluff: float
    fur: float
    eye: float
    eye_height: float
    eye_dx: float
    eye_y: float
    tilt: float
    muzzle: float
    nose: float


@dataclass(frozen=True)
class _Mood:
    """What an expression does. Openings are shares of the whole eye; ``mouth`` goes from sad -1 to happy 1."""

    left: float = 0.88
    right: float = 0.88
    slant: float = 0.0  # of the lids: positive looks angry, negative sad
    cheek: float = 0.0  # how far the lower lid comes up
    closed: str = "down"  # how a closed eye curves
    pupil: float = 1.0
    mouth: float = 0.25
    open: float = 0.0
    fangs: bool = False
    tongue: bool = False
    ears: float = 0.0  # degrees outwards
    brow: float = 0.0  # height of the brow marks


_MOODS = {
    "neutral": _Mood(),
    "smiling": _Mood(0.92, 0.92, mouth=1.0, cheek=0.26, open=0.45, tongue=True, ears=-2),
    "laughing": _Mood(0, 0, closed="up", mouth=1.0, open=1.0, tongue=True, fangs=True, ears=5, brow=0.6),
    "sad": _Mood(0.76, 0.76, slant=-1.1, mouth=-1.2, pupil=1.8, ears=24, brow=0.6),
    "angry": _Mood(0.66, 0.66, slant=1.0, mouth=-0.8, open=0.5, fangs=True, pupil=0.6, ears=28, brow=-0.5),
    "surprised": _Mood(1.2, 1.2, mouth=0.0, open=0.8, pupil=2.3, ears=-8, brow=1.5),
    "winking": _Mood(0.95, 0, closed="up", mouth=1.0, tongue=True, open=0.35),
    "sleeping": _Mood(0, 0, mouth=0.35, ears=8),
}


def draw_cat(p: Params, *, expression: str, pose: Pose, light: Light) -> Figure:
    """The portrait of the cat ``p``; ``pose`` gives yaw and pitch only, the caller places the rest."""
    mood = _MOODS[expression]
    h, coat = _cat_head(p, pose), _cat_coat(p)
    pattern = _PATTERNS[int(p["pattern"])]
    ears = "".join(_cat_ear(p, h, coat, mood, side, pattern) for side in (-1, 1))
    marks = _CAT_MARKS[pattern](p, h, coat) + _blaze(h, p["blaze"]) if pattern != "tuxedo" else _tuxedo(p, h, coat)
    head = [
        ears,
        _skull(h, coat, marks, light, clipped=pattern in ("tuxedo", "calico", "spotted")),
        _strands(h, coat),
        _muzzle(h, coat, p["muzzle_lightness"] if pattern != "tuxedo" else 1.0, p["chin_patch"]),
        _mouth(h, mood, coat, dog=False),
        _cat_nose(h, int(p["nose_colour"])),
        *(_eye(h, coat, mood, side, _iris(p, ("green", "yellow", "blue", "copper")), slit=True) for side in (-1, 1)),
        _brows(h, coat, mood),
        _whiskers(h, coat, p["whisker_length"], mood),
    ]
    chest = 1.0 if pattern == "tuxedo" else p["bib"]
    body = _body(h, coat, _cat_body_marks(p, h, coat, pattern), chest, light, clipped=pattern == "calico")
    rise = _ear_length(p) - 2.5
    return Figure(_tail(p, h, coat, pattern), body, "".join(head), _anchors(h, rise))


def draw_dog(p: Params, *, expression: str, pose: Pose, light: Light) -> Figure:
    """The portrait of the dog ``p``; ``pose`` gives yaw and pitch only, the caller places the rest."""
    mood = _MOODS[expression]
    h, coat = _dog_head(p, pose), _dog_coat(p)
    kind = int(p["ears"])
    ears = "".join(_dog_ear(p, h, coat, mood, side, kind) for side in (-1, 1))
    lids = replace(coat, base=mix(coat.base, coat.mark, 0.75)) if int(p["pattern"]) == 1 else coat
    head = [
        ears if kind == 1 else "",
        _skull(h, coat, _dog_marks(p, h, coat) + _blaze(h, p["blaze"]), light, clipped=int(p["pattern"]) > 1),
        _strands(h, coat),
        ears if kind != 1 else "",
        _muzzle(h, coat, p["muzzle_lightness"], 0.0, _dog_muzzle_colour(p, coat)),
        _mouth(h, mood, coat, dog=True),
        _dog_nose(h),
        _brow_spots(h, coat, p["brow_spots"]),
        *(_eye(h, lids, mood, side, _iris(p, ("brown", "amber", "blue")), slit=False) for side in (-1, 1)),
        _brows(h, coat, mood),
    ]
    marks = _spots(h, coat, p, _BODY_SPOTS) if int(p["pattern"]) == 3 else ""
    return Figure("", _body(h, coat, marks, p["bib"], light), "".join(head), _anchors(h, 8 if kind == 1 else 1))


def _cat_head(p: Params, pose: Pose) -> _Head:
    half = lerp(18.5, 24.5, p["head_width"])
    eye = lerp(4.3, 6.6, p["eye_size"])
    fy = 48 + 3 * pose.pitch
    return _Head(
        "c-", 50 - 0.8 * pose.yaw, 48, 50 + 4.6 * pose.yaw, fy, half, lerp(15.5, 20.5, p["head_height"]),
        lerp(17, 21.5, p["head_height"]), lerp(0.6, 6.5, p["cheek_fluff"]), p["fur_length"], eye,
        eye * lerp(0.62, 1.02, p["eye_roundness"]), max(lerp(7.2, 11.2, p["eye_distance"]), eye + 2.2), fy - 0.5,
        lerp(-3, 17, p["eye_tilt"]), lerp(6.4, 10.2, p["muzzle_size"]), lerp(1.7, 3.1, p["nose_size"]),
    )  # fmt: skip


def _dog_head(p: Params, pose: Pose) -> _Head:
    eye = lerp(3.2, 4.7, p["eye_size"])
    fy = 48 + 3 * pose.pitch
    return _Head(
        "d-", 50 - 0.8 * pose.yaw, 48, 50 + 4.8 * pose.yaw, fy, lerp(16.5, 22.5, p["head_width"]),
        lerp(17.5, 21, p["head_height"]), lerp(20, 24, p["head_height"]), lerp(0.1, 4.5, p["cheek_fluff"]),
        p["fur_length"], eye, eye * 0.95, max(lerp(6.8, 10.2, p["eye_distance"]), eye + 2.4), fy - 3.5, 3.0,
        lerp(8.8, 13.0, p["muzzle_size"]), lerp(3.2, 5.2, p["nose_size"]),
    )  # fmt: skip


def _anchors(h: _Head, rise: float) -> Anchors:
    return Anchors(
        cx=h.cx, face_x=h.fx, head_top=h.cy - h.top - rise, skull_top=h.cy - h.top, chin=h.cy + h.chin,
        half_width=h.half, eye_y=h.eye_y, eye_dx=h.eye_dx, eye_size=h.eye, ear_y=h.cy - h.top - max(rise, 2) * 0.5,
        mouth_y=_nose_y(h) + h.muzzle * 0.55, neck_y=h.cy + h.chin + 1, neck_half_width=h.half * 0.74,
    )  # fmt: skip


def _coat_colour(name: str, shade: float) -> str:
    hue, saturation, dark, pale = _COATS[name]
    return hsl(hue + 0.02 * (shade - 0.5), saturation, lerp(dark, pale, shade))


def _luma(colour: str) -> float:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return 0.3 * r + 0.59 * g + 0.11 * b


def _outline_colour(colour: str) -> str:
    return mix(lighten(colour, -0.55), "#3a2430", 0.25) if _luma(colour) > 0.3 else lighten(colour, -0.6)


def _cat_coat(p: Params) -> _Coat:
    pattern = _PATTERNS[int(p["pattern"])]
    fur = base = _coat_colour(_FURS[int(p["fur_colour"])], p["fur_shade"])
    dark = _luma(base) < 0.3
    warm = hsl(lerp(0.03, 0.11, p["second_hue"]), 0.62, lerp(0.36, 0.66, p["second_lightness"]))
    second = warm
    mark = mix(fur, "#6d5038", 0.55) if dark else mix(lighten(fur, -0.5), "#4a2c14", 0.3)
    if pattern == "pointed":
        tone = hsl(lerp(0.02, 0.10, p["second_hue"]), 0.35, lerp(0.14, 0.38, p["second_lightness"]))
        mark = mix(fur, tone, 0.75)
        base = mix(fur, "#f6ead6", 0.72)
    elif pattern == "calico":
        mark = "#2b2629" if not dark else _WHITE
        if _FURS[int(p["fur_colour"])] in ("orange", "brown"):
            second = mix(_WHITE, warm, 0.15)
        elif not dark and abs(_luma(warm) - _luma(base)) < 0.14:
            second = lighten(warm, -0.4)
    elif pattern == "spotted":
        mark = mix(mark, warm, 0.35) if not dark else mix(fur, warm, 0.55)
    elif pattern == "tuxedo":
        mark = "#3a3639" if _luma(fur) > 0.72 else fur
        base = mark
    strength = lerp(0.55, 1.0, p["pattern_strength"])
    return _Coat(base, mark, second, mix(base, "#fff6ea", 0.55), _outline_colour(base), "#e8a49c", strength)


def _dog_coat(p: Params) -> _Coat:
    options = DOG_PARAMETERS[0].options
    base = _coat_colour(options[int(p["fur_colour"])], p["fur_shade"])
    hue, value = lerp(0.03, 0.11, p["second_hue"]), p["second_lightness"]
    pale = _luma(base) < 0.35
    mark = hsl(hue, 0.5, lerp(0.55, 0.85, value)) if pale else hsl(hue, 0.32, lerp(0.18, 0.36, value))
    return _Coat(base, mark, mark, mix(base, "#fff6ea", 0.5), _outline_colour(base), "#d99a92", 0.92)


def _f(value: float) -> str:
    return f"{value:.2f}"


def _path(d: str, fill: str, extra: str = "", alpha: float = 1.0) -> str:
    """A filled path. ``fill-opacity`` rather than ``opacity``, which would cost a layer of its own."""
    if alpha < 1:
        extra += f' fill-opacity="{alpha:.2f}"'
    return f'<path d="{d}" fill="{fill}" {extra}/>'


def _line(d: str, stroke: str, width: float, extra: str = "", alpha: float = 1.0) -> str:
    if alpha < 1:
        extra += f' stroke-opacity="{alpha:.2f}"'
    return (
        f'<path d="{d}" fill="none" stroke="{stroke}" stroke-width="{width:.2f}" stroke-linecap="round"'
        f' stroke-linejoin="round" {extra}/>'
    )


def _quads(start: Point, curves: Sequence[Curve]) -> str:
    return f"M{_f(start[0])},{_f(start[1])}" + "".join(
        f"Q{_f(c[0])},{_f(c[1])} {_f(e[0])},{_f(e[1])}" for c, e in curves
    )


def _mirrored(start: Point, half: Sequence[Curve], cx: float, cy: float) -> str:
    """A closed outline from its right half, which runs from the top to the bottom of the centre line."""
    ends = [start, *(end for _, end in half)]
    back = [((-c[0], c[1]), (-ends[i][0], ends[i][1])) for i, (c, _) in reversed(list(enumerate(half)))]
    both = [((c[0] + cx, c[1] + cy), (e[0] + cx, e[1] + cy)) for c, e in [*half, *back]]
    return _quads((start[0] + cx, start[1] + cy), both) + "Z"


def _blade(x: float, y: float, angle: float, length: float, width: float, bend: float = 0.0) -> str:
    """A spindle from (x, y) onwards in direction ``angle`` (degrees): a stripe, a tuft or a strand."""
    a = math.radians(angle)
    ux, uy = math.cos(a), math.sin(a)
    mx, my = x + ux * length / 2 - uy * bend, y + uy * length / 2 + ux * bend
    ex, ey = x + ux * length, y + uy * length
    return (
        f"M{_f(x)},{_f(y)}Q{_f(mx - uy * width)},{_f(my + ux * width)} {_f(ex)},{_f(ey)}"
        f"Q{_f(mx + uy * width)},{_f(my - ux * width)} {_f(x)},{_f(y)}Z"
    )


def _blob(x: float, y: float, rx: float, ry: float, wobble: float) -> str:
    """An uneven closed patch around (x, y)."""
    points = []
    for i in range(8):
        a = math.tau * i / 8
        r = 1 + 0.17 * math.sin(wobble * 6.1 + i * 2.4) + 0.08 * math.cos(wobble * 11 + i * 4.1)
        points.append((x + rx * r * math.cos(a), y + ry * r * math.sin(a)))
    middles = [((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(points, points[1:] + points[:1], strict=True)]
    return _quads(middles[-1], list(zip(points, middles, strict=True))) + "Z"


def _skull_half(h: _Head) -> list[Curve]:
    w, f, t, c = h.half, h.fluff, h.top, h.chin
    if h.prefix == "d-":
        return [
            ((0.62 * w, -t * 1.02), (0.86 * w, -0.5 * t)),
            ((1.03 * w, -0.1 * t), (w, 0.12 * c)),
            ((w * 1.0, 0.3 * c), (w * 0.94 + f, 0.46 * c)),
            ((w * 0.88 + f * 0.3, 0.47 * c), (w * 0.84, 0.52 * c)),
            ((w * 0.8 + f * 0.5, 0.62 * c), (w * 0.76 + f * 0.7, 0.72 * c)),
            ((w * 0.56, 0.98 * c), (0, c)),
        ]
    return [
        ((0.6 * w, -t * 1.03), (0.88 * w, -0.42 * t)),
        ((1.04 * w, -0.05 * t), (w, 0.2 * c)),
        ((1.0 * w + f * 0.2, 0.32 * c), (0.98 * w + f, 0.40 * c)),
        ((0.98 * w + f * 0.2, 0.45 * c), (0.95 * w, 0.5 * c)),
        ((0.93 * w + f * 0.4, 0.6 * c), (0.86 * w + f * 0.9, 0.66 * c)),
        ((0.82 * w + f * 0.2, 0.68 * c), (0.78 * w, 0.71 * c)),
        ((0.72 * w + f * 0.3, 0.82 * c), (0.62 * w + f * 0.6, 0.88 * c)),
        ((0.4 * w, c * 0.98), (0, c)),
    ]


def _skull(h: _Head, coat: _Coat, marks: str, light: Light, *, clipped: bool) -> str:
    """The head with its markings, which are clipped only where they reach over the edge: a clip is expensive."""
    d = _mirrored((0, -h.top), _skull_half(h), h.cx, h.cy)
    shade = f"{h.prefix}shade"
    x1, x2 = (0, 1) if light.side < 0 else (1, 0)
    depth = 0.14 + 0.22 * abs(light.side)
    return (
        f'<linearGradient id="{shade}" x1="{x1}" y1="0.1" x2="{x2}" y2="0.45"><stop offset="0" stop-color="#fff4dc"'
        f' stop-opacity="0.20"/><stop offset="0.45" stop-color="#20143a" stop-opacity="0"/>'
        f'<stop offset="1" stop-color="#20143a" stop-opacity="{depth:.2f}"/></linearGradient>'
        + _path(d, coat.base)
        + (_clipped(f"{h.prefix}head", d, marks) if clipped else marks)
        + _path(d, f"url(#{shade})", f'stroke="{coat.line}" stroke-width="0.8" stroke-linejoin="round"')
    )


def _clipped(name: str, d: str, inside: str) -> str:
    return f'<clipPath id="{name}"><path d="{d}"/></clipPath><g clip-path="url(#{name})">{inside}</g>'


def _strands(h: _Head, coat: _Coat) -> str:
    """Short strokes that follow the fur on the forehead and the cheeks; longer ones on long fur."""
    size = lerp(1.6, 4.2, h.fur)
    d = ""
    for side in (-1, 1):
        for i in range(4):
            y = h.cy + lerp(-2, 13, i / 3)
            x = h.cx + side * (h.half * (0.86 - 0.05 * i) - (i % 2) * 2)
            d += _blade(x, y, 90 - side * (62 - 9 * i), size, 0.5, -side * 0.5)
        for i in range(3):
            x = h.cx + side * (2.5 + i * 3.6)
            d += _blade(x, h.cy - h.top + 2.6 + 0.6 * i, 90 - side * (12 + 14 * i), size * 0.9, 0.45)
    colour = lighten(coat.base, 0.22) if _luma(coat.base) < 0.3 else coat.line
    return _path(d, colour, alpha=0.5)


def _ear_length(p: Params) -> float:
    return lerp(8.0, 16.0, p["ear_size"])


def _cat_ear(p: Params, h: _Head, coat: _Coat, mood: _Mood, side: int, pattern: str) -> str:
    """One ear, drawn around the middle of its base and turned outwards."""
    length, width = _ear_length(p), min(lerp(6.0, 10.0, p["ear_width"]), h.half * 0.43)
    x, y = h.cx + side * h.half * 0.55 + 0.15 * (h.fx - 50), h.cy - h.top * 0.66
    angle = side * (lerp(4, 30, p["ear_angle"]) + mood.ears)
    reach = length + h.top * 0.2
    outer = (
        f"M{_f(-width)},3Q{_f(-width * 0.8)},{_f(-reach * 0.62)} 0,{_f(-reach)}"
        f"Q{_f(width * 0.95)},{_f(-reach * 0.55)} {_f(width)},4Z"
    )
    inner = (
        f"M{_f(-width * 0.62)},2Q{_f(-width * 0.5)},{_f(-reach * 0.5)} 0,{_f(-reach * 0.8)}"
        f"Q{_f(width * 0.6)},{_f(-reach * 0.45)} {_f(width * 0.62)},2Z"
    )
    fill = coat.mark if pattern in ("pointed",) else coat.base
    if pattern == "calico":
        fill = coat.mark if side > 0 else coat.second
    inside = mix(coat.ear, fill, 0.25 if _luma(fill) > 0.35 else 0.5)
    inward = -side
    tufts = "".join(
        _blade(inward * width * (0.62 - 0.3 * i), 1, -90 - inward * (26 - 14 * i), reach * (0.34 + 0.07 * (i % 3)), 0.8)
        for i in range(4)
    )
    tip = ""
    if p["ear_tufts"] >= 2 / 3:
        grow = lerp(2.5, 6.5, p["ear_tufts"] * 3 - 2)
        tip = "".join(_blade(0, -reach + 1.5, -90 + side * a, grow, 0.6) for a in (-14, 2, 20))
        tip = _path(tip, _outline_colour(fill))
    # outer and inner ears are mirror images, so one is flipped; the flip comes before the turn
    return (
        f'<g transform="translate({_f(x)} {_f(y)}) rotate({angle:.1f})">'
        + tip
        + f'<g transform="scale({side} 1)">'
        + _path(outer, fill, f'stroke="{_outline_colour(fill)}" stroke-width="0.8" stroke-linejoin="round"')
        + _path(inner, inside)
        + "</g>"
        + _path(tufts, mix(coat.light, _WHITE, 0.3), alpha=0.85)
        + "</g>"
    )


def _dog_ear(p: Params, h: _Head, coat: _Coat, mood: _Mood, side: int, kind: int) -> str:
    size, width = p["ear_size"], lerp(5.5, 9.0, p["ear_width"])
    fill = coat.mark if int(p["pattern"]) in (1, 4) else lighten(coat.base, -0.16)
    if int(p["pattern"]) == 2 and side > 0:
        fill = coat.mark
    x, y = h.cx + side * h.half * 0.7, h.cy - h.top * 0.72
    edge = f'stroke="{_outline_colour(fill)}" stroke-width="0.8" stroke-linejoin="round"'
    if kind == 1:
        n = lerp(13, 21, size)
        outer = f"M{_f(-width)},5Q{_f(-width * 0.8)},{_f(-n * 0.6)} 1,{_f(-n)}"
        outer += f"Q{_f(width)},{_f(-n * 0.5)} {_f(width)},6Z"
        inner = _blade(0, 3, -88, n * 0.85, width * 0.85)
        shape = _path(outer, fill, edge) + _path(inner, mix(coat.ear, fill, 0.4))
        turn = lerp(6, 20, p["ear_width"]) + mood.ears
    elif kind == 0:
        n = lerp(20, 36, size)
        d = (
            f"M{_f(-width * 0.6)},-3C{_f(width * 0.3)},-8 {_f(width * 1.1)},-2 {_f(width * 1.3)},{_f(n * 0.5)}"
            f"C{_f(width * 1.4)},{_f(n)} {_f(width * 0.1)},{_f(n * 1.06)} {_f(-width * 0.3)},{_f(n * 0.75)}"
            f"C{_f(-width * 0.7)},{_f(n * 0.5)} 0,{_f(n * 0.3)} {_f(-width * 0.6)},-3Z"
        )
        fold = f"M{_f(width * 0.35)},{_f(n * 0.2)}Q{_f(width * 0.75)},{_f(n * 0.5)} {_f(width * 0.45)},{_f(n * 0.82)}"
        shape = _path(d, fill, edge) + _line(fold, _outline_colour(fill), 0.6, alpha=0.5)
        turn = -0.5 * mood.ears
    else:
        n = lerp(9, 16, size)
        d = f"M{_f(-width)},4Q{_f(-width * 0.7)},{_f(-n * 0.6)} 0,{_f(-n * 0.75)}L{_f(width)},5Z"
        flap = (
            f"M{_f(-width * 0.62)},{_f(-n * 0.42)}Q0,{_f(-n * 1.05)} {_f(width * 0.75)},{_f(-n * 0.3)}"
            f"Q{_f(width * 1.3)},{_f(n * 0.2)} {_f(width * 0.95)},{_f(n * 0.55)}"
            f"Q{_f(width * 0.1)},{_f(n * 0.25)} {_f(-width * 0.62)},{_f(-n * 0.42)}Z"
        )
        shape = _path(d, lighten(fill, -0.2), edge) + _path(flap, fill, edge)
        turn = 8 + 0.6 * mood.ears
    return f'<g transform="translate({_f(x)} {_f(y)}) scale({side} 1) rotate({turn:.1f})">{shape}</g>'


def _plain(p: Params, h: _Head, coat: _Coat) -> str:
    return ""


def _tabby(p: Params, h: _Head, coat: _Coat) -> str:
    """The M on the forehead, lines from the eyes' corners, and stripes that come in from the cheeks."""
    count, width = 2 + round(3 * p["stripe_count"]), lerp(0.8, 2.1, p["stripe_width"])
    top = h.cy - h.top
    d = "".join(
        _blade(
            h.fx * 0.7 + h.cx * 0.3 + s * i * (h.half * 0.46 / count) * 1.3,
            top + 0.5 + 5.5 * (i / count) ** 2, 90 - s * i * 5, h.top * (0.62 - 0.06 * i), width, s * 0.8,
        )
        for s in (-1, 1) for i in range(count) if i or s > 0
    )  # fmt: skip
    for s in (-1, 1):
        edge = h.cx + s * h.half * 0.985
        for i in range(count):
            y = h.cy + lerp(-5, 12, i / (count - 1))
            d += _blade(edge, y, 90 + s * (98 - 9 * i), h.half * lerp(0.32, 0.46, i / count), width, s * 1.2)
        squeeze = _far(h, s)
        corner = (h.eye_dx + h.eye * 0.8) * squeeze
        reach = min(max(h.half + s * (h.cx - h.fx) - corner, 1.5), 9)
        d += _blade(h.fx + s * corner, h.eye_y - 0.3, 90 - s * 78, reach, width * 0.8, s)
    return _path(d, coat.mark, alpha=coat.strength)


def _tuxedo(p: Params, h: _Head, coat: _Coat) -> str:
    """The white lower face of a tuxedo cat, which runs up between the eyes."""
    w, y = lerp(0.34, 0.95, p["patch_size"]) * h.half, h.eye_y
    rise = lerp(-1, h.top * 0.95, p["blaze"])
    shift = lerp(-2.2, 2.2, p["patch_shift"])
    d = (
        f"M{_f(h.fx + shift)},{_f(y - rise)}Q{_f(h.fx + 2.4)},{_f(y)} {_f(h.fx + w * 0.45)},{_f(y + h.eye + 2)}"
        f"Q{_f(h.fx + w)},{_f(y + h.eye + 4)} {_f(h.fx + w * 1.1)},{_f(h.cy + h.chin + 6)}L{_f(h.fx - w * 1.1)},"
        f"{_f(h.cy + h.chin + 6)}Q{_f(h.fx - w)},{_f(y + h.eye + 4)} {_f(h.fx - w * 0.45)},{_f(y + h.eye + 2)}"
        f"Q{_f(h.fx - 2.4)},{_f(y)} {_f(h.fx + shift)},{_f(y - rise)}Z"
    )
    return _path(d, _WHITE)


def _calico(p: Params, h: _Head, coat: _Coat) -> str:
    """A patch of either colour over the eyes and one on a cheek."""
    grow, shift = lerp(0.75, 1.35, p["patch_size"]), lerp(-5, 5, p["patch_shift"])
    x = h.cx * 0.6 + h.fx * 0.4
    second = _blob(x - 14 + shift, h.cy - 9, 12 * grow, 11 * grow, p["patch_shift"])
    second += _blob(x + 19 + shift, h.cy + 14, 6 * grow, 7 * grow, p["patch_size"])
    mark = _blob(x + 14 + shift, h.cy - 11, 11 * grow, 10 * grow, p["patch_size"] + 0.4)
    return _path(second, coat.second) + _path(mark, coat.mark)


def _pointed(p: Params, h: _Head, coat: _Coat) -> str:
    """A dark mask that fades outwards."""
    size, full = lerp(0.62, 1.1, p["patch_size"]), coat.strength
    stops = "".join(
        f'<stop offset="{at}" stop-color="{coat.mark}" stop-opacity="{full * share:.2f}"/>'
        for at, share in ((0, 1.0), (0.5, 0.85), (1, 0))
    )
    d, y = _mirrored((0, -h.top), _skull_half(h), h.cx, h.cy), h.fy + 4
    turn = f"translate({_f(h.fx)} {_f(y)}) scale({_f(h.half * size)} {_f(h.chin * size)})"
    return (
        f'<radialGradient id="c-mask" gradientUnits="userSpaceOnUse" cx="0" cy="0" r="1" gradientTransform="{turn}">'
        f"{stops}</radialGradient>" + _path(d, "url(#c-mask)")
    )


def _spots(h: _Head, coat: _Coat, p: Params, table: Sequence[Point]) -> str:
    grow, shift = lerp(1.1, 2.9, p["patch_size"]), p["patch_shift"]
    d = "".join(
        _blob(
            h.cx + 0.3 * (h.fx - h.cx) + x * h.half / 21 + 2.5 * math.sin(9 * shift + i * 1.7),
            h.cy + y + 2.0 * math.cos(7 * shift + i * 2.9),
            grow * (1.1 + 0.3 * math.sin(i * 2.2)), grow * (0.85 + 0.2 * math.cos(i * 3.1)), shift + i * 0.37,
        )
        for i, (x, y) in enumerate(table)
    )  # fmt: skip
    return _path(d, coat.mark, alpha=coat.strength)


def _spotted(p: Params, h: _Head, coat: _Coat) -> str:
    return _spots(h, coat, p, _SPOTS)


_CAT_MARKS: dict[str, Callable[[Params, _Head, _Coat], str]] = {
    "plain": _plain,
    "tabby": _tabby,
    "tuxedo": _tuxedo,
    "calico": _calico,
    "pointed": _pointed,
    "spotted": _spotted,
}


def _dog_marks(p: Params, h: _Head, coat: _Coat) -> str:
    pattern = int(p["pattern"])
    grow, shift = lerp(0.8, 1.4, p["patch_size"]), lerp(-3, 4, p["patch_shift"])
    if pattern == 1:
        return _path(_blob(h.fx, h.fy + 6, h.half * 0.82, h.chin * 0.85, 0.2), coat.mark, alpha=0.75)
    if pattern == 2:
        return _path(_blob(h.fx + 11 + shift, h.cy - 6, 9.5 * grow, 12 * grow, p["patch_shift"]), coat.mark)
    if pattern == 3:
        return _spots(h, coat, p, _SPOTS)
    if pattern == 4:
        cap = f"M0,0H100V{_f(h.eye_y + 6)}Q{_f(h.fx + h.half * 0.6)},{_f(h.eye_y - 10)} {_f(h.fx)},{_f(h.eye_y - 1)}"
        return _path(f"{cap}Q{_f(h.fx - h.half * 0.6)},{_f(h.eye_y - 10)} 0,{_f(h.eye_y + 6)}Z", coat.mark)
    return ""


def _dog_muzzle_colour(p: Params, coat: _Coat) -> str | None:
    return lighten(coat.mark, 0.12) if int(p["pattern"]) == 1 else None


def _brow_spots(h: _Head, coat: _Coat, amount: float) -> str:
    if amount < 0.5:
        return ""
    d = "".join(
        _blob(h.fx + s * h.eye_dx * 0.9, h.eye_y - h.eye * 1.75, lerp(1.4, 2.6, amount), 1.6, 0.3) for s in (-1, 1)
    )
    return _path(d, mix("#d99a52", coat.light, 0.4), alpha=0.9)


def _blaze(h: _Head, amount: float) -> str:
    """A white stripe from the forehead to the nose, present in the upper part of the parameter's range."""
    if amount < 2 / 3:
        return ""
    w = lerp(1.6, 4.2, (amount - 2 / 3) * 3)
    top, low = h.cy - h.top * 0.92, _nose_y(h)
    d = (
        f"M{_f((h.cx + h.fx) / 2)},{_f(top)}Q{_f(h.fx + w * 0.7)},{_f(h.eye_y - 6)} {_f(h.fx + w)},{_f(low)}"
        f"L{_f(h.fx - w)},{_f(low)}Q{_f(h.fx - w * 0.7)},{_f(h.eye_y - 6)} {_f((h.cx + h.fx) / 2)},{_f(top)}Z"
    )
    return _path(d, _WHITE)


def _nose_y(h: _Head) -> float:
    return h.fy + (6.4 if h.prefix == "c-" else 4.6)


def _muzzle(h: _Head, coat: _Coat, lightness: float, chin: float, colour: str | None = None) -> str:
    """Two cushions and a chin, in one path."""
    m, x, y = h.muzzle, h.fx, _nose_y(h)
    low_y = min(y + m * (1.12 if h.prefix == "c-" else 1.05), h.cy + h.chin - 0.6)
    fill = colour or mix(coat.base, _WHITE, lerp(0.12, 0.95, lightness))
    low = _WHITE if chin > 0.6 else fill
    rise = 0.35 if h.prefix == "c-" else 0.75
    right, left = (min(m, (h.half * 0.96 + s * (h.cx - x)) / 1.13) for s in (1, -1))
    d = (
        f"M{_f(x)},{_f(y - m * rise)}C{_f(x + m * 0.5)},{_f(y - m * rise)} {_f(x + right * 1.25)},{_f(y - m * 0.1)}"
        f" {_f(x + right * 1.1)},{_f(y + m * 0.42)}C{_f(x + right)},{_f(y + m * 0.9)} {_f(x + m * 0.3)},"
        f"{_f(y + m * 0.85)}"
        f" {_f(x)},{_f(y + m * 0.6)}C{_f(x - m * 0.3)},{_f(y + m * 0.85)} {_f(x - left)},{_f(y + m * 0.9)}"
        f" {_f(x - left * 1.1)},{_f(y + m * 0.42)}C{_f(x - left * 1.25)},{_f(y - m * 0.1)} {_f(x - m * 0.5)},"
        f"{_f(y - m * rise)} {_f(x)},{_f(y - m * rise)}Z"
    )
    jaw = (
        f"M{_f(x - m * 0.55)},{_f(y + m * 0.5)}C{_f(x - m * 0.5)},{_f(low_y + m * 0.1)} {_f(x + m * 0.5)},"
        f"{_f(low_y + m * 0.1)} {_f(x + m * 0.55)},{_f(y + m * 0.5)}Z"
    )
    edge = f'stroke="{coat.line}" stroke-width="0.5" stroke-opacity="0.55"'
    return _path(jaw, lighten(low, -0.08), edge) + _path(d, fill)


def _mouth(h: _Head, mood: _Mood, coat: _Coat, *, dog: bool) -> str:
    """The cleft under the nose, the two cheeks' curves, and the open mouth with tongue and fangs."""
    m, x = h.muzzle, h.fx
    y = _nose_y(h) + h.nose * 0.55
    cleft = y + m * (0.26 if not dog else 0.34)
    wide, lift = m * lerp(0.6, 1.02, min(abs(mood.mouth), 1)), m * 0.34 * mood.mouth
    left, right = f"{_f(x - wide)},{_f(cleft - lift)}", f"{_f(x + wide)},{_f(cleft - lift)}"
    sag = m * 0.42 * (1 if mood.mouth >= 0 else -0.3)
    lips = f"M{left}Q{_f(x - wide * 0.55)},{_f(cleft + sag)} {_f(x)},{_f(cleft)}"
    lips += f"Q{_f(x + wide * 0.55)},{_f(cleft + sag)} {right}"
    ink = lighten(coat.line, -0.35) if _luma(coat.line) > 0.12 else "#0d0a0c"
    out = ""
    if mood.open:
        round_mouth = abs(mood.mouth) < 0.1
        gape, half = m * 1.15 * mood.open, (m * 0.42 if round_mouth else wide * 0.72)
        top = cleft + (0.2 if round_mouth else 0.0)
        low = top + gape * 1.2
        out += _path(
            f"M{_f(x - half)},{_f(top + 0.4)}Q{_f(x - half * 0.4)},{_f(top + sag * 0.5)} {_f(x)},{_f(top)}"
            f"Q{_f(x + half * 0.4)},{_f(top + sag * 0.5)} {_f(x + half)},{_f(top + 0.4)}"
            f"C{_f(x + half)},{_f(low)} {_f(x - half)},{_f(low)} {_f(x - half)},{_f(top + 0.4)}Z",
            "#6b1f2a", f'stroke="{ink}" stroke-width="0.6"',
        )  # fmt: skip
        if mood.tongue:
            n = gape * (1.0 if not dog else 1.12)
            out += _path(_blob(x, top + n * 0.68, half * 0.55, n * 0.34 + 0.5, 0.1), "#ee8290")
        if mood.fangs:
            fangs = (_blade(x + s * half * 0.42, top - 0.3, 90, 3.0 + 0.8 * mood.open, 1.5) for s in (-1, 1))
            out += _path("".join(fangs), "#fffdf4")
    return out + _line(f"M{_f(x)},{_f(y)}L{_f(x)},{_f(cleft)}" + lips, ink, 0.85)


def _cat_nose(h: _Head, kind: int) -> str:
    fill = ("#e8848c", "#a3604e", "#3a2b30")[kind]
    n, x, y = h.nose, h.fx, _nose_y(h)
    d = (
        f"M{_f(x)},{_f(y - n * 0.55)}Q{_f(x + n * 1.1)},{_f(y - n * 0.9)} {_f(x + n * 1.15)},{_f(y - n * 0.3)}"
        f"Q{_f(x + n * 0.8)},{_f(y + n * 0.5)} {_f(x)},{_f(y + n * 0.85)}Q{_f(x - n * 0.8)},{_f(y + n * 0.5)}"
        f" {_f(x - n * 1.15)},{_f(y - n * 0.3)}Q{_f(x - n * 1.1)},{_f(y - n * 0.9)} {_f(x)},{_f(y - n * 0.55)}Z"
    )
    shine = _blade(x - n * 0.7, y - n * 0.38, 0, n * 0.8, n * 0.16)
    edge = f'stroke="{lighten(fill, -0.45)}" stroke-width="0.5"'
    return _path(d, fill, edge) + _path(shine, "#ffffff", alpha=0.55)


def _dog_nose(h: _Head) -> str:
    n, x, y = h.nose, h.fx, _nose_y(h)
    d = (
        f"M{_f(x)},{_f(y - n * 0.75)}C{_f(x + n)},{_f(y - n * 0.85)} {_f(x + n * 1.35)},{_f(y - n * 0.2)}"
        f" {_f(x + n * 0.9)},{_f(y + n * 0.25)}Q{_f(x + n * 0.35)},{_f(y + n * 0.45)} {_f(x)},{_f(y + n * 0.7)}"
        f"Q{_f(x - n * 0.35)},{_f(y + n * 0.45)} {_f(x - n * 0.9)},{_f(y + n * 0.25)}"
        f"C{_f(x - n * 1.35)},{_f(y - n * 0.2)} {_f(x - n)},{_f(y - n * 0.85)} {_f(x)},{_f(y - n * 0.75)}Z"
    )
    shine = _blob(x - n * 0.25, y - n * 0.4, n * 0.5, n * 0.17, 0.2)
    return _path(d, "#2a2226") + _path(shine, "#ffffff", alpha=0.5)


def _iris(p: Params, names: tuple[str, ...]) -> str:
    low, high, saturation, lightness = _EYES[names[int(p["eye_colour"])]]
    return hsl(lerp(low, high, p["eye_shade"]), saturation, lightness + 0.14 * (p["eye_shade"] - 0.5))


def _eye(h: _Head, coat: _Coat, mood: _Mood, side: int, iris: str, *, slit: bool) -> str:
    """One eye in its own frame: x grows outwards, the tilt lifts the outer corner."""
    opening = mood.left if side < 0 else mood.right
    s, ink = h.eye, "#14100f"
    squeeze = _far(h, side)
    x = h.fx + side * h.eye_dx * squeeze
    frame = f'<g transform="translate({_f(x)} {_f(h.eye_y)}) scale({side * squeeze:.3f} 1) rotate({-h.tilt:.1f})">'
    if not opening:
        bend = s * (0.75 if mood.closed == "down" else -0.85)
        lash = f"M{_f(-s)},{_f(-bend * 0.4)}Q0,{_f(bend)} {_f(s)},{_f(-bend * 0.4)}"
        pale = mix(coat.base, _WHITE, 0.5)
        return frame + _line(lash, pale, 2.6, alpha=0.7) + _line(lash, ink, 1.25) + "</g>"
    t = h.eye_height * min(opening / 0.88, 1.25) * 1.3
    b = h.eye_height * 1.22
    shape = f"M{_f(-s)},{_f(s * 0.12)}C{_f(-s * 0.55)},{_f(-t)} {_f(s * 0.6)},{_f(-t)} {_f(s)},0"
    shape += f"C{_f(s * 0.6)},{_f(b)} {_f(-s * 0.5)},{_f(b)} {_f(-s)},{_f(s * 0.12)}Z"
    rx = s * (0.2 if slit else 0.5) * mood.pupil ** (1.0 if slit else 0.25)
    ry = h.eye_height * (0.82 if slit else 0.72)
    glow = f"M{_f(-s * 0.7)},{_f(b * 0.32)}Q0,{_f(b * 1.05)} {_f(s * 0.7)},{_f(b * 0.3)}"
    glow += f"Q0,{_f(b * 0.62)} {_f(-s * 0.7)},{_f(b * 0.32)}Z"
    spark = -0.34 if opening > 0.86 else 0.12
    halo = mix(coat.base, _WHITE, 0.55) if _luma(coat.base) < 0.55 else lighten(coat.base, -0.12)
    spot = f"{_f(s * 0.2)}"
    out = [
        frame,
        _path(shape, iris, f'stroke="{halo}" stroke-width="2.6" stroke-opacity="0.5"'),
        _path(shape, iris, f'stroke="{ink}" stroke-width="1.15" stroke-linejoin="round"'),
        _path(glow, lighten(iris, 0.5), alpha=0.7),
        f'<ellipse rx="{_f(min(rx, s * 0.6))}" ry="{_f(ry)}" fill="{ink}" transform="rotate({h.tilt:.1f})"/>',
        _lids(h, coat, mood, opening, t, b),
        f'<circle cx="{_f(-side * s * 0.28)}" cy="{_f(h.eye_height * spark)}" r="{spot}" fill="#ffffff"/></g>',
    ]
    return "".join(out)


def _far(h: _Head, side: int) -> float:
    """How much the eye on the side that is turned away is foreshortened, so that it stays on the head."""
    room = h.half * 0.95 + side * (h.cx - h.fx)
    return min(max(room / (h.eye_dx + h.eye), 0.7), 1.0)


def _lids(h: _Head, coat: _Coat, mood: _Mood, opening: float, t: float, b: float) -> str:
    """Fur over the upper and lower part of the eye; slanted when angry or sad."""
    s, ink = h.eye * 1.06, "#14100f"
    out = ""
    if opening < 0.86:
        drop = -t * 0.72 + (0.9 - opening) * t * 2.1
        inner, outer = drop + mood.slant * t * 0.42, drop - mood.slant * t * 0.42
        lid = f"M{_f(-s)},{_f(inner)}Q0,{_f((inner + outer) / 2 - t * 0.16)} {_f(s)},{_f(outer)}"
        over = f"L{_f(s)},{_f(-t * 0.45)}Q{_f(s * 0.6)},{_f(-t)} 0,{_f(-t)}"
        over += f"Q{_f(-s * 0.6)},{_f(-t)} {_f(-s)},{_f(-t * 0.35)}Z"
        out += _path(lid + over, lighten(coat.base, -0.1)) + _line(lid, ink, 1.2)
    if mood.cheek:
        rise = b * (0.95 - mood.cheek * 1.5)
        low = f"M{_f(-s)},{_f(b * 0.3)}Q0,{_f(rise - b * 0.3)} {_f(s)},{_f(b * 0.2)}"
        out += _path(f"{low}Q0,{_f(b * 1.7)} {_f(-s)},{_f(b * 0.3)}Z", coat.base) + _line(low, ink, 0.8)
    return out


def _brows(h: _Head, coat: _Coat, mood: _Mood) -> str:
    """Marks over the eyes that only strong moods show."""
    if not mood.brow:
        return ""
    colour = lighten(coat.base, 0.4) if _luma(coat.base) < 0.3 else coat.line
    d = ""
    for s in (-1, 1):
        y = h.eye_y - h.eye_height * 1.25 - 1.6 - mood.brow * 1.2
        inner, outer = y + 2.2 * mood.slant, y - 1.6 * mood.slant
        x = h.fx + s * h.eye_dx * _far(h, s)
        d += f"M{_f(x - s * h.eye * 0.7)},{_f(inner)}Q{_f(x)},{_f((inner + outer) / 2 - 1.2)} "
        d += f"{_f(x + s * h.eye * 0.8)},{_f(outer)}"
    return _line(d, colour, 1.3, alpha=0.85)


def _whiskers(h: _Head, coat: _Coat, length: float, mood: _Mood) -> str:
    reach, m, y = lerp(9, 23, length), h.muzzle, _nose_y(h) + h.muzzle * 0.28
    d = dots = ""
    for s in (-1, 1):
        for i in (-1, 0, 1):
            x0, y0 = h.fx + s * m * (0.66 + 0.1 * (i == 0)), y + i * 1.6
            x1, y1 = x0 + s * reach, y0 + i * reach * 0.24 - 1 - 2.5 * mood.mouth
            d += f"M{_f(x0)},{_f(y0)}Q{_f((x0 + x1) / 2)},{_f(min(y0, y1) - 1.5)} {_f(x1)},{_f(y1)}"
            dots += f"M{_f(x0 - s * 1.2)},{_f(y0)}h0.01"
    colour = "#fffdf8" if _luma(coat.base) < 0.62 else "#6d5b58"
    return _line(dots, coat.line, 0.75, alpha=0.6) + _line(d, colour, 0.5, alpha=0.9)


def _body_half(h: _Head) -> list[Curve]:
    n, y, r = h.half * 0.72, h.chin - 6, lerp(0.4, 2.6, h.fur)
    return [
        ((n * 0.9, y), (n, y + 3)),
        ((n + 2 + r, y + 7), (n + 3 + r * 1.6, y + 10)),
        ((n + 2.4, y + 10), (n + 2.6, y + 11)),
        ((n + 7 + r, y + 17), (n + 8.5 + r * 1.6, y + 23)),
        ((n + 7.4, y + 22), (n + 7.6, y + 24)),
        ((n + 13, y + 40), (n + 13, 108)),
        ((n, 112), (0, 112)),
    ]


def _body(h: _Head, coat: _Coat, marks: str, bib: float, light: Light, *, clipped: bool = False) -> str:
    """Neck, shoulders and chest with bib, marks and the shade that the head throws."""
    d = _mirrored((0, h.chin - 8), _body_half(h), h.cx, h.cy)
    side = -1 if light.side < 0 else 1
    w, y, shade = h.half * 0.68, h.cy + h.chin, f"{h.prefix}flank"
    x1, x2 = (0, 1) if side < 0 else (1, 0)
    depth = 0.14 + 0.22 * abs(light.side)
    throat = f"M{_f(h.cx - w)},{_f(y - 5)}H{_f(h.cx + w)}L{_f(h.cx + w)},{_f(y - 2)}"
    throat += f"Q{_f(h.cx - side * 5)},{_f(y + 11)} {_f(h.cx - w)},{_f(y - 2)}Z"
    size = lerp(2.2, 5.0, h.fur)
    fur = "".join(
        _blade(h.cx + s * (3 + 4.2 * i), y + 9 + 5 * ((i * 2 + j) % 4) + 9 * j, 90 - s * 12, size, 0.45, -s * 0.6)
        for s in (-1, 1) for i in range(4) for j in range(2)
    )  # fmt: skip
    tone = lighten(coat.base, 0.25) if _luma(coat.base) < 0.3 else coat.line
    return (
        f'<linearGradient id="{shade}" x1="{x1}" x2="{x2}"><stop offset="0.5" stop-color="#20143a" stop-opacity="0"/>'
        f'<stop offset="0.85" stop-color="#20143a" stop-opacity="{depth:.2f}"/></linearGradient>'
        + _path(d, coat.base)
        + (_clipped(f"{h.prefix}body", d, marks) if clipped else marks)
        + _bib(h, bib)
        + _path(fur, tone, alpha=0.4)
        + _path(throat, "#20143a", alpha=0.2)
        + _path(d, f"url(#{shade})", f'stroke="{coat.line}" stroke-width="0.8" stroke-linejoin="round"')
    )


def _bib(h: _Head, amount: float) -> str:
    """A white chest with a jagged edge, present in the upper part of the parameter's range."""
    if amount < 2 / 3:
        return ""
    grow = (amount - 2 / 3) * 3
    w, y = h.half * lerp(0.42, 0.7, grow), h.cy + h.chin - 6
    half = [
        ((w * 0.9, y - h.cy), (w, y - h.cy + 6)),
        ((w * 0.95, y - h.cy + 9), (w + 1.6, y - h.cy + 13)),
        ((w * 0.85, y - h.cy + 13), (w * 0.82, y - h.cy + 15)),
        ((w * 0.8, y - h.cy + 19), (w * 0.86, y - h.cy + 23)),
        ((w * 0.6, y - h.cy + 24), (w * 0.55, y - h.cy + 27)),
        ((w * 0.5, lerp(40, 60, grow)), (0, lerp(46, 70, grow))),
    ]
    return _path(_mirrored((0, y - h.cy - 2), half, h.cx, h.cy), _WHITE)


def _cat_body_marks(p: Params, h: _Head, coat: _Coat, pattern: str) -> str:
    y = h.cy + h.chin
    if pattern == "tabby":
        width = lerp(0.8, 2.1, p["stripe_width"]) * 1.3
        d = "".join(
            _blade(
                h.cx + s * (h.half * 0.72 + (1.5, 3.5, 6.5, 8.5, 10, 11)[i]), y + 5.5 + 6.5 * i, 90 + s * 100,
                h.half * (0.42 + 0.05 * i), width, s * 1.6,
            )
            for s in (-1, 1) for i in range(6)
        )  # fmt: skip
        return _path(d, coat.mark, alpha=coat.strength)
    if pattern == "calico":
        grow = lerp(0.75, 1.35, p["patch_size"])
        return _path(_blob(h.cx - 18, y + 18, 11 * grow, 13 * grow, 0.7), coat.mark) + _path(
            _blob(h.cx + 19, y + 12, 10 * grow, 12 * grow, p["patch_shift"]), coat.second
        )
    return _spots(h, coat, p, _BODY_SPOTS) if pattern == "spotted" else ""


def _tail(p: Params, h: _Head, coat: _Coat, pattern: str) -> str:
    """The tail that comes up behind one shoulder."""
    side = -1 if p["tail_lean"] < 0.5 else 1
    lean = abs(p["tail_lean"] - 0.5) * 2
    x, tip, top = h.cx + side * 14, h.cx + side * (h.half + 9), lerp(76, 66, lean)
    curl = side * lerp(6, -5, lean)
    d = f"M{_f(x)},112C{_f(x + side * 12)},94 {_f(tip + side * 7)},86 {_f(tip)},{_f(top + 8)}"
    d += f"Q{_f(tip - side * 2.5)},{_f(top)} {_f(tip + curl)},{_f(top - 3)}"
    width = lerp(5.0, 9.5, h.fur)
    fill = coat.mark if pattern == "pointed" else coat.base
    out = _line(d, _outline_colour(fill), width + 1.5) + _line(d, fill, width)
    if pattern == "tabby":
        rings = 'style="stroke-dasharray:2.4 5;stroke-linecap:butt"'
        out += _line(d, coat.mark, width, rings, coat.strength)
    return out
