"""Things a subject can be turned into or put inside of, with the words for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from e4t.tiny.canvas import rasterise
from e4t.tiny.styles import (
    Array,
    _blend,
    _blur,
    _kuwahara,
    _lines,
    _luma,
    _noise,
    _saturate,
    _smear,
    _step,
    _units,
    _warp,
)

TRANSFORMS: dict[str, tuple[str, ...]] = {
    "snow globe": ("a snow globe with {}", "a snow globe containing {}", "{} inside a snow globe"),
    "stained glass window": (
        "a stained glass window of {}",
        "a stained glass window depicting {}",
        "{} as a stained glass window",
    ),
    "cookie": ("a cookie in the shape of {}", "an iced cookie of {}", "{} as a cookie"),
    "plush toy": ("a plush toy of {}", "a cuddly plush toy version of {}", "{} as a plush toy"),
    "postage stamp": ("a postage stamp with {}", "a postage stamp showing {}", "{} on a postage stamp"),
    "marble statue": ("a marble statue of {}", "a statue of {} carved in marble", "{} as a marble statue"),
}
"""Name to phrases with a slot for the subject."""


@lru_cache(maxsize=32)
def _overlay(fragment: str, size: int) -> Array:
    return rasterise(fragment, size)


def _over(below: Array, above: Array) -> Array:
    return _blend(below, above[..., :3], above[..., 3])


def _place(subject: Array, scale: float, x: float, y: float) -> Array:
    """The figure shrunk so that canvas point (50, 50) lands on (``x``, ``y``) canvas units. Straight alpha stays."""
    size = subject.shape[0]
    premultiplied = np.dstack([subject[..., :3] * subject[..., 3:], subject[..., 3]])
    unit = size / 100
    matrix = np.array([[scale, 0, (x - 50 * scale) * unit], [0, scale, (y - 50 * scale) * unit]], np.float32)
    moved = cv2.warpAffine(premultiplied, matrix, (size, size), flags=cv2.INTER_AREA)
    colour = moved[..., :3] / np.maximum(moved[..., 3:], 1e-4)
    return np.asarray(np.clip(np.dstack([colour, moved[..., 3]]), 0, 1), np.float32)


def _inside(alpha: Array) -> Array:
    """Distance from the mask's border, in pixels of a 128 px picture. The figure goes on below the bottom edge."""
    solid = (alpha > 0.5).astype(np.uint8)
    padded = cv2.copyMakeBorder(solid, 1, 0, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = np.asarray(cv2.distanceTransform(padded, cv2.DIST_L2, 5), np.float32)[1:, 1:-1]
    return np.asarray(distance * np.float32(128 / alpha.shape[0]), np.float32)


def _lit(height: Array, depth: float) -> Array:
    """Light from the upper left on a height map (heights in pixels of a 128 px picture): 0 where flat."""
    k = np.float32(depth * height.shape[0] / 128 / 8)
    gx, gy = cv2.Sobel(height, cv2.CV_32F, 1, 0) * k, cv2.Sobel(height, cv2.CV_32F, 0, 1) * k
    slope = (gx + gy) * np.float32(0.7)
    return np.asarray(slope / np.sqrt(1 + gx * gx + gy * gy), np.float32)


def _disc(size: int, cx: float, cy: float, radius: float) -> Array:
    x, y = _units(size)
    away = np.hypot(x / 1.28 - cx, y / 1.28 - cy)
    return np.asarray(np.clip((radius - away) * np.float32(size / 100) + 0.5, 0, 1), np.float32)


_GLOBE = """<defs><linearGradient id="b" x2="1" y2="0">
<stop stop-color="#5a3018"/><stop offset=".35" stop-color="#b87a45"/>
<stop offset="1" stop-color="#4a2410"/></linearGradient><radialGradient id="g" cx=".42" cy=".36" r=".66">
<stop offset=".72" stop-color="#fff" stop-opacity="0"/><stop offset=".93" stop-color="#dff2ff" stop-opacity=".4"/>
<stop offset="1" stop-color="#6f9fc8" stop-opacity=".6"/></radialGradient></defs>
<ellipse cx="50" cy="96" rx="39" ry="3.5" fill="#000" opacity=".3"/>
<path d="M27 80 L73 80 L81 93 Q50 99 19 93 Z" fill="url(#b)"/>
<path d="M26 80 Q50 86 74 80 L75.5 83 Q50 89 24.500 83 Z" fill="#e8c27c"/>
<circle cx="50" cy="44" r="41" fill="url(#g)" stroke="#eaf7ff" stroke-width="1.2"/>
<path d="M18 36 Q22 18 38 11" fill="none" stroke="#fff" stroke-width="3.6" stroke-linecap="round" opacity=".85"/>
<circle cx="15.800" cy="43" r="1.8" fill="#fff" opacity=".8"/>
<path d="M84 52 Q81 66 71 74" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round" opacity=".5"/>"""

_SNOW = """<ellipse cx="50" cy="88" rx="46" ry="18" fill="#f4f9ff"/>
<ellipse cx="34" cy="80" rx="16" ry="5" fill="#fff"/>
<ellipse cx="68" cy="80" rx="18" ry="4.500" fill="#e6f0fb"/>"""


def _snow_globe(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    ball = _disc(size, 50, 44, 41)
    _, y = _units(size)
    sky = np.stack([0.55 + 0.3 * y / 128, 0.72 + 0.2 * y / 128, 0.9 + 0.06 * y / 128], 2).astype(np.float32)
    figure = _place(subject, 0.7, 50, 46)
    bank = _step(y, 98, 101) * _overlay(_SNOW, size)[..., 3]
    inner = _over(sky, figure)
    inner = _over(inner, np.dstack([_overlay(_SNOW, size)[..., :3], bank]))
    flakes = np.zeros((size, size), np.float32)
    for px, py, r in rng.random((46, 3)):
        centre = (round(float(px) * size * 16), round(float(py) * size * 0.86 * 16))
        cv2.circle(flakes, centre, round((0.5 + 0.75 * float(r)) * size / 128 * 16), 1.0, -1, cv2.LINE_AA, 4)
    flakes = _blur(flakes, 0.5) * (1 - 0.5 * _blur(figure[..., 3], 2))
    inner = _blend(inner, (1.0, 1.0, 1.0), np.clip(flakes * 1.3, 0, 1))
    rgb = _over(_blend(scene, inner, ball), _overlay(_GLOBE, size))
    return rgb, figure[..., 3] * ball * (1 - bank)


@lru_cache(maxsize=8)
def _panes(size: int) -> tuple[npt.NDArray[np.int64], Array]:
    """Panes of a window: rays from the head cut by rings. Label of each pixel, and how much lead is on it."""
    x, y = _units(size)
    dx, dy = x - 64, y - 60
    radius, turn = np.hypot(dx, dy), (np.arctan2(dy, dx) / (2 * np.pi) + 0.54) * 12
    ring = np.where(radius < 52, 0, np.where(radius < 70, 1, 2))
    turn = turn + 0.5 * ring
    ray = np.abs(turn - np.round(turn)) * radius * (2 * np.pi / 12)
    round_lead = np.minimum(np.abs(radius - 52), np.abs(radius - 70))
    lead = _step(-np.minimum(ray, round_lead).astype(np.float32), -1.5, -0.7)
    return (ring * 12 + np.floor(turn).astype(np.int64) % 12).astype(np.int64), lead


_ARCH = """
<path d="M0 0H100V100H0Z M7 100V42C7 18 26 4 50 4C74 4 93 18 93 42V100Z" fill-rule="evenodd" fill="#4b4650"/>
<path d="M7 101V42C7 18 26 4 50 4C74 4 93 18 93 42V101" fill="none"
 stroke="#16141a" stroke-width="2.4"/>
<path d="M3.500 101V41C3.500 15 25 1 50 1C75 1 96.500 15 96.500 41V101" fill="none"
 stroke="#77707c" stroke-width="1"/>"""


def _stained_glass(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    alpha = subject[..., 3]
    label, lead = _panes(size)
    flat = label.ravel()
    area = np.maximum(np.bincount(flat, minlength=36), 1)
    mean = np.stack([np.bincount(flat, scene[..., i].ravel(), 36) / area for i in range(3)], 1)
    mean = mean * (1 + 0.16 * rng.standard_normal((36, 3)))
    ground = _saturate(np.clip(mean, 0, 1).astype(np.float32)[label], 1.9)
    figure = _saturate(np.ascontiguousarray(subject[..., :3]), 1.35)
    luma = _luma(figure)
    steps = np.round(_blur(luma, 0.6) * 6) / np.float32(6)
    figure = np.clip(figure * ((steps + 0.1) / (luma + 0.05))[..., None], 0, 1)
    glass = _blend(ground, figure, alpha)
    x, y = _units(size)
    glow = 1.22 - 0.5 * (((x - 64) ** 2 + (y - 56) ** 2) / np.float32(64**2 * 1.6))
    ripple = 0.05 * _noise(size, 9, rng, 4) + 0.04 * _noise(size, 2, rng)
    glass = glass * (glow + ripple)[..., None] + 0.25 * _blur(glass, 4) - 0.06
    joints = lead * (1 - _step(alpha, 0.3, 0.7))
    came = np.maximum(_lines(_blend(ground * 0 + 0.5, figure, alpha), alpha, 0.85, 15), joints)
    rim = _blur(alpha, 1.3)
    came = np.maximum(came, np.clip(5 * rim * (1 - rim), 0, 1))
    rgb = _blend(np.clip(glass, 0, 1), (0.06, 0.055, 0.075), came)
    arch = _overlay(_ARCH, size)
    return _over(rgb, arch), alpha * (1 - arch[..., 3])


def _cookie(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    figure = _place(subject, 0.86, 50, 49)
    icing = _step(_blur(figure[..., 3], 1.0), 0.35, 0.65)
    away = cv2.distanceTransform((icing < 0.5).astype(np.uint8), cv2.DIST_L2, 5)
    away = np.minimum(away, size) * np.float32(128 / size)
    body = _step(_blur(np.clip(7.5 - away, 0, 2).astype(np.float32) / 2, 1.6), 0.3, 0.7)
    depth = _inside(body)
    dome = 5 * np.sqrt(1 - (1 - np.clip(depth / 9, 0, 1)) ** 2)
    crumb = _noise(size, 1.3, rng)
    bake = np.array([0.82, 0.56, 0.28], np.float32) * (0.72 + 0.3 * np.clip(depth / 8, 0, 1))[..., None]
    bake = bake * (1 + 0.09 * crumb + 0.07 * _noise(size, 5, rng) + 0.45 * _lit(_blur(dome, 0.8), 1.0))[..., None]
    shift = np.float32(2.5 * size / 128)
    shadow = _blur(_warp(body, np.full_like(body, -shift), np.full_like(body, -shift)), 2.5)
    rgb = scene * (1 - 0.5 * shadow)[..., None]
    rgb = _blend(rgb, bake, body)
    colour = np.ascontiguousarray(figure[..., :3])
    sugar = _kuwahara(_blend(np.full_like(colour, 0.5), colour, figure[..., 3]), 1.2)
    sugar = 1 - (1 - _saturate(sugar, 1.15)) * np.float32(0.74)
    bead = _lines(colour, figure[..., 3], 0.75, 18)
    puff = 3 * np.sqrt(1 - (1 - np.clip(_inside(icing) / 4, 0, 1)) ** 2) - 0.9 * bead
    shine = _lit(_blur(puff, 0.7), 1.0)
    sugar = sugar * (1 - 0.48 * bead[..., None]) * (1 + 0.3 * np.minimum(shine, 0))[..., None]
    sugar = _blend(sugar, (1.0, 1.0, 1.0), np.clip(shine * 0.9, 0, 0.7))
    return _blend(rgb, np.clip(sugar, 0, 1), icing), np.clip(body, 0, 1)


def _plush(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    alpha = subject[..., 3]
    x, y = _units(size)
    away = np.maximum(np.hypot(x - 64, y - 52), 1)
    swirl = 0.7 * _noise(size, 12, rng)
    ux, uy = 0.6 * (x - 64) / away, 0.6 * (y - 52) / away + 0.5
    vx, vy = ux * np.cos(swirl) - uy * np.sin(swirl), ux * np.sin(swirl) + uy * np.cos(swirl)
    tuft = _smear(_noise(size, 1.2, rng), vx, vy, 3.5) * np.float32(1.9)
    # The colours under the transparent part are unknown, so they are spread outwards for the fur to stand on.
    wide = _blur(alpha, 3.5) + np.float32(1e-3)
    spread = _blur(subject[..., :3] * alpha[..., None], 3.5) / wide[..., None]
    colour = _blend(spread, subject[..., :3], _step(alpha, 0.2, 0.9))
    reach = tuft * np.float32(0.7 * size / 128)
    fur = _warp(colour, vx * reach * 0.7, vy * reach * 0.7)
    fur = 0.45 * fur + 0.55 * colour
    line = _lines(colour, alpha, 0.8)
    tuft = tuft * (1 - 0.6 * line * _step(alpha, 0.5, 1))
    fur = fur * (1 - 0.3 * line[..., None])
    edge = _blur(alpha, 1.3)
    bump = np.clip(edge * 1.5 - 0.18 + 0.2 * tuft * _step(edge, 0.02, 0.3), 0, 1)
    bump = np.where(alpha > 0.98, 1, bump)
    body = _step(bump, 0.3, 0.75)
    depth = _inside(alpha)
    puff = _lit(_blur(9 * np.sqrt(1 - (1 - np.clip(depth / 22, 0, 1)) ** 2), 2), 0.9)
    fur = fur * (1 + 0.12 * tuft + 0.4 * puff)[..., None] + 0.03
    fur = fur * (0.72 + 0.28 * np.clip(depth / 7, 0, 1))[..., None]
    turn = np.arctan2(y - 60, x - 64) * np.float32(34)
    seam = _step(-np.abs(depth - 3.6), -1.4, -0.5) * _step(np.cos(turn), -0.2, 0.3)
    groove = _step(-np.abs(depth - 3.6), -2.0, -0.6)
    fur = _blend(fur * (1 - 0.2 * groove[..., None]), (0.96, 0.92, 0.84), 0.75 * seam * body)
    shadow = _blur(body, 5)
    return _blend(scene * (1 - 0.3 * shadow[..., None]), np.clip(fur, 0, 1), body), body


def _stamp_fragment() -> str:
    holes = []
    step = 84 / 14
    for i in range(15):
        at = 8 + i * step
        holes += [(at, 8.0), (at, 92.0), (8.0, at), (92.0, at)]
    bites = "".join(f'<circle cx="{x:.2f}" cy="{y:.2f}" r="1.9" fill="#000"/>' for x, y in holes)
    return (
        f'<mask id="m"><rect width="100" height="100" fill="#000"/>'
        f'<rect x="8" y="8" width="84" height="84" fill="#fff"/>{bites}</mask>'
        f'<rect width="100" height="100" fill="#fbf8ee" mask="url(#m)"/>'
    )


_VALUE = """<rect x="70" y="16" width="14" height="12" rx="1.5" fill="#fbf8ee" opacity=".92"/>
<path d="M73 20L75 18.500V25.500M81 18.500H78.200L77.900 21.300Q81.500 20.600 81.200 23.400Q80.600 25.900 77.700 25.200"
 fill="none" stroke="#7a1f2c" stroke-width="1.2" stroke-linejoin="round"/>
<rect x="15.500" y="15.500" width="69" height="69" fill="none" stroke="#7a1f2c" stroke-width="1"/>"""

_POSTMARK = """<g fill="none" stroke="#1c1a2c" stroke-width=".9" opacity=".55">
<circle cx="14" cy="84" r="13"/><circle cx="14" cy="84" r="9"/>
<path d="M28 78Q32 75 36 78T44 78M28 83Q32 80 36 83T44 83M28 88Q32 85 36 88T44 88"/></g>"""


def _stamp(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    x, y = _units(size)
    u, v = x / 1.28, y / 1.28
    figure = _place(subject, 0.69, 50, 50)
    inner = _place(np.dstack([scene, np.ones_like(x)]), 0.69, 50, 50)
    picture = _over(np.ascontiguousarray(inner[..., :3]), figure)
    window = _step(-np.maximum(np.abs(u - 50), np.abs(v - 50)), -34.8, -34.2)
    engraving = 0.5 + 0.5 * np.cos((y + 0.35 * x) * np.float32(2 * np.pi / 2.6))
    luma = _luma(picture)
    muted = _saturate(picture, 0.72) * np.array([0.97, 0.92, 0.84], np.float32) + np.float32(0.05)
    ink = 0.3 * engraving * _step(1 - luma, 0.15, 0.8) * (1 - 0.5 * figure[..., 3])
    muted = _blend(muted, (0.2, 0.1, 0.16), ink)
    muted = _blend(muted, (0.2, 0.1, 0.16), 0.6 * _lines(picture, figure[..., 3], 0.55))
    paper = _overlay(_stamp_fragment(), size)
    desk = _blur(scene, 3) * np.float32(0.7)
    shift = np.full_like(x, -1.6 * size / 128)
    desk = desk * (1 - 0.5 * _blur(_warp(paper[..., 3], shift, shift), 1.6))[..., None]
    stock = np.dstack([paper[..., :3] * (1 + 0.02 * _noise(size, 1.5, rng))[..., None], paper[..., 3]])
    rgb = _blend(_over(desk, stock), muted, window)
    rgb = _over(rgb, _overlay(_VALUE, size))
    mark = _overlay(_POSTMARK, size)
    rgb = _over(rgb, np.dstack([mark[..., :3], mark[..., 3] * paper[..., 3]]))
    return rgb, figure[..., 3] * window


def _marble(subject: Array, scene: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    size = scene.shape[0]
    alpha = subject[..., 3]
    own = _luma(np.ascontiguousarray(subject[..., :3]))[..., None]
    luma = _blend(np.full((size, size, 1), 0.5, np.float32), own, alpha)
    tone = _blur(luma[..., 0], 0.5)
    # Stone has one colour: mostly local contrast remains of dark hair or skin.
    tone = 0.4 * tone + 0.6 * np.clip(0.78 + 1.1 * (tone - _blur(tone, 9)), 0, 1)
    depth = _inside(alpha)
    form = 10 * np.sqrt(1 - (1 - np.clip(depth / 24, 0, 1)) ** 2)
    relief = _lit(_blur(form, 1.5) + 9 * _blur(tone, 0.9), 0.9)
    bend = 9 * _noise(size, 26, rng) + 3 * _noise(size, 8, rng)
    x, y = _units(size)
    wave = np.abs(np.sin((x * 0.8 + y * 0.55 + bend) * np.float32(0.075)))
    thin = np.abs(np.sin((x * 0.5 - y * 0.8 + 1.3 * bend) * np.float32(0.06) + 1))
    vein = 0.85 * _step(-wave, -0.16, 0) + 0.5 * _step(-thin, -0.08, 0)
    vein = vein * np.clip(0.7 + 0.5 * _noise(size, 20, rng), 0, 1)
    white = 0.86 + 0.02 * _noise(size, 10, rng) + 0.3 * relief - 0.42 * (1 - tone).clip(0) ** 1.6 + 0.06
    white = white * (1 - 0.22 * vein) * (1 - 0.35 * _lines(np.repeat(luma, 3, 2), alpha, 0.7))
    stone = np.clip(white, 0, 1)[..., None] * np.array([1.0, 0.99, 0.965], np.float32)
    shine = np.clip(_blur(relief, 1) - 0.35, 0, 1)[..., None] * np.float32(0.5)
    return _blend(scene, np.clip(stone + shine, 0, 1), alpha), alpha


_MAKE: dict[str, Callable[[Array, Array, np.random.Generator], tuple[Array, Array]]] = {
    "snow globe": _snow_globe,
    "stained glass window": _stained_glass,
    "cookie": _cookie,
    "plush toy": _plush,
    "postage stamp": _stamp,
    "marble statue": _marble,
}


def apply_transform(name: str, subject: Array, scene: Array, seed: int) -> tuple[Array, Array]:
    """Turn a figure ``[H, W, 4]`` over a scene ``[H, W, 3]`` into something else.

    Returns the picture and the mask of the turned figure (not of what holds it, except that a cookie is all figure).
    """
    rgb, mask = _MAKE[name](subject, scene, np.random.default_rng(seed))
    return np.clip(rgb, 0, 1).astype(np.float32), np.clip(mask, 0, 1).astype(np.float32)
