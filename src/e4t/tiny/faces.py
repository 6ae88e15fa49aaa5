"""Faces of the drawn world: head-and-shoulders portraits whose every proportion is a number.

The head's outline, hair, brows, eyes, nose, mouth, ears and marks come from the identity; pose, light, expression and
clothes are nuisance. Ranges are wide, so that individuals differ visibly at 128 px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from e4t.tiny.canvas import Anchors, Figure, Light, Parameter, Params, Pose, hsl, lerp, lighten, mix

_SHORT, _STRAIGHT, _WAVY, _CURLY, _AFRO, _BOB, _BUN, _TAIL, _MOHAWK, _BALD = range(10)
_COVERED = (_STRAIGHT, _WAVY, _BOB)  # hair over the ears
_HAIRY = ("hair_style", tuple(range(9)))
_FRINGED = ("hair_style", (_SHORT, _STRAIGHT, _WAVY, _CURLY, _BOB, _BUN, _TAIL))
_PARTED = ("hair_style", (_SHORT, _STRAIGHT, _WAVY, _BOB, _BUN, _TAIL))

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("skin_tone", words=("pale", "fair", "tan", "brown", "dark")),
    Parameter("skin_warmth"),
    Parameter("face_width"),
    Parameter("forehead"),
    Parameter("jaw_width"),
    Parameter("chin_length"),
    Parameter("chin_width"),
    Parameter("cheeks"),
    Parameter(
        "hair_style",
        options=(
            "short hair",
            "long straight hair",
            "long wavy hair",
            "curly hair",
            "an afro",
            "a bob",
            "a bun",
            "a ponytail",
            "a mohawk",
            "a bald head",
        ),
    ),
    Parameter(
        "hair_colour",
        options=("black", "brown", "auburn", "red", "blond", "grey", "white", "pink", "blue", "green", "purple"),
        requires=_HAIRY,
    ),
    Parameter("hair_shade", requires=_HAIRY),
    Parameter("hair_volume", requires=_HAIRY),
    Parameter("hair_length", requires=_HAIRY),
    Parameter("fringe", requires=_FRINGED),
    Parameter("parting", requires=_PARTED),
    Parameter("eye_colour", options=("brown", "blue", "green", "grey", "amber")),
    Parameter("eye_size"),
    Parameter("eye_distance"),
    Parameter("eye_tilt"),
    Parameter("eye_height"),
    Parameter("eye_roundness"),
    Parameter("brow_thickness"),
    Parameter("brow_tilt"),
    Parameter("brow_height"),
    Parameter("brow_arch"),
    Parameter("nose_length"),
    Parameter("nose_width"),
    Parameter("nose_tip"),
    Parameter("mouth_width"),
    Parameter("mouth_height"),
    Parameter("lip_fullness"),
    Parameter("lip_colour"),
    Parameter("ear_size", requires=("hair_style", tuple(i for i in range(10) if i not in _COVERED))),
    Parameter("freckles", words=("", "freckles")),
    Parameter("wrinkles", words=("", "wrinkles")),
    Parameter("blush"),
    Parameter("mole", options=("", "a mole")),
    Parameter("mole_x", requires=("mole", (1,))),
    Parameter("mole_y", requires=("mole", (1,))),
    Parameter("beard", options=("", "a stubble beard", "a full beard", "a moustache", "a goatee"), first=0.6),
    Parameter("beard_length", requires=("beard", (1, 2, 3, 4))),
)

EXPRESSIONS: tuple[str, ...] = (
    "neutral",
    "smiling",
    "laughing",
    "sad",
    "angry",
    "surprised",
    "winking",
    "sleeping",
)

_SKINS = ("#fde6d8", "#f4c9a8", "#dba271", "#a4683e", "#70442b", "#472819")
_HAIRS = (
    "#2b2733", "#6b4329", "#8a3d22", "#d0501f", "#ecc45f", "#8f929c", "#f1eee8", "#f08abb", "#3f7be0",
    "#3fae6c", "#8a54cc",
)  # fmt: skip
_IRISES = ("#75431f", "#2f86de", "#3aa052", "#8796a3", "#e0961a")
_FRECKLES = (
    (-0.55, 0.3), (-0.42, 1.9), (-0.64, 2.3), (-0.52, 3.7), (-0.29, 0.6), (-0.3, 3.1), (-0.13, 1.4),
    (0.06, 0.2), (0.19, 1.9), (0.33, 0.4), (0.34, 3.4), (0.47, 2.0), (0.53, 3.9), (0.61, 0.5), (0.69, 2.6),
)  # fmt: skip
_INK = "#2a1a24"

_OPENING = {"smiling": 0.86, "laughing": 0.5, "sad": 0.78, "angry": 0.74, "surprised": 1.3, "winking": 0.92}
_CORNER = {"smiling": -2.5, "winking": -2.2, "sad": 2.3, "angry": 1.4}
_BEND = {"smiling": 2.2, "winking": 1.8, "sad": -1.7, "angry": -0.9}
_BROW_RISE = {"surprised": 3.2, "laughing": 1.4, "smiling": 0.5, "angry": -1.7, "sad": 0.8}
_BROW_TURN = {"angry": -3.6, "sad": 3.4}

_Point = tuple[float, float]


@dataclass(frozen=True)
class _Face:
    """Geometry and colours worked out once, in canvas units."""

    p: Params
    yaw: float
    pitch: float
    half: float
    top: float
    chin: float
    skin: str
    shade: str
    hair: str
    dark_hair: str
    light_hair: str
    dark_side: int  # -1 when the left of the picture is in shade, else 1

    @property
    def style(self) -> int:
        return int(self.p["hair_style"])

    @property
    def cx(self) -> float:
        return 50 - 0.8 * self.yaw

    @property
    def eye(self) -> float:
        return lerp(3.5, 5.8, self.p["eye_size"])

    @property
    def eye_y(self) -> float:
        return lerp(44.0, 48.5, self.p["eye_height"]) + 3 * self.pitch

    @property
    def eye_u(self) -> float:
        return max(lerp(0.34, 0.54, self.p["eye_distance"]), (self.eye + 0.8) / self.half)

    @property
    def nose_y(self) -> float:
        return self.eye_y + lerp(6.0, 11.5, self.p["nose_length"]) + 0.5 * self.pitch

    @property
    def mouth_y(self) -> float:
        return lerp(self.nose_y, self.chin + 1.6 * self.pitch, lerp(0.34, 0.56, self.p["mouth_height"]))

    @property
    def jaw(self) -> float:
        return self.half * lerp(0.66, 1.0, self.p["jaw_width"])

    @property
    def neck(self) -> float:
        return self.half * lerp(0.42, 0.58, self.p["jaw_width"])

    @property
    def volume(self) -> float:
        return lerp(1.0, 7.5, self.p["hair_volume"])

    @property
    def hairline(self) -> float:
        return lerp(34.0, 28.5, self.p["forehead"]) + 1.5 * self.pitch

    def at(self, u: float) -> float:
        """Where a feature ``u`` half widths off the centre line lies after the head has turned."""
        return self.cx + self.half * math.sin(math.asin(max(-0.95, min(0.95, u))) + 0.26 * self.yaw)

    def squeeze(self, u: float) -> float:
        """How much narrower (or wider) a feature at ``u`` looks after the turn."""
        turn = math.asin(max(-0.95, min(0.95, u)))
        return math.cos(turn + 0.26 * self.yaw) / math.cos(turn)


def draw_face(p: Params, *, expression: str, pose: Pose, light: Light) -> Figure:
    """The portrait of the person ``p``; ``pose`` gives yaw and pitch only, the caller places the rest."""
    f = _face(p, pose, light)
    head = (
        _ears(f), _skull(f), _blush(f), _freckles(f), _wrinkles(f), _mole(f), _eyes(f, expression), _beard(f), _nose(f),
        _mouth(f, expression), _moustache(f), _face_shade(f), _brows(f, expression), _hair_front(f),
    )  # fmt: skip
    return Figure(_hair_back(f), _bust(f, pose, light), "".join(head), _anchors(f))


def _face(p: Params, pose: Pose, light: Light) -> _Face:
    warmth = p["skin_warmth"] - 0.5
    skin = mix(_ramp(_SKINS, p["skin_tone"]), "#e8a030" if warmth > 0 else "#d86a90", abs(warmth) * 0.36)
    hair = lighten(_HAIRS[int(p["hair_colour"])], lerp(-0.28, 0.24, p["hair_shade"]))
    return _Face(
        p=p,
        yaw=pose.yaw,
        pitch=pose.pitch,
        half=lerp(17.0, 22.5, p["face_width"]),
        top=25.0,
        chin=lerp(63.5, 73.0, p["chin_length"]),
        skin=skin,
        shade=lighten(mix(skin, "#8a1f4a", 0.26), -0.16),
        hair=hair,
        dark_hair=lighten(mix(hair, "#3a1048", 0.22), -0.26),
        light_hair=mix(lighten(hair, 0.26), "#ffe9c0", 0.12),
        dark_side=1 if light.side < 0 else -1,
    )


def _anchors(f: _Face) -> Anchors:
    rise = {_BALD: 0.0, _AFRO: f.half + f.volume * 0.95 - 10, _CURLY: f.half + f.volume * 0.5 - 12, _MOHAWK: 4.0}.get(
        f.style, f.volume
    )
    return Anchors(
        cx=f.cx, face_x=f.at(0), head_top=f.top - rise, skull_top=f.top, chin=f.chin, half_width=f.half, eye_y=f.eye_y,
        eye_dx=(f.at(f.eye_u) - f.at(-f.eye_u)) / 2, eye_size=f.eye, ear_y=_ear_y(f), mouth_y=f.mouth_y,
        neck_y=f.chin + 4,
        neck_half_width=f.neck,
    )  # fmt: skip


# Paths


def _ramp(colours: tuple[str, ...], t: float) -> str:
    place = t * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return mix(colours[low], colours[low + 1], place - low)


def _d(*parts: str | float) -> str:
    return " ".join(part if isinstance(part, str) else f"{part:.2f}" for part in parts)


def _through(points: Sequence[_Point], start: str = "M") -> str:
    """A smooth curve through ``points`` (Catmull-Rom)."""
    out = [_d(start, *points[0])]
    for i in range(len(points) - 1):
        a, b, c, d = points[max(i - 1, 0)], points[i], points[i + 1], points[min(i + 2, len(points) - 1)]
        first = (b[0] + (c[0] - a[0]) / 6, b[1] + (c[1] - a[1]) / 6)
        second = (c[0] - (d[0] - b[0]) / 6, c[1] - (d[1] - b[1]) / 6)
        out.append(_d("C", *first, *second, *c))
    return "".join(out)


def _between(a: Sequence[_Point], b: Sequence[_Point], t: float) -> list[_Point]:
    return [(lerp(p[0], q[0], t), lerp(p[1], q[1], t)) for p, q in zip(a, b, strict=True)]


def _fill(d: str, colour: str, opacity: float = 1.0) -> str:
    return f'<path d="{d}" fill="{colour}"' + (f' fill-opacity="{opacity:.2f}"/>' if opacity < 1 else "/>")


def _line(d: str, colour: str, width: float, opacity: float = 1.0) -> str:
    fade = f' stroke-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return (
        f'<path d="{d}" fill="none" stroke="{colour}" stroke-width="{width:.2f}" stroke-linecap="round"'
        f' stroke-linejoin="round"{fade}/>'
    )


def _edged(d: str, colour: str, edge: str, width: float = 0.55) -> str:
    return f'<path d="{d}" fill="{colour}" stroke="{edge}" stroke-width="{width:.2f}" stroke-linejoin="round"/>'


def _oval(x: float, y: float, rx: float, ry: float) -> str:
    return _d("M", x - rx, y, "a", rx, ry, "0 1 1", 2 * rx, 0.0, "a", rx, ry, "0 1 1", -2 * rx, 0.0)


# Head and shoulders


def _side_outline(f: _Face, side: int) -> list[_Point]:
    """The head's outline from the crown to the chin, on one side."""
    temple = f.half * lerp(0.9, 1.0, f.p["forehead"])
    cheek = lerp(f.half * 0.9, f.half * 1.04, f.p["cheeks"])
    chin = f.jaw * lerp(0.36, 0.66, f.p["chin_width"])
    turn = f.yaw
    return [
        (f.cx, f.top),
        (f.cx + side * temple * 0.64, f.top + 3.0),
        (f.cx + side * temple * 0.96, 35.0),
        (f.cx + side * f.half, 44.0),
        (f.cx + 0.4 * turn + side * cheek, 52.5),
        (f.cx + 1.4 * turn + side * f.jaw, f.chin - 8.5),
        (f.cx + 2.5 * turn + side * chin, f.chin - 1.6),
        (f.cx + 2.9 * turn, f.chin),
    ]


def _skull(f: _Face) -> str:
    left, right = _side_outline(f, -1), _side_outline(f, 1)
    return _edged(_through([*right, *left[-2::-1]]) + "Z", f.skin, mix(f.shade, _INK, 0.3), 0.6)


def _face_shade(f: _Face) -> str:
    """The side away from the light, over the features, so that eyes and lips darken with the skin."""
    s = f.dark_side
    outer = _side_outline(f, s)
    inner = [
        (f.cx + s * f.half * 0.3, f.chin - 1.2),
        (f.cx + s * f.jaw * 0.7, f.chin - 8.0),
        (f.at(s * 0.72), f.nose_y - 1.0),
        (f.at(s * 0.8), f.eye_y),
        (f.at(s * 0.66), 35.0),
        (f.cx + s * f.half * 0.3, 27.0),
    ]
    return _fill(_through(outer) + _through(inner, "L") + "Z", f.shade, 0.5)


def _ear_y(f: _Face) -> float:
    return 49.0 - 1.4 * f.pitch


def _ears(f: _Face) -> str:
    if f.style in _COVERED:
        return ""
    size, y = lerp(2.8, 5.8, f.p["ear_size"]), _ear_y(f)
    shells, hollows = "", ""
    for side in (-1, 1):
        x, w = f.cx + side * (f.half - 1.2) - 0.9 * f.yaw, size * (1 - 0.35 * side * f.yaw)
        shells += _d(
            "M", x, y - size * 0.8, "C", x + side * w * 0.5, y - size * 1.4, x + side * w * 1.3, y - size * 1.1,
            x + side * w * 1.15, y, "C", x + side * w, y + size * 0.8, x + side * w * 0.5, y + size * 1.2, x,
            y + size * 0.8,
        )  # fmt: skip
        hollows += _d(
            "M", x + side * w * 0.3, y - size * 0.6, "C", x + side * w * 0.9, y - size * 0.8, x + side * w * 0.95, y,
            x + side * w * 0.4, y + size * 0.5, "Z",
        )  # fmt: skip
    return _edged(shells, f.skin, mix(f.shade, _INK, 0.3)) + _fill(hollows, f.shade, 0.75)


def _cloth(pose: Pose, light: Light) -> tuple[str, int]:
    """A colour and a cut that no identity owns."""
    seed = math.sin(pose.x * 12.9 + pose.y * 4.1 + pose.roll * 78.2 + pose.scale * 9.7 + light.side * 37.7) * 437.5
    hue = seed % 1
    return hsl(hue, lerp(0.2, 0.62, seed * 3.7 % 1), lerp(0.28, 0.78, seed * 7.3 % 1)), int(seed * 11.3 % 1 * 3)


def _bust(f: _Face, pose: Pose, light: Light) -> str:
    cloth, cut = _cloth(pose, light)
    n, s, x = f.neck, f.dark_side, 50.0
    deep = lighten(cloth, -0.42)
    shirt = _d(
        "M", x - n - 2, 78.0, "C", x - n - 14, 82.0, 12.0, 82.0, 3.0, 101.0, "C", -4.0, 116.0, -20.0, 130.0,
        -20.0, 160.0,
        "L", 120.0, 160.0, "C", 120.0, 130.0, 104.0, 116.0, 97.0, 101.0, "C", 88.0, 82.0, x + n + 14, 82.0,
        x + n + 2, 78.0,
        "Z",
    )  # fmt: skip
    dusk = _d(
        "M", x + s * (n + 3), 79.0, "C", x + s * (n + 15), 82.4, x + s * 38, 82.0, x + s * 47, 101.0, "C",
        x + s * 54, 116.0,
        x + s * 70, 130.0, x + s * 70, 160.0, "L", x + s * 40, 160.0, "C", x + s * 40, 120.0, x + s * 36, 96.0,
        x + s * (n + 3), 79.0, "Z",
    )  # fmt: skip
    throat = _d(
        "M", x - n, f.chin - 14, "C", x - n + 1, 76.0, x - n - 1, 78.0, x - n - 5, 80.5, "Q", x, 96.0, x + n + 5, 80.5,
        "C", x + n + 1, 78.0, x + n - 1, 76.0, x + n, f.chin - 14, "Z",
    )  # fmt: skip
    low = min(f.chin + 7, 80.0)
    under = _d(
        "M", x - n, f.chin - 10, "L", x - n + 0.3, f.chin + 1, "Q", x + s * n * 0.5, low + 4, x + s * (n - 0.2), low,
        "L", x + s * n, f.chin - 10, "L", x + n, f.chin - 10, "Z",
    )  # fmt: skip
    collar = (_crew_neck, _shirt_collar, _roll_neck)[cut](n, cloth)
    # A short face would leave a long neck, so the shoulders follow the chin.
    skin = _edged(throat, f.skin, f.shade) + _fill(under, f.shade, 0.8)
    content = _edged(shirt, cloth, deep) + _fill(dusk, deep, 0.4) + skin + collar
    return f'<g transform="translate(0 {0.45 * (f.chin - 73):.2f})">{content}</g>'


def _crew_neck(n: float, cloth: str) -> str:
    curve = _d("M", 50 - n - 5.2, 80.0, "Q", 50.0, 97.0, 50 + n + 5.2, 80.0)
    return _line(curve, lighten(cloth, -0.4), 3.6) + _line(curve, lighten(cloth, 0.3), 2.6)


def _shirt_collar(n: float, cloth: str) -> str:
    wings = "".join(
        _d("M", 50 + s * (n + 1), 76.5, "L", 50.0, 89.5, "L", 50 + s * 9, 98.0, "L", 50 + s * (n + 8), 80.0, "Z")
        for s in (-1, 1)
    )
    buttons = _oval(50, 95, 0.9, 0.9) + _oval(50, 104, 0.9, 0.9)
    return _edged(wings, lighten(cloth, 0.45), lighten(cloth, -0.4), 0.7) + _fill(buttons, lighten(cloth, -0.5))


def _roll_neck(n: float, cloth: str) -> str:
    band = _d(
        "M", 50 - n - 1.2, 75.5, "Q", 50.0, 81.5, 50 + n + 1.2, 75.5, "L", 50 + n + 5, 82.0, "Q", 50.0, 95.0,
        50 - n - 5, 82.0,
        "Z",
    )  # fmt: skip
    ribs = "".join(
        _d("M", 50 + k * n, 78.5 - abs(k) * 1.5, "L", 50 + k * n * 1.2, 87 - abs(k) * 3)
        for k in (-0.7, -0.25, 0.25, 0.7)
    )
    return _edged(band, lighten(cloth, 0.12), lighten(cloth, -0.4), 0.7) + _line(ribs, lighten(cloth, -0.3), 0.6)


# Hair


def _strands(outer: Sequence[_Point], inner: Sequence[_Point], shares: Iterable[float]) -> str:
    return "".join(_through(_between(outer, inner, t)) for t in shares)


def _lobe(f: _Face, side: int) -> tuple[list[_Point], list[_Point]]:
    """One half of the hair over the skull: its outer edge and its hairline, both from the parting to the temple."""
    p, v, w = f.p, f.volume, f.half
    slick = f.style in (_BUN, _TAIL)
    rise = 1.0 + v * (0.35 if slick else 0.9)
    wide = w + 0.6 + v * (0.12 if slick else 0.38)
    part = f.cx + lerp(-0.6, 0.6, p["parting"]) * w + f.yaw
    end = {_SHORT: lerp(42.0, 51.0, p["hair_length"]), _BUN: 44.0, _TAIL: 45.0}.get(f.style, 56.0)
    low = lerp(f.hairline, max(f.eye_y - f.eye * 0.75, f.hairline + 5), p["fringe"] * (0.75 if slick else 1.0))
    root = lerp(f.hairline - 3.5, low - 0.6, p["fringe"])
    edge = f.cx + side * w
    tip = end if f.style in _COVERED else end - 1.5

    def crown(share: float) -> _Point:
        x = lerp(part, f.cx + side * wide, share)
        off = min(abs(x - f.cx) / wide, 1.0)
        return x, f.top - rise + (41 - f.top + rise) * (1 - (1 - off**2.3) ** (1 / 2.3))

    outer = [
        *(crown(share) for share in (0.0, 0.42, 0.78, 0.98)),
        (f.cx + side * (wide if f.style in _COVERED else w * 1.0), tip),
    ]
    inner = [
        (part, root),
        (lerp(part, edge, 0.33), lerp(low - 1.2, low + 0.5, p["fringe"])),
        (lerp(part, edge, 0.68), low + 1.2),
        (f.cx + side * w * 0.88, lerp(38.5, 41.0, p["fringe"])),
        (f.cx + side * w * (0.95 if f.style in _COVERED else 0.93), end),
    ]
    return outer, inner


def _cap(f: _Face) -> str:
    fills, edges, sweeps, falls, gloss = ("",) * 5
    for side in (f.dark_side, -f.dark_side):
        outer, inner = _lobe(f, side)
        colour = mix(f.hair, f.dark_hair, 0.36) if side == f.dark_side else f.hair
        fills += _edged(_through(outer) + _through(inner[::-1], "L") + "Z", colour, colour, 0.5)
        edges += _through(outer) + _through(inner)
        sweeps += _strands(outer, inner, (0.2, 0.48, 0.76))
        falls += _fringe_strands(outer, inner)
        if side != f.dark_side:
            gloss = "".join(_through(_between(outer, inner, t)[1:3]) for t in (0.14, 0.3, 0.44))
    tufts = _tufts(f) if f.style == _SHORT else ""
    strands = sweeps if f.p["fringe"] < 0.5 else falls
    return tufts + fills + _line(edges + strands, f.dark_hair, 0.7, 0.9) + _line(gloss, f.light_hair, 1.5, 0.9)


def _fringe_strands(outer: Sequence[_Point], inner: Sequence[_Point]) -> str:
    """Strands that fall from the crown to the hairline instead of following the parting."""
    d = ""
    for i, t in ((0, 0.4), (1, 0.0), (1, 0.5), (2, 0.0), (2, 0.6)):
        rim, end = (
            _between(outer[i : i + 1], outer[i + 1 : i + 2], t)[0],
            _between(inner[i : i + 1], inner[i + 1 : i + 2], t)[0],
        )
        start = _between([rim], [outer[0]], 0.45)[0]
        d += _d(
            "M", start[0], start[1] + 3, "Q", lerp(start[0], end[0], 0.85), lerp(start[1], end[1], 0.4), end[0], end[1]
        )
    return d


def _tufts(f: _Face) -> str:
    """Spikes that break the outline of short hair; longer hair stands up more."""
    tall = lerp(0.5, 6.0, f.p["hair_length"])
    lean = lerp(3.5, -3.5, f.p["parting"])
    d = ""
    for k in (-0.78, -0.5, -0.2, 0.12, 0.42, 0.72):
        x = f.cx + k * (f.half + f.volume * 0.3)
        y = f.top + 8 * k * k - f.volume * 0.85 * (1 - k * k * 0.5)
        d += _d(
            "M",
            x - 4.5,
            y + 4,
            "Q",
            x - 1 + k * 2,
            y - 1,
            x + lean + k * 4,
            y - tall,
            "Q",
            x + 3 + k,
            y,
            x + 4.5,
            y + 5,
            "Z",
        )
    return _fill(d, f.hair)


def _hair_front(f: _Face) -> str:
    if f.style == _BALD:
        return _fill(_oval(f.cx - f.dark_side * f.half * 0.4, 30.5, 4.6, 2.2), "#ffffff", 0.4)
    if f.style == _MOHAWK:
        return _mohawk(f)
    if f.style in (_CURLY, _AFRO):
        return _curl_cap(f)
    locks = _locks(f) if f.style in (_STRAIGHT, _WAVY, _BOB) else ""
    return locks + _cap(f)


def _fall(f: _Face, side: int) -> tuple[list[_Point], list[_Point]]:
    """The lock that hangs beside the face: outer and inner edge from the temple down."""
    w, v = f.half, f.volume
    if f.style == _BOB:
        low = lerp(57.0, 74.0, f.p["hair_length"])
        flare = v * 0.7
        outer = [(w + 0.6 + v * 0.38, 40.0), (w + 2 + flare, low - 10), (w + 1.6 + flare, low - 2), (w * 0.82, low + 1)]
        inner = [(w * 0.86, 40.0), (w * 0.95, 48.0), (w * 0.93, low - 6), (w * 0.8, low)]
    else:
        low = lerp(76.0, 108.0, f.p["hair_length"])
        sway = 3.6 if f.style == _WAVY else 0.0
        gap = low - 44
        outer = [
            (w + 0.6 + v * 0.38, 40.0), (w + 2 + v * 0.55 + sway, 44 + gap * 0.25),
            (w + 1.5 + v * 0.6 - sway * 0.6, 44 + gap * 0.5),
            (w + 2 + v * 0.6 + sway, 44 + gap * 0.76), (w + v * 0.3 - 2 - sway * 0.3, low),
        ]  # fmt: skip
        inner = [
            (w * 0.86, 40.0), (w * 0.96 + sway * 0.3, 44 + gap * 0.25), (w * 0.92 - sway * 0.9, 44 + gap * 0.5),
            (w * 0.84 + sway * 0.4, 44 + gap * 0.76), (w * 0.86 - sway, low - 2),
        ]  # fmt: skip
    return [(f.cx + side * a, b) for a, b in outer], [(f.cx + side * a, b) for a, b in inner]


def _locks(f: _Face) -> str:
    fills, lines, gloss = "", "", ""
    for side in (f.dark_side, -f.dark_side):
        outer, inner = _fall(f, side)
        colour = mix(f.hair, f.dark_hair, 0.36) if side == f.dark_side else f.hair
        fills += _edged(_through(outer) + _through(inner[::-1], "L") + "Z", colour, f.dark_hair)
        lines += _strands(outer, inner, (0.33, 0.66))
        gloss += _through(_between(outer, inner, 0.48)[1:3]) if side != f.dark_side else ""
    return fills + _line(lines, f.dark_hair, 0.7, 0.85) + _line(gloss, f.light_hair, 1.3, 0.85)


def _hair_back(f: _Face) -> str:
    if f.style in (_STRAIGHT, _WAVY, _BOB):
        left, right = _fall(f, -1)[0], _fall(f, 1)[0]
        return _fill(_through(left) + _through(right[::-1], "L") + "Z", f.dark_hair)
    if f.style in (_CURLY, _AFRO):
        return _curl_cloud(f)
    return {_BUN: _bun, _TAIL: _tail}.get(f.style, lambda _: "")(f)


def _bun(f: _Face) -> str:
    r = lerp(5.0, 9.5, f.p["hair_length"])
    x, y = f.cx - 1.5 * f.yaw, f.top - f.volume * 0.35 - r * 0.5
    swirl = _d(
        "M", x - r * 0.75, y + r * 0.3, "C", x - r * 0.6, y - r, x + r * 0.8, y - r * 0.7, x + r * 0.55, y + r * 0.15
    )
    swirl += _d(
        "M", x - r * 0.3, y + r * 0.4, "C", x - r * 0.3, y - r * 0.3, x + r * 0.2, y - r * 0.3, x + r * 0.2, y + r * 0.2
    )
    shine = _d(
        "M",
        x - f.dark_side * r * 0.55,
        y - r * 0.35,
        "q",
        f.dark_side * r * 0.15,
        -r * 0.3,
        f.dark_side * r * 0.45,
        -r * 0.35,
    )
    return (
        _edged(_oval(x, y, r * 1.08, r), mix(f.hair, f.dark_hair, 0.2), f.dark_hair)
        + _line(swirl, f.dark_hair, 0.8) + _line(shine, f.light_hair, 1.5)
    )  # fmt: skip


def _tail(f: _Face) -> str:
    s = -1 if f.p["parting"] > 0.5 else 1
    x, low, fat = f.cx + s * (f.half - 3) - f.yaw, lerp(58.0, 92.0, f.p["hair_length"]), 3.5 + f.volume * 0.7
    outer = [
        (x, 27.0),
        (x + s * (7 + fat), 28.0),
        (x + s * (9 + fat), 44.0),
        (x + s * (6 + fat), low - 12),
        (x + s * 6, low),
    ]
    inner = [(x, 37.0), (x + s * 5, 38.0), (x + s * 6, 46.0), (x + s * 4, low - 14), (x + s * 6, low)]
    shine = _through(_between(outer, inner, 0.4)[1:3])
    return (
        _edged(_through(outer) + _through(inner[::-1], "L") + "Z", mix(f.hair, f.dark_hair, 0.25), f.dark_hair)
        + _line(_strands(outer, inner, (0.3, 0.65)), f.dark_hair, 0.8) + _line(shine, f.light_hair, 1.4)
        + _line(_d("M", x + s * 2.5, 28.0, "L", x + s * 3, 37.0), lighten(f.dark_hair, -0.4), 2.2)
    )  # fmt: skip


def _cloud_rim(f: _Face) -> list[tuple[float, float, float]]:
    """Centres and radii of the curls along the outline, from one side over the top to the other."""
    big = f.style == _AFRO
    ring = f.half + (3.5 + f.volume * 0.95 if big else f.volume * 0.5)
    drop = lerp(0.12, 0.45, f.p["hair_length"]) if big else lerp(-0.05, 0.75, f.p["hair_length"])
    count = 19 if big else 10
    out = []
    for i in range(count):
        a = lerp(-drop, math.pi + drop, i / (count - 1))
        r = (3.7 if big else 5.6) + (0.3 if big else 0.9) * math.sin(i * 2.4) + f.volume * 0.1
        out.append((f.cx - ring * math.cos(a), 42 - ring * 0.97 * math.sin(a), r))
    return out


def _curl_cloud(f: _Face) -> str:
    rim = _cloud_rim(f)
    blobs = "".join(_oval(x, y, r, r) for x, y, r in rim)
    core = _through([(x, y) for x, y, _ in rim]) + "Z"
    body = f.hair if f.style == _AFRO else mix(f.hair, f.dark_hair, 0.35)
    return _edged(blobs, body, f.dark_hair, 0.7) + _fill(core, body)


def _curl_cap(f: _Face) -> str:
    """Curls over the forehead, and their modelling: a dark side, hooks and a lit rim."""
    rim = _cloud_rim(f)
    s = f.dark_side
    tight = f.style == _AFRO
    low = f.hairline if tight else lerp(f.hairline, f.eye_y - f.eye * 0.8, f.p["fringe"] * 0.8)
    w = f.half
    line = [
        (k, low + (3.0 if tight else 5.0) * abs(k) ** 3 + (0.7 if i % 2 else -0.7))
        for i, k in enumerate((-0.84, -0.5, -0.17, 0.17, 0.5, 0.84))
    ]
    size = w * (0.2 if tight else 0.24)
    curls = [(f.cx + k * w, y - size * 0.8, size) for k, y in line]
    curls += [(f.cx + k * (w + 0.5), 42.0, size * 0.8) for k in (-1, 1)]
    cap = _through(
        [
            (f.cx - w * 1.04, 43),
            (f.cx - w * 0.98, 32),
            (f.cx - w * 0.55, f.top - 2),
            (f.cx + w * 0.55, f.top - 2),
            (f.cx + w * 0.98, 32),
            (f.cx + w * 1.04, 43),
        ]
    )
    cap += _through([(x, y) for x, y, _ in curls[5::-1]], "L") + "Z"
    blobs = "".join(_oval(x, y, r, r) for x, y, r in curls)
    dusk = [(x, y) for x, y, _ in (rim if s > 0 else rim[::-1])][len(rim) // 2 :]
    inner = [(f.cx + s * w * 0.96, 44.0), (f.cx + s * w * 0.75, 32.0), (f.cx + s * w * 0.2, 26.0)]
    hooks = "".join(
        _d("M", x - r * 0.45, y + r * 0.3, "a", r * 0.55, r * 0.55, "0 1 1", r * 0.9, 0.0)
        for x, y, r in [
            *rim[1:-1:2],
            *curls[:6],
            *[(lerp(f.cx, x, 0.76), lerp(40, y, 0.78), r) for x, y, r in rim[2:-2:2]],
        ]
    )
    lit = rim[1 : len(rim) // 2] if s > 0 else rim[len(rim) // 2 + 1 : -1]
    shine = "".join(
        _d("M", x - s * r * 0.6, y - r * 0.1, "q", s * r * 0.1, -r * 0.55, s * r * 0.6, -r * 0.55) for x, y, r in lit
    )
    return (
        _fill(blobs + cap, f.hair) + _fill(_through(dusk) + _through(inner, "L") + "Z", f.dark_hair, 0.45)
        + _line(hooks, f.dark_hair, 0.8, 0.85) + _line(shine, f.light_hair, 1.2, 0.9)
    )  # fmt: skip


def _mohawk(f: _Face) -> str:
    tall, w = lerp(6.5, 13.0, f.p["hair_volume"]), f.half * lerp(0.3, 0.6, f.p["hair_length"])
    x, top = f.cx - 0.8 * f.yaw, f.top
    base = top + 9 + f.pitch
    d, lines = _d("M", x - w * 0.75, base), ""
    for i in range(5):
        k = i / 2 - 1
        peak = (x + k * w * 1.5, top - tall * (1 - 0.35 * k * k))
        d += _d(
            "Q",
            x + (k - 0.25) * w,
            top - tall * 0.3,
            *peak,
            "Q",
            x + (k + 0.2) * w,
            top - tall * 0.4,
            x + (k + 0.25) * w,
            top - tall * 0.25,
        )
        lines += _d("M", x + k * w * 0.6, base - 2, "Q", x + k * w * 0.8, top, peak[0], peak[1] + 3)
    d += _d("L", x + w * 0.75, base, "Q", x, base + 3, x - w * 0.75, base, "Z")
    left, right = _side_outline(f, -1), _side_outline(f, 1)
    inner = [
        (f.cx + k * f.half, y) for k, y in ((0.84, 41), (0.76, 34), (0.3, 31), (-0.3, 31), (-0.76, 34), (-0.84, 41))
    ]
    shaved = _through([*left[3:0:-1], *right[:4]]) + _through(inner, "L") + "Z"
    shine = _d("M", x - f.dark_side * w * 0.4, top + 4, "L", x - f.dark_side * w * 0.55, top - tall * 0.5)
    return (
        _fill(shaved, f.dark_hair, 0.4) + _edged(d, f.hair, f.dark_hair, 0.7) + _line(lines, f.dark_hair, 0.8)
        + _line(shine, f.light_hair, 1.5)
    )  # fmt: skip


# Eyes and brows


def _eyes(f: _Face, expression: str) -> str:
    """Both eyes, part by part, so that each part is one path."""
    white, ring, iris, pupil, spark, lids, lash, crease = ("",) * 8
    for side in (-1, 1):
        x, w = f.at(side * f.eye_u), f.eye * f.squeeze(side * f.eye_u)
        lift = lerp(1.5, -1.9, f.p["eye_tilt"])
        inn, out = (x - side * w, f.eye_y - lift * 0.45), (x + side * w, f.eye_y + lift * 0.55)
        if expression == "sleeping" or (expression == "winking" and side == 1):
            bend = 3.4 if expression == "sleeping" else -3.6
            lash += _d("M", *inn, "Q", x, f.eye_y + bend, *out)
            crease += _d("M", *out, "l", side * 1.2, math.copysign(1.0, bend))
            continue
        tall = f.eye * lerp(0.62, 0.98, f.p["eye_roundness"])
        up, down = tall * min(_OPENING.get(expression, 1.0), 1.3), tall * 0.72
        if expression in ("smiling", "laughing", "winking"):
            down *= 0.55
        slant = {"angry": 1.3, "sad": -1.3}.get(expression, 0.0) * side
        over = _d(
            "C",
            inn[0] + side * w * 0.5,
            inn[1] - up * 1.25 + slant * side,
            out[0] - side * w * 0.55,
            out[1] - up * 1.25 - slant * side,
            *out,
        )
        back = _d(
            "C", out[0] - side * w * 0.4, out[1] + down * 1.15, inn[0] + side * w * 0.45, inn[1] + down * 1.2, *inn
        )
        white += _d("M", *inn) + over + back + "Z"
        r = f.eye * 0.64
        gaze = x + 0.5 * f.yaw
        y = f.eye_y - (up - down) * 0.25
        narrow = f.squeeze(side * f.eye_u)
        ring += _oval(gaze, y, r * narrow, r)
        iris += _oval(gaze, y + 0.15, (r - 0.65) * narrow, r - 0.65)
        pupil += _oval(gaze, y, r * 0.46 * narrow, r * 0.46)
        spark += _oval(gaze - f.dark_side * r * 0.38, y - r * 0.36, r * 0.27, r * 0.27)
        high, deep = f.eye_y - f.eye * 1.12, f.eye_y + f.eye * 0.95
        lids += _d("M", *inn) + over + _d("C", out[0] - side * w * 0.3, high, inn[0] + side * w * 0.3, high, *inn, "Z")
        lids += _d("M", *inn) + _d(
            "C", inn[0] + side * w * 0.45, inn[1] + down * 1.2, out[0] - side * w * 0.4, out[1] + down * 1.15, *out
        )
        lids += _d("C", out[0] - side * w * 0.3, deep, inn[0] + side * w * 0.3, deep, *inn, "Z")
        lash += _d("M", *inn) + over + _d("l", side * 1.1, -0.9)
        crease += _d(
            "M",
            inn[0] + side * w * 0.25,
            inn[1] - up * 0.98 - 1.1,
            "Q",
            x + side * w * 0.2,
            f.eye_y - up * 1.2 - 1.4,
            out[0],
            out[1] - up * 0.55 - 0.9,
        )
    colour = _IRISES[int(f.p["eye_colour"])]
    balls = (
        _fill(white, "#fffdf8") + _fill(ring, lighten(colour, -0.5)) + _fill(iris, colour) + _fill(pupil, "#150d14")
        + _fill(spark, "#ffffff") + _fill(lids, mix(f.skin, f.shade, 0.3))
    )  # fmt: skip
    return (balls if white else "") + _line(crease, mix(f.shade, _INK, 0.25), 0.6) + _line(lash, _INK, 1.25)


def _brow_colour(f: _Face) -> str:
    # A bald head has no visible hair colour, so nothing on it may show one.
    return mix(f.skin, "#2c1a1c", 0.78) if f.style == _BALD else mix(f.dark_hair, "#2c1a1c", 0.25)


def _brows(f: _Face, expression: str) -> str:
    thick = lerp(0.9, 3.4, f.p["brow_thickness"])
    turn = lerp(-2.0, 2.0, f.p["brow_tilt"]) + _BROW_TURN.get(expression, 0.0) * 0.9
    y = f.eye_y - f.eye * 0.95 - lerp(1.3, 4.6, f.p["brow_height"]) - _BROW_RISE.get(expression, 0.0)
    arch = lerp(0.2, 3.2, f.p["brow_arch"])
    d = ""
    for side in (-1, 1):
        x, w = f.at(side * f.eye_u), (f.eye + 1.2) * f.squeeze(side * f.eye_u)
        inn, out = x - side * w * 0.85, x + side * w * 1.1
        d += _d(
            "M", inn, y - turn * 0.5 + thick * 0.5, "L", inn + side * 0.2, y - turn * 0.5 - thick * 0.5,
            "Q", x + side * w * 0.35, y - arch - thick * 0.6, out, y + turn * 0.5 + 0.5,
            "Q", x + side * w * 0.25, y - arch + thick * 0.75, inn, y - turn * 0.5 + thick * 0.5, "Z",
        )  # fmt: skip
    return _edged(d, _brow_colour(f), _brow_colour(f), 0.4)


# Nose and mouth


def _nose(f: _Face) -> str:
    wide, tip, y = lerp(2.0, 4.9, f.p["nose_width"]), lerp(1.3, -1.3, f.p["nose_tip"]), f.nose_y
    x, s = f.at(0) + 0.9 * f.yaw, f.dark_side
    root = f.at(0)
    side = _d(
        "M", root + s * 1.4, f.eye_y - 1.5, "C", root + s * 1.2, y - 4, x + s * wide * 0.7, y - 3.5,
        x + s * wide, y - 0.6,
        "Q", x + s * wide * 0.8, y + 1.2, x, y + 0.9 + tip, "Q", x + s * 0.6, y - 3, root + s * 1.4, f.eye_y - 1.5, "Z",
    )  # fmt: skip
    base = _d(
        "M", x - wide, y - 1.4, "Q", x - wide * 1.15, y + 0.9, x - wide * 0.5, y + 0.7, "Q", x, y + 1.6 + tip,
        x + wide * 0.5,
        y + 0.7, "Q", x + wide * 1.15, y + 0.9, x + wide, y - 1.4,
    )  # fmt: skip
    glint = _oval(x - s * 0.5, y - 1.5 + tip * 0.4, 0.7 + wide * 0.12, 0.75)
    return _fill(side, f.shade, 0.5) + _line(base, mix(f.shade, _INK, 0.4), 0.95) + _fill(glint, "#ffffff", 0.35)


def _mouth(f: _Face, expression: str) -> str:
    w, full = min(lerp(3.8, 8.4, f.p["mouth_width"]), f.jaw * 0.52), lerp(0.6, 2.4, f.p["lip_fullness"])
    lips = mix(mix(f.skin, "#b0404e", 0.48), "#c0123f", lerp(0.0, 0.85, f.p["lip_colour"]))
    x, y = f.at(0) - 0.4 * f.yaw, f.mouth_y
    if expression in ("laughing", "surprised"):
        return _open_mouth(x, y, w, full, lips, laughing=expression == "laughing")
    corner, bend = _CORNER.get(expression, -0.6) * lerp(0.8, 1.1, f.p["mouth_width"]), _BEND.get(expression, 0.25)
    w *= 1.18 if expression == "smiling" else 1.0
    left, right = (x - w, y + corner), (x + w, y + corner)
    seam = _d("Q", x - w * 0.4, y + bend + 0.3, x, y + bend * 0.8, "Q", x + w * 0.4, y + bend + 0.3, *right)
    upper = _d("M", *left) + _d(
        "Q", x - w * 0.5, y + bend * 0.4 - full * 0.9, x - w * 0.2, y + bend * 0.5 - full * 1.15, "L", x,
        y + bend * 0.6 - full * 0.75,
        "L", x + w * 0.2, y + bend * 0.5 - full * 1.15, "Q", x + w * 0.5, y + bend * 0.4 - full * 0.9, *right,
    )  # fmt: skip
    lower = _d("C", x + w * 0.5, y + bend + full * 2.1, x - w * 0.5, y + bend + full * 2.1, *left, "Z")
    line = _d("M", *left) + seam
    if expression == "smiling":
        grin = _d("M", x - w * 0.86, y + corner * 0.62) + _d(
            "Q",
            x,
            y + bend * 1.2,
            x + w * 0.86,
            y + corner * 0.62,
            "Q",
            x,
            y + bend + 3.6,
            x - w * 0.86,
            y + corner * 0.62,
            "Z",
        )
        lower = _d("C", x + w * 0.5, y + bend + 2.2 + full * 1.8, x - w * 0.5, y + bend + 2.2 + full * 1.8, *left, "Z")
        return _fill(upper + lower, lips) + _edged(grin, "#fffaf2", lighten(lips, -0.5), 0.6)
    shine = _d("M", x - w * 0.25, y + bend + full * 0.95, "h", w * 0.5)
    return (
        _fill(upper + lower, lips) + _line(line, mix(lighten(lips, -0.5), _INK, 0.3), 0.9)
        + (_line(shine, lighten(lips, 0.4), 0.6, 0.7) if full > 1.2 else "")
    )  # fmt: skip


def _open_mouth(x: float, y: float, w: float, full: float, lips: str, *, laughing: bool) -> str:
    rim = 0.7 + full * 0.75
    if not laughing:
        hole = _oval(x, y + 1.2, w * 0.5 + 0.4, 3.5)
        tongue = _oval(x, y + 3.0, w * 0.36, 1.5)
        return _edged(hole, "#571423", lips, rim) + _fill(tongue, "#d4566a")
    hole = _d(
        "M",
        x - w,
        y - 1.9,
        "Q",
        x,
        y - 0.3,
        x + w,
        y - 1.9,
        "C",
        x + w * 0.9,
        y + 6.4,
        x - w * 0.9,
        y + 6.4,
        x - w,
        y - 1.9,
        "Z",
    )
    teeth = _d(
        "M",
        x - w * 0.88,
        y - 1.4,
        "Q",
        x,
        y,
        x + w * 0.88,
        y - 1.4,
        "Q",
        x + w * 0.8,
        y + 0.8,
        x,
        y + 1.5,
        "Q",
        x - w * 0.8,
        y + 0.8,
        x - w * 0.88,
        y - 1.4,
        "Z",
    )
    tongue = _oval(x, y + 3.3, w * 0.42, 1.1)
    return _edged(hole, "#571423", lips, rim) + _fill(teeth, "#fffaf2") + _fill(tongue, "#d4566a")


# Marks


def _blush(f: _Face) -> str:
    strength = max(0.0, f.p["blush"] - 0.2) * 0.6
    spots = "".join(_oval(f.at(s * 0.6), f.eye_y + 8.2, 4.4 * f.squeeze(s * 0.6), 3.0) for s in (-1, 1))
    return _fill(spots, "#f04a60", strength) if strength > 0.02 else ""


def _freckles(f: _Face) -> str:
    if f.p["freckles"] < 0.5:
        return ""
    r = lerp(0.45, 0.85, f.p["freckles"] * 2 - 1)
    dots = "".join(_oval(f.at(u), f.eye_y + f.eye * 0.75 + 1.6 + dy, r, r) for u, dy in _FRECKLES)
    return _fill(dots, mix(f.shade, "#5a2008", 0.45), 0.9)


def _wrinkles(f: _Face) -> str:
    if f.p["wrinkles"] < 0.5:
        return ""
    d = ""
    for s in (-1, 1):
        x, y, w = f.at(s * f.eye_u), f.eye_y + f.eye * 0.95, f.eye * 0.7
        d += _d("M", x - w, y + 0.4, "Q", x, y + 1.8, x + w, y + 0.2)
        d += _d(
            "M", f.at(s * 0.24), f.nose_y - 0.5, "Q", f.at(s * 0.44), f.nose_y + 1.5, f.at(s * 0.45), f.mouth_y + 0.5
        )
    y = f.hairline + 5
    d += _d("M", f.at(-0.35), y, "Q", f.at(0), y - 1.2, f.at(0.35), y)
    return _line(d, f.shade, lerp(0.6, 1.1, f.p["wrinkles"] * 2 - 1))


def _mole(f: _Face) -> str:
    if int(f.p["mole"]) == 0:
        return ""
    reach = lerp(0.6, 0.5 * f.jaw / f.half, f.p["mole_y"])  # the face narrows downwards
    u = lerp(-reach, reach, f.p["mole_x"])
    low = lerp(f.eye_y + 7, f.chin - 5, f.p["mole_y"])
    return _fill(_oval(f.at(u), low, 1.05, 1.05), mix(f.shade, "#2a0f0c", 0.75))


def _beard(f: _Face) -> str:
    kind, long = int(f.p["beard"]), lerp(0.0, 10.0, f.p["beard_length"])
    if kind in (1, 2):
        return _whiskers(f, long if kind == 2 else 0.0, stubble=kind == 1)
    if kind != 4:
        return ""
    x, w, y, low = f.at(0) - 0.5 * f.yaw, min(f.jaw * 0.42, 6.4), min(f.mouth_y + 2.4, f.chin - 3.5), f.chin
    d = _d(
        "M", x - w, y, "Q", x, y + 2.6, x + w, y, "C", x + w * 1.1, low, x + w * 0.6, low + long * 0.6,
        f.cx + f.yaw * 3.4,
        low + 1.5 + long, "C", x - w * 0.6, low + long * 0.6, x - w * 1.1, low, x - w, y, "Z",
    )  # fmt: skip
    return _fill(d, _brow_colour(f))


def _whiskers(f: _Face, long: float, *, stubble: bool) -> str:
    grow = 0.0 if stubble else 0.8 + long * 0.12
    right = [(x + grow * (i > 0), y) for i, (x, y) in enumerate(_side_outline(f, 1)[3:])]
    left = [(x - grow * (i > 0), y) for i, (x, y) in enumerate(_side_outline(f, -1)[3:])]
    rows = [*right[:-1], (f.cx + 2.9 * f.yaw, f.chin + long), *left[-2::-1]]
    if long:
        rows = [
            (x, y + (long * 0.75 if i in (3, 5) else long * 0.12 if i in (2, 6) else 0))
            for i, (x, y) in enumerate(rows)
        ]
    m = f.mouth_y
    inner = [
        (f.cx - f.half * 0.86, 47.0), (f.at(-0.8), m - 6), (f.at(-0.5), m - 3.4), (f.at(0), m - 3.0),
        (f.at(0.5), m - 3.4),
        (f.at(0.8), m - 6), (f.cx + f.half * 0.86, 47.0),
    ]  # fmt: skip
    d = _through(rows) + _through(inner, "L") + "Z"
    if stubble:
        return _fill(d, _brow_colour(f), lerp(0.22, 0.5, f.p["beard_length"]))
    tips = "".join(
        _d(
            "M",
            f.cx + 2.2 * f.yaw + u * f.jaw,
            f.chin - 6 + 4 * (1 - abs(u)),
            "l",
            u * -2,
            2.5 + long * 0.5 * (1 - abs(u)),
        )
        for u in (-0.52, -0.32, -0.1, 0.12, 0.34, 0.54)
    )
    return _fill(d, _brow_colour(f)) + _line(tips, lighten(_brow_colour(f), 0.25), 0.8, 0.8)


def _moustache(f: _Face) -> str:
    if int(f.p["beard"]) != 3:
        return ""
    x, y, w = f.at(0), f.mouth_y - 2.2, min(lerp(5.0, 10.5, f.p["beard_length"]), f.jaw * 0.68)
    d = ""
    for s in (-1, 1):
        d += _d(
            "M", x, y - 1.2, "C", x + s * w * 0.4, y - 2.6, x + s * w * 0.75, y - 0.2, x + s * w, y + 1.4,
            "C", x + s * w * 0.7, y + 2.6, x + s * w * 0.3, y + 1.8, x, y + 0.7, "Z",
        )  # fmt: skip
    return _fill(d, _brow_colour(f))
