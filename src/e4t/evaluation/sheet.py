"""A contact sheet by a fixed rule: the first individuals of a namespace that nothing was trained on, nothing chosen.

    python -m e4t.evaluation.sheet tiny-art --output docs/results/tiny-art.jpg

It is the sheet that `e4t.evaluation.evaluate` writes, without a judge: in each row the picture that was learned from,
and what is drawn of it for the first prompts after the domain's own number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from e4t.errors import ConfigError
from e4t.evaluation.evaluate import (
    SHEET,
    Drawer,
    contact_sheet,
    input_caption,
    input_picture,
    learn,
    prompts_of,
)
from e4t.pipeline import E4TPipeline
from e4t.tiny.world import TRAINING_NAMESPACES, Identity, identity


@dataclass(frozen=True)
class SheetConfig:
    """Whom to draw."""

    domain: tyro.conf.Positional[str]  # folder or shipped name
    output: Path  # a picture file
    namespace: str = "held-out-2"
    count: int = SHEET[0]
    steps: int | None = None  # of tuning; None: the domain's own
    seed: int = 0
    num_inference_steps: int = 16
    use_caption: bool = False  # say what the input shows beside the concept
    device: str = "cpu"


def row(drawer: Drawer, subject: Identity, steps: int, *, use_caption: bool = False) -> list[np.ndarray]:
    """The picture learned from and those drawn, uint8 ``[128, 128, 3]`` each."""
    photo, mask = input_picture(subject)
    caption = input_caption(subject, drawer.pipe.domain.placeholder) if use_caption else None
    concept = learn(drawer.pipe, photo, mask, [steps], caption=caption)[steps]
    return [np.asarray(photo), *drawer.generate(drawer.texts(subject), concept, drawer.seed)]


def main(config: SheetConfig) -> None:
    """Learn and draw everybody, write the sheet, print where it is and what the prompts were."""
    if config.namespace in TRAINING_NAMESPACES:
        raise ConfigError(f"individuals of the namespace '{config.namespace}' were trained on; use any other word")
    pipe = E4TPipeline.from_pretrained(config.domain, device=config.device)
    kind = pipe.domain.name
    drawer = Drawer(pipe, prompts_of(kind)[: SHEET[1]], config.seed, config.num_inference_steps)
    steps = pipe.personalize_config.steps if config.steps is None else config.steps
    subjects = [identity(config.namespace, index, kind) for index in range(config.count)]
    rows = [row(drawer, subject, steps, use_caption=config.use_caption) for subject in subjects]
    config.output.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(rows).save(config.output)
    print(config.output, *drawer.texts(subjects[0]), sep="\n")


if __name__ == "__main__":
    main(tyro.cli(SheetConfig, config=(tyro.conf.FlagConversionOff,)))
