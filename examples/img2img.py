"""A concept in place of somebody else: image-to-image with the stock diffusers pipeline.

    python examples/img2img.py [CONCEPT-PICTURE] [START-PICTURE] [--keep 0.4] [--output FILE]

The start's composition stays, and S* comes in. Any pipeline on the same U-Net takes a concept like this: inside
`pipe.applied(...)`, with the prompt embeddings that it gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionImg2ImgPipeline

from e4t import E4TPipeline
from e4t.demo import example_pictures
from e4t.images import load_image, square


def main() -> None:
    first, second, *_ = example_pictures("face")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=first, help="of the concept")
    parser.add_argument("start", nargs="?", type=Path, default=second, help="the picture to begin with")
    parser.add_argument("--domain", default="tiny-face", help="a shipped domain, or a domain folder")
    parser.add_argument("--prompt", default="a watercolour of S*")
    parser.add_argument("--keep", type=float, default=0.4, help="share of the start that stays: 0 nothing, 1 all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("out/img2img.png"))
    arguments = parser.parse_args()

    pipe = E4TPipeline.from_pretrained(arguments.domain)
    concept = pipe.personalize(arguments.picture)
    settings = pipe.generate_config
    start = square(load_image(arguments.start), pipe.backbone.resolution)
    repainting = StableDiffusionImg2ImgPipeline(**pipe.stock.components, requires_safety_checker=False)
    with pipe.applied(concept, arguments.prompt) as applied:
        image = repainting(
            image=start,
            strength=1 - arguments.keep,
            prompt_embeds=applied.prompt_embeds,
            negative_prompt_embeds=applied.negative_prompt_embeds,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            generator=torch.Generator().manual_seed(arguments.seed),
        ).images[0]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    image.save(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
