"""A concept in a given pose or outline: ControlNet with the stock diffusers pipeline.

    python examples/controlnet.py anna.jpg edges.png --domain domains/face \\
        --controlnet lllyasviel/control_v11p_sd15_canny --prompt "an oil painting of S*"

There is no ControlNet for the small base, so without `--controlnet` one is made from its U-Net, untrained: everything
runs, and the outline has no say yet.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline
from PIL import Image, ImageFilter, ImageOps

from e4t import E4TPipeline
from e4t.demo import example_pictures
from e4t.images import load_image, square


def outline(path: Path) -> Image.Image:
    """White edges on black, as ControlNets for edges expect them."""
    return ImageOps.autocontrast(load_image(path).convert("L").filter(ImageFilter.FIND_EDGES)).convert("RGB")


def untrained(unet: Any) -> Any:
    return ControlNetModel.from_unet(unet).to(unet.device, unet.dtype).eval()


def pretrained(source: str, unet: Any) -> Any:
    """On the U-Net's device and in its type: pipelines do not move what they are given."""
    return ControlNetModel.from_pretrained(source).to(unet.device, unet.dtype).eval()


def main() -> None:
    first, second, *_ = example_pictures("face")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", type=Path, default=first, help="of the concept")
    parser.add_argument(
        "control", nargs="?", type=Path, help="the outline; without one, the edges of a shipped picture"
    )
    parser.add_argument("--domain", default="tiny-face", help="a shipped domain, or a domain folder")
    parser.add_argument("--controlnet", help="a folder or hub id")
    parser.add_argument("--prompt", default="a photo of S* in a forest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("out/controlnet.png"))
    arguments = parser.parse_args()

    pipe = E4TPipeline.from_pretrained(arguments.domain)
    concept = pipe.personalize(arguments.picture)
    unet, settings = pipe.backbone.unet, pipe.generate_config
    net = pretrained(arguments.controlnet, unet) if arguments.controlnet else untrained(unet)
    control = load_image(arguments.control) if arguments.control else outline(second)
    controlled = StableDiffusionControlNetPipeline(
        **pipe.stock.components, controlnet=net, requires_safety_checker=False
    )
    with pipe.applied(concept, arguments.prompt, also=[net]) as applied:  # the ControlNet reads the concept's word, too
        image = controlled(
            image=square(control, pipe.backbone.resolution),
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
