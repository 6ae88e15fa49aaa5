"""Styles of the drawn world: named ones that captions can say, and a continuous space of art nobody has words for.

Every size is in pixels of a 128 px picture and is multiplied by the picture's scale, and noise is drawn on a grid that
does not depend on the resolution, so that the same picture at 256 px looks the same, only finer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from e4t.tiny.canvas import Parameter, Params, lerp

Array = npt.NDArray[np.float32]

STYLES: dict[str, tuple[str, ...]] = {
    "photo": (
        "a photo of",
        "a picture of",
        "a portrait of",
        "a close-up photo of",
        "a cropped photo of",
        "a good photo of",
        "a bright photo of",
        "a rendition of",
    ),
    "pencil sketch": ("a pencil sketch of", "a pencil drawing of", "a graphite sketch of"),
    "watercolour": ("a watercolour of", "a watercolor painting of", "a soft watercolour of"),
    "pixel art": ("pixel art of", "a pixel art sprite of", "an 8-bit picture of"),
    "neon": ("a neon sign of", "a glowing neon drawing of", "neon lights in the shape of"),
    "blueprint": ("a blueprint of", "a technical blueprint of", "a cyanotype plan of"),
    "oil painting": ("an oil painting of", "an oil on canvas of", "a thickly painted oil portrait of"),
    "comic": ("a comic panel of", "a comic book drawing of", "an inked comic of"),
    "woodcut": ("a woodcut of", "a woodcut print of", "a carved linocut of"),
    "mosaic": ("a mosaic of", "a tiled mosaic of", "a roman mosaic of"),
    "pastel": ("a pastel of", "a chalk pastel drawing of", "a soft pastel of"),
    "pop art": ("pop art of", "a pop art print of", "a halftone pop art poster of"),
    "cross stitch": ("a cross stitch of", "a cross stitch embroidery of", "a stitched picture of"),
    "chalkboard": ("a chalkboard drawing of", "a chalk drawing on a blackboard of", "a blackboard sketch of"),
}
"""Name to the phrases that go before a subject."""

ART_PARAMETERS: tuple[Parameter, ...] = tuple(
    Parameter(name, circular=name.endswith(("_hue", "_direction")))
    for name in (
        "shadow_hue",
        "shadow_saturation",
        "midtone_hue",
        "midtone_saturation",
        "light_hue",
        "light_saturation",
        "palette_strength",
        "saturation",
        "contrast",
        "brightness",
        "posterise",
        "smoothing",
        "stroke_width",
        "stroke_length",
        "stroke_direction",
        "stroke_curl",
        "stroke_follow",
        "stroke_strength",
        "broken_colour",
        "accent_hue",
        "texture_scale",
        "texture_strength",
        "hatch_strength",
        "hatch_direction",
        "dot_strength",
        "edge_strength",
        "edge_width",
        "edge_hue",
        "edge_lightness",
        "glow",
        "paper_tone",
        "paper_show",
        "grain",
        "vignette",
    )
)

LUMA = np.array([[0.299, 0.587, 0.114]], np.float32)


def _scale(image: Array) -> float:
    return float(image.shape[0]) / 128


def _luma(rgb: Array) -> Array:
    return np.asarray(cv2.transform(rgb, LUMA), np.float32).reshape(rgb.shape[:2])


def _blur(image: Array, sigma: float) -> Array:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), max(sigma * _scale(image), 0.15)), np.float32)


def _step(x: Array, low: float, high: float) -> Array:
    t = np.clip((x - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _blend(a: Array, b: Array | tuple[float, float, float], t: Array | float) -> Array:
    other = np.asarray(b, np.float32)
    weight = t[..., None] if isinstance(t, np.ndarray) else np.float32(t)
    return np.asarray(a + (other - a) * weight, np.float32)


def _saturate(rgb: Array, amount: float) -> Array:
    luma = _luma(rgb)[..., None]
    return np.asarray(np.clip(luma + (rgb - luma) * np.float32(amount), 0, 1), np.float32)


def _noise(size: int, cell: float, rng: np.random.Generator, cell_y: float | None = None) -> Array:
    """Smooth noise of mean 0 and deviation about 1 whose bumps are ``cell`` pixels of a 128 px picture wide."""
    nx, ny = max(int(128 / cell), 2), max(int(128 / (cell_y or cell)), 2)
    grid = rng.standard_normal((ny, nx), dtype=np.float32)
    return np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)


@lru_cache(maxsize=8)
def _grid(size: int) -> tuple[Array, Array]:
    """Pixel coordinates x and y."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


@lru_cache(maxsize=8)
def _units(size: int) -> tuple[Array, Array]:
    """Coordinates of pixel centres in pixels of a 128 px picture."""
    x, y = _grid(size)
    return (x + 0.5) * np.float32(128 / size), (y + 0.5) * np.float32(128 / size)


def _warp(image: Array, dx: Array, dy: Array) -> Array:
    x, y = _grid(image.shape[0])
    return np.asarray(cv2.remap(image, x + dx, y + dy, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT), np.float32)


def _lines(rgb: Array, alpha: Array, width: float = 0.7, gain: float = 14.0) -> Array:
    """How much a pixel is on a line, [0, 1]: the darker side of every colour edge, at two scales, and the outline."""
    fine = _blur(rgb, width)
    middle = _blur(rgb, width * 1.8)
    coarse = _blur(rgb, width * 3.4)
    drawn = np.maximum((middle - fine).max(axis=2), 0.6 * (coarse - middle).max(axis=2))
    soft = _blur(alpha, width * 1.2)
    outline = _step(4 * soft * (1 - soft), 0.3, 0.9)
    return np.maximum(_step(drawn * np.float32(gain), 0.22, 0.95), outline)


def _kuwahara(rgb: Array, radius: float) -> Array:
    """Flatten regions and keep edges: the mean of whichever of the four neighbouring squares varies least."""
    k = max(round(radius * _scale(rgb)), 1) + 1
    luma = _luma(rgb)
    stack = np.dstack([rgb, luma, luma * luma])
    total = np.zeros_like(rgb)
    weights = np.zeros(rgb.shape[:2], np.float32)
    for anchor in ((0, 0), (k - 1, 0), (0, k - 1), (k - 1, k - 1)):
        mean = cv2.boxFilter(stack, -1, (k, k), anchor=anchor, borderType=cv2.BORDER_REFLECT)
        variance = np.maximum(mean[..., 4] - mean[..., 3] ** 2, 0) + np.float32(2e-4)
        w = 1 / variance
        w = w * w * np.float32(1e-8)
        total += mean[..., :3] * w[..., None]
        weights += w
    return total / weights[..., None]


def _tangents(luma: Array, sigma: float) -> tuple[Array, Array]:
    """Doubled-angle orientation along the edges (cos 2a, sin 2a times strength), smoothed."""
    soft = _blur(luma, 1.0)
    gx, gy = cv2.Sobel(soft, cv2.CV_32F, 1, 0), cv2.Sobel(soft, cv2.CV_32F, 0, 1)
    field = _blur(np.dstack([gy * gy - gx * gx, -2 * gx * gy]), sigma)
    return field[..., 0], field[..., 1]


def _direction(c: Array, s: Array) -> tuple[Array, Array]:
    angle = np.asarray(0.5 * cv2.phase(c, s), np.float32)
    return np.cos(angle), np.sin(angle)


def _smear(image: Array, vx: Array, vy: Array, length: float) -> Array:
    """Average along a field. Doubling steps reach ``length`` pixels each way with three pairs of look-ups."""
    reach = np.float32(length * _scale(image) / 7)
    for step in (1, 2, 4):
        dx, dy = vx * (reach * np.float32(step)), vy * (reach * np.float32(step))
        image = (image + _warp(image, dx, dy) + _warp(image, -dx, -dy)) / np.float32(3)
    return image


def _hatch(size: int, angle: float, period: float, wobble: Array) -> Array:
    """Parallel wavering lines as a wave in [0, 1]."""
    x, y = _units(size)
    phase = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)) + wobble
    return np.asarray(0.5 + 0.5 * np.cos(phase * np.float32(2 * np.pi / period)), np.float32)


@lru_cache(maxsize=32)
def _dots(size: int, period: float, angle: float = 0.785) -> Array:
    """A rotated halftone screen with values spread evenly over [0, 1]."""
    x, y = _units(size)
    c, s = np.cos(angle), np.sin(angle)
    k = 2 * np.pi / period
    wave = (np.cos((x * c + y * s) * k) + np.cos((y * c - x * s) * k)) / 4 + 0.5
    return np.asarray(wave, np.float32)


def _vignette(size: int) -> Array:
    x, y = _units(size)
    return np.asarray(((x - 64) ** 2 + (y - 64) ** 2) / np.float32(64**2), np.float32)


def _levels(luma: Array, n: float, softness: float = 0.25) -> Array:
    """Posterise: ``n`` steps with soft risers."""
    scaled = luma * np.float32(n)
    base = np.floor(scaled)
    return np.asarray((base + _step(scaled - base, 0.5 - softness, 0.5 + softness)) / np.float32(n), np.float32)


def _relight(rgb: Array, luma: Array, wanted: Array) -> Array:
    """Give a picture another luminance and keep its colours."""
    return np.asarray(np.clip(rgb * ((wanted + 0.02) / (luma + 0.02))[..., None], 0, 1), np.float32)


def _photo(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    return rgb


def _pencil(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    tone = _blur(_luma(rgb), 1.0)
    wobble = _noise(size, 24, rng) * np.float32(0.8)
    grain = _noise(size, 1, rng)
    dark = (1 - tone) * (0.45 + 0.55 * alpha)
    first = _hatch(size, 0.7, 3.6, wobble) * _step(dark, 0.25, 0.75)
    second = _hatch(size, 2.2, 3.4, wobble) * _step(dark, 0.55, 0.95)
    shade = np.float32(0.2) * dark + np.float32(0.38) * first + np.float32(0.3) * second
    shade = shade * (1 + np.float32(0.16) * grain)
    ink = np.maximum(shade, _lines(rgb, alpha, 0.6, 20) * (np.float32(0.86) + np.float32(0.08) * grain))
    paper = np.array([0.965, 0.95, 0.92], np.float32) + np.float32(0.012) * grain[..., None]
    return _blend(paper, (0.17, 0.17, 0.19), np.clip(ink, 0, 1))


def _watercolour(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size, s = rgb.shape[0], np.float32(_scale(rgb))
    shift_x, shift_y = _noise(size, 7, rng) * s, _noise(size, 7, rng) * s
    wash = _kuwahara(_warp(rgb, shift_x, shift_y), 2.5)
    pool = np.clip(np.abs(wash - _blur(wash, 2.2)).max(axis=2) * 2.2, 0, 0.4)
    pigment = 1 - _saturate(wash, 1.35)
    density = 0.8 + 0.2 * _noise(size, 18, rng) * (1 - 0.55 * alpha) + 0.07 * _noise(size, 1.5, rng) + pool
    far = _vignette(size) + 0.22 * _noise(size, 14, rng)
    density = density * (1 - _step(far, 0.75, 1.25) * (1 - 0.75 * alpha)) * (0.72 + 0.28 * alpha)
    painted = 1 - pigment * np.clip(density, 0, 1.25)[..., None]
    painted = painted * (1 - 0.4 * _lines(rgb, alpha, 0.6)[..., None] * (0.4 + 0.6 * alpha[..., None]))
    paper = np.array([0.99, 0.98, 0.955], np.float32) + np.float32(0.012) * _noise(size, 1, rng)[..., None]
    return np.asarray(painted * paper, np.float32)


def _cells(image: Array, cell: int) -> Array:
    """Cell averages; the border is repeated to fill the last row and column."""
    size = image.shape[0]
    n = -(-size // cell)
    pad = n * cell - size
    padded = cv2.copyMakeBorder(image, 0, pad, 0, pad, cv2.BORDER_REPLICATE) if pad else image
    return np.asarray(cv2.resize(padded, (n, n), interpolation=cv2.INTER_AREA), np.float32)


def _uncells(image: Array, cell: int, size: int) -> Array:
    n = image.shape[0] * cell
    return np.asarray(cv2.resize(image, (n, n), interpolation=cv2.INTER_NEAREST), np.float32)[:size, :size]


def _pixel(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    cell = max(round(3 * _scale(rgb)), 1)
    small = _cells(rgb, cell)
    small = small + 0.6 * (small - cv2.GaussianBlur(small, (0, 0), 1.2))
    small = np.clip(_saturate(np.clip(small, 0, 1), 1.35), 0, 1)
    mask = (_cells(alpha, cell) > 0.5).astype(np.uint8)
    small = np.round(small * 5) / np.float32(5)
    rim = cv2.dilate(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))) - mask
    small = np.where(rim[..., None] > 0, np.array([0.08, 0.06, 0.14], np.float32), small)
    return _uncells(np.asarray(small, np.float32), cell, size)


def _neon(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    soft = _blur(rgb, 2.2)
    hue = soft - soft.min(axis=2, keepdims=True)
    hue = hue / (hue.max(axis=2, keepdims=True) + 0.04) + np.array([0.05, 0.08, 0.2], np.float32)
    line = _lines(rgb, alpha, 0.75) * (0.45 + 0.55 * _blur(alpha, 1.5))
    light = hue * line[..., None]
    glow = 0.9 * _blur(light, 2.2) + 0.8 * _blur(light, 7)
    core = np.clip(line - 0.55, 0, 1)[..., None] * np.float32(0.8)
    night = np.array([0.025, 0.015, 0.06], np.float32) + rgb * np.float32(0.07)
    return np.asarray(night + 0.85 * light + glow + core, np.float32)


def _blueprint(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    x, y = _units(size)
    far = np.minimum(np.abs((x + 4) % 8 - 4), np.abs((y + 4) % 8 - 4))
    grid = 0.16 * _step(-far, -0.75, -0.2)
    tone = _luma(rgb)
    hatch = _hatch(size, 0.785, 3.0, np.zeros_like(tone)) * _step(1 - tone, 0.35, 0.9) * alpha
    base = np.array([0.07, 0.24, 0.56], np.float32) * (1 + 0.05 * _noise(size, 20, rng)[..., None])
    line = _lines(rgb, alpha, 0.55) * (0.5 + 0.5 * alpha)
    ink = np.maximum(line, 0.3 * hatch) + grid + 0.07 * tone * alpha
    return _blend(base, (0.9, 0.96, 1.0), np.clip(ink, 0, 0.97))


def _oil(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    flat = _kuwahara(_saturate(rgb, 1.25), 3)
    c, s = _tangents(_luma(flat), 3.5)
    swirl = _noise(size, 30, rng) * np.float32(2.2) + np.float32(0.8)
    vx, vy = _direction(c + 0.012 * np.cos(swirl), s + 0.012 * np.sin(swirl))
    bristle = _smear(_noise(size, 1.4, rng), vx, vy, 7)
    smeared = _smear(flat + 0.06 * _noise(size, 3, rng)[..., None], vx, vy, 4)
    ink = _lines(rgb, alpha, 0.7) * np.asarray(0.35 + 0.65 * alpha, np.float32)
    sharp = smeared + np.float32(0.9) * (rgb - _blur(rgb, 2.0))
    smeared = sharp * (1 - np.float32(0.4) * ink[..., None])
    bristle = bristle * (1 - np.float32(0.7) * ink)
    relief = bristle - _warp(bristle, np.full_like(bristle, _scale(rgb)), np.full_like(bristle, _scale(rgb)))
    tone = smeared * (1 + 0.16 * bristle + 0.2 * relief)[..., None]
    return _blend(tone * np.float32(1.04), (0.45, 0.3, 0.12), 0.07)


def _comic(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    flat = _saturate(_kuwahara(rgb, 2), 1.7)
    luma = _luma(flat)
    colour = _relight(flat, luma, _levels(np.clip(luma * 1.15 + 0.02, 0, 1), 4, 0.1))
    shade = _step(_dots(size, 4.2) - (luma - 0.02) * np.float32(1.5), -0.06, 0.06)
    colour = colour * (1 - 0.4 * shade[..., None])
    screen = _step(_dots(size, 4.2), 0.62, 0.74) * (1 - alpha)
    colour = _blend(colour, (1.0, 1.0, 1.0), 0.3 * screen)
    return _blend(colour, (0.04, 0.03, 0.07), _lines(rgb, alpha, 0.85, 17))


def _woodcut(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    luma = _luma(rgb)
    tone = _blur(luma, 0.8)
    tone = (tone - tone.min()) / (tone.max() - tone.min() + np.float32(1e-3))
    form = _blur(luma, 4)
    wobble = _noise(size, 20, rng) * np.float32(0.7)
    figure = _hatch(size, 1.45, 3.4, wobble + form * 11)
    ground = _hatch(size, 0.5, 4.0, wobble + form * 5)
    carved = _blend(ground[..., None], figure[..., None], _step(alpha, 0.3, 0.7))[..., 0]
    light = _step(tone * 1.3 - 0.04 - carved * 0.78 + 0.05 * _noise(size, 1.5, rng), -0.12, 0.1)
    line = _lines(rgb, alpha, 0.8, 19)
    # A gouge beside every line keeps the features apart from the hatching.
    light = np.maximum(light, _step(_blur(line, 1.5), 0.12, 0.3))
    ink = np.maximum(1 - light, line)
    paper = np.array([0.94, 0.88, 0.76], np.float32) * (1 + 0.015 * _noise(size, 2, rng)[..., None])
    return _blend(paper, (0.1, 0.07, 0.06), ink)


@lru_cache(maxsize=8)
def _rings(size: int, across: int) -> tuple[npt.NDArray[np.int64], int, Array]:
    """Tiles laid in rings around a point: label of each pixel, number of tiles, distance to the tile's edge."""
    x, y = _units(size)
    dx, dy = x - 64, y - 58
    cell = 128 / across
    radius, turn = np.hypot(dx, dy) / cell, np.arctan2(dy, dx) / (2 * np.pi) + 0.5
    ring = np.floor(radius)
    count = np.maximum(np.round(2 * np.pi * (ring + 0.5)), 1)
    along = (turn + ring * 0.381) % 1 * count
    label = (ring * 1000 + np.floor(along)).astype(np.int64)
    _, label = np.unique(label, return_inverse=True)
    f, g = along % 1, radius % 1
    edge = np.minimum(np.minimum(f, 1 - f) * (ring + 0.5) * 2 * np.pi / count, np.minimum(g, 1 - g)) * cell
    return label.reshape(size, size).astype(np.int64), int(label.max()) + 1, edge.astype(np.float32)


def _mosaic(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    label, n, edge = _rings(size, 42)
    sharp = np.clip(rgb + 1.1 * (rgb - _blur(rgb, 2.5)), 0, 1)
    sharp = _saturate(sharp, 1.3) * (1 - 0.35 * _lines(rgb, alpha, 0.8)[..., None])
    flat = label.ravel()
    area = np.maximum(np.bincount(flat, minlength=n), 1)
    mean = np.stack([np.bincount(flat, sharp[..., i].ravel(), n) / area for i in range(3)], 1).astype(np.float32)
    mean = mean * (1 + np.float32(0.07) * rng.standard_normal((n, 1), dtype=np.float32)) + np.float32(0.02)
    # Tiles of a face are cut to its features.
    tiles = _blend(mean[label], sharp, np.asarray(0.45 * alpha, np.float32))
    tiles = tiles * (0.92 + 0.16 * _step(edge, 0.4, 1.6)[..., None])
    return np.clip(_blend(tiles, (0.2, 0.18, 0.17), 0.6 * _step(-edge, -0.7, -0.1)), 0, 1)


def _pastel(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    soft = _saturate(_blur(_kuwahara(rgb, 2), 0.7) + 0.6 * (rgb - _blur(rgb, 2)), 1.2)
    soft = 1 - (1 - soft) * np.float32(0.78)
    stroke = np.full((size, size), 0.707, np.float32)
    tooth = _smear(_noise(size, 1.2, rng), stroke, -stroke, 6) * 1.9 + 0.45 * _noise(size, 1, rng)
    cover = _step(tooth + 1.15 - 0.9 * _vignette(size) * (1 - alpha), -0.7, 1.0)
    chalk = soft * (1 + 0.05 * tooth[..., None])
    return np.clip(_blend(np.broadcast_to(np.array([0.8, 0.74, 0.69], np.float32), rgb.shape), chalk, cover), 0, 1)


def _pop(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    luma = _luma(rgb)
    tone = np.clip(0.5 + (_blur(luma, 0.5) - 0.5) * 1.15, 0, 1)
    dots = _step(_dots(size, 4.6) - tone * np.float32(1.3) + 0.12, -0.07, 0.07)
    figure = _blend(np.broadcast_to(np.array([1.0, 0.87, 0.2], np.float32), rgb.shape), (0.95, 0.16, 0.5), dots)
    ink = np.maximum(_step(-tone, -0.34, -0.24), _lines(rgb, alpha, 0.85, 16))
    figure = _blend(figure, (0.13, 0.06, 0.32), ink)
    scene = _step(_dots(size, 6.0) - luma * np.float32(0.8) - np.float32(0.1), -0.07, 0.07)
    ground = _blend(np.broadcast_to(np.array([0.1, 0.78, 0.85], np.float32), rgb.shape), (0.05, 0.5, 0.8), scene)
    outline = np.clip(np.abs(_blur(alpha, 1.6) - _blur(alpha, 0.4)) * 6, 0, 1)
    return _blend(_blend(ground, figure, _step(alpha, 0.3, 0.7)), (0.13, 0.06, 0.32), outline)


def _stitch(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    cell = max(round(4 * _scale(rgb)), 2)
    small = _cells(rgb, cell)
    small = np.clip(small + 1.0 * (small - cv2.GaussianBlur(small, (0, 0), 1.0)), 0, 1)
    small = np.round(_saturate(small, 1.35) * 7) / np.float32(7)
    x, y = _grid(size)
    u, v = (x % cell + 0.5) / cell, (y % cell + 0.5) / cell
    first, second = np.abs(u - v), np.abs(u + v - 1)
    thread = _step(-np.minimum(first, second), -0.5, -0.2)
    over = 0.86 + 0.24 * (first < second) - 0.12 * _step(np.minimum(first, second), 0.05, 0.3)
    hole = np.array([0.9, 0.87, 0.8], np.float32)
    colour = _uncells(small.astype(np.float32), cell, size) * over[..., None]
    return np.clip(_blend(np.broadcast_to(hole, rgb.shape), colour, thread), 0, 1).astype(np.float32)


def _chalkboard(rgb: Array, alpha: Array, rng: np.random.Generator) -> Array:
    size = rgb.shape[0]
    dust = _noise(size, 1, rng)
    smear = _noise(size, 26, rng, 12)
    board = np.array([0.13, 0.22, 0.18], np.float32) * (1 + 0.12 * smear[..., None] + 0.04 * dust[..., None])
    tint = 1 - (1 - _saturate(rgb, 1.5)) * np.float32(0.6)
    luma = _luma(rgb)
    stroke = _hatch(size, 0.9, 3.0, _noise(size, 20, rng))
    fill = (0.2 + 0.44 * luma + 0.3 * stroke * luma) * (0.15 + 0.85 * alpha)
    line = _lines(rgb, alpha, 0.8, 18) * (0.45 + 0.55 * alpha)
    gap = np.clip(_blur(line, 1.6) * 1.6, 0, 0.9) * (1 - line)
    chalk = np.maximum(line, fill * (1 - gap)) * np.clip(0.98 + 0.14 * dust, 0.2, 1)
    colour = _blend(tint, (1.0, 1.0, 0.96), line * np.float32(0.75))
    return np.asarray(_blend(board, colour, np.asarray(np.clip(chalk, 0, 1), np.float32)), np.float32)


_DRAW: dict[str, Callable[[Array, Array, np.random.Generator], Array]] = {
    "photo": _photo,
    "pencil sketch": _pencil,
    "watercolour": _watercolour,
    "pixel art": _pixel,
    "neon": _neon,
    "blueprint": _blueprint,
    "oil painting": _oil,
    "comic": _comic,
    "woodcut": _woodcut,
    "mosaic": _mosaic,
    "pastel": _pastel,
    "pop art": _pop,
    "cross stitch": _stitch,
    "chalkboard": _chalkboard,
}


def apply_style(name: str, rgb: Array, alpha: Array, seed: int) -> Array:
    """Draw a finished picture in a named style; ``alpha`` is the subject's mask, ``seed`` only moves the noise."""
    return np.clip(_DRAW[name](rgb, alpha, np.random.default_rng(seed)), 0, 1).astype(np.float32)


def _hue(hue: float, saturation: float, lightness: float) -> Array:
    """An RGB colour of a given luminance, so that the palette never turns light into dark.

    Greens fill a third of the colour wheel but one name; the wheel is bent so that hues come up more evenly.
    """
    hue = float(np.interp(hue % 1, [0, 0.17, 0.28, 0.44, 0.56, 0.76, 1], [0, 0.09, 0.16, 0.44, 0.54, 0.74, 1]))
    k = (np.array([0, 8, 4], np.float32) + 12 * hue) % 12
    colour = 0.5 - 0.5 * saturation * np.maximum(np.minimum(np.minimum(k - 3, 9 - k), 1), -1)
    luma = float((colour * LUMA[0]).sum())
    if luma > lightness:
        return np.asarray(colour * (lightness / luma), np.float32)
    return np.asarray(1 - (1 - colour) * ((1 - lightness) / (1 - luma)), np.float32)


def _some(value: float, start: float = 0.4) -> float:
    """0 up to ``start``, then rising to 1: an artist has a few strong habits rather than all of them a little."""
    return max(value - start, 0.0) / (1 - start)


def _palette(p: Params, rgb: Array, luma: Array) -> Array:
    shadow = _hue(p["shadow_hue"], lerp(0.2, 1.0, p["shadow_saturation"]), 0.19)
    middle = _hue(p["midtone_hue"], lerp(0.15, 1.0, p["midtone_saturation"]), 0.5)
    light = _hue(p["light_hue"], lerp(0.1, 1.0, p["light_saturation"]), 0.86)
    t = np.linspace(0, 1, 256, dtype=np.float32)
    knots = [0.26, 0.52, 0.78]
    table = np.stack([np.interp(t, knots, [shadow[i], middle[i], light[i]]) for i in range(3)], 1).astype(np.float32)
    toned = table[np.clip(luma * 255, 0, 255).astype(np.uint8)]
    own = luma[..., None] + (rgb - _luma(rgb)[..., None]) * np.float32(lerp(0.4, 2.0, p["saturation"]))
    return _blend(own, toned, lerp(0.15, 1.0, p["palette_strength"]))


def _strokes(p: Params, picture: Array, luma: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Pull the picture along the strokes; also the strokes' own relief."""
    size = picture.shape[0]
    c, s = _tangents(luma, 3.0)
    angle = 2 * np.pi * p["stroke_direction"] + _noise(size, 28, rng) * np.float32(3 * p["stroke_curl"])
    follow = np.float32(lerp(0.0, 60.0, p["stroke_follow"] ** 2))
    vx, vy = _direction(c * follow + np.cos(angle), s * follow + np.sin(angle))
    width, length = lerp(1.2, 4.5, p["stroke_width"]), lerp(3.0, 14.0, p["stroke_length"])
    lump = _noise(size, width, rng)
    both = np.dstack([picture, lump])
    smeared = _smear(both, vx, vy, length)
    relief = smeared[..., 3]
    return smeared[..., :3], np.clip(relief / (relief.std() + np.float32(1e-6)), -2.5, 2.5)


def apply_art(p: Params, rgb: Array, alpha: Array, seed: int) -> Array:
    """Draw a finished picture as the artist ``p`` (a point of `ART_PARAMETERS`) would."""
    rng = np.random.default_rng(seed)
    size = rgb.shape[0]
    line = _lines(rgb, alpha, lerp(0.5, 1.3, p["edge_width"]))
    base = _blend(rgb, _kuwahara(rgb, lerp(1, 4, p["smoothing"])), min(1.0, 2 * p["smoothing"]))
    gain, lift = np.float32(lerp(0.9, 1.5, p["contrast"])), np.float32(lerp(1.35, 0.75, p["brightness"]))
    luma = np.power(np.clip(0.5 + (_luma(base) - 0.5) * gain, 0.02, 1), lift)
    steps = _levels(luma, lerp(9.0, 3.0, p["posterise"]), 0.15)
    luma = luma + (steps - luma) * np.float32(p["posterise"])
    picture = _palette(p, base, luma)
    pulled, relief = _strokes(p, picture, luma, rng)
    strength = p["stroke_strength"]
    calm = relief * (1 - np.float32(0.6) * line) * (1 - np.float32(0.35) * alpha)
    picture = _blend(picture, pulled, min(1.0, 1.2 * strength))
    picture = picture * (1 + np.float32(0.15 * _some(strength, 0.25)) * calm)[..., None]
    accent = _hue(p["accent_hue"], 1.0, 0.5) - np.float32(0.5)
    picture = picture + calm[..., None] * accent * np.float32(0.26 * _some(p["broken_colour"], 0.3))
    detail = (_luma(rgb) - _luma(_blur(rgb, 2.0))) * alpha
    picture = picture + np.float32(lerp(0.45, 0.9, strength)) * detail[..., None]
    wobble = _noise(size, 22, rng)
    angle, period = np.pi * p["hatch_direction"], lerp(2.8, 5.5, p["texture_scale"])
    wave = _hatch(size, angle, period, wobble) * _step(1 - luma, 0.2, 0.8)
    picture = picture * (1 - np.float32(0.6 * _some(p["hatch_strength"], 0.4)) * wave)[..., None]
    dots = _step(_dots(size, round(lerp(3.6, 6.5, p["texture_scale"]) * 5) / 5) - luma, -0.1, 0.1)
    picture = picture * (1 - np.float32(0.45 * _some(p["dot_strength"], 0.7)) * (2 * dots - 0.8))[..., None]
    # Lines of middle lightness would vanish, so the way from dark to light lines is short.
    lightness = min(max((p["edge_lightness"] - 0.6) / 0.15, 0.0), 1.0)
    ink = _hue(p["edge_hue"], 0.95, lerp(0.13, 0.9, lightness))
    picture = _blend(
        picture, ink, line * np.float32(min(1.0, 1.4 * _some(p["edge_strength"], 0.15)) * (1 - 0.4 * lightness))
    )
    picture = picture + _blur(picture, 5) * np.float32(0.2 * _some(p["glow"]))
    blot = _noise(size, lerp(1.5, 14, p["texture_scale"]), rng)
    picture = picture * (1 + np.float32(0.17 * _some(p["texture_strength"])) * blot)[..., None]
    paper = _hue(0.09 + 0.06 * p["paper_tone"], 0.35, lerp(0.98, 0.72, p["paper_tone"]))
    bare = _step(0.7 * blot * (1 - 0.6 * alpha) + _vignette(size) * (1 - alpha) * 1.4, 0.6, 1.9)
    picture = _blend(picture, paper, bare * np.float32(_some(p["paper_show"])))
    picture = picture * (1 - np.float32(0.3 * _some(p["vignette"])) * np.minimum(_vignette(size), 1.8))[..., None]
    picture = picture + np.float32(0.08 * _some(p["grain"])) * _noise(size, 1, rng)[..., None]
    return np.asarray(np.clip(picture, 0, 1), np.float32)
