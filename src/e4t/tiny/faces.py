"""Faces of the drawn world: head-and-shoulders portraits whose every proportion is a number.

The head's outline, hair, brows, eyes, nose, mouth, ears and marks come from the identity; pose, light, expression and
clothes are nuisance. Ranges are wide, so that individuals differ visibly at 128 px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from e4t.tiny.canvas import Anchors, Figure, Light, Parameter, Params, Pose, hsl, lerp, lighten, mix

_HAIRY = ("hair_style", (0, 1, 2, 3, 4, 5, 6, 7, 8))
_BEARDED = ("beard", (1, 2, 3, 4))

PARAMETERS: tuple[Parameter, ...] = (
    Parameter("skin_tone", words=("pale", "fair", "tan", "brown", "dark")),
    Parameter("skin_warmth"),
    Parameter("face_width"),
    Parameter("jaw_width"),
    Parameter("chin_length"),
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
    Parameter("fringe", requires=("hair_style", (0, 1, 2, 3, 5, 6, 7))),
    Parameter("parting", requires=("hair_style", (0, 1, 2, 3, 5, 6, 7))),
    Parameter("eye_colour", options=("brown", "blue", "green", "grey", "amber")),
    Parameter("eye_size"),
    Parameter("eye_distance"),
    Parameter("eye_tilt"),
    Parameter("eye_height"),
    Parameter("brow_thickness"),
    Parameter("brow_tilt"),
    Parameter("brow_height"),
    Parameter("nose_length"),
    Parameter("nose_width"),
    Parameter("mouth_width"),
    Parameter("lip_fullness"),
    Parameter("lip_colour"),
    Parameter("ear_size"),
    Parameter("freckles", words=("", "freckles")),
    Parameter("blush"),
    Parameter("beard", options=("", "stubble", "a full beard", "a moustache", "a goatee")),
    Parameter("beard_length", requires=_BEARDED),
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

_SKINS = ("#fbe3d3", "#f3c8a5", "#d9a06f", "#a66a3e", "#6b4028", "#4a2a1b")
_HAIRS = (
    "#23202b", "#5a3a26", "#7f3b23", "#c24a22", "#e6bd5f", "#8d8f98", "#ece9e4", "#ee83b4", "#3f74d8", "#3fa66a", "#8751c4",
)  # fmt: skip
_IRISES = ("#6b3f1f", "#3d86d6", "#3f9d5a", "#7f8c99", "#d08a1e")
_FRECKLES = ((-9, 2), (-6.5, 4), (-11, 5), (-8, 6.5), (-5, 1.5), (6, 2), (9, 3), (7.5, 5.5), (11, 5), (5, 4.5), (0, 1))


@dataclass(frozen=True)
class _Head:
    """Geometry and colours worked out once, in canvas units."""

    p: Params
    cx: float
    fx: float  # centre line of the features
    dy: float  # how far pitch moves them down
    half: float
    jaw: float
    cheek: float
    top: float
    chin: float
    eye_y: float
    eye_dx: float
    eye: float
    skin: str
    shade: str
    hair: str
    dark_hair: str
    light_hair: str
    lit_left: bool

    @property
    def style(self) -> int:
        return int(self.p["hair_style"])


def _ramp(colours: tuple[str, ...], t: float) -> str:
    place = t * (len(colours) - 1)
    low = min(int(place), len(colours) - 2)
    return mix(colours[low], colours[low + 1], place - low)


def _head(p: Params, pose: Pose, light: Light) -> _Head:
    skin = mix(_ramp(_SKINS, p["skin_tone"]), hsl(lerp(0.98, 0.13, p["skin_warmth"] > 0.5), 0.6, 0.55), abs(p["skin_warmth"] - 0.5) * 0.3)
    hair = lighten(_HAIRS[int(p["hair_colour"])], lerp(-0.3, 0.3, p["hair_shade"]))
    half = lerp(16.5, 22.5, p["face_width"])
    dy = 3 * pose.pitch
    return _Head(
        p=p,
        cx=50 - 0.8 * pose.yaw,
        fx=50 + 4.5 * pose.yaw,
        dy=dy,
        half=half,
        jaw=half * lerp(0.55, 0.95, p["jaw_width"]),
        cheek=half * lerp(0.92, 1.1, p["cheeks"]),
        top=23.0,
        chin=lerp(63.5, 73.0, p["chin_length"]),
        eye_y=lerp(42.0, 47.5, p["eye_height"]) + dy,
        eye_dx=lerp(6.6, 10.6, p["eye_distance"]) * half / 19,
        eye=lerp(3.4, 5.4, p["eye_size"]),
        skin=skin,
        shade=mix(skin, "#5a2040", 0.28),
        hair=hair,
        dark_hair=lighten(mix(hair, "#2a1038", 0.3), -0.12),
        light_hair=lighten(hair, 0.28),
        lit_left=light.side < 0,
    )


def draw_face(p: Params, *, expression: str, pose: Pose, light: Light) -> Figure:
    """The portrait of the person ``p``; ``pose`` gives yaw and pitch only, the caller places the rest."""
    h = _head(p, pose, light)
    features = (
        _ears(h), _skull(h), _beard(h), _blush(h), _freckles(h), _nose(h), _mouth(h, expression), _moustache(h),
        _eyes(h, expression), _hair_front(h), _brows(h, expression),
    )  # fmt: skip
    return Figure(_hair_back(h), _bust(h, pose, light), "".join(features), _anchors(h))


def _anchors(h: _Head) -> Anchors:
    rise = 0.0 if h.style == 9 else lerp(2.0, 6.0, h.p["hair_volume"])
    return Anchors(
        cx=h.cx, face_x=h.fx, head_top=h.top - rise, skull_top=h.top, chin=h.chin, half_width=h.half, eye_y=h.eye_y,
        eye_dx=h.eye_dx, eye_size=h.eye, ear_y=h.eye_y + 3 - h.dy, mouth_y=_mouth_y(h), neck_y=h.chin + 4,
        neck_half_width=h.jaw * 0.55,
    )  # fmt: skip


def _path(d: str, fill: str, extra: str = "") -> str:
    return f'<path d="{d}" fill="{fill}" {extra}/>'


def _line(d: str, stroke: str, width: float, extra: str = "") -> str:
    return f'<path d="{d}" fill="none" stroke="{stroke}" stroke-width="{width:.2f}" stroke-linecap="round" {extra}/>'


def _outline(h: _Head, grow: float = 0.0) -> str:
    x, w, c, j = h.cx, h.half + grow, h.cheek + grow, h.jaw
    return (
        f"M{x - w:.2f} 42 C{x - w:.2f} {h.top - 2 - grow:.2f} {x + w:.2f} {h.top - 2 - grow:.2f} {x + w:.2f} 42 "
        f"C{x + c:.2f} 50 {x + c:.2f} 55 {x + j:.2f} {h.chin - 7:.2f} "
        f"C{x + j * 0.72:.2f} {h.chin - 1:.2f} {x + j * 0.4:.2f} {h.chin:.2f} {x:.2f} {h.chin:.2f} "
        f"C{x - j * 0.4:.2f} {h.chin:.2f} {x - j * 0.72:.2f} {h.chin - 1:.2f} {x - j:.2f} {h.chin - 7:.2f} "
        f"C{x - c:.2f} 55 {x - c:.2f} 50 {x - w:.2f} 42 Z"
    )


def _skull(h: _Head) -> str:
    side = 1 if h.lit_left else -1
    far = h.cx + side * h.half
    shadow = (
        f"M{h.cx + side * h.half * 0.35:.2f} 24 C{far + side * 4:.2f} 26 {far + side * 4:.2f} 50 "
        f"{h.cx + side * h.jaw:.2f} {h.chin - 6:.2f} C{h.cx + side * h.jaw * 0.6:.2f} {h.chin:.2f} "
        f"{h.cx + side * 2:.2f} {h.chin:.2f} {h.cx:.2f} {h.chin:.2f} C{h.cx + side * h.half * 0.75:.2f} {h.chin - 9:.2f} "
        f"{h.cx + side * h.half * 0.85:.2f} 45 {h.cx + side * h.half * 0.35:.2f} 24 Z"
    )
    clip = f'<clipPath id="f-skull"><path d="{_outline(h)}"/></clipPath>'
    glow = f'<ellipse cx="{h.cx - side * h.half * 0.45:.2f}" cy="36" rx="7" ry="9" fill="#fff" fill-opacity="0.13"/>'
    shaded = _path(shadow, h.shade, 'fill-opacity="0.5"') + glow
    return f'{clip}{_path(_outline(h), h.skin)}<g clip-path="url(#f-skull)">{shaded}</g>' + _line(
        _outline(h), lighten(h.shade, -0.35), 0.7, 'stroke-opacity="0.75"'
    )


def _ears(h: _Head) -> str:
    size, y = lerp(3.0, 6.5, h.p["ear_size"]), h.eye_y + 3 - h.dy * 1.6
    edge = lighten(h.shade, -0.3)
    out = ""
    for side in (-1, 1):
        x = h.cx + side * (h.half + size * 0.25)
        out += f'<ellipse cx="{x:.2f}" cy="{y:.2f}" rx="{size * 0.62:.2f}" ry="{size:.2f}" fill="{h.skin}" stroke="{edge}" stroke-width="0.6"/>'
        out += f'<ellipse cx="{x + side * 0.3:.2f}" cy="{y:.2f}" rx="{size * 0.3:.2f}" ry="{size * 0.6:.2f}" fill="{h.shade}" fill-opacity="0.7"/>'
    return out


def _bust(h: _Head, pose: Pose, light: Light) -> str:
    hue = (math.sin(pose.x * 12.9 + pose.roll * 78.2 + light.side * 37.7) * 437.5) % 1
    cloth = hsl(hue, 0.5, lerp(0.35, 0.7, (hue * 7.3) % 1))
    neck = h.jaw * 0.55
    top = h.chin - 10
    shape = f"M{50 - neck - 4:.2f} 78 C30 80 18 86 12 100 L-20 160 L120 160 L88 100 C82 86 70 80 {50 + neck + 4:.2f} 78 Z"
    throat = f"M{50 - neck:.2f} {top:.2f} L{50 - neck - 2:.2f} 80 Q50 92 {50 + neck + 2:.2f} 80 L{50 + neck:.2f} {top:.2f} Z"
    shadow = f"M{50 - neck:.2f} {h.chin - 6:.2f} Q50 {h.chin + 10:.2f} {50 + neck:.2f} {h.chin - 6:.2f} Z"
    side = 1 if h.lit_left else -1
    fold = f"M{50 + side * 14} 82 C{50 + side * 30} 86 {50 + side * 36} 96 {50 + side * 44} 160 L{50 + side * 70} 160 L{50 + side * 38} 98 Z"
    collar = _line(f"M{50 - neck - 4:.2f} 79 Q50 95 {50 + neck + 4:.2f} 79", lighten(cloth, 0.35), 2.4)
    return (
        _path(shape, cloth, f'stroke="{lighten(cloth, -0.45)}" stroke-width="0.7"')
        + _path(fold, lighten(cloth, -0.4), 'fill-opacity="0.45"')
        + _path(throat, h.skin)
        + _path(shadow, h.shade, 'fill-opacity="0.8"')
        + collar
    )


def _hair_back(h: _Head) -> str:
    v, length = lerp(1.5, 7.0, h.p["hair_volume"]), lerp(70.0, 100.0, h.p["hair_length"])
    x, w = h.cx, h.half + v
    edge = f'stroke="{lighten(h.dark_hair, -0.3)}" stroke-width="0.6"'
    if h.style in (1, 2):
        wave = 5.0 if h.style == 2 else 0.0
        d = (
            f"M{x - w:.2f} 40 C{x - w:.2f} {h.top - v - 6:.2f} {x + w:.2f} {h.top - v - 6:.2f} {x + w:.2f} 40 "
            f"C{x + w + wave:.2f} 52 {x + w - wave:.2f} 60 {x + w + wave * 0.8:.2f} 70 S{x + w - wave:.2f} {length - 6:.2f} {x + w + 1:.2f} {length:.2f} "
            f"Q{x:.2f} {length + 5:.2f} {x - w - 1:.2f} {length:.2f} C{x - w + wave:.2f} {length - 6:.2f} {x - w - wave:.2f} 80 {x - w - wave * 0.8:.2f} 70 "
            f"S{x - w - wave:.2f} 52 {x - w:.2f} 40 Z"
        )
        strands = "".join(
            f"M{x + s * w * k:.2f} 45 Q{x + s * (w * k + wave):.2f} 62 {x + s * w * k:.2f} {length - 3:.2f}" for s in (-1, 1) for k in (0.82, 0.95)
        )
        return _path(d, h.dark_hair, edge) + _line(strands, h.hair, 0.9, 'stroke-opacity="0.8"')
    if h.style == 5:
        low = lerp(58.0, 72.0, h.p["hair_length"])
        d = f"M{x - w:.2f} 40 C{x - w:.2f} {h.top - v - 6:.2f} {x + w:.2f} {h.top - v - 6:.2f} {x + w:.2f} 40 L{x + w + 2.5:.2f} {low:.2f} Q{x:.2f} {low + 6:.2f} {x - w - 2.5:.2f} {low:.2f} Z"
        return _path(d, h.dark_hair, edge)
    if h.style in (3, 4):
        return _curls(h, v)
    if h.style == 6:
        r = lerp(5.0, 9.0, h.p["hair_length"])
        return f'<circle cx="{x:.2f}" cy="{h.top - r * 0.55:.2f}" r="{r:.2f}" fill="{h.hair}" {edge}/>' + _line(
            f"M{x - r * 0.6:.2f} {h.top - r:.2f} q{r * 0.6:.2f} {-r * 0.4:.2f} {r * 1.1:.2f} 0", h.light_hair, 1.1
        )
    if h.style == 7:
        side = -1 if h.p["parting"] > 0.5 else 1
        tail = h.cx + side * (h.half + 2)
        d = f"M{tail:.2f} 30 C{tail + side * 16:.2f} 30 {tail + side * 14:.2f} 60 {tail + side * 9:.2f} {length - 8:.2f} C{tail + side * 2:.2f} {length - 20:.2f} {tail + side * 6:.2f} 50 {tail - side * 4:.2f} 40 Z"
        return _path(d, h.dark_hair, edge) + _line(f"M{tail + side * 4:.2f} 36 Q{tail + side * 11:.2f} 50 {tail + side * 8:.2f} {length - 14:.2f}", h.light_hair, 0.9)
    return ""


def _curls(h: _Head, v: float) -> str:
    count, ring = (11, h.half + v * 0.8) if h.style == 3 else (15, h.half + v * 1.5 + 2)
    low = lerp(0.1, 0.75, h.p["hair_length"]) if h.style == 3 else 0.25
    radius = 4.2 + v * 0.45
    blobs, rings = "", ""
    for i in range(count):
        a = math.pi * (1 + low) * (i / (count - 1)) - math.pi * (1 + low / 2)
        px, py = h.cx + ring * math.cos(a), 41 + ring * 0.95 * math.sin(a)
        blobs += f"M{px - radius:.2f} {py:.2f}a{radius:.2f} {radius:.2f} 0 1 0 {2 * radius:.2f} 0a{radius:.2f} {radius:.2f} 0 1 0 {-2 * radius:.2f} 0"
        rings += f"M{px - radius * 0.5:.2f} {py:.2f}a{radius * 0.5:.2f} {radius * 0.5:.2f} 0 1 1 {radius * 0.8:.2f} {radius * 0.4:.2f}"
    cap = f'<ellipse cx="{h.cx:.2f}" cy="40" rx="{ring:.2f}" ry="{ring * 0.95:.2f}" fill="{h.dark_hair}"/>'
    edge = f'stroke="{lighten(h.dark_hair, -0.25)}" stroke-width="0.6"'
    return _path(blobs, h.hair, edge) + cap + _line(rings, h.light_hair, 0.8, 'stroke-opacity="0.8"')


def _hair_front(h: _Head) -> str:
    if h.style == 9:
        return f'<ellipse cx="{h.cx - (6 if h.lit_left else -6):.2f}" cy="28" rx="5" ry="2.4" fill="#fff" fill-opacity="0.35"/>'
    if h.style == 8:
        return _mohawk(h)
    if h.style == 4:
        line = lerp(30.0, 34.0, h.p["hair_volume"])
        d = f"M{h.cx - h.half - 1:.2f} 43 C{h.cx - h.half - 1:.2f} {h.top - 3:.2f} {h.cx + h.half + 1:.2f} {h.top - 3:.2f} {h.cx + h.half + 1:.2f} 43 Q{h.cx + h.half * 0.7:.2f} {line:.2f} {h.cx:.2f} {line - 1:.2f} Q{h.cx - h.half * 0.7:.2f} {line:.2f} {h.cx - h.half - 1:.2f} 43 Z"
        return _path(d, h.hair)
    return _cap(h)


def _mohawk(h: _Head) -> str:
    height = lerp(8.0, 17.0, h.p["hair_volume"])
    w = lerp(3.5, 7.5, h.p["hair_length"])
    x, top = h.cx, h.top
    d = f"M{x - w:.2f} {top + 8:.2f} " + "".join(
        f"L{x - w + w * 2 * (i + 0.5) / 4:.2f} {top - height + (i % 2) * 3:.2f} L{x - w + w * 2 * (i + 1) / 4:.2f} {top - height * 0.35:.2f} " for i in range(4)
    ) + f"L{x + w:.2f} {top + 8:.2f} Q{x:.2f} {top + 12:.2f} {x - w:.2f} {top + 8:.2f} Z"
    sides = f"M{x - h.half * 0.98:.2f} 38 C{x - h.half:.2f} {top - 1:.2f} {x + h.half:.2f} {top - 1:.2f} {x + h.half * 0.98:.2f} 38 Q{x:.2f} 22 {x - h.half * 0.98:.2f} 38 Z"
    return _path(sides, h.dark_hair, 'fill-opacity="0.35"') + _path(d, h.hair, f'stroke="{lighten(h.dark_hair, -0.3)}" stroke-width="0.6"') + _line(
        f"M{x - w * 0.3:.2f} {top + 5:.2f} L{x - w * 0.2:.2f} {top - height * 0.6:.2f}", h.light_hair, 1.0
    )


def _cap(h: _Head) -> str:
    v = lerp(1.5, 7.0, h.p["hair_volume"])
    x, w = h.cx, h.half + 0.8 + v * 0.25
    part = x + lerp(-0.75, 0.75, h.p["parting"]) * h.half
    line = lerp(27.0, 38.0, h.p["fringe"])
    down = {0: 45.0, 3: 46.0, 6: 42.0, 7: 43.0}.get(h.style, lerp(50.0, 60.0, h.p["hair_length"]))
    d = (
        f"M{x - w:.2f} {down:.2f} C{x - w - 1:.2f} {h.top - v * 1.2 - 2:.2f} {x + w + 1:.2f} {h.top - v * 1.2 - 2:.2f} {x + w:.2f} {down:.2f} "
        f"C{x + w - 2:.2f} {down - 6:.2f} {x + w - 2.5:.2f} {line + 3:.2f} {part:.2f} {line - 5:.2f} "
        f"C{x - w + 2.5:.2f} {line + 3:.2f} {x - w + 2:.2f} {down - 6:.2f} {x - w:.2f} {down:.2f} Z"
    )
    strands = "".join(
        f"M{part:.2f} {line - 6:.2f} Q{part + k * w * 0.6:.2f} {line - 7 + abs(k) * 4:.2f} {x + k * w * 0.93:.2f} {down - 8:.2f}" for k in (-0.95, -0.6, 0.6, 0.95)
    )
    side = -1 if h.lit_left else 1
    gloss = f"M{x + side * w * 0.75:.2f} 33 Q{x + side * w * 0.5:.2f} {h.top - v * 0.3 + 2:.2f} {x + side * w * 0.05:.2f} {h.top - v * 0.4 + 1.5:.2f}"
    return (
        _path(d, h.hair, f'stroke="{lighten(h.dark_hair, -0.3)}" stroke-width="0.6"')
        + _line(strands, h.dark_hair, 0.7, 'stroke-opacity="0.7"')
        + _line(gloss, h.light_hair, 1.7, 'stroke-opacity="0.85"')
    )


def _brows(h: _Head, expression: str) -> str:
    raise_by = {"surprised": 3.0, "laughing": 1.0, "angry": -1.8, "sad": 0.6}.get(expression, 0.0)
    tilt = lerp(-2.2, 2.2, h.p["brow_tilt"]) + {"angry": 3.2, "sad": -3.4}.get(expression, 0.0)
    thick = lerp(0.9, 3.0, h.p["brow_thickness"])
    y = h.eye_y - h.eye - lerp(1.6, 5.0, h.p["brow_height"]) - raise_by
    colour = h.dark_hair if h.style != 9 else lighten(mix(h.skin, "#3a2418", 0.75), 0)
    out = ""
    for side in (-1, 1):
        inner, outer = h.fx + side * (h.eye_dx - h.eye * 0.95), h.fx + side * (h.eye_dx + h.eye * 1.25)
        out += _line(
            f"M{inner:.2f} {y + tilt * 0.5:.2f} Q{h.fx + side * h.eye_dx:.2f} {y - 1.8:.2f} {outer:.2f} {y - tilt * 0.5 + 0.6:.2f}", colour, thick
        )
    return out


def _eyes(h: _Head, expression: str) -> str:
    out = ""
    for side in (-1, 1):
        x = h.fx + side * h.eye_dx
        closed = expression == "sleeping" or (expression == "winking" and side == 1)
        out += _closed_eye(h, x, happy=expression == "winking") if closed else _open_eye(h, x, side, expression)
    return out


def _closed_eye(h: _Head, x: float, *, happy: bool) -> str:
    bend = -2.6 if happy else 2.4
    lash = _line(f"M{x - h.eye:.2f} {h.eye_y:.2f} Q{x:.2f} {h.eye_y + bend * 1.3:.2f} {x + h.eye:.2f} {h.eye_y:.2f}", "#2a1a20", 1.3)
    return lash


def _open_eye(h: _Head, x: float, side: int, expression: str) -> str:
    w = h.eye
    tall = w * {"surprised": 1.02, "laughing": 0.42, "smiling": 0.66, "angry": 0.6, "sad": 0.66}.get(expression, 0.78)
    tilt = lerp(-1.7, 1.7, h.p["eye_tilt"]) * side
    y = h.eye_y
    left, right = f"{x - w:.2f} {y + tilt:.2f}", f"{x + w:.2f} {y - tilt:.2f}"
    almond = f"M{left} Q{x:.2f} {y - 1.75 * tall:.2f} {right} Q{x:.2f} {y + 1.5 * tall:.2f} {left} Z"
    iris = min(w * 0.58, tall * 0.98)
    colour = _IRISES[int(h.p["eye_colour"])]
    clip = f'<clipPath id="f-eye{side + 1}"><path d="{almond}"/></clipPath>'
    balls = (
        f'<circle cx="{x:.2f}" cy="{y - 0.1:.2f}" r="{iris:.2f}" fill="{colour}" stroke="{lighten(colour, -0.5)}" stroke-width="0.5"/>'
        f'<circle cx="{x:.2f}" cy="{y - 0.1:.2f}" r="{iris * 0.48:.2f}" fill="#150d12"/>'
        f'<circle cx="{x - iris * 0.35:.2f}" cy="{y - iris * 0.45:.2f}" r="{iris * 0.27:.2f}" fill="#fff"/>'
    )
    lid = _line(f"M{left} Q{x:.2f} {y - 1.75 * tall:.2f} {right}", "#2a1a20", 1.15)
    return f'{clip}{_path(almond, "#fffdf8")}<g clip-path="url(#f-eye{side + 1})">{balls}</g>{lid}'


def _nose(h: _Head) -> str:
    length, width = lerp(7.0, 13.0, h.p["nose_length"]), lerp(1.8, 4.4, h.p["nose_width"])
    y = h.eye_y + length
    side = 1 if h.lit_left else -1
    ridge = f"M{h.fx + side * 1.2:.2f} {h.eye_y + 1:.2f} Q{h.fx + side * (width + 0.6):.2f} {y - 3:.2f} {h.fx + side * width:.2f} {y:.2f} L{h.fx:.2f} {y:.2f} Z"
    base = f"M{h.fx - width:.2f} {y - 0.8:.2f} q{-0.5:.2f} 1.8 {width * 0.6:.2f} 1.4 q{width * 0.4:.2f} 0.9 {width * 0.8:.2f} 0 q{width * 0.7:.2f} 0.4 {width * 0.6:.2f} -1.4"
    return _path(ridge, h.shade, 'fill-opacity="0.55"') + _line(base, lighten(h.shade, -0.4), 0.95)


def _mouth_y(h: _Head) -> float:
    return lerp(h.eye_y + lerp(7.0, 13.0, h.p["nose_length"]), h.chin + h.dy * 0.6, 0.45)


def _mouth(h: _Head, expression: str) -> str:
    w, full = lerp(4.2, 8.6, h.p["mouth_width"]), lerp(0.7, 2.4, h.p["lip_fullness"])
    lips = mix(mix(h.skin, "#b8434f", 0.5), "#a01f4a", 0.75 * h.p["lip_colour"])
    x, y, dark = h.fx, _mouth_y(h), lighten(h.shade, -0.55)
    if expression in ("laughing", "surprised"):
        return _open_mouth(x, y, w, full, lips, expression)
    corner = {"smiling": -2.4, "winking": -1.8, "sad": 2.2, "angry": 1.3}.get(expression, -0.2)
    bend = {"smiling": 2.6, "winking": 2.0, "sad": -1.8, "angry": -0.9}.get(expression, 0.3)
    left, right = f"{x - w:.2f} {y + corner:.2f}", f"{x + w:.2f} {y + corner:.2f}"
    shape = f"M{left} Q{x - w * 0.3:.2f} {y + bend - full * 1.7:.2f} {x:.2f} {y + bend - full * 0.9:.2f} Q{x + w * 0.3:.2f} {y + bend - full * 1.7:.2f} {right} Q{x:.2f} {y + bend + full * 2.4:.2f} {left} Z"
    return _path(shape, lips) + _line(f"M{left} Q{x:.2f} {y + bend * 1.5:.2f} {right}", dark, 0.95)


def _open_mouth(x: float, y: float, w: float, full: float, lips: str, expression: str) -> str:
    edge = f'stroke="{lips}" stroke-width="{0.6 + full * 0.6:.2f}"'
    if expression == "surprised":
        return f'<ellipse cx="{x:.2f}" cy="{y + 0.8:.2f}" rx="{w * 0.45:.2f}" ry="3.6" fill="#5a1522" {edge}/>'
    d = f"M{x - w:.2f} {y - 1.6:.2f} Q{x:.2f} {y - 0.4:.2f} {x + w:.2f} {y - 1.6:.2f} Q{x + w * 0.7:.2f} {y + 5:.2f} {x:.2f} {y + 5:.2f} Q{x - w * 0.7:.2f} {y + 5:.2f} {x - w:.2f} {y - 1.6:.2f} Z"
    teeth = f"M{x - w * 0.85:.2f} {y - 1.1:.2f} Q{x:.2f} {y:.2f} {x + w * 0.85:.2f} {y - 1.1:.2f} L{x + w * 0.7:.2f} {y + 1:.2f} Q{x:.2f} {y + 1.9:.2f} {x - w * 0.7:.2f} {y + 1:.2f} Z"
    return _path(d, "#5a1522", edge) + _path(teeth, "#fffaf2")


def _blush(h: _Head) -> str:
    strength = max(0.0, h.p["blush"] - 0.25) * 0.75
    y = h.eye_y + 8.5
    return "".join(
        f'<ellipse cx="{h.fx + side * h.half * 0.58:.2f}" cy="{y:.2f}" rx="4.2" ry="2.7" fill="#f0506a" fill-opacity="{strength:.2f}"/>' for side in (-1, 1)
    )


def _freckles(h: _Head) -> str:
    if h.p["freckles"] < 0.5:
        return ""
    r = lerp(0.45, 0.95, h.p["freckles"] * 2 - 1)
    dots = "".join(
        f"M{h.fx + dx * h.half / 19 - r:.2f} {h.eye_y + 3.5 + dy:.2f}a{r:.2f} {r:.2f} 0 1 0 {2 * r:.2f} 0a{r:.2f} {r:.2f} 0 1 0 {-2 * r:.2f} 0" for dx, dy in _FRECKLES
    )
    return _path(dots, lighten(mix(h.skin, "#7a3010", 0.55), -0.1), 'fill-opacity="0.85"')


def _beard_colour(h: _Head) -> str:
    return h.dark_hair if h.style != 9 else "#3a2a24"


def _beard(h: _Head) -> str:
    kind, long = int(h.p["beard"]), lerp(0.0, 9.0, h.p["beard_length"])
    x, low = h.cx, h.chin
    if kind in (1, 2):
        out = 0.3 if kind == 1 else 1.2 + long * 0.15
        drop = 0.0 if kind == 1 else long
        d = (
            f"M{x - h.half:.2f} 47 C{x - h.cheek - out:.2f} 55 {x - h.jaw - out:.2f} {low - 6:.2f} {x - h.jaw * 0.7:.2f} {low - 1 + drop * 0.6:.2f} "
            f"Q{x:.2f} {low + drop + 1:.2f} {x + h.jaw * 0.7:.2f} {low - 1 + drop * 0.6:.2f} C{x + h.jaw + out:.2f} {low - 6:.2f} {x + h.cheek + out:.2f} 55 {x + h.half:.2f} 47 "
            f"C{x + h.half * 0.8:.2f} 56 {h.fx + h.half * 0.55:.2f} {_mouth_y(h) - 4:.2f} {h.fx:.2f} {_mouth_y(h) - 3.6:.2f} C{h.fx - h.half * 0.55:.2f} {_mouth_y(h) - 4:.2f} {x - h.half * 0.8:.2f} 56 {x - h.half:.2f} 47 Z"
        )
        return _path(d, _beard_colour(h), f'fill-opacity="{lerp(0.25, 0.5, h.p["beard_length"]):.2f}"' if kind == 1 else "")
    if kind == 4:
        w = h.jaw * 0.42
        y = _mouth_y(h) + 3.2
        return _path(f"M{h.fx - w:.2f} {y:.2f} Q{h.fx:.2f} {y + 2:.2f} {h.fx + w:.2f} {y:.2f} Q{h.fx + w * 0.9:.2f} {low + long * 0.6:.2f} {x:.2f} {low + 1 + long:.2f} Q{h.fx - w * 0.9:.2f} {low + long * 0.6:.2f} {h.fx - w:.2f} {y:.2f} Z", _beard_colour(h))
    return ""


def _moustache(h: _Head) -> str:
    if int(h.p["beard"]) != 3:
        return ""
    y, w = _mouth_y(h) - 2.6, lerp(5.5, 10.0, h.p["beard_length"])
    d = f"M{h.fx:.2f} {y - 1:.2f} C{h.fx + w * 0.4:.2f} {y - 2.6:.2f} {h.fx + w * 0.8:.2f} {y - 0.6:.2f} {h.fx + w:.2f} {y + 1.6:.2f} Q{h.fx + w * 0.4:.2f} {y + 2.4:.2f} {h.fx:.2f} {y + 0.8:.2f} Q{h.fx - w * 0.4:.2f} {y + 2.4:.2f} {h.fx - w:.2f} {y + 1.6:.2f} C{h.fx - w * 0.8:.2f} {y - 0.6:.2f} {h.fx - w * 0.4:.2f} {y - 2.6:.2f} {h.fx:.2f} {y - 1:.2f} Z"
    return _path(d, _beard_colour(h))
