"""Backgrounds of the drawn world: small illustrated places that stay recognisable with a portrait in front of them.

A portrait covers the middle and the bottom, so what tells a place apart lies at the sides and the top. Rasterising
costs by shape, so small shapes of one colour share one path.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Sequence

from .canvas import Light, hsl, lerp, lighten, mix

SCENES: dict[str, tuple[str, ...]] = {
    "studio": ("",),
    "beach": ("at the beach", "on a sandy beach", "by the sea"),
    "snow": ("in the snow", "on a snowy day", "in a winter landscape"),
    "forest": ("in a forest", "in the woods", "among the trees"),
    "space": ("in space", "in outer space", "among the stars"),
    "city": ("in a city at night", "in front of a city skyline at night", "in the city at night"),
    "desert": ("in the desert", "in a desert with cacti", "among sand dunes"),
    "underwater": ("underwater", "under the sea", "among fish under water"),
    "library": ("in a library", "in front of bookshelves", "among books"),
    "kitchen": ("in a kitchen", "in the kitchen", "at home in the kitchen"),
    "garden": ("in a garden", "in a flower garden", "among flowers"),
    "mountains": ("in the mountains", "in front of mountains", "with mountains behind"),
    "rain": ("in the rain", "on a rainy day", "in rainy weather"),
    "sunset": ("at sunset", "in front of a sunset", "in the evening sun"),
    "autumn": ("in autumn", "among autumn leaves", "on an autumn day"),
    "circus": ("at the circus", "in a circus tent", "in a circus ring"),
}

Point = tuple[float, float]


def _f(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _circle(x: float, y: float, r: float, squash: float = 1.0) -> str:
    """Path data of an ellipse ``squash`` times as high as wide."""
    a, b, d = _f(r), _f(r * squash), _f(2 * r)
    return f"M{_f(x - r)},{_f(y)}a{a},{b} 0 1 0 {d},0a{a},{b} 0 1 0 -{d},0z"


def _polygon(points: Iterable[Point]) -> str:
    return "M" + "L".join(f"{_f(x)},{_f(y)}" for x, y in points) + "z"


def _box(x: float, y: float, width: float, height: float) -> str:
    return f"M{_f(x)},{_f(y)}h{_f(width)}v{_f(height)}h{_f(-width)}z"


def _smooth(points: Sequence[Point]) -> str:
    """Path data of a smooth open curve through about ``points`` (quadratic, by midpoints)."""
    data = f"M{_f(points[0][0])},{_f(points[0][1])}"
    for (x, y), (u, v) in itertools.pairwise(points[1:]):
        data += f"Q{_f(x)},{_f(y)} {_f((x + u) / 2)},{_f((y + v) / 2)}"
    return data + f"L{_f(points[-1][0])},{_f(points[-1][1])}"


def _path(data: str, fill: str, opacity: float = 1.0) -> str:
    # Not ``opacity``, for which resvg would draw the shape on a layer of its own.
    return f'<path d="{data}" fill="{fill}"' + (f' fill-opacity="{_f(opacity)}"/>' if opacity < 1 else "/>")


def _stroke(data: str, colour: str, width: float, opacity: float = 1.0) -> str:
    return (
        f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="{_f(width)}" stroke-linecap="round"'
        f' stroke-linejoin="round" stroke-opacity="{_f(opacity)}"/>'
    )


def _stops(colours: Sequence[str | tuple[str, float]]) -> str:
    """Evenly spaced gradient stops; a pair is a colour and its opacity."""
    out = ""
    for i, colour in enumerate(colours):
        name, opacity = (colour, 1.0) if isinstance(colour, str) else colour
        out += f'<stop offset="{_f(i / (len(colours) - 1))}" stop-color="{name}" stop-opacity="{_f(opacity)}"/>'
    return out


def _vertical(name: str, colours: Sequence[str | tuple[str, float]], top: float = -12, bottom: float = 112) -> str:
    """A full-width band filled from top to bottom with ``colours``; it goes on below so that no seam shows."""
    return (
        f'<linearGradient id="s-{name}" gradientUnits="userSpaceOnUse" x1="0" y1="{_f(top)}" x2="0" y2="{_f(bottom)}">'
        f'{_stops(colours)}</linearGradient><path d="{_box(-12, top, 124, bottom - top + 16)}" fill="url(#s-{name})"/>'
    )


def _shade(name: str, data: str, colours: Sequence[str | tuple[str, float]], *, across: bool = False) -> str:
    """A path shaded from top to bottom of its box, or from left to right."""
    axis = 'x2="1" y2="0"' if across else 'x2="0" y2="1"'
    return (
        f'<linearGradient id="s-{name}" x1="0" y1="0" {axis}>{_stops(colours)}</linearGradient>'
        f'<path d="{data}" fill="url(#s-{name})"/>'
    )


def _glow(name: str, x: float, y: float, r: float, colours: Sequence[str | tuple[str, float]]) -> str:
    """A round glow."""
    return (
        f'<radialGradient id="s-{name}">{_stops(colours)}</radialGradient>'
        f'<circle cx="{_f(x)}" cy="{_f(y)}" r="{_f(r)}" fill="url(#s-{name})"/>'
    )


def _land(rng: random.Random, y: float, amplitude: float, steps: int = 6, *, valley: float = 0.0) -> str:
    """Path data of rolling ground with its crest about ``y``, ``valley`` lower in the middle than at the sides."""
    points = []
    for i in range(steps + 3):
        x = lerp(-30, 130, i / (steps + 2))
        points.append((x, y + valley * (1 - ((x - 50) / 60) ** 2) + rng.uniform(-amplitude, amplitude)))
    return _smooth(points) + "V114H-30z"


def _peaks(rng: random.Random, y: float, height: float, centres: Sequence[float], width: float) -> list[list[Point]]:
    """Triangular mountains with a broken outline: summit first."""
    out = []
    for x in centres:
        h, w = height * rng.uniform(0.8, 1.2), width * rng.uniform(0.85, 1.15)
        x += rng.uniform(-4, 4)
        out.append([(x, y - h), (x + w * 0.3, y - h * 0.62), (x + w * 0.42, y - h * 0.55), (x + w, y), (x - w, y)])
    return out


def _cloud(rng: random.Random, x: float, y: float, r: float) -> str:
    data = _circle(x, y, r) + _circle(x - r * 1.1, y + r * 0.3, r * 0.7) + _circle(x + r * 1.2, y + r * 0.25, r * 0.75)
    data += _circle(x + r * 0.5, y - r * rng.uniform(0.3, 0.5), r * 0.75)
    return data + _circle(x, y + r * 0.55, r * 2.1, 0.22)


def _clouds(rng: random.Random, colour: str, opacity: float, places: Sequence[Point], r: float) -> str:
    data = ""
    for x, y in places:
        data += _cloud(rng, x + rng.uniform(-6, 6), y + rng.uniform(-3, 3), r * rng.uniform(0.8, 1.2))
    return _path(data, colour, opacity)


def _pine(x: float, y: float, height: float, tiers: int = 3) -> list[str]:
    """Path data of a fir's tiers, each one a skirt with a scalloped hem."""
    out = []
    for i in range(tiers):
        top = y - height * (1 - 0.62 * i / tiers)
        low = y - height * 0.12 - height * 0.78 * (tiers - 1 - i) / tiers
        w = height * lerp(0.2, 0.36, i / max(tiers - 1, 1))
        out.append(
            f"M{_f(x)},{_f(top)}Q{_f(x + w * 0.35)},{_f(lerp(top, low, 0.7))} {_f(x + w)},{_f(low)}"
            f"Q{_f(x)},{_f(low + height * 0.07)} {_f(x - w)},{_f(low)}"
            f"Q{_f(x - w * 0.35)},{_f(lerp(top, low, 0.7))} {_f(x)},{_f(top)}z"
        )
    return out


def _flower(x: float, y: float, r: float, petals: int = 5, turn: float = 0.0) -> str:
    angles = [turn + 2 * math.pi * i / petals for i in range(petals)]
    return "".join(_circle(x + r * math.cos(a), y + r * math.sin(a), r * 0.75) for a in angles)


def _sides(rng: random.Random) -> tuple[float, float]:
    """The two sides in random order, as signs: where the main thing and the lesser thing go."""
    return (-1.0, 1.0) if rng.random() < 0.5 else (1.0, -1.0)


def _studio(rng: random.Random, light: Light) -> str:
    bright = rng.random() < 0.5
    saturation, level = (rng.uniform(0.5, 0.75), rng.uniform(0.55, 0.75)) if bright else (0.16, rng.uniform(0.4, 0.8))
    base = hsl(rng.random(), saturation, level)
    x, y = 50 + 22 * light.side, rng.uniform(25, 42)
    colours = _stops((lighten(base, 0.42), lighten(base, 0.16), base, lighten(base, -rng.uniform(0.22, 0.42))))
    return (
        f'<radialGradient id="s-studio" gradientUnits="userSpaceOnUse" cx="{_f(x)}" cy="{_f(y)}" r="{_f(95)}">{colours}'
        f'</radialGradient><path d="{_box(-12, -12, 124, 124)}" fill="url(#s-studio)"/>'
    )


def _beach(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    horizon, shore = rng.uniform(40, 47), rng.uniform(64, 71)
    blue = hsl(rng.uniform(0.54, 0.57), 0.75, 0.68)
    out = _vertical("sky", (lighten(blue, -0.05), lighten(blue, 0.35), "#fff3d6"), -12, horizon)
    sun = 50 + far * rng.uniform(22, 34)
    out += _glow("sun", sun, rng.uniform(11, 17), 17, ("#fffbe0", "#fff3b0", ("#fff0a0", 0.35), ("#ffffff", 0.0)))
    out += _clouds(rng, "#ffffff", 0.9, ((50 + near * 12, 12), (50 + far * 36, 30)), 4)
    sea = hsl(rng.uniform(0.48, 0.53), 0.68, 0.45)
    out += _vertical("sea", (lighten(sea, -0.28), sea, lighten(sea, 0.5)), horizon, 80)
    waves = ""
    for _ in range(12):
        x, y = rng.uniform(-8, 100), rng.uniform(horizon + 3, shore - 4)
        w = lerp(2, 6, (y - horizon) / 25)
        waves += f"M{_f(x)},{_f(y)}q{_f(w / 2)},{_f(-w / 5)} {_f(w)},0t{_f(w)},0"
    out += _stroke(waves, "#ffffff", 0.7, 0.6)
    x = 50 + far * rng.uniform(26, 36)
    out += _path(_polygon(((x, horizon - 11), (x, horizon - 2), (x + 7, horizon - 2))), "#ffffff")
    out += _path(_polygon(((x - 1, horizon - 9), (x - 1, horizon - 2), (x - 5, horizon - 2))), "#ff8d6b")
    out += _path(f"M{_f(x - 6)},{_f(horizon - 1.2)}h14l-3,3h-8z", "#a8452f")
    points = [(i, shore + rng.uniform(-2, 2)) for i in range(-30, 140, 20)]
    out += _path(_smooth([(px, py - 2) for px, py in points]) + "V114H-30z", "#ffffff", 0.85)
    out += _shade("sand", _smooth(points) + "V114H-30z", ("#f6dfa6", "#e9c27c", "#d9a963"))
    x, y = 50 + far * rng.uniform(33, 40), shore + rng.uniform(4, 8)
    out += _parasol(x, y - 20, 13, far * rng.uniform(4, 12), rng.choice(("#e8413f", "#f07d1a", "#d83a86", "#2f6fd0")))
    return out + _palm(rng, 50 + near * rng.uniform(40, 46), shore + 14, near)


def _parasol(x: float, y: float, r: float, tilt: float, colour: str) -> str:
    dome = f"M{_f(-r)},0A{_f(r)},{_f(r * 0.95)} 0 0 1 {_f(r)},0Q0,{_f(r * 0.22)} {_f(-r)},0z"
    panel = f"M0,{_f(-r * 0.95)}Q{_f(-r * 0.75)},{_f(-r * 0.6)} {_f(-r * 0.62)},1L{_f(-r * 0.22)},1.4"
    panel += f"Q{_f(-r * 0.25)},{_f(-r * 0.6)} 0,{_f(-r * 0.95)}Q{_f(r * 0.25)},{_f(-r * 0.6)} {_f(r * 0.22)},1.4"
    panel += f"L{_f(r * 0.62)},1Q{_f(r * 0.75)},{_f(-r * 0.6)} 0,{_f(-r * 0.95)}z"
    return (
        f'<g transform="translate({_f(x)} {_f(y)}) rotate({_f(tilt)})">'
        + _stroke("M0,-14V22", "#8a5a33", 1.1)
        + _path(dome, colour)
        + _path(panel, "#fff6e6")
        + _path(f"M{_f(r * 0.3)},{_f(-r * 0.9)}A{_f(r)},{_f(r)} 0 0 1 {_f(r)},0L{_f(r * 0.6)},1z", "#5a1a30", 0.2)
        + "</g>"
    )


def _palm(rng: random.Random, x: float, y: float, side: float) -> str:
    top_x, top_y = x - side * rng.uniform(6, 12), rng.uniform(15, 23)
    bend = f"{_f(x + side * 3)},{_f((y + top_y) / 2)}"
    out = _path(
        f"M{_f(x - 3)},{_f(y)}Q{bend} {_f(top_x - 1)},{_f(top_y)}h2.4Q{_f(x + side * 3 + 4)},{_f((y + top_y) / 2)}"
        f" {_f(x + 3.4)},{_f(y)}z",
        "#8d6239",
    )
    dark, bright = "", ""
    for i, angle in enumerate((-165, -130, -95, -60, -20, 12, 168)):
        a = math.radians(angle + rng.uniform(-8, 8))
        length = rng.uniform(17, 23)
        u, v = top_x + length * math.cos(a), top_y + length * math.sin(a) * 0.75 + 7
        m, n = top_x + length * 0.55 * math.cos(a), top_y + length * 0.8 * math.sin(a) - 5
        leaf = (
            f"M{_f(top_x)},{_f(top_y)}Q{_f(m)},{_f(n - 2)} {_f(u)},{_f(v)}Q{_f(m)},{_f(n + 6)} {_f(top_x)},{_f(top_y)}z"
        )
        dark, bright = (dark + leaf, bright) if i % 2 else (dark, bright + leaf)
    green = hsl(rng.uniform(0.3, 0.38), 0.5, 0.3)
    out += _path(dark, green) + _path(bright, lighten(green, 0.22))
    return out + _path(_circle(top_x - 1, top_y + 2, 1.9) + _circle(top_x + 2, top_y + 1.5, 1.7), "#6b3f22")


def _snow(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    sky = hsl(rng.uniform(0.56, 0.62), 0.42, 0.7)
    out = _vertical("sky", (lighten(sky, -0.1), lighten(sky, 0.3), "#f4f1f7"), -12, 70)
    out += _shade("far", _land(rng, 50, 4, 5), (mix(sky, "#ffffff", 0.55), "#ffffff"))
    needles = hsl(rng.uniform(0.42, 0.5), 0.32, 0.34)
    trees, caps, far_trees = "", "", ""
    for x in (-2.0, 8, 19, 30, 70, 81, 92, 102):
        far_trees += "".join(_pine(x + rng.uniform(-3, 3), 57 + rng.uniform(-1, 2), rng.uniform(14, 22)))
    out += _path(far_trees, mix(needles, sky, 0.55))
    out += _shade("mid", _land(rng, 58, 2, 5, valley=5), ("#ffffff", "#dbe7f4", "#c4d6ea"))
    for x, h in ((50 + near * 45.0, 62.0), (50 + near * 28, 42), (50 + far * 46, 48)):
        x, h = x + rng.uniform(-3, 3), h * rng.uniform(0.9, 1.1)
        tiers = _pine(x, 80, h)
        trees += "".join(tiers)
        for i in range(3):
            top = 80 - h * (1 - 0.62 * i / 3)
            w = h * (0.09 + 0.02 * i)
            caps += (
                f"M{_f(x)},{_f(top - 1)}Q{_f(x + w * 0.4)},{_f(top + h * 0.1)} {_f(x + w)},{_f(top + h * 0.17)}"
                f"q{_f(-w * 0.5)},{_f(-h * 0.03)} {_f(-w * 0.7)},{_f(h * 0.05)}q{_f(-w * 0.4)},{_f(-h * 0.06)}"
                f" {_f(-w * 0.7)},{_f(h * 0.01)}q{_f(-w * 0.3)},{_f(-h * 0.03)} {_f(-w * 0.6)},{_f(-h * 0.05)}"
                f"Q{_f(x - w * 0.4)},{_f(top + h * 0.1)} {_f(x)},{_f(top - 1)}z"
            )
    out += _path(trees, needles) + _path(caps, "#ffffff")
    out += _shade("near", _land(rng, 78, 2, 5), ("#ffffff", "#d5e3f2"))
    out += _snowman(50 + far * rng.uniform(29, 33), 84, rng.uniform(0.9, 1.1), rng)
    flakes = "".join(_circle(rng.uniform(-8, 108), rng.uniform(-8, 100), rng.uniform(0.5, 1.3)) for _ in range(60))
    return out + _path(flakes, "#ffffff", 0.92)


def _snowman(x: float, y: float, size: float, rng: random.Random) -> str:
    scarf = rng.choice(("#d8383f", "#2f7fd0", "#e88a1c"))
    body = _circle(0, -8, 9.5) + _circle(0, -22, 6.5)
    return (
        f'<g transform="translate({_f(x)} {_f(y)}) scale({_f(size)})">'
        + _shade("snowman", body, ("#ffffff", "#f3f7fc", "#b4cbe2"))
        + _path(_box(-5.5, -18.8, 11, 2.8) + _box(2, -18, 2.8, 8), scarf)
        + _path(
            _circle(-2.2, -23.5, 0.9) + _circle(2.2, -23.5, 0.9) + _circle(0, -11, 0.9) + _circle(0, -7, 0.9), "#2b2b38"
        )
        + _path("M0,-22.4l-5,1.4l5,0.6z", "#f08a24")
        + _path(_box(-6, -29.5, 12, 1.8) + _box(-4, -36, 8, 7), "#2d2f45")
        + "</g>"
    )


def _forest(rng: random.Random, light: Light) -> str:
    green = hsl(rng.uniform(0.25, 0.36), 0.45, 0.36)
    out = _vertical("air", (lighten(green, 0.35), "#e9f3b8", lighten(green, 0.45), green))
    out += _path(_trunks(rng, [rng.uniform(-8, 108) for _ in range(8)], 1.6), mix(green, "#e9f3b8", 0.35), 0.8)
    out += _path(
        _trunks(rng, [x + rng.uniform(-3, 3) for x in (4.0, 19, 32, 68, 80, 94)], 2.6), mix(green, "#3c3020", 0.45)
    )
    out += _path(_land(rng, 74, 3, 7), mix(green, "#2a4a1e", 0.3))
    leaves = "".join(
        _circle(x + rng.uniform(-3, 3), rng.uniform(-6, 8), rng.uniform(7, 11)) for x in range(-8, 112, 10)
    )
    out += _path(leaves, lighten(green, 0.12))
    rays = ""
    for _ in range(2):
        x = rng.uniform(15, 85)
        rays += _polygon(((x, -12), (x + 6, -12), (x - 30 * light.side + 8, 95), (x - 30 * light.side - 8, 95)))
    out += _path(rays, "#fffbd0", 0.2)
    out += _shade(
        "trunk", _trunks(rng, [rng.uniform(2, 9), rng.uniform(91, 98)], 5.5), ("#5d3f29", "#8a6040", "#4a3020")
    )
    crown = ""
    for x, y, r in ((-4.0, 8.0, 14.0), (12, 4, 11), (104, 9, 14), (88, 3, 11), (30, -5, 10), (70, -5, 10), (50, -8, 9)):
        crown += _circle(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), r * rng.uniform(0.9, 1.15))
    out += _path(crown, mix(green, "#10301c", 0.35))
    spots = "".join(_circle(rng.uniform(-6, 106), rng.uniform(-4, 12), rng.uniform(0.8, 2)) for _ in range(14))
    out += _path(spots, lighten(green, 0.3), 0.75)
    ferns = ""
    for _ in range(12):
        x = rng.choice((rng.uniform(-8, 30), rng.uniform(70, 108)))
        y, dx, h = rng.uniform(84, 100), rng.uniform(-9, 9), rng.uniform(10, 18)
        ferns += (
            f"M{_f(x - 2)},{_f(y)}Q{_f(x)},{_f(y - h)} {_f(x + dx)},"
            f"{_f(y - h)}Q{_f(x + 2)},{_f(y - h / 2)} {_f(x + 2)},{_f(y)}z"
        )
    out += _path(ferns, mix(green, "#0f3a1c", 0.55))
    x, y = rng.choice((rng.uniform(14, 22), rng.uniform(78, 86))), rng.uniform(78, 84)
    out += _path(_box(x - 1.5, y - 1, 3, 7), "#f5ead2")
    out += _path(f"M{_f(x - 5.5)},{_f(y)}a5.5,5.5 0 0 1 11,0q-5.5,2 -11,0z", "#d83a2e")
    return out + _path(
        _circle(x - 2, y - 2.6, 0.9) + _circle(x + 1.6, y - 3.2, 0.9) + _circle(x + 3, y - 1, 0.7), "#fff"
    )


def _trunks(rng: random.Random, places: Sequence[float], width: float) -> str:
    data = ""
    for x in places:
        w, lean = width * rng.uniform(0.7, 1.2), rng.uniform(-3, 3)
        data += (
            f"M{_f(x + lean - w * 0.7)},-12L{_f(x - w * 0.8)},70Q{_f(x - w)},84 {_f(x - w * 2)},90"
            f"H{_f(x + w * 2)}Q{_f(x + w)},84 {_f(x + w * 0.8)},70L{_f(x + lean + w * 0.7)},-12z"
        )
    return data


def _space(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    hue = rng.uniform(0.66, 0.76)
    out = _vertical("deep", (hsl(hue, 0.6, 0.08), hsl(hue, 0.55, 0.17), hsl(hue + 0.06, 0.5, 0.25)))
    for x, y, r in ((50 + far * 25, 26.0, 45.0), (50 + near * 30, 78.0, 42.0)):
        colour = hsl(hue + rng.choice((-0.14, 0.1, 0.18)), 0.75, 0.55)
        for k in range(3):
            out += _path(
                _cloud(rng, x + rng.uniform(-5, 5), y + rng.uniform(-4, 4), r * (0.5 - 0.13 * k)), colour, 0.17
            )
    tiny = "".join(
        _box(rng.uniform(-10, 110), rng.uniform(-10, 110), s, s) for s in [rng.uniform(0.4, 0.9) for _ in range(60)]
    )
    out += _path(tiny, "#dfe6ff", 0.85)
    bright = ""
    for _ in range(12):
        x, y, r = rng.uniform(-5, 105), rng.uniform(-5, 90), rng.uniform(1.2, 2.6)
        bright += f"M{_f(x)},{_f(y - r)}Q{_f(x)},{_f(y)} {_f(x + r)},{_f(y)}Q{_f(x)},{_f(y)} {_f(x)},{_f(y + r)}"
        bright += f"Q{_f(x)},{_f(y)} {_f(x - r)},{_f(y)}Q{_f(x)},{_f(y)} {_f(x)},{_f(y - r)}z"
    out += _path(bright, "#fffbe6")
    x, y, r = 50 + near * rng.uniform(29, 36), rng.uniform(15, 24), rng.uniform(10, 13)
    planet = hsl(rng.choice((0.05, 0.09, 0.48, 0.92)) + rng.uniform(-0.02, 0.02), 0.7, 0.58)
    out += f'<g transform="rotate({_f(near * rng.uniform(12, 28))} {_f(x)} {_f(y)})">'
    ring = f"M{_f(x - r * 1.75)},{_f(y)}a{_f(r * 1.75)},{_f(r * 0.5)} 0 0 {{}} {_f(r * 3.5)},0"
    out += _stroke(ring.format(1), lighten(planet, 0.25), 1.8)
    out += _shade("planet", _circle(x, y, r), (lighten(planet, 0.4), planet, lighten(planet, -0.55)), across=True)
    band = (
        f"M{_f(x - r * 0.94)},{_f(y - r * 0.3)}q{_f(r)},{_f(r * 0.3)} {_f(r * 1.88)},0M"
        f"{_f(x - r * 0.8)},{_f(y - r * 0.58)}q{_f(r * 0.8)},{_f(r * 0.25)} {_f(r * 1.6)},0"
    )
    out += _stroke(band, lighten(planet, 0.5), r * 0.13, 0.45)
    out += _stroke(ring.format(0), lighten(planet, 0.45), 1.8) + "</g>"
    x, y, r = 50 + far * rng.uniform(34, 42), rng.uniform(36, 56), rng.uniform(5, 7)
    out += _shade("moon", _circle(x, y, r), ("#f0eef8", "#b9b6d2", "#5a5780"), across=True)
    out += _path(
        _circle(x - r * 0.3, y - r * 0.2, r * 0.22) + _circle(x + r * 0.25, y + r * 0.35, r * 0.28), "#8683a8", 0.7
    )
    x, y = 50 + far * rng.uniform(16, 24), rng.uniform(4, 12)
    return out + _path(_polygon(((x, y - 0.9), (x, y + 0.9), (x + far * 18, y - 7))), "#ffffff", 0.85)


def _city(rng: random.Random, light: Light) -> str:
    near, _ = _sides(rng)
    hue = rng.uniform(0.61, 0.72)
    out = _vertical("night", (hsl(hue, 0.6, 0.13), hsl(hue, 0.5, 0.28), hsl(hue + 0.18, 0.45, 0.5)), -12, 85)
    stars = "".join(_circle(rng.uniform(-8, 108), rng.uniform(-8, 35), rng.uniform(0.25, 0.6)) for _ in range(24))
    out += _path(stars, "#ffffff", 0.9)
    x, y = 50 + near * rng.uniform(22, 30), rng.uniform(10, 15)
    out += _glow("halo", x, y, 15, (("#fff6cf", 0.55), ("#fff6cf", 0.0)))
    out += _path(_circle(x, y, 6), "#fff4c8") + _path(
        _circle(x - 2, y - 1, 1.2) + _circle(x + 2, y + 2, 1.5), "#e6d69a"
    )
    skyline, back_windows = _block(rng, hue, (-12, 112), (8, 13), (34, 52), (1.5, 2.5))
    out += _path(skyline, hsl(hue, 0.42, 0.29)) + _path(back_windows, "#ffcf7a", 0.55)
    for i, span in enumerate(((-12, 30), (70, 112))):
        skyline, windows = _block(rng, hue, span, (12, 17), (16, 44), (2.0, 2.8))
        out += _shade(f"block{i}", skyline, (hsl(hue, 0.45, 0.18), hsl(hue, 0.5, 0.1))) + _path(windows, "#ffdc82")
    return out + _glow("street", 50, 106, 44, (("#ffb45e", 0.6), ("#ff9a5e", 0.2), ("#ff8a5e", 0.0)))


def _block(rng: random.Random, hue: float, span: Point, widths: Point, tops: Point, window: Point) -> tuple[str, str]:
    """Path data of a row of houses and of their lit windows."""
    houses, windows, x = "", "", span[0]
    while x < span[1]:
        w, top = min(rng.uniform(*widths), span[1] - x + 2), rng.uniform(*tops)
        houses += _box(x, top, w + 0.3, 126 - top)
        kind = rng.randrange(4)
        if kind == 0:
            houses += _box(x + w * 0.45, top - 8, 0.9, 9)
        elif kind == 1:
            houses += _polygon(((x, top + 0.2), (x + w / 2, top - 7), (x + w, top + 0.2)))
        elif kind == 2:
            houses += _box(x + w * 0.2, top - 3, w * 0.6, 4)
        columns = max(2, int(w / (window[0] * 2)))
        for row in range(int((100 - top) / (window[1] * 1.9))):
            for column in range(columns):
                if rng.random() < 0.5:
                    u = x + w * (column + 0.5) / columns - window[0] / 2
                    windows += _box(u, top + 3 + row * window[1] * 1.9, window[0], window[1])
        x += w
    return houses, windows


def _desert(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    out = _vertical("sky", (hsl(rng.uniform(0.5, 0.54), 0.5, 0.62), "#b9e2d8", "#ffeec2"), -12, 56)
    x, y = 50 + far * rng.uniform(18, 28), rng.uniform(9, 15)
    out += _glow("sun", x, y, 15, ("#ffffff", "#fff6c4", ("#ffefad", 0.3), ("#fff0b0", 0.0)))
    rock = hsl(rng.uniform(0.03, 0.05), 0.55, 0.5)
    mesas, shadow = "", ""
    for x, w, top in ((50 + near * 20.0, 12.0, 33.0), (50 + far * 37, 18, 28)):
        x, top = x + rng.uniform(-4, 4), top + rng.uniform(-3, 3)
        mesas += (
            f"M{_f(x - w * 1.2)},62L{_f(x - w * 0.75)},47L{_f(x - w * 0.65)},"
            f"{_f(top)}h{_f(w * 1.3)}L{_f(x + w * 0.75)},47L{_f(x + w * 1.2)},62z"
        )
        shadow += (
            f"M{_f(x + w * 0.2)},{_f(top)}h{_f(w * 0.45)}L{_f(x + w * 0.75)},47"
            f"L{_f(x + w * 1.2)},62h{_f(-w * 0.9)}L{_f(x + w * 0.3)},46z"
        )
        shadow += _box(x - w * 0.7, top + 5, w * 1.4, 1.4) + _box(x - w * 0.72, top + 10, w * 1.45, 0.9)
    out += _path(mesas, rock) + _path(shadow, "#7a2a2a", 0.3)
    sand = hsl(rng.uniform(0.085, 0.105), 0.72, 0.62)
    for i, y in enumerate((56, 65, 78)):
        tone = lighten(sand, 0.22 - 0.17 * i)
        out += _shade(f"dune{i}", _land(rng, y, 3.5, 3 + i), (lighten(tone, 0.2), tone, lighten(tone, -0.18)))
    green = hsl(rng.uniform(0.33, 0.42), 0.42, 0.34)
    out += _cactus(rng, 50 + near * rng.uniform(35, 40), 86, rng.uniform(44, 54), green)
    out += _cactus(rng, 50 + far * rng.uniform(36, 43), 80, rng.uniform(22, 30), lighten(green, 0.12))
    stones = ""
    for _ in range(5):
        stones += _circle(
            rng.choice((rng.uniform(-5, 25), rng.uniform(75, 105))), rng.uniform(84, 96), rng.uniform(1, 2.4), 0.6
        )
    return out + _path(stones, "#a9663b")


def _cactus(rng: random.Random, x: float, y: float, height: float, green: str) -> str:
    w, left, right = height * 0.17, rng.uniform(0.3, 0.5), rng.uniform(0.45, 0.62)
    trunk = f"M{_f(x)},{_f(y)}V{_f(y - height)}"
    arm, reach = w * 0.72, w * 1.6
    for side, at in ((-1.0, left), (1, right)):
        low = y - height * at
        trunk_arm = (
            f"M{_f(x)},{_f(low)}h{_f(side * reach * 0.5)}q{_f(side * reach * 0.5)},0"
            f" {_f(side * reach * 0.5)},{_f(-w)}v{_f(-height * 0.14)}"
        )
        trunk += "" if side == 0 else trunk_arm
    ribs = "".join(f"M{_f(x + d * w)},{_f(y)}V{_f(y - height * 0.97)}" for d in (-0.22, 0.02, 0.26))
    return (
        _path(_circle(x + w, y, w * 2, 0.22), "#6b3a20", 0.3)
        + _stroke(trunk[trunk.index("M", 1) :], lighten(green, -0.08), arm)
        + _stroke(trunk[: trunk.index("M", 1)], green, w)
        + _stroke(ribs, lighten(green, 0.3), 0.55, 0.8)
        + _path(_flower(x, y - height - w * 0.4, w * 0.22), "#ff6fa5")
    )


def _underwater(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    hue = rng.uniform(0.5, 0.56)
    out = _vertical("water", (hsl(hue - 0.02, 0.7, 0.72), hsl(hue, 0.75, 0.45), hsl(hue + 0.06, 0.75, 0.24)))
    rays = ""
    for x in (10.0, 32, 58, 84):
        x, w = x + rng.uniform(-8, 8), rng.uniform(4, 8)
        rays += _polygon(((x, -12), (x + w, -12), (x + w * 2 - 25 * light.side, 80), (x - w - 25 * light.side, 80)))
    out += _path(rays, "#ffffff", 0.17)
    out += _path(_land(rng, 78, 4, 4, valley=8), hsl(hue + 0.04, 0.5, 0.3))
    out += _shade("bed", _land(rng, 88, 2, 6), ("#e8d9a4", "#b99c6a"))
    weeds = ["", ""]
    for i, x in enumerate((-2, 6, 13, 21, 79, 87, 94, 102)):
        x, y, h = x + rng.uniform(-2, 2), 96.0, rng.uniform(32, 62) * (0.7 if 15 < x < 85 else 1)
        s, w = rng.choice((-4, 4)), rng.uniform(1.8, 2.8)
        q = h / 4
        weeds[i % 2] += (
            f"M{_f(x - w)},{_f(y)}" + f"q{_f(-s)},{_f(-q / 2)} 0,{_f(-q)}q{_f(s)},{_f(-q / 2)} 0,{_f(-q)}" * 2
        )
        weeds[i % 2] += (
            f"L{_f(x + w * 0.3)},{_f(y - h * 0.98)}"
            + f"q{_f(s)},{_f(q / 2)} {_f(w * 0.4)},{_f(q)}q{_f(-s)},{_f(q / 2)} 0,{_f(q)}" * 2
            + "z"
        )
    out += _path(weeds[0], hsl(rng.uniform(0.36, 0.42), 0.6, 0.28)) + _path(
        weeds[1], hsl(rng.uniform(0.28, 0.34), 0.55, 0.42)
    )
    x = 50 + near * rng.uniform(30, 38)
    coral = ""
    for angle in (-60.0, -30, 0, 28, 58):
        a = math.radians(angle + rng.uniform(-6, 6))
        u, v = x + 15 * math.sin(a), 94 - 18 * math.cos(a)
        coral += f"M{_f(x)},94Q{_f(x + 3 * math.sin(a))},{_f(85)} {_f(u)},{_f(v)}m0,4l{_f(3)},-4"
    out += _stroke(coral, rng.choice(("#ff6f7d", "#ff8fc0", "#ff9a4a")), 2.8)
    colours = rng.sample(("#ff8a1f", "#ffd43b", "#ff5d73", "#c792ff"), 3)
    for (x, y, size), colour in zip(
        ((50 + far * 34.0, 20.0, 8.0), (50 + near * 37, 37.0, 6.0), (50 + near * 22, 9.0, 4.5)), colours, strict=True
    ):
        out += _fish(
            x + rng.uniform(-4, 4), y + rng.uniform(-4, 4), size * rng.uniform(0.9, 1.2), rng.choice((-1, 1)), colour
        )
    bubbles = ""
    for _ in range(11):
        bubbles += _circle(
            rng.choice((rng.uniform(0, 32), rng.uniform(68, 100))), rng.uniform(-4, 85), rng.uniform(0.7, 2)
        )
    return out + _path(bubbles, "#ffffff", 0.28) + _stroke(bubbles, "#ffffff", 0.4, 0.8)


def _fish(x: float, y: float, r: float, facing: int, colour: str) -> str:
    body = "M1,0Q0.4,-0.75 -0.5,-0.45Q-0.7,-0.3 -0.8,-0.12L-1.4,-0.6Q-1.25,0 -1.4,0.6"
    body += "L-0.8,0.12Q-0.7,0.3 -0.5,0.45Q0.4,0.75 1,0z"
    return (
        f'<g transform="translate({_f(x)} {_f(y)}) scale({_f(facing * r)} {_f(r)})">'
        + _path("M-0.3,-0.4Q0.1,-0.95 0.45,-0.4zM-0.1,0.45L-0.2,0.85L0.3,0.45z", lighten(colour, -0.25))
        + _path(body, colour)
        + _path(
            "M0.22,-0.54Q0.05,0 0.22,0.54L-0.02,0.56Q-0.2,0 -0.02,-0.56z"
            "M-0.42,-0.47Q-0.58,0 -0.42,0.47L-0.6,0.36Q-0.7,0 -0.6,-0.36z",
            "#fff",
            0.85,
        )
        + _path(_circle(0.58, -0.12, 0.14), "#1c2233")
        + "</g>"
    )


def _library(rng: random.Random, light: Light) -> str:
    wood = hsl(rng.uniform(0.055, 0.085), 0.48, 0.32)
    out = _vertical("back", (lighten(wood, -0.55), lighten(wood, -0.4)))
    palette = [
        hsl(h + rng.uniform(-0.02, 0.02), 0.55, level)
        for h, level in ((0.0, 0.4), (0.09, 0.55), (0.36, 0.35), (0.6, 0.42), (0.12, 0.78))
    ]
    books, bands = [""] * len(palette), ""
    height, y = rng.uniform(21, 24), rng.uniform(8, 14)
    shelves = ""
    for row in range(-1, 5):
        base, x = y + row * height, -12.0
        shelves += _box(-12, base, 124, 2.4)
        while x < 112:
            w, h = rng.uniform(3.4, 6.2), (height - 3.6) * rng.uniform(0.72, 1)
            if rng.random() < 0.08:
                x += w * 1.4
                continue
            books[rng.randrange(len(palette))] += _box(x, base - h, w - 0.3, h)
            if rng.random() < 0.35:
                bands += _box(x + 0.3, base - h * 0.82, w - 0.9, 1.1) + _box(x + 0.3, base - h * 0.25, w - 0.9, 0.8)
            x += w
    for colour, data in zip(palette, books, strict=True):
        out += _path(data, colour)
    out += _path(bands, "#f2cf74", 0.85)
    out += _path(shelves.replace("v2.4", "v4.6").replace("v-2.4", "v-4.6"), "#160a04", 0.35) + _path(
        shelves, lighten(wood, 0.2)
    )
    posts = "".join(_box(x + rng.uniform(-3, 3), -12, 3.6, 124) for x in (34.0, 66))
    out += _path(posts, wood) + _path(posts.replace("h3.6", "h1").replace("h-3.6", "h-1"), lighten(wood, 0.3))
    x = 50 + 30 * (light.side or 1) / abs(light.side or 1)
    out += _glow("lamp", x, rng.uniform(10, 22), 42, (("#ffe2a0", 0.55), ("#ffcf80", 0.16), ("#000000", 0.0)))
    return out


def _kitchen(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    hue = rng.choice((0.44, 0.13, 0.5, 0.04)) + rng.uniform(-0.02, 0.02)
    wall, cabinet = hsl(hue, 0.5, 0.8), hue + rng.choice((0.0, 0.45))
    out = _vertical("wall", (lighten(wall, -0.06), wall, lighten(wall, 0.25)))
    grid = "".join(f"M-12,{y}H112" for y in range(38, 76, 8)) + "".join(f"M{x},38V74" for x in range(-8, 112, 10))
    out += _path(_box(-12, 38, 124, 40), "#ffffff", 0.55) + _stroke(grid, lighten(wall, -0.2), 0.6)
    x = 50 + near * 31
    out += _path(_box(x - 15, 4, 30, 33), "#fffdf5") + _vertical_window(x, rng)
    curtain = rng.choice(("#e4574f", "#f0a13a", "#5b8fd6"))
    drape = f"M{_f(x - 17)},1H{_f(x + 17)}V10" + "q-2.1,3.5 -4.25,0" * 8 + "z"
    drape += f"M{_f(x - 16)},2h7Q{_f(x - 9)},22 {_f(x - 16)},30zM{_f(x + 16)},2h-7Q{_f(x + 9)},22 {_f(x + 16)},30z"
    out += _path(drape, curtain) + _path(_box(x - 18, 0, 36, 1.8), "#8a5a3a")
    x = 50 + far * 32
    out += _path(_box(x - 19, 33, 38, 2.6), "#a9713f") + _path(_box(x - 19, 35.6, 38, 1.2), "#5a3a24", 0.35)
    for i, colour in enumerate(rng.sample(("#e05a4a", "#f2b84b", "#5aa0c8", "#7bb36a", "#f4efe2", "#b57ad0"), 4)):
        u, h = x - 14 + i * 9.3, rng.uniform(7, 12)
        out += _path(f"M{_f(u - 3.3)},33v{_f(-h)}q3.3,-2 6.6,0v{_f(h)}z", colour)
        out += _path(_box(u - 2.4, 33 - h, 1.2, h * 0.8), "#ffffff", 0.45) + _path(
            _box(u - 2.6, 31.4 - h, 5.2, 1.8), "#6b4a34"
        )
    out += _stroke(f"M{_f(x - 20)},6H{_f(x + 20)}", "#6a6f7c", 1)
    for i in range(3):
        u, r = x - 12 + 12 * i, rng.uniform(3.6, 4.8)
        out += _stroke(f"M{_f(u)},6v6", "#4a3a34", 1.3) + _path(
            _circle(u, 11 + r, r), rng.choice(("#c8703c", "#59606e", "#b9573a"))
        )
        out += _path(_circle(u - r * 0.2, 11 + r * 0.9, r * 0.62), "#ffffff", 0.25)
    out += _path(_box(-12, 74, 124, 5), "#c98e54") + _path(_box(-12, 79, 124, 33), hsl(cabinet, 0.38, 0.38))
    doors = "".join(_box(u, 82, 22, 30) for u in (-10.0, 15, 63, 88))
    return out + _path(doors, hsl(cabinet, 0.4, 0.48)) + _kettle(50 + near * 32, 74, rng)


def _vertical_window(x: float, rng: random.Random) -> str:
    pane = _box(x - 13, 6, 26, 29)
    hills = f"M{_f(x - 13)},28q7,-6 13,-1t13,-2v10h-26z"
    bars = f"M{_f(x)},6v29M{_f(x - 13)},20h26"
    return (
        _shade("pane", pane, ("#8fd0f2", "#d9f2fb"))
        + _path(hills, hsl(rng.uniform(0.25, 0.33), 0.5, 0.55))
        + _stroke(bars, "#fffdf5", 1.6)
    )


def _kettle(x: float, y: float, rng: random.Random) -> str:
    colour = hsl(rng.random(), 0.6, 0.5)
    return (
        _stroke(f"M{_f(x - 6)},{_f(y - 10)}q6,-11 12,0", "#3d3540", 1.5)
        + _path(f"M{_f(x + 6)},{_f(y - 7)}l7,-5l1.5,1.5l-6,9z", lighten(colour, -0.2))
        + _path(f"M{_f(x - 9)},{_f(y)}q-1,-13 9,-13t9,13z", colour)
        + _path(f"M{_f(x - 6.5)},{_f(y - 2)}q-0.5,-7 4,-8.5q-2,4 -1.5,8.5z", "#ffffff", 0.5)
        + _path(_circle(x, y - 13.5, 1.4), "#3d3540")
    )


def _garden(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    out = _vertical("sky", (hsl(rng.uniform(0.53, 0.58), 0.65, 0.74), "#d8f1fb", "#f6fbe6"), -12, 60)
    out += _clouds(rng, "#ffffff", 0.9, ((50 + far * 32, 10), (50 + near * 8, 5)), 4.5)
    hedge = hsl(rng.uniform(0.27, 0.35), 0.45, 0.42)
    bushes = "".join(_circle(x, 44 + rng.uniform(-4, 4), rng.uniform(8, 11)) for x in range(-10, 116, 11))
    out += _path(bushes + _box(-12, 44, 124, 34), hedge)
    x = 50 + near * rng.uniform(36, 42)
    out += _path(_box(x - 2, 20, 4, 50), "#7a5234")
    crown = "".join(
        _circle(x + dx, y, r)
        for dx, y, r in ((0.0, 12.0, 14.0), (-11, 20, 10), (11, 20, 10), (0, 26, 11), (-6, 6, 9), (8, 5, 9))
    )
    out += _path(crown, lighten(hedge, -0.18))
    fruit = "".join(_circle(x + rng.uniform(-17, 17), rng.uniform(3, 30), 1.7) for _ in range(13))
    out += _path(
        "".join(_circle(x + rng.uniform(-14, 8), rng.uniform(0, 22), 3) for _ in range(6)), lighten(hedge, 0.12), 0.7
    )
    out += _path(fruit, rng.choice(("#e8402f", "#ff9a2b", "#ffb3d1")))
    pickets = _box(-12, 53, 124, 2.6) + _box(-12, 66, 124, 2.6)
    pickets += "".join(f"M{_f(u)},76V49l2.6,-3.6l2.6,3.6V76z" for u in range(-11, 112, 8))
    out += _path(pickets, "#fffdf6") + _path(
        "".join(_box(u + 3.9, 50, 1.3, 26) for u in range(-11, 112, 8)), "#b9c6d8", 0.5
    )
    out += _shade("lawn", _land(rng, 75, 1, 5), (lighten(hedge, 0.28), hedge))
    stems, heads = "", dict.fromkeys(("#ff4f79", "#ffd23e", "#ffffff", "#b56bff", "#ff8a3c"), "")
    centres = ""
    colours = list(heads)
    for _ in range(19):
        x = rng.choice((rng.uniform(-6, 33), rng.uniform(67, 106)))
        y, r = rng.uniform(60, 96), rng.uniform(1.6, 2.7)
        stems += f"M{_f(x)},{_f(y)}q{_f(rng.uniform(-2, 2))},8 0,18"
        heads[rng.choice(colours)] += _flower(x, y, r, turn=rng.random())
        centres += _circle(x, y, r * 0.6)
    out += _stroke(stems, lighten(hedge, -0.3), 0.9) + "".join(_path(data, c) for c, data in heads.items() if data)
    out += _path(centres, "#8a4a1c")
    x, y = 50 + far * rng.uniform(24, 36), rng.uniform(26, 36)
    wings = f"M{_f(x)},{_f(y)}q-7,-8 -7,-1t7,2q-6,6 -3,6t3,-6zM{_f(x)},{_f(y)}q7,-8 7,-1t-7,2q6,6 3,6t-3,-6z"
    return (
        out
        + _path(wings, rng.choice(("#ff8a1f", "#7a5cff", "#ff5f9e")))
        + _stroke(f"M{_f(x)},{_f(y - 1)}v5", "#2b2b38", 0.8)
    )


def _mountains(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    sky = hsl(rng.uniform(0.57, 0.61), 0.68, 0.6)
    out = _vertical("sky", (lighten(sky, -0.12), lighten(sky, 0.25), "#eaf3ff"), -12, 66)
    out += _clouds(rng, "#ffffff", 0.88, ((50 + far * 20, 8), (50 + near * 40, 18)), 4)
    stone = hsl(rng.uniform(0.63, 0.7), 0.22, 0.45)
    peaks = _peaks(rng, 66, 36, (2, 34, 66, 98), 30)
    out += _path("".join(_polygon(p) for p in peaks), mix(stone, sky, 0.55))
    for x, h in ((50 + near * 33.0, 56.0), (50 + far * 40, 46)):
        x, h = x + rng.uniform(-4, 4), h * rng.uniform(0.92, 1.08)
        w, y = h * 0.66, 68
        top = y - h
        out += _path(
            _polygon(((x, top), (x + w * 0.35, top + h * 0.4), (x + w, y), (x - w, y), (x - w * 0.3, top + h * 0.34))),
            stone,
        )
        lit = -1 if light.side < 0 else 1
        dark = (
            (x, top),
            (x - lit * w * 0.35, top + h * 0.4),
            (x - lit * w, y),
            (x - lit * w * 0.1, y),
            (x + lit * 2, top + h * 0.55),
            (x - lit * 3, top + h * 0.3),
        )
        snow = (
            (x, top),
            (x + w * 0.29, top + h * 0.33),
            (x + w * 0.15, top + h * 0.29),
            (x + w * 0.06, top + h * 0.4),
            (x - w * 0.05, top + h * 0.28),
            (x - w * 0.14, top + h * 0.36),
            (x - w * 0.27, top + h * 0.31),
        )
        out += _path(_polygon(snow), "#ffffff") + _path(_polygon(dark), "#1e1c4a", 0.27)
    meadow = hsl(rng.uniform(0.24, 0.31), 0.5, 0.5)
    out += _shade("hill", _land(rng, 62, 2, 4, valley=2), (mix(meadow, sky, 0.2), lighten(meadow, -0.2)))
    trees = ""
    for _ in range(16):
        x = rng.choice((rng.uniform(-8, 32), rng.uniform(68, 108)))
        trees += "".join(_pine(x, rng.uniform(72, 82), rng.uniform(11, 19)))
    out += _path(trees, hsl(rng.uniform(0.38, 0.44), 0.45, 0.24))
    out += _shade("meadow", _land(rng, 80, 2, 5), (lighten(meadow, 0.12), lighten(meadow, -0.15)))
    u, v = 50 + far * rng.uniform(14, 24), rng.uniform(18, 26)
    birds = f"M{_f(u)},{_f(v)}q2,-2.5 3.5,0q1.5,-2.5 3.5,0M{_f(u + 8)},{_f(v - 5)}q1.5,-2 2.6,0q1.2,-2 2.6,0"
    return out + _stroke(birds, "#33355a", 0.7)


def _rain(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    grey = hsl(rng.uniform(0.56, 0.63), 0.2, 0.5)
    out = _vertical("sky", (lighten(grey, -0.25), grey, lighten(grey, 0.3)), -12, 80)
    houses = ""
    for x in (-10.0, 4, 18, 70, 83, 97):
        w, top = rng.uniform(12, 16), rng.uniform(40, 52)
        houses += _polygon(((x, 84), (x, top), (x + w / 2, top - 7), (x + w, top), (x + w, 84)))
    out += _path(houses, mix(grey, "#2c3550", 0.35), 0.8)
    out += _vertical("ground", (lighten(grey, -0.3), lighten(grey, -0.5)), 78, 112)
    puddles = "".join(
        _circle(x + rng.uniform(-5, 5), y, rng.uniform(9, 14), 0.2)
        for x, y in ((12.0, 86.0), (88, 88), (24, 97), (74, 97))
    )
    out += _path(puddles, lighten(grey, 0.35), 0.8)
    x = 50 + near * rng.uniform(32, 38)
    out += _stroke(f"M{_f(x)},88V30", "#232a3d", 1.8) + _path(f"M{_f(x - 3)},30h6l1.5,-9h-9z", "#ffe08a")
    out += _path(
        f"M{_f(x - 5.5)},21h11L{_f(x)},15.5zM{_f(x - 3.6)},30h7.2v1.6h-7.2zM{_f(x - 3)},88h6v-4h-6z", "#232a3d"
    )
    out += _glow("lamp", x, 26, 20, (("#ffe9a0", 0.75), ("#ffdf90", 0.25), ("#ffdf90", 0.0)))
    colour = rng.choice(("#e5484d", "#f2c53d", "#e0679f"))
    out += _umbrella(50 + far * rng.uniform(33, 38), rng.uniform(52, 58), 13, far * rng.uniform(-6, 10), colour)
    for tone, y, r in ((-0.05, 8.0, 8.0), (-0.38, -1, 9)):
        data = "".join(
            _circle(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), r * rng.uniform(0.8, 1.2))
            for x in range(-8, 116, 12)
        )
        out += _path(data + _box(-12, -12, 124, y + 12), lighten(grey, tone))
    drops, splashes = "", ""
    for _ in range(75):
        x, y, h = rng.uniform(-8, 112), rng.uniform(-6, 100), rng.uniform(3, 6)
        drops += f"M{_f(x)},{_f(y)}l{_f(-h * 0.25)},{_f(h)}"
    for _ in range(7):
        x, y = rng.choice((rng.uniform(2, 28), rng.uniform(72, 98))), rng.uniform(84, 98)
        splashes += f"M{_f(x - 2.5)},{_f(y)}a2.5,0.8 0 1 0 5,0a2.5,0.8 0 1 0 -5,0z"
    return out + _stroke(splashes, "#ffffff", 0.4, 0.7) + _stroke(drops, "#e3f0ff", 0.6, 0.75)


def _umbrella(x: float, y: float, r: float, tilt: float, colour: str) -> str:
    hem = f"q{_f(-r / 4)},{_f(-r * 0.22)} {_f(-r / 2)},0" * 4
    ribs = (
        f"M0,{_f(-r)}Q{_f(-r * 0.5)},{_f(-r * 0.6)} {_f(-r / 2)},0M0,"
        f"{_f(-r)}V0M0,{_f(-r)}Q{_f(r * 0.5)},{_f(-r * 0.6)} {_f(r / 2)},0"
    )
    return (
        f'<g transform="translate({_f(x)} {_f(y)}) rotate({_f(tilt)})">'
        + _stroke(f"M0,{_f(-r * 1.15)}V{_f(r * 1.5)}q0,3 3,3t3,-3", "#3b2f3a", 1.1)
        + _path(f"M{_f(-r)},0A{_f(r)},{_f(r)} 0 0 1 {_f(r)},0{hem}z", colour)
        + _stroke(ribs, lighten(colour, -0.3), 0.6)
        + _path(
            f"M{_f(-r * 0.75)},{_f(-r * 0.3)}Q{_f(-r * 0.5)},{_f(-r * 0.8)} {_f(-r * 0.1)},{_f(-r * 0.9)}"
            f"Q{_f(-r * 0.5)},{_f(-r * 0.6)} {_f(-r * 0.75)},{_f(-r * 0.3)}z",
            "#ffffff",
            0.4,
        )
        + "</g>"
    )


def _sunset(rng: random.Random, light: Light) -> str:
    near, far = _sides(rng)
    horizon = rng.uniform(60, 66)
    top = hsl(rng.uniform(0.72, 0.8), 0.5, 0.32)
    out = _vertical("sky", (top, mix(top, "#e0447a", 0.6), "#f4694f", "#ffa53f", "#ffd86b"), -12, horizon)
    x, y, r = 50 + far * rng.uniform(20, 27), horizon - rng.uniform(16, 24), rng.uniform(13, 16)
    out += _glow("sun", x, y, r * 2.2, (("#fff0a0", 0.9), ("#ffd060", 0.4), ("#ff9050", 0.0)))
    out += _shade("disc", _circle(x, y, r), ("#fff6b8", "#ffd24d", "#ff8f3f"))
    bars, dark = "", ""
    for _ in range(7):
        u, v, w = rng.uniform(-5, 105), rng.uniform(4, horizon - 10), rng.uniform(9, 20)
        dark += _circle(u, v, w, 0.1) + _circle(u + w * 0.3, v - 1.2, w * 0.5, 0.16)
        bars += _circle(u - 2, v + 1.2, w * 0.8, 0.05)
    out += _path(dark, "#7a2a72", 0.5) + _path(bars, "#ffc58a", 0.85)
    out += _vertical("sea", ("#e8663f", "#8a2f6a", "#3a1a4e"), horizon, 112)
    glitter = ""
    for i in range(10):
        v, w = horizon + 1.5 + i * 3, rng.uniform(3, 8) + i * 0.6
        glitter += _box(x - w + rng.uniform(-2, 2), v, 2 * w, 1.1)
    out += _path(glitter, "#ffd76a", 0.85)
    ridge = [
        (50 + near * 62, horizon + 1),
        (50 + near * 50, horizon - 17),
        (50 + near * 34, horizon - 8),
        (50 + near * 20, horizon - 4),
        (50 + near * 5, horizon + 1),
    ]
    out += _path(_smooth([(a, b + rng.uniform(-1.5, 1.5)) for a, b in ridge]) + "z", "#4a1c56")
    u = 50 + near * rng.uniform(20, 28)
    birds = "".join(
        f"M{_f(u + dx)},{_f(v)}q2,-2.5 3.2,0q1.4,-2.5 3.2,0"
        for dx, v in ((0.0, 22.0), (7, 16), (-8, 15))
        for v in [v + rng.uniform(-3, 3)]
    )
    out += _stroke(birds, "#34103f", 0.9)
    reeds = ""
    for _ in range(14):
        a = 50 + near * rng.uniform(32, 56)
        h, lean = rng.uniform(18, 42), rng.uniform(-6, 6)
        reeds += (
            f"M{_f(a - 0.8)},112Q{_f(a)},{_f(100 - h / 2)} {_f(a + lean)},"
            f"{_f(100 - h)}Q{_f(a + 1.5)},{_f(100 - h / 2)} {_f(a + 0.8)},112z"
        )
    return out + _path(reeds, "#260d33")


def _autumn(rng: random.Random, light: Light) -> str:
    out = _vertical("sky", ("#f3dcae", "#fbeccb", "#f6d69a"), -12, 80)
    base = rng.uniform(0.03, 0.07)
    tones = [
        hsl(base + d, s, v)
        for d, s, v in ((0.0, 0.75, 0.42), (0.03, 0.85, 0.52), (0.08, 0.9, 0.58), (-0.04, 0.7, 0.36))
    ]
    distant = "".join(_circle(x, 54 + rng.uniform(-5, 5), rng.uniform(8, 12)) for x in range(-10, 116, 9))
    out += _path(distant + _box(-12, 54, 124, 30), mix(tones[2], "#f6dcae", 0.45))
    out += _shade("ground", _land(rng, 74, 2, 5), (tones[2], tones[0]))
    for x, w in ((rng.uniform(0.0, 8.0), 3.6), (rng.uniform(92, 100), 3.6), (rng.choice((24, 76)), 2)):
        bend = rng.uniform(-3, 3)
        trunk = (
            f"M{_f(x - w * 1.6)},88Q{_f(x - w * 0.6)},70 {_f(x - w * 0.6 + bend)},10"
            f"h{_f(w * 1.2)}Q{_f(x + w * 0.6)},70 {_f(x + w * 1.6)},88z"
        )
        out += _path(trunk, "#5a3826") + _stroke(
            f"M{_f(x)},48Q{_f(x + 2)},34 {_f(x + 10)},26M{_f(x)},42Q{_f(x - 2)},30 {_f(x - 10)},24", "#5a3826", w * 0.5
        )
    for tone, places in (
        (tones[3], ((-4, 24, 13), (104, 24, 13), (14, 2, 13), (86, 2, 13), (40, -8, 11), (62, -8, 11))),
        (tones[0], ((4, 8, 12), (96, 8, 12), (26, 0, 9), (74, 0, 9), (18, 20, 7), (82, 21, 7))),
        (tones[1], ((-4, 2, 9), (13, 11, 7), (102, 2, 9), (87, 12, 7), (50, -7, 7), (30, -4, 6), (68, -4, 6))),
    ):
        data = "".join(
            _circle(x + rng.uniform(-3, 3), y + rng.uniform(-3, 3), r * rng.uniform(0.85, 1.2)) for x, y, r in places
        )
        out += _path(data, tone)
    leaves = [""] * 4
    for i in range(64):
        y = rng.uniform(-4, 74) if i % 2 else rng.uniform(76, 104)
        leaves[i % 4 if i % 2 else (i // 2) % 4] += _leaf(
            rng.uniform(-6, 106), y, rng.uniform(1.8, 3), rng.uniform(0, 6.3)
        )
    return out + "".join(
        _path(data, lighten(tone, 0.12))
        for data, tone in zip(leaves, (tones[2], tones[1], tones[2], tones[3]), strict=True)
    )


def _leaf(x: float, y: float, r: float, turn: float) -> str:
    c, s = r * math.cos(turn), r * math.sin(turn)
    return (
        f"M{_f(x - c)},{_f(y - s)}Q{_f(x - s)},{_f(y + c)} {_f(x + c)},"
        f"{_f(y + s)}Q{_f(x + s)},{_f(y - c)} {_f(x - c)},{_f(y - s)}z"
    )


def _circus(rng: random.Random, light: Light) -> str:
    colour = rng.choice(("#d8323c", "#c92f4e", "#2f62c4", "#e2592b"))
    x, n = 50 + rng.uniform(-8, 8), rng.choice((18, 20, 22))
    out = _path(_box(-12, -12, 124, 124), "#fff3da")
    stripes = ""
    for i in range(0, n, 2):
        a, b = (lerp(-110, 210, k / n) for k in (i, i + 1))
        stripes += _polygon(((x, -22), (a, 60), (a, 84), (b, 84), (b, 60)))
    out += _path(stripes, colour)
    out += _vertical("fold", (("#2a0a20", 0.55), ("#2a0a20", 0.05), ("#2a0a20", 0.35)), -12, 84)
    out += _vertical("ring", ("#e7b565", "#b47a38"), 78, 112)
    out += _path(_box(-12, 74, 124, 8), lighten(colour, -0.35)) + _path(
        _box(-12, 74, 124, 1.5) + _box(-12, 80.5, 124, 1.5), "#ffd75a"
    )
    stars = "".join(_polygon(_star(u, 78, 2)) for u in range(-6, 112, 12))
    out += _path(stars, "#ffe9a0")
    flags: dict[str, str] = dict.fromkeys(("#ffd23e", "#35a7d8", "#5cbf5a", "#ff7fb0"), "")
    names, sag = list(flags), rng.uniform(14, 22)
    rope = f"M-12,4Q20,{_f(4 + sag)} 50,6Q80,{_f(4 + sag)} 112,4"
    for i in range(16):
        u = -6 + i * 7.5
        v = 4.5 + sag * 0.5 * math.sin(math.pi * ((u + 12) % 62) / 62)
        flags[names[i % 4]] += _polygon(((u - 3, v), (u + 3, v), (u, v + 8)))
    out += _stroke(rope, "#fff6df", 0.8) + "".join(_path(data, c) for c, data in flags.items())
    for u in (50 - rng.uniform(34, 40), 50 + rng.uniform(34, 40)):
        for dx, dy, tone in ((-5.0, 4.0, "#ff5f8f"), (5, 3, "#3fb6e8"), (0, -3, "#ffcf3a")):
            v = 40 + dy * 2 + rng.uniform(-3, 3)
            out += _stroke(f"M{_f(u + dx)},{_f(v + 6)}Q{_f(u + dx)},{_f(v + 18)} {_f(u)},74", "#fff6df", 0.5)
            out += _path(
                _circle(u + dx, v, 5.4, 1.15)
                + _polygon(((u + dx, v + 5.5), (u + dx - 1.4, v + 8), (u + dx + 1.4, v + 8))),
                tone,
            )
            out += _path(_circle(u + dx - 1.8, v - 2.2, 1.2, 1.4), "#ffffff", 0.65)
    return out


def _star(x: float, y: float, r: float) -> list[Point]:
    angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
    return [
        (x + (r if i % 2 == 0 else r * 0.45) * math.cos(a), y + (r if i % 2 == 0 else r * 0.45) * math.sin(a))
        for i, a in enumerate(angles)
    ]


_DRAW: dict[str, Callable[[random.Random, Light], str]] = {
    "studio": _studio,
    "beach": _beach,
    "snow": _snow,
    "forest": _forest,
    "space": _space,
    "city": _city,
    "desert": _desert,
    "underwater": _underwater,
    "library": _library,
    "kitchen": _kitchen,
    "garden": _garden,
    "mountains": _mountains,
    "rain": _rain,
    "sunset": _sunset,
    "autumn": _autumn,
    "circus": _circus,
}


def _tint(light: Light) -> str:
    """A thin veil of the light's colour, and of night where there is little light."""
    out = ""
    if abs(light.warmth) > 0.05:
        out += _path(_box(-12, -12, 124, 124), "#ff9a3c" if light.warmth > 0 else "#3c78ff", 0.16 * abs(light.warmth))
    if light.level < 0.98:
        out += _path(_box(-12, -12, 124, 124), "#0a0a24", 0.45 * (1 - light.level))
    return out


def draw_scene(name: str, rng: random.Random, light: Light) -> str:
    """The background ``name`` as an SVG fragment that reaches past the canvas on all sides."""
    return _DRAW[name](rng, light) + _tint(light)
