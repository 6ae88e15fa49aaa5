"""Pictures of individuals as people would bring them: one each, as files.

python -m e4t.tiny.album faces train 4000            # a folder to pre-train a domain on
python -m e4t.tiny.album art train 4000 --kind art --captions   # one picture by each artist, and what it shows
python -m e4t.tiny.album examples demo 4 --truth     # with mask, or caption, and the drawn identity
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from e4t.tiny.canvas import Light
from e4t.tiny.captions import plain_caption
from e4t.tiny.scenes import SCENES
from e4t.tiny.world import WORLD_VERSION, Identity, Picture, draw, identity, random_light, random_pose, stream


@dataclass(frozen=True)
class AlbumConfig:
    """Whose pictures, how many and where to."""

    folder: Path
    namespace: str
    count: int
    kind: str = "face"
    size: int = 128
    captions: bool = False  # also write what a picture shows beside it: "face-00000.txt"
    truth: bool = False  # also write each identity and mask, or an artist's caption, into the sub-folder truth


def snapshot(namespace: str, index: int, kind: str = "face") -> Picture:
    """A plain picture of one individual, as somebody would bring it: no style, no accessory, any pose and light.

    Of an artist, a picture of somebody else by that artist.
    """
    rng = stream("snapshot", kind, namespace, index)
    scenes = list(SCENES)
    subject, art = identity(namespace, index, kind), None
    if kind == "art":
        subject, art = _sitter(namespace, index), subject
    return Picture(
        subject=subject,
        art=art,
        scene="studio" if rng.random() < 0.6 else scenes[int(rng.random() * len(scenes))],
        expression="neutral" if rng.random() < 0.6 else "smiling",
        pose=random_pose(rng),
        light=random_light(rng) if rng.random() < 0.7 else Light(),
        seed=int(rng.random() * 2**31),
    )


def _sitter(namespace: str, index: int) -> Identity:
    """Whom an artist has drawn: a face or a cat that is in no other album."""
    kind = "face" if stream("sitter", namespace, index).random() < 0.5 else "cat"
    return identity(namespace, 10**6 + index, kind)


def write_album(config: AlbumConfig) -> None:
    """Draw the album; a picture that exists is kept."""
    config.folder.mkdir(parents=True, exist_ok=True)
    for index in range(config.count):
        path = config.folder / f"{config.kind}-{index:05d}.png"
        if path.exists() and not config.captions:
            continue
        picture = snapshot(config.namespace, index, config.kind)
        if config.captions:
            path.with_suffix(".txt").write_text(plain_caption(picture, "S*") + "\n")
        if path.exists():
            continue
        drawing = draw(picture, config.size)
        if config.truth:
            _write_truth(path, picture, drawing.mask)
        cv2.imwrite(str(path), drawing.rgb[..., ::-1])


def _write_truth(path: Path, picture: Picture, mask: np.ndarray) -> None:
    folder = path.parent / "truth"
    folder.mkdir(exist_ok=True)
    if picture.art is None:
        cv2.imwrite(str(folder / path.name), (mask * 255).astype(np.uint8))
    else:  # all of a picture is its artist's, but for what it shows
        (folder / path.name).with_suffix(".txt").write_text(plain_caption(picture, "S*") + "\n")
    concept = picture.art or picture.subject
    truth = {"world": WORLD_VERSION, "key": concept.key, "params": dict(concept.params)}
    (folder / path.name).with_suffix(".json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    import tyro

    write_album(tyro.cli(AlbumConfig, config=(tyro.conf.PositionalRequiredArgs,)))
