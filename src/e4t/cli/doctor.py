"""What is here and what will work: `e4t doctor`."""

from __future__ import annotations

import importlib
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from e4t.cli.folders import kind_of, shipped
from e4t.cli.options import Json, Result
from e4t.cli.terminal import quiet, status
from e4t.errors import E4TError, install_extra

_NEEDED = ("torch", "diffusers", "transformers", "accelerate", "huggingface_hub", "safetensors", "numpy", "PIL")
_EXTRAS = {
    "tiny": ("cv2", "matplotlib", "resvg_py"),
    "benchmark": ("cv2", "matplotlib", "peft", "resvg_py"),
    "faces": ("dlib", "face_recognition_models"),
    "photos": ("cv2", "dlib"),
    "web": ("cv2", "dlib", "gradio"),
    "data": ("datasets", "webdataset"),
    "8bit": ("bitsandbytes",),
    "lab": ("bitsandbytes", "tensorboard", "wandb"),
}
_NEEDING = {
    "web": "web",
    "personalize --mask auto": "photos",
    "--use-8bit-adam": "8bit",
    "evaluate": "tiny",
    "benchmark": "benchmark",
    "benchmark --faces": "faces",
}
"""Commands and options that need an extra."""
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_LEAST_DISK = 100 * 2**20
_TRAINED = ("unet", "text_encoder")  # what --preset paper tunes whole
_TUNING_BYTES = 16  # of a float32 number that is tuned: itself, its gradient and Adam's two moments


@dataclass(frozen=True)
class Finding:
    """One thing looked at. "ok": as it should be; "note": something does not work; "broken": nothing much will."""

    group: str
    name: str
    state: Literal["ok", "note", "broken"]
    text: str
    advice: str | None = None


@dataclass(frozen=True)
class Doctor:
    """Say what is installed, which devices and models are here, and what will work; exits with 1 if it is broken."""

    json: Json = False

    def run(self) -> Result:
        with status("looking"):
            findings = list(_examination())
        broken = any(finding.state == "broken" for finding in findings)
        lines = []
        for finding in findings:
            mark = {"ok": "ok     ", "note": "note   ", "broken": "BROKEN "}[finding.state]
            lines.append(f"{mark} {finding.group:<8} {finding.name}: {finding.text}")
            if finding.advice:
                lines.append(f"{'':17}-> {finding.advice}")
        values = {"healthy": not broken, "findings": [asdict(finding) for finding in findings]}
        return Result(lines, values, exit_code=1 if broken else 0)


def _examination() -> Iterator[Finding]:
    packages = list(_packages())
    yield from packages
    yield from _extras()
    if any(finding.state == "broken" for finding in packages):
        return  # what follows is computed with them
    quiet()
    yield from _devices()
    yield from _room()
    yield from _hub()
    models = dict(_shipped_models())
    yield from models.values()
    if not models:
        yield Finding("models", "shipped", "broken", "nothing is shipped with this installation", _again())
    bases = {name: folder for name, folder in shipped().items() if kind_of(folder) == "base model"}
    bases = {name: folder for name, folder in bases.items() if models[name].state == "ok"}
    for finding, folder in _cached_models():
        yield finding
        if folder is not None:
            bases[finding.name] = folder
    yield from _commands(models)
    for name, folder in bases.items():
        yield from _fits(name, folder)


def _packages() -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Finding("versions", "python", "ok", python)
    yield Finding("versions", "e4t", "ok", importlib.import_module("e4t").__version__)
    for name in _NEEDED:
        again = f"install it again: pip install --force-reinstall {'pillow' if name == 'PIL' else name}"
        try:
            version = str(importlib.import_module(name).__version__)
        except Exception as error:  # a broken installation raises anything
            yield Finding("versions", name, "broken", f"cannot be imported ({error})", again)
        else:
            yield Finding("versions", name, "ok", version)


def _extras() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        missing = [name for name in modules if find_spec(name) is None]
        if missing:
            yield Finding("extras", extra, "note", f"lacks {', '.join(missing)}", install_extra(extra))
        else:
            yield Finding("extras", extra, "ok", "installed")


def _devices() -> Iterator[Finding]:
    import torch

    from e4t.precision import best_device, has_fast_bfloat16

    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    for name in names:
        try:
            ones = torch.ones(8, 8, device=name)
            wrong = float((ones @ ones).sum()) != 512
        except Exception as error:
            advice = "leave it out with --device, and check its driver against torch's build"
            state: Literal["note", "broken"] = "broken" if name == str(best_device()) else "note"
            yield Finding("devices", name, state, f"cannot compute ({str(error).splitlines()[0]})", advice)
            continue
        kind = f"{torch.get_num_threads()} threads" if name == "cpu" else ""
        if name.startswith("cuda"):
            free, total = torch.cuda.mem_get_info(name)
            kind = f"{torch.cuda.get_device_name(name)}, {_gib(free)} of {_gib(total)} free"
        fast = "bfloat16 is fast" if has_fast_bfloat16(name) else "bfloat16 is slow: leave --mixed-precision bf16 out"
        best = "; --device auto takes it" if torch.device(name).type == best_device().type else ""
        text = "computes wrongly" if wrong else f"{kind}{', ' if kind else ''}{fast}{best}"
        yield Finding("devices", name, "broken" if wrong else "ok", text)


def _room() -> Iterator[Finding]:
    from e4t.memory import available_memory

    yield Finding("memory", "available", "ok", _gib(available_memory()))
    for name, folder in (("here", Path.cwd()), ("Hub cache", _existing(_cache_folder()))):
        free = shutil.disk_usage(folder).free
        advice = "make room: concepts and pictures could not be written" if free < _LEAST_DISK else None
        yield Finding("disk", name, "broken" if advice else "ok", f"{_gib(free)} free at {folder}", advice)


def _hub() -> Iterator[Finding]:
    on = [
        f"{name}={os.environ[name]}" for name in _SWITCHES if os.environ.get(name, "").lower() in ("1", "true", "yes")
    ]
    yield Finding("hub", "cache", "ok", str(_cache_folder()))
    if on:
        advice = f"unset {on[0].split('=')[0]} to fetch models"
        yield Finding("hub", "offline", "note", f"{', '.join(on)}: hub ids work only where they are cached", advice)


def _cache_folder() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _shipped_models() -> Iterator[tuple[str, Finding]]:
    from e4t.checkpoint import TrainedDomain
    from e4t.sources import check_folder

    for name, folder in shipped().items():
        kind = str(kind_of(folder))
        try:
            if kind == "domain":
                TrainedDomain.load(folder)
            else:
                check_folder(folder, name, None)
        except E4TError as error:
            yield name, Finding("models", name, "broken", str(error), _again())
        else:
            yield name, Finding("models", name, "ok", f"{kind}, shipped")


def _again() -> str:
    """How to install e4t itself anew: it is on no package index, but pip notes the folder or wheel it came from."""
    from importlib import metadata
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    try:
        noted = json.loads(metadata.distribution("e4t").read_text("direct_url.json") or "{}").get("url", "")
        came_from = Path(url2pathname(urlsplit(noted).path)) if noted.startswith("file:") else None
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        came_from = None
    place = str(came_from) if came_from is not None and came_from.exists() else "FOLDER-OR-WHEEL"
    unknown = ", with the checkout or the wheel that you have it from" if place == "FOLDER-OR-WHEEL" else ""
    return f"install it again: pip install --force-reinstall --no-deps {shlex.quote(place)}{unknown}"


def _cached_models() -> Iterator[tuple[Finding, Path | None]]:
    """Stable Diffusions in the Hub's cache, and the folder of those that are whole."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from e4t.sources import check_folder

    try:
        repositories = sorted(scan_cache_dir().repos, key=lambda one: one.repo_id)
    except CacheNotFound:
        return
    for repository in repositories:
        for revision in repository.revisions:
            folder = revision.snapshot_path
            if kind_of(folder) != "base model":
                continue
            variant = "fp16" if any(".fp16." in one.file_name for one in revision.files) else None
            try:
                check_folder(folder, repository.repo_id, variant)
            except (E4TError, OSError) as error:
                yield (
                    Finding("models", repository.repo_id, "note", str(error), "use another base, or fetch it anew"),
                    None,
                )
            else:
                option = f", with --variant {variant}" if variant else ""
                yield Finding("models", repository.repo_id, "ok", f"base model, cached{option}"), folder


def _commands(models: dict[str, Finding]) -> Iterator[Finding]:
    """Which commands have what they need; those that need nothing but a model of the user's own always work."""
    domains = [name for name in models if kind_of(shipped()[name]) == "domain" and models[name].state == "ok"]
    whole = bool(domains) and all(finding.state == "ok" for finding in models.values())
    text = f"with {', '.join(domains)}" if whole else "no shipped domain is whole"
    advice = None if whole else "give a domain folder of your own"
    yield Finding("commands", "demo", "ok" if whole else "note", text, advice)
    yield Finding("commands", "personalize, generate, export, replay", "ok" if whole else "note", text, advice)
    yield Finding("commands", "pretrain, cache", "ok", "with a base of your own: docs/bases.md")
    for name, extra in _NEEDING.items():
        missing = [module for module in _EXTRAS[extra] if find_spec(module) is None]
        install = install_extra(extra) if missing else None
        text = f"lacks {', '.join(missing)}" if missing else "has what it needs"
        yield Finding("commands", name, "note" if missing else "ok", text, install)


def _fits(name: str, folder: Path) -> Iterator[Finding]:
    """Whether a base's numbers alone fit in memory: arithmetic, a lower bound; pictures and activations come on top."""
    from e4t.memory import free_memory
    from e4t.precision import best_device

    sizes = _numbers(folder)
    numbers, trained = sum(sizes.values()), sum(sizes.get(part, 0) for part in _TRAINED)
    free = free_memory(best_device())
    tuning = 4 * numbers + (_TUNING_BYTES - 4) * trained
    for task, needed, advice in (
        ("drawing, float32", 4 * numbers, "draw with --dtype float16"),
        ("drawing, float16", 2 * numbers, "use a larger device or close other programs"),
        ("--preset paper", tuning, "leave --preset paper out: the default tunes far fewer numbers"),
    ):
        text = f"{task} takes at least {_gib(needed)}, and {_gib(free)} are free"
        fits = needed < free
        yield Finding("fits", name, "ok" if fits else "note", text, None if fits else advice)


def _numbers(folder: Path) -> dict[str, int]:
    """How many numbers each part of a base has, from the headers of its files; of variants, the first."""
    from safetensors import safe_open

    sizes: dict[str, int] = {}
    for part in (path for path in folder.iterdir() if path.is_dir()):
        files = sorted(part.glob("*.safetensors"))
        kinds = [[file for file in files if (".fp16." in file.name) is half] for half in (True, False)]
        total = 0
        for path in next((kind for kind in kinds if kind), []):
            with safe_open(path, framework="pt") as opened:
                file: Any = opened
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        sizes[part.name] = total
    return sizes


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count < 10 * 2**30 else f"{count / 2**30:.0f} GiB"
