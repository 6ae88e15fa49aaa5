"""Where things come from: a concept's picture and versions, and how a drawn picture was made, kept inside its file."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from e4t.errors import ImageError

_PACKAGES = ("e4t", "torch", "diffusers", "transformers")
_CHUNK, _UI_CHUNK = "e4t", "parameters"  # the second is what AUTOMATIC1111, Forge and most viewers read


def image_digest(image: Image.Image) -> str:
    """SHA-256 of size, mode and pixels: the same for every file that holds the same picture."""
    digest = hashlib.sha256(f"{image.mode} {image.width}x{image.height} ".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def settings_digest(settings: Any) -> str:
    """20 hexadecimal digits that follow from settings, which JSON can hold: a name for what depends on them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


@functools.cache
def versions() -> Mapping[str, str]:
    """Of this package and what it computes with."""
    return {name: metadata.version(name) for name in _PACKAGES}


def public_name(base: str) -> str:
    """What a base is called in files that may be given away: a hub id as it is, of a path only the last part."""
    hub_id = re.fullmatch(r"\w[\w.-]*/[\w.-]+", base) and not os.path.exists(base)
    name = base if hub_id else re.split(r"[/\\]", base.rstrip("/\\"))[-1]
    return name.encode("utf-8", "replace").decode()  # file names need not be text


def picture_notes(made: Mapping[str, Any]) -> PngInfo:
    """PNG text chunks: everything of ``made`` as JSON, and the same in the line that web UIs read.

    ``made`` has prompt, negative_prompt, seed, num_inference_steps, guidance_scale, scheduler, width, height, base and
    whatever else there is to say.
    """
    notes = PngInfo()
    notes.add_itxt(_UI_CHUNK, _ui_text(made))
    notes.add_itxt(_CHUNK, json.dumps(dict(made), ensure_ascii=False))
    return notes


def _ui_text(made: Mapping[str, Any]) -> str:
    fields = {
        "Steps": made["num_inference_steps"],
        "Sampler": made["scheduler"],
        "CFG scale": made["guidance_scale"],
        "Seed": made["seed"],
        "Size": f"{made['width']}x{made['height']}",
        "Model": made["base"],
    }
    lines = [made["prompt"]]
    if made.get("negative_prompt"):
        lines.append(f"Negative prompt: {made['negative_prompt']}")
    return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in fields.items())])


def read_notes(path: Path) -> dict[str, Any]:
    """How a picture was made. Raises ImageError for a file that does not say so."""
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {}).get(_CHUNK)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"'{path}' cannot be read as a picture: {error}") from error
    if text is None:
        raise ImageError(f"'{path}' does not say how it was made: it was not drawn by this package, or without notes")
    try:
        made = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"the notes in '{path}' cannot be read: {error}") from error
    return made if isinstance(made, dict) else {"notes": made}
