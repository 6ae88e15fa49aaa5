"""The drawn world: pictures made from data, so that everything in them is known.

A `Picture` says who is drawn (an `Identity`), in which pose, light, expression and accessory, in front of which scene
and in which style; `draw` turns it into pixels and a subject mask at any resolution, always the same. An identity comes
from `identity(namespace, index)` by hash alone. Training and validation namespaces are a closed list: every other
string names individuals nobody has ever drawn, which is what evaluations run on.

Three kinds of concept exist, as in the paper: faces, cats and art styles. Dogs are drawn but never trained on.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from e4t.tiny import animals, faces, styles, transforms
from e4t.tiny.accessories import draw_accessory
from e4t.tiny.canvas import Attachment, Figure, Light, Parameter, Params, Pose, rasterise
from e4t.tiny.scenes import draw_scene

WORLD_VERSION = 1
"""Changes whenever a picture of the same data would look different; kept in caches and weights."""

TRAINING_NAMESPACES = ("train", "judges")
VALIDATION_NAMESPACES = ("validation",)

PARAMETERS: dict[str, tuple[Parameter, ...]] = {
    "face": faces.PARAMETERS,
    "cat": animals.CAT_PARAMETERS,
    "dog": animals.DOG_PARAMETERS,
    "art": styles.ART_PARAMETERS,
}
EXPRESSIONS = faces.EXPRESSIONS
_DRAWERS = {"face": faces.draw_face, "cat": animals.draw_cat, "dog": animals.draw_dog}


@dataclass(frozen=True)
class Identity:
    """One individual or art style: ``kind`` is "face", "cat", "dog" or "art"."""

    kind: str
    key: str  # what it was hashed from; two identities with one key are the same
    params: Params = field(compare=False)


@dataclass(frozen=True)
class Picture:
    """Everything that can be seen in one picture. ``art`` replaces the named ``style`` by a point of the art space."""

    subject: Identity
    scene: str = "studio"
    style: str = "photo"
    art: Identity | None = None
    accessory: str | None = None
    expression: str = "neutral"
    transform: str | None = None
    pose: Pose = Pose()
    light: Light = Light()
    seed: int = 0


@dataclass(frozen=True)
class Drawing:
    """``rgb`` uint8 ``[size, size, 3]`` and the subject's ``mask`` float32 ``[size, size]`` in [0, 1]."""

    rgb: np.ndarray
    mask: np.ndarray


def stream(*key: object) -> random.Random:
    """A random stream that depends on ``key`` alone, on every machine."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest[:16], "big"))


def identity(namespace: str, index: int, kind: str = "face") -> Identity:
    """Individual ``index`` of ``namespace``, by hash; ``kind`` is "face", "cat", "dog" or "art"."""
    key = f"{kind}/{namespace}/{index}"
    rng = stream("identity", key)
    return Identity(kind, key, MappingProxyType({p.name: _draw_value(p, rng) for p in PARAMETERS[kind]}))


def _draw_value(parameter: Parameter, rng: random.Random) -> float:
    value = rng.random()
    if not parameter.options:
        return value
    if parameter.first is None:
        return float(int(value * len(parameter.options)))
    if value < parameter.first:
        return 0.0
    return float(1 + int((value - parameter.first) / (1 - parameter.first) * (len(parameter.options) - 1)))


def words(subject: Identity) -> dict[str, str]:
    """What captions can say of an individual: parameter name to word, visible and non-empty ones only."""
    found = {p.name: p.word(subject.params[p.name]) for p in PARAMETERS[subject.kind] if is_visible(p, subject.params)}
    return {name: word for name, word in found.items() if word}


def is_visible(parameter: Parameter, params: Params) -> bool:
    """Whether ``parameter`` shows at all under the categorical one it depends on."""
    if parameter.requires is None:
        return True
    name, allowed = parameter.requires
    return int(params[name]) in allowed


def twins(subject: Identity, count: int) -> Iterator[Identity]:
    """Other individuals that share every word captions can say with ``subject`` and differ in all the rest."""
    for number in range(count):
        key = f"{subject.key}/twin/{number}"
        rng = stream("identity", key)
        params = {p.name: _twin_value(p, subject.params[p.name], rng) for p in PARAMETERS[subject.kind]}
        yield Identity(subject.kind, key, MappingProxyType(params))


def _twin_value(parameter: Parameter, value: float, rng: random.Random) -> float:
    draw = rng.random()
    if parameter.options:
        return value
    bins = max(len(parameter.words), 1)
    return (min(int(value * bins), bins - 1) + draw) / bins


def random_pose(rng: random.Random) -> Pose:
    """A pose as pictures of this world have them."""
    return Pose(
        yaw=rng.uniform(-1, 1),
        pitch=rng.uniform(-1, 1),
        roll=max(-14.0, min(14.0, rng.gauss(0, 5))),
        scale=rng.uniform(0.88, 1.15),
        x=rng.uniform(-5, 5),
        y=rng.uniform(-3, 4),
    )


def random_light(rng: random.Random) -> Light:
    """A light as pictures of this world have them."""
    return Light(side=rng.uniform(-1, 1), warmth=rng.uniform(-1, 1), level=rng.uniform(0.5, 1))


def draw(picture: Picture, size: int = 128) -> Drawing:
    """The picture's pixels and subject mask; the same data and size give the same bytes."""
    scene_svg = draw_scene(picture.scene, stream("scene", picture.seed), picture.light)
    scene = rasterise(scene_svg, size)[..., :3]
    subject = rasterise(_figure_svg(picture), size)
    subject[..., :3] = _lit(subject[..., :3], picture.light)
    if picture.transform:
        rgb, mask = transforms.apply_transform(picture.transform, subject, scene, picture.seed)
    else:
        mask = subject[..., 3]
        rgb = scene + (subject[..., :3] - scene) * mask[..., None]
    if picture.art:
        rgb = styles.apply_art(picture.art.params, rgb, mask, picture.seed)
    else:
        rgb = styles.apply_style(picture.style, rgb, mask, picture.seed)
    return Drawing((rgb.clip(0, 1) * 255 + 0.5).astype(np.uint8), mask)


def _figure_svg(picture: Picture) -> str:
    pose = picture.pose
    figure: Figure = _DRAWERS[picture.subject.kind](
        picture.subject.params, expression=picture.expression, pose=pose, light=picture.light
    )
    worn = Attachment()
    if picture.accessory:
        worn = draw_accessory(picture.accessory, figure.anchors, stream("accessory", picture.seed))
    layers = (worn.back, figure.back, figure.body, worn.middle, figure.head, worn.front)
    place = f"translate({50 + pose.x:.2f} {54 + pose.y:.2f}) rotate({pose.roll:.2f}) scale({1.3 * pose.scale:.3f})"
    return f'<g transform="{place} translate(-50 -47)">{"".join(layers)}</g>'


def _lit(rgb: np.ndarray, light: Light) -> np.ndarray:
    warm = 0.06 * light.warmth
    tint = np.array([1 + warm, 1.0, 1 - warm], np.float32) * (0.82 + 0.18 * light.level)
    lit: np.ndarray = rgb * tint
    return lit
