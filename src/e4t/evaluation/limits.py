"""Where a domain ends: concepts it was never made for, in pictures.

    python -m e4t.evaluation.limits tiny-cat --output docs/results/limits-cat.png --pictures photo.png cartoon.png

Each row is one picture that was learned from, at the left, and what was drawn of it after the domain's own number of
steps. The world draws the first rows: a relative of the domain's subjects, something else altogether, and an individual
stretched beyond the range of those the domain was trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import tyro
from PIL import Image, ImageDraw, ImageFont

from e4t.evaluation.evaluate import prompt_text, prompts_of
from e4t.images import load_image, square
from e4t.pipeline import E4TPipeline
from e4t.tiny.album import snapshot
from e4t.tiny.world import PARAMETERS, Identity, Picture, draw, identity

NAMESPACE = "limits"
STRETCH = 1.6
"""An individual outside differs this much more from the average than it did, in many numbers out of their range."""

RELATIVES = {"face": "cat", "cat": "dog", "art": None}
"""A kind that the domain has never seen; of art, a named style."""
STRANGERS = {"face": "dog", "cat": "face", "art": None}


@dataclass(frozen=True)
class LimitsConfig:
    """Which domain, and which pictures from elsewhere beside the drawn ones."""

    domain: tyro.conf.Positional[str]
    output: Path  # a PNG file
    pictures: tuple[Path, ...] = ()
    prompts: int = 6
    seed: int = 0
    num_inference_steps: int = 25
    device: str = "cpu"


def drawn_cases(kind: str) -> Iterator[tuple[str, Picture]]:
    """What the world draws of each limit, with its label."""
    relative, stranger = RELATIVES[kind], STRANGERS[kind]
    if relative and stranger:
        yield f"near: a {relative}", snapshot(NAMESPACE, 0, relative)
        yield f"far: a {stranger}", snapshot(NAMESPACE, 1, stranger)
    else:
        yield "near: a watercolour", Picture(identity(NAMESPACE, 0, "cat"), scene="garden", style="watercolour")
        yield "far: no style at all", snapshot(NAMESPACE, 1, "face")
    inside = snapshot(NAMESPACE, 2, kind)
    outside = stretched(inside.art or inside.subject)
    yield "outside: stretched", _of(inside, outside)


def stretched(inside: Identity) -> Identity:
    """The same individual with every number moved away from the average, many of them out of their range."""
    numbers = {p.name for p in PARAMETERS[inside.kind] if not p.options and not p.circular}
    moved = {name: 0.5 + STRETCH * (value - 0.5) if name in numbers else value for name, value in inside.params.items()}
    return Identity(inside.kind, f"{inside.key}/stretched", MappingProxyType(moved))


def _of(picture: Picture, concept: Identity) -> Picture:
    return replace(picture, art=concept) if concept.kind == "art" else replace(picture, subject=concept)


def rows(pipe: E4TPipeline, config: LimitsConfig) -> Iterator[tuple[str, list[Image.Image]]]:
    """A label, the picture that was learned from and what was drawn of it, for every case."""
    kind = pipe.domain.class_word
    anybody, asked = identity(NAMESPACE, 0, kind), prompts_of(kind)[: config.prompts]
    texts = [prompt_text(anybody, attributes, pipe.domain.placeholder) for attributes in asked]
    cases = [(label, Image.fromarray(draw(picture).rgb)) for label, picture in drawn_cases(kind)]
    cases += [(path.stem.replace("-", " "), load_image(path)) for path in config.pictures]
    for label, image in cases:
        concept = pipe.personalize(image)
        drawn = pipe(texts, concept=concept, seed=config.seed, num_inference_steps=config.num_inference_steps).images
        yield label, [image, *drawn]


def sheet(
    labelled: list[tuple[str, list[Image.Image]]], *, cell: int = 128, gap: int = 4, label: int = 110
) -> Image.Image:
    """The rows as one picture."""
    columns = max(len(images) for _, images in labelled)
    together = Image.new("RGB", (label + columns * (cell + gap) + gap, len(labelled) * (cell + gap) + gap), "white")
    pen, font = ImageDraw.Draw(together), ImageFont.load_default(13)
    for row, (text, images) in enumerate(labelled):
        top = gap + row * (cell + gap)
        pen.multiline_text((gap, top + cell / 2), text.replace(": ", ":\n"), "black", font, anchor="lm", spacing=3)
        for column, image in enumerate(images):
            left = label + column * (cell + gap) + (gap if column else 0)
            together.paste(square(image.convert("RGB"), cell), (left, top))
    return together


def main(config: LimitsConfig) -> None:
    """Learn every picture, draw it, write the sheet and print where."""
    pipe = E4TPipeline.from_pretrained(config.domain, device=config.device)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    sheet(list(rows(pipe, config))).save(config.output)
    print(config.output)


if __name__ == "__main__":
    main(tyro.cli(LimitsConfig, config=(tyro.conf.FlagConversionOff,)))
