"""A domain of your own: pre-train it on a folder of pictures, then personalize on one that was not among them.

    python examples/own_domain.py PHOTOS PICTURE --name dog --base BASE --steps 30000 --output domains/dog

Without arguments it pre-trains a few steps on the shipped pictures, with the small base: enough to see every part work,
and far too little to learn from. Run again, it goes on where it was interrupted.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

from e4t import Backbone, Domain, E4TPipeline, PretrainConfig
from e4t.demo import example_pictures
from e4t.pretrain import pretrain


def gathered(pictures: Sequence[Path], folder: Path) -> Path:
    """A folder of training pictures, of some of the shipped ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        shutil.copy(picture, folder)
    return folder


def main() -> None:
    *others, last = example_pictures("face")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="?", type=Path, help="a folder of pictures")
    parser.add_argument("picture", nargs="?", type=Path, default=last)
    parser.add_argument("--name", default="face", help="also the class word: one common word for what is shown")
    parser.add_argument("--base", default="tiny", help="a Stable Diffusion 1.x or 2.x: folder, hub id or .safetensors")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1.6e-5)
    parser.add_argument("--num-inference-steps", type=int, default=25, help="denoising steps of the picture drawn")
    parser.add_argument("--output", type=Path, default=Path("out/own-domain"))
    arguments = parser.parse_args()

    photos = arguments.photos or gathered(others, arguments.output.with_name(f"{arguments.output.name}-photos"))
    config = PretrainConfig(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        checkpoint_every=max(1, arguments.steps // 10),
    )
    backbone = Backbone.from_pretrained(arguments.base)
    domain = Domain.named(arguments.name)
    steps = pretrain(
        domain,
        photos,
        backbone=backbone,
        config=config,
        output=arguments.output,
        personalize={"batch_size": arguments.batch_size},  # what is measured for a domain is kept in its folder
        generate={"num_inference_steps": arguments.num_inference_steps},
    )
    for step in steps:
        print(f"{step.number}/{step.total_steps}  loss {step.loss:.4f}  {step.seconds:.1f} s")

    pipe = E4TPipeline.from_pretrained(arguments.output, base=arguments.base)
    concept = pipe.personalize(arguments.picture)
    path = arguments.output.with_name(f"{arguments.output.name}-drawn.png")
    pipe(f"a photo of {pipe.domain.placeholder}", concept=concept).images[0].save(path)
    print(arguments.output)
    print(path)


if __name__ == "__main__":
    main()
