"""Things a figure of the drawn world can wear, placed by its anchors.

They fit a human head as well as a cat's: hats sit on the brow of a head whose ears are at its sides, and between the
ears of one that has them on top.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from .canvas import Anchors, Attachment, hsl, lighten

ACCESSORIES: dict[str, tuple[str, ...]] = {
    "red hat": ("wearing a red hat", "in a red hat", "with a red hat on"),
    "crown": ("wearing a crown", "with a golden crown", "in a crown"),
    "sunglasses": ("wearing sunglasses", "in sunglasses", "with dark sunglasses"),
    "round glasses": ("wearing round glasses", "with round glasses", "in round spectacles"),
    "green scarf": ("wearing a green scarf", "in a green scarf", "with a green scarf"),
    "headphones": ("wearing headphones", "with headphones on", "listening to music on headphones"),
    "flower crown": ("wearing a flower crown", "with flowers around the head", "in a crown of flowers"),
    "top hat": ("wearing a top hat", "in a black top hat", "with a top hat"),
    "bow tie": ("wearing a bow tie", "in a bow tie", "with a red bow tie"),
    "party hat": ("wearing a party hat", "in a party hat", "with a birthday hat"),
    "eye patch": ("wearing an eye patch", "with an eye patch", "with a pirate's eye patch"),
    "astronaut helmet": ("wearing an astronaut helmet", "in an astronaut helmet", "in a space helmet"),
    "wizard hat": ("wearing a wizard hat", "in a wizard hat", "with a pointed wizard hat"),
    "santa hat": ("wearing a Santa hat", "in a Santa hat", "with a Christmas hat"),
}


def _f(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _circle(x: float, y: float, r: float, squash: float = 1.0) -> str:
    a, b, d = _f(r), _f(r * squash), _f(2 * r)
    return f"M{_f(x - r)},{_f(y)}a{a},{b} 0 1 0 {d},0a{a},{b} 0 1 0 -{d},0z"


def _path(data: str, fill: str, opacity: float = 1.0, *, line: str = "", width: float = 0.7) -> str:
    stroke = f' stroke="{line}" stroke-width="{_f(width)}" stroke-linejoin="round"' if line else ""
    return f'<path d="{data}" fill="{fill}" fill-opacity="{_f(opacity)}"{stroke}/>'


def _stroke(data: str, colour: str, width: float, opacity: float = 1.0) -> str:
    return (
        f'<path d="{data}" fill="none" stroke="{colour}" stroke-width="{_f(width)}" stroke-linecap="round"'
        f' stroke-linejoin="round" stroke-opacity="{_f(opacity)}"/>'
    )


def _across(name: str, *colours: str) -> str:
    """A gradient from left to right called ``a-name``."""
    stops = "".join(
        f'<stop offset="{_f(i / (len(colours) - 1))}" stop-color="{colour}"/>' for i, colour in enumerate(colours)
    )
    return f'<linearGradient id="a-{name}">{stops}</linearGradient>'


def _round(name: str, colour: str) -> str:
    """The gradient of something round, lit from the upper left."""
    return _across(name, lighten(colour, -0.08), lighten(colour, 0.2), colour, lighten(colour, -0.35))


@dataclass(frozen=True)
class _Seat:
    """Where a hat sits: the middle of its rim, half the rim's width, and the height that hair takes above it."""

    x: float
    y: float
    w: float
    hair: float


def _seat(a: Anchors, height: float = 0.5) -> _Seat:
    """``height`` is how far down from the skull's top to the eyes the rim sits on a head with ears at its sides."""
    x = a.cx + 0.35 * (a.face_x - a.cx)
    if a.ear_y < a.skull_top:
        y = a.skull_top + 0.3 * (a.eye_y - a.skull_top)
        return _Seat(x, y, a.half_width * 0.74, y - a.skull_top)
    y = min(a.skull_top + height * (a.eye_y - a.skull_top), a.eye_y - 2.1 * a.eye_size)
    return _Seat(x, y, a.half_width * 1.04, y - a.head_top)


def _tilted(content: str, seat: _Seat, degrees: float) -> str:
    """Moves what is drawn about the origin to the seat."""
    return f'<g transform="translate({_f(seat.x)} {_f(seat.y)}) rotate({_f(degrees)})">{content}</g>'


def _red_hat(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a)
    red, w = hsl(rng.uniform(-0.015, 0.015), 0.78, rng.uniform(0.44, 0.52)), s.w
    dark, h = lighten(red, -0.55), max(s.hair + 5, w * 0.8)
    dome = f"M{_f(-w)},0C{_f(-w * 1.02)},{_f(-h * 0.8)} {_f(-w * 0.75)},{_f(-h)} {_f(-w * 0.3)},{_f(-h)}"
    dome += f"Q0,{_f(-h * 0.9)} {_f(w * 0.3)},{_f(-h)}C{_f(w * 0.75)},{_f(-h)} {_f(w * 1.02)},{_f(-h * 0.8)} {_f(w)},0z"
    b = w * 1.52
    brim = (
        f"M{_f(-b)},1Q{_f(-b * 0.7)},-3 {_f(-w)},-3H{_f(w)}Q"
        f"{_f(b * 0.7)},-3 {_f(b)},1Q{_f(b * 0.6)},5.2 0,5.2T{_f(-b)},1z"
    )
    ribbon = f"M{_f(-w)},-6.4Q0,-2 {_f(w)},-6.4V-1.4Q0,3 {_f(-w)},-1.4z"
    content = _round("redhat", red) + _path(dome, "url(#a-redhat)", line=dark)
    content += _path(brim, "url(#a-redhat)", line=dark) + _path(ribbon, lighten(red, -0.68))
    content += _stroke(f"M{_f(-b * 0.85)},1.2Q0,6 {_f(b * 0.85)},1.2", lighten(red, 0.45), 0.6, 0.7)
    content += _stroke(
        f"M{_f(-w * 0.62)},{_f(-h * 0.5)}Q{_f(-w * 0.6)},{_f(-h * 0.82)} {_f(-w * 0.35)},{_f(-h * 0.86)}",
        "#fff",
        1.4,
        0.4,
    )
    return Attachment(front=_tilted(content, s, rng.uniform(-5, 5)))


def _crown(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.34)
    w, gold = s.w * 0.9, hsl(rng.uniform(0.115, 0.135), 0.85, 0.55)
    h, line = max(s.hair * 0.7 + 8, w * 0.85), lighten(gold, -0.5)
    rim = h * 0.36
    points = f"M{_f(-w)},0L{_f(-w * 1.14)},{_f(-h * 0.86)}L{_f(-w * 0.56)},{_f(-rim * 1.25)}L0,{_f(-h)}"
    points += f"L{_f(w * 0.56)},{_f(-rim * 1.25)}L{_f(w * 1.14)},{_f(-h * 0.86)}L{_f(w)},0Q0,{_f(w * 0.24)} {_f(-w)},0z"
    inside = f"M{_f(-w)},{_f(-rim)}L{_f(-w * 0.8)},{_f(-h * 0.8)}L{_f(-w * 0.3)},{_f(-rim)}L{_f(w * 0.3)},{_f(-rim)}"
    inside += f"L{_f(w * 0.8)},{_f(-h * 0.8)}L{_f(w)},{_f(-rim)}z"
    content = _across("crown", gold, lighten(gold, 0.6), gold, lighten(gold, -0.3)) + _path(inside, lighten(gold, -0.4))
    content += _path(points, "url(#a-crown)", line=line)
    band = f"M{_f(-w * 1.02)},{_f(-rim * 0.72)}Q0,{_f(-rim * 0.72 + w * 0.24)} {_f(w * 1.02)},{_f(-rim * 0.72)}"
    content += _stroke(band, line, 0.6, 0.7)
    balls = _circle(-w * 1.14, -h * 0.9, 1.7) + _circle(0, -h * 1.04, 1.9) + _circle(w * 1.14, -h * 0.9, 1.7)
    content += _path(balls, lighten(gold, 0.3), line=line)
    gem = rng.choice(("#e0284f", "#2f6fe0", "#1fa866"))
    r = rim * 0.33
    content += _path(_circle(0, -rim * 0.1, r * 1.2), gem, line=line, width=0.5)
    content += _path(
        _circle(-w * 0.6, -rim * 0.25, r) + _circle(w * 0.6, -rim * 0.25, r), "#ffffff", 0.9, line=line, width=0.5
    )
    return Attachment(front=_tilted(content, s, rng.uniform(-6, 6)))


def _temples(a: Anchors, reach: float, y: float, colour: str, width: float) -> str:
    """The arms of spectacles, from the lenses' outer ends to the sides of the head."""
    data = ""
    for side in (-1, 1):
        start, end = a.face_x + side * reach, a.cx + side * a.half_width * 0.97
        if side * (end - start) > 0:
            data += f"M{_f(start)},{_f(y)}L{_f(end)},{_f(y - 1)}"
    return _stroke(data, colour, width) if data else ""


def _sunglasses(a: Anchors, rng: random.Random) -> Attachment:
    w, y, x = a.eye_dx * 0.92, a.eye_y, a.face_x
    h, tint = w * rng.uniform(0.82, 0.95), hsl(rng.choice((0.62, 0.75, 0.03)), 0.3, 0.12)
    content = _temples(a, a.eye_dx + w * 0.9, y - h * 0.5, "#17171f", 1.5)
    lenses, shine = "", ""
    for side in (-1, 1):
        u = x + side * a.eye_dx * 1.02
        lenses += (
            f"M{_f(u - side * w * 0.85)},{_f(y - h * 0.7)}L{_f(u + side * w * 1.08)},{_f(y - h * 0.85)}"
            f"Q{_f(u + side * w * 1.1)},{_f(y + h)} {_f(u + side * w * 0.05)},{_f(y + h)}"
            f"Q{_f(u - side * w * 0.9)},{_f(y + h)} {_f(u - side * w * 0.85)},{_f(y - h * 0.7)}z"
        )
        shine += (
            f"M{_f(u - w * 0.5)},{_f(y + h * 0.3)}l{_f(w * 0.55)},"
            f"{_f(-h * 0.85)}h{_f(w * 0.3)}l{_f(-w * 0.6)},{_f(h * 0.95)}z"
        )
    content += _stroke(
        (
            f"M{_f(x - a.eye_dx * 0.3)},{_f(y - h * 0.5)}Q{_f(x)},"
            f"{_f(y - h * 0.8)} {_f(x + a.eye_dx * 0.3)},{_f(y - h * 0.5)}"
        ),
        "#17171f",
        1.5,
    )
    content += _path(lenses, tint, line="#0c0c12", width=1.1) + _path(shine, "#ffffff", 0.38)
    return Attachment(front=content)


def _round_glasses(a: Anchors, rng: random.Random) -> Attachment:
    r, x, y = min(a.eye_size * 1.35, a.eye_dx * 0.86), a.face_x, a.eye_y
    frame = rng.choice(("#3a2418", "#7a2230", "#8a6a1c", "#22324f"))
    rings = _circle(x - a.eye_dx, y, r) + _circle(x + a.eye_dx, y, r)
    gap = a.eye_dx - r
    content = _temples(a, a.eye_dx + r, y - 0.6, frame, 1.1)
    content += _stroke(f"M{_f(x - gap)},{_f(y - 0.5)}Q{_f(x)},{_f(y - 2.4)} {_f(x + gap)},{_f(y - 0.5)}", frame, 1.3)
    content += _path(rings, "#e4f4ff", 0.24, line=frame, width=rng.uniform(1.3, 1.6))
    glint = "".join(
        f"M{_f(u - r * 0.6)},{_f(y - r * 0.1)}Q{_f(u - r * 0.5)},{_f(y - r * 0.6)} {_f(u)},{_f(y - r * 0.66)}"
        for u in (x - a.eye_dx, x + a.eye_dx)
    )
    return Attachment(front=content + _stroke(glint, "#ffffff", 0.8, 0.85))


def _green_scarf(a: Anchors, rng: random.Random) -> Attachment:
    green = hsl(rng.uniform(0.34, 0.41), 0.55, rng.uniform(0.33, 0.4))
    dark, side = lighten(green, -0.5), rng.choice((-1, 1))
    w, x, y = a.neck_half_width * 1.1 + 5.5, a.cx, a.neck_y + 1.5
    h = 8.5
    wrap = (
        f"M{_f(x - w)},{_f(y - 3)}Q{_f(x)},{_f(y + 3)} {_f(x + w)},{_f(y - 3)}"
        f"Q{_f(x + w + 2.5)},{_f(y + 1)} {_f(x + w)},{_f(y + h - 3)}"
    )
    wrap += (
        f"Q{_f(x)},{_f(y + h + 5)} {_f(x - w)},{_f(y + h - 3)}Q{_f(x - w - 2.5)},{_f(y + 1)} {_f(x - w)},{_f(y - 3)}z"
    )
    u, t, length = x + side * w * 0.42, y + 6, rng.uniform(20, 26)
    tail = f"M{_f(u - 4.2)},{_f(t)}L{_f(u - 5.2 + side)},{_f(t + length)}h10.4L{_f(u + 4.2)},{_f(t)}z"
    fringe = "".join(f"M{_f(u - 4.6 + side + i * 2.3)},{_f(t + length)}v2.6" for i in range(5))
    stripes = "".join(f"M{_f(u - 4.7 + side * 0.6)},{_f(t + d)}h9.4" for d in (length - 3, length - 6.2))
    stripes += "".join(
        f"M{_f(x + k * w)},{_f(y - 2.6 + 5.4 * (1 - k * k) * 0.55)}q{_f(k * 2)},{_f(h * 0.5)} 0,{_f(h)}"
        for k in (-0.72, -0.62, 0.62, 0.72)
    )
    fold = f"M{_f(x - w)},{_f(y + 1.2)}Q{_f(x)},{_f(y + 8)} {_f(x + w)},{_f(y + 1.2)}"
    content = _stroke(fringe, green, 1.3) + _path(tail, lighten(green, -0.12), line=dark)
    content += _round("scarf", green) + _path(wrap, "url(#a-scarf)", line=dark)
    content += _stroke(stripes, "#f4edcf", 1.3, 0.9) + _stroke(fold, dark, 0.7, 0.6)
    knot = f"M{_f(u - 5)},{_f(y + 2)}q5,-2.6 10,0q1.6,4.6 -0.6,9q-4.4,2 -8.8,0q-2.2,-4.4 -0.6,-9z"
    return Attachment(middle=content + _path(knot, lighten(green, 0.1), line=dark))


def _headphones(a: Anchors, rng: random.Random) -> Attachment:
    colour = rng.choice(("#ff5a6e", "#27b0d8", "#ffffff", "#ffb52e", "#8f62e8"))
    y = a.ear_y if a.ear_y > a.skull_top else a.eye_y + 1
    w, top = a.half_width + 1.8, min(a.skull_top, a.head_top + 3 if a.ear_y > a.skull_top else a.skull_top) - 2.5
    shift = 0.15 * (a.face_x - a.cx)
    left, right = a.cx - w - shift, a.cx + w - shift
    arc = (
        f"M{_f(left)},{_f(y)}C{_f(left)},{_f(top - (y - top) * 0.32)} "
        f"{_f(right)},{_f(top - (y - top) * 0.32)} {_f(right)},{_f(y)}"
    )
    content = _stroke(arc, "#20202c", 4) + _stroke(arc, lighten(colour, -0.12), 2.6)
    cups, pads, shine = "", "", ""
    for u, side in ((left, -1), (right, 1)):
        pads += f"M{_f(u - side * 3.4)},{_f(y - 6)}q{_f(-side * 1.6)},6 0,12h{_f(side * 3)}v-12z"
        cups += (
            f"M{_f(u - side * 1.2)},{_f(y - 7.5)}C{_f(u + side * 6.4)},{_f(y - 7.5)}"
            f" {_f(u + side * 6.4)},{_f(y + 7.5)} {_f(u - side * 1.2)},{_f(y + 7.5)}z"
        )
        shine += f"M{_f(u + side * 2.2)},{_f(y - 4)}q{_f(side * 1.6)},3 {_f(side * 0.6)},6"
    content += (
        _path(pads, "#20202c")
        + _path(cups, colour, line="#20202c", width=1)
        + _stroke(shine, "#ffffff" if colour != "#ffffff" else "#9aa6b8", 1, 0.75)
    )
    return Attachment(front=content)


def _flower_crown(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.36)
    w = s.w * (1.25 if a.ear_y < a.skull_top else 0.98)
    bow = w * 0.3
    vine = f"M{_f(-w)},{_f(-bow * 0.2)}Q0,{_f(bow * 0.6)} {_f(w)},{_f(-bow * 0.2)}"
    leaves, n = "", 7
    colours = ["#ff5d8f", "#ffd23e", "#ffffff", "#b98cff", "#ff8a4a"]
    rng.shuffle(colours)
    petals, hearts = [""] * 4, ""
    for i in range(n):
        k = 2 * i / (n - 1) - 1
        u, v = w * k, -bow * 0.2 + bow * 0.4 * (1 - k * k)
        for side in (-1, 1):
            leaves += f"M{_f(u)},{_f(v)}q2.4,{side} 3.4,{_f(side * 4.4)}q-3.6,{-side} -3.4,{_f(-side * 4.4)}z"
        r, turn = (3.1 - 1.1 * k * k) * rng.uniform(0.9, 1.1), rng.random()
        for angle in (turn + j * math.tau / 5 for j in range(5)):
            petals[i % 4] += _circle(u + r * math.cos(angle), v + r * math.sin(angle), r * 0.78)
        hearts += _circle(u, v, r * 0.62)
    content = _stroke(vine, "#2f7a3a", 2) + _path(leaves, "#3f9a48")
    for data, colour in zip(petals, colours[:4], strict=True):
        content += _path(data, colour, line=lighten(colour, -0.35), width=0.35)
    return Attachment(
        front=_tilted(content + _path(hearts, "#ffb020", line="#a85c10", width=0.35), s, rng.uniform(-4, 4))
    )


def _top_hat(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.42)
    w, black = s.w * 0.92, hsl(rng.uniform(0.6, 0.75), 0.16, 0.14)
    h, b = max(s.hair + 9, w * 1.15), w * 1.42
    ribbon = rng.choice(("#c8283c", "#6a3fc0", "#e0a52e"))
    tube = (
        f"M{_f(-w * 0.94)},0L{_f(-w * 1.04)},{_f(-h)}Q0,{_f(-h - w * 0.22)} "
        f"{_f(w * 1.04)},{_f(-h)}L{_f(w * 0.94)},0Q0,{_f(w * 0.28)} {_f(-w * 0.94)},0z"
    )
    brim = (
        f"M{_f(-b)},-1.5Q0,{_f(w * 0.42)} {_f(b)},-1.5Q{_f(b * 0.95)},2.2 {_f(b * 0.7)},3"
        f"Q0,{_f(w * 0.36 + 3)} {_f(-b * 0.7)},3Q{_f(-b * 0.95)},2.2 {_f(-b)},-1.5z"
    )
    band = (
        f"M{_f(-w * 0.95)},{_f(-h * 0.08)}L{_f(-w * 0.98)},{_f(-h * 0.33)}Q0,"
        f"{_f(-h * 0.33 + w * 0.26)} {_f(w * 0.98)},{_f(-h * 0.33)}L{_f(w * 0.95)},"
        f"{_f(-h * 0.08)}Q0,{_f(-h * 0.08 + w * 0.28)} {_f(-w * 0.95)},{_f(-h * 0.08)}z"
    )
    content = _across("tophat", black, lighten(black, 0.35), lighten(black, 0.05), lighten(black, -0.5))
    content += (
        _path(tube, "url(#a-tophat)", line="#08080c")
        + _path(band, ribbon)
        + _path(brim, lighten(black, 0.08), line="#08080c")
    )
    content += _path(
        f"M{_f(-w)},{_f(-h)}Q0,{_f(-h - w * 0.2)} {_f(w)},{_f(-h)}Q0,{_f(-h + w * 0.2)} {_f(-w)},{_f(-h)}z",
        lighten(black, 0.28),
    )
    content += _stroke(f"M{_f(-b * 0.9)},0.4Q0,{_f(w * 0.42 + 2)} {_f(b * 0.9)},0.4", "#ffffff", 0.5, 0.4)
    return Attachment(front=_tilted(content, s, rng.uniform(-7, 7)))


def _bow_tie(a: Anchors, rng: random.Random) -> Attachment:
    red = hsl(rng.uniform(-0.03, 0.02), 0.75, rng.uniform(0.42, 0.5))
    x, y, w, h = a.cx, a.neck_y + 6, 11.5 + rng.uniform(-0.8, 0.8), 6.2
    dark = lighten(red, -0.55)
    wings, folds = "", ""
    for side in (-1, 1):
        wings += (
            f"M{_f(x)},{_f(y)}C{_f(x + side * w * 0.4)},{_f(y - h * 0.5)} "
            f"{_f(x + side * w * 0.8)},{_f(y - h * 1.15)} {_f(x + side * w)},{_f(y - h * 0.85)}"
        )
        wings += (
            f"Q{_f(x + side * w * 1.12)},{_f(y)} {_f(x + side * w)},{_f(y + h * 0.85)}C{_f(x + side * w * 0.8)},"
            f"{_f(y + h * 1.15)} {_f(x + side * w * 0.4)},{_f(y + h * 0.5)} {_f(x)},{_f(y)}z"
        )
        folds += (
            f"M{_f(x + side * 2.6)},{_f(y - 0.8)}L{_f(x + side * w * 0.6)},{_f(y - 2)}"
            f"M{_f(x + side * 2.6)},{_f(y + 1)}L{_f(x + side * w * 0.55)},{_f(y + 2)}"
        )
    dots = "".join(_circle(x + dx * w, y + dy * h, 0.9) for dx in (-0.78, 0.78) for dy in (-0.5, 0.05, 0.55))
    content = _round("bow", red) + _path(wings, "url(#a-bow)", line=dark, width=0.8)
    content += _path(dots, "#fff1e6") if rng.random() < 0.6 else ""
    content += _stroke(folds, dark, 0.8, 0.7) + _path(
        f"M{_f(x - 2.6)},{_f(y - 3)}q2.6,-1 5.2,0q1,3 0,6q-2.6,1 -5.2,0q-1,-3 0,-6z", lighten(red, 0.12), line=dark
    )
    return Attachment(middle=f'<g transform="rotate({_f(rng.uniform(-5, 5))} {_f(x)} {_f(y)})">{content}</g>')


def _party_hat(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.16)
    w = min(s.w * 0.62, 11.5)
    h, hue = w * rng.uniform(2.0, 2.2), rng.random()
    base, line = hsl(hue, 0.75, 0.58), hsl(hue, 0.6, 0.25)
    stripe = hsl(hue + rng.uniform(0.35, 0.6), 0.85, 0.68)
    cone = f"M0,{_f(-h)}L{_f(w)},0Q0,{_f(w * 0.42)} {_f(-w)},0z"
    bands = ""
    for low, high in ((0.12, 0.28), (0.44, 0.6), (0.76, 0.88)):
        p, q = w * (1 - low), w * (1 - high)
        bands += (
            f"M{_f(-p)},{_f(-h * low)}Q0,{_f(-h * low + p * 0.42)} {_f(p)},{_f(-h * low)}L"
            f"{_f(q)},{_f(-h * high)}Q0,{_f(-h * high + q * 0.42)} {_f(-q)},{_f(-h * high)}z"
        )
    shade = f"M0,{_f(-h)}L{_f(w)},0Q{_f(w * 0.7)},{_f(w * 0.16)} {_f(w * 0.35)},{_f(w * 0.2)}z"
    angles = [i * math.pi / 6 for i in range(12)]
    pom = (
        "M"
        + "L".join(
            f"{_f(r * math.cos(t))},{_f(-h + r * math.sin(t))}"
            for i, t in enumerate(angles)
            for r in [4.4 if i % 2 else 2.4]
        )
        + "z"
    )
    content = (
        _path(cone, base, line=line)
        + _path(bands, stripe)
        + _path(shade, "#20083a", 0.2)
        + _path(pom, "#ffe15a", line="#b8861a", width=0.5)
    )
    ruffle = "".join(_circle(w * k, w * 0.21 * (1 - k * k), 1.7) for k in (-1, -0.67, -0.33, 0, 0.33, 0.67, 1))
    return Attachment(front=_tilted(content + _path(ruffle, "#ffffff", line=line, width=0.4), s, rng.uniform(-12, 12)))


def _eye_patch(a: Anchors, rng: random.Random) -> Attachment:
    side = rng.choice((-1, 1))
    x, y, r = a.face_x + side * a.eye_dx, a.eye_y, a.eye_size * 1.3
    brow = a.skull_top + 0.3 * (a.eye_y - a.skull_top)
    strap = (
        f"M{_f(a.cx - side * a.half_width * 0.86)},{_f(brow)}Q{_f(a.face_x)},{_f(brow + 1.2)} {_f(x)},{_f(y - r * 0.6)}"
    )
    strap += f"L{_f(a.cx + side * a.half_width * 0.97)},{_f(y + 2)}"
    patch = (
        f"M{_f(x - r)},{_f(y - r * 0.75)}Q{_f(x)},{_f(y - r * 1.1)} {_f(x + r)},"
        f"{_f(y - r * 0.75)}Q{_f(x + r * 1.1)},{_f(y + r)} {_f(x)},{_f(y + r * 1.1)}"
        f"Q{_f(x - r * 1.1)},{_f(y + r)} {_f(x - r)},{_f(y - r * 0.75)}z"
    )
    black = hsl(rng.uniform(0.0, 0.7), 0.15, rng.uniform(0.1, 0.16))
    content = _stroke(strap, black, 1.5) + _path(patch, black, line="#050507", width=0.8)
    return Attachment(
        front=content
        + _stroke(
            f"M{_f(x - r * 0.6)},{_f(y - r * 0.1)}Q{_f(x - r * 0.5)},{_f(y - r * 0.55)} {_f(x)},{_f(y - r * 0.6)}",
            "#ffffff",
            0.8,
            0.35,
        )
    )


def _astronaut_helmet(a: Anchors, rng: random.Random) -> Attachment:
    top, low = a.head_top - 4, a.neck_y + 3
    x, y = a.cx, (top + low) / 2 - 1
    r = max(a.half_width * 1.36, (low - top) / 2 + 1)
    tint = hsl(rng.uniform(0.5, 0.62), 0.6, 0.75)
    rx, cy = r * 0.86, y + r * 0.84
    trim = rng.choice(("#e8552e", "#2f6fd8", "#e0a52e"))
    back = _path(_circle(x, y, r), tint, 0.35) + _path(_circle(x, cy, rx, 0.26), "#8792a6", line="#4a5468")
    # Rings instead of a gradient over the whole dome, which would cost more than all the rest.
    dome = _stroke(_circle(x, y, r - 2.2), lighten(tint, 0.15), 4.4, 0.4)
    dome += _stroke(_circle(x, y, r), "#f4f9ff", 1.1)
    shine = (
        f"M{_f(x - r * 0.8)},{_f(y - r * 0.05)}Q{_f(x - r * 0.75)},"
        f"{_f(y - r * 0.65)} {_f(x - r * 0.2)},{_f(y - r * 0.84)}"
    )
    shine += f"Q{_f(x - r * 0.58)},{_f(y - r * 0.5)} {_f(x - r * 0.8)},{_f(y - r * 0.05)}z"
    spots = _circle(x + r * 0.66, y - r * 0.52, r * 0.05) + _circle(x + r * 0.74, y - r * 0.36, r * 0.035)
    d = rx * 0.26
    ring = (
        f"M{_f(x - rx)},{_f(cy)}A{_f(rx)},{_f(d)} 0 0 0 {_f(x + rx)},"
        f"{_f(cy)}v6.5A{_f(rx)},{_f(d)} 0 0 1 {_f(x - rx)},{_f(cy + 6.5)}z"
    )
    stripe = f"M{_f(x - rx)},{_f(cy + 4)}A{_f(rx)},{_f(d)} 0 0 0 {_f(x + rx)},{_f(cy + 4)}"
    front = dome + _path(shine, "#ffffff", 0.7) + _path(spots, "#ffffff", 0.85)
    front += (
        _across("ring", "#c9d2e0", "#ffffff", "#eef2f8", "#98a4b8")
        + _path(ring, "url(#a-ring)", line="#5a6478")
        + _stroke(stripe, trim, 1.5)
    )
    return Attachment(back=back, front=front)


def _wizard_hat(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.42)
    w, blue = s.w * 0.95, hsl(rng.uniform(0.63, 0.74), 0.55, rng.uniform(0.32, 0.4))
    h, b, lean = max(s.hair + 16, w * 1.75), w * 1.5, rng.choice((-1, 1)) * rng.uniform(0.3, 0.5) * w
    dark = lighten(blue, -0.55)
    cone = (
        f"M{_f(-w)},0Q{_f(-w * 0.62)},{_f(-h * 0.45)} {_f(-w * 0.22 + lean * 0.3)},"
        f"{_f(-h * 0.74)}Q{_f(lean * 0.5)},{_f(-h)} {_f(lean * 1.5)},{_f(-h * 0.96)}"
    )
    cone += (
        f"Q{_f(w * 0.24 + lean * 0.4)},{_f(-h * 0.86)} {_f(w * 0.3 + lean * 0.3)},"
        f"{_f(-h * 0.66)}Q{_f(w * 0.66)},{_f(-h * 0.4)} {_f(w)},0z"
    )
    brim = f"M{_f(-b)},0Q0,{_f(-w * 0.34)} {_f(b)},0Q{_f(b * 0.5)},{_f(w * 0.3)} 0,{_f(w * 0.3)}T{_f(-b)},0z"
    band = (
        f"M{_f(-w * 0.97)},-1.5Q0,{_f(w * 0.22)} {_f(w * 0.97)},-1.5L"
        f"{_f(w * 0.84)},-5.5Q0,{_f(w * 0.22 - 4)} {_f(-w * 0.84)},-5.5z"
    )
    content = (
        _round("wizard", blue)
        + _path(cone, "url(#a-wizard)", line=dark)
        + _path(brim, "url(#a-wizard)", line=dark)
        + _path(band, "#e8b83a", line="#8a6214", width=0.4)
    )
    stars = "".join(
        _star(u * w, v * h, r)
        for u, v, r in ((-0.36, -0.3, 2.6), (0.3, -0.42, 2.1), (0.02, -0.62, 1.7), (0.52, -0.2, 1.6))
    )
    return Attachment(front=_tilted(content + _path(stars, "#ffe27a"), s, rng.uniform(-5, 5)))


def _star(x: float, y: float, r: float) -> str:
    points = [(r if i % 2 == 0 else r * 0.45, math.pi * (i / 5 - 0.5)) for i in range(10)]
    return "M" + "L".join(f"{_f(x + q * math.cos(t))},{_f(y + q * math.sin(t))}" for q, t in points) + "z"


def _santa_hat(a: Anchors, rng: random.Random) -> Attachment:
    s = _seat(a, 0.44)
    w, red, side = s.w * 0.97, hsl(rng.uniform(-0.02, 0.01), 0.75, rng.uniform(0.42, 0.48)), rng.choice((-1, 1))
    h, dark = max(s.hair + 9, w * 1.05), lighten(red, -0.5)
    u, v = side * w * 1.38, -h * rng.uniform(0.2, 0.35)
    cone = (
        f"M{_f(-side * w)},0C{_f(-side * w * 0.95)},{_f(-h * 0.85)} "
        f"{_f(-side * w * 0.2)},{_f(-h * 1.25)} {_f(side * w * 0.6)},{_f(-h * 0.95)}"
    )
    cone += (
        f"Q{_f(side * w * 1.3)},{_f(-h * 0.75)} {_f(u)},{_f(v)}Q{_f(side * w * 1.05)},"
        f"{_f(-h * 0.5)} {_f(side * w * 0.78)},{_f(-h * 0.5)}L{_f(side * w)},0z"
    )
    fold = (
        f"M{_f(side * w * 0.82)},{_f(-h * 0.48)}Q{_f(side * w * 0.5)},"
        f"{_f(-h * 0.62)} {_f(side * w * 0.25)},{_f(-h * 0.55)}"
    )
    fur = "".join(
        _circle(w * k, -1.2 + w * 0.12 * (1 - k * k), max(2.8, w * 0.2))
        for k in (-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1)
    )
    content = _round("santa", red) + _path(cone, "url(#a-santa)", line=dark) + _stroke(fold, dark, 0.8, 0.7)
    content += _path(fur, "none", line="#b4bfd0", width=1) + _path(fur, "#ffffff")
    r = max(3.2, w * 0.24)
    return Attachment(
        front=_tilted(content + _path(_circle(u, v + 1, r), "#ffffff", line="#b4bfd0"), s, rng.uniform(-3, 3))
    )


_DRAW: dict[str, Callable[[Anchors, random.Random], Attachment]] = {
    "red hat": _red_hat,
    "crown": _crown,
    "sunglasses": _sunglasses,
    "round glasses": _round_glasses,
    "green scarf": _green_scarf,
    "headphones": _headphones,
    "flower crown": _flower_crown,
    "top hat": _top_hat,
    "bow tie": _bow_tie,
    "party hat": _party_hat,
    "eye patch": _eye_patch,
    "astronaut helmet": _astronaut_helmet,
    "wizard hat": _wizard_hat,
    "santa hat": _santa_hat,
}


def draw_accessory(name: str, anchors: Anchors, rng: random.Random) -> Attachment:
    """The accessory ``name`` on a figure with these ``anchors``."""
    return _DRAW[name](anchors, rng)
