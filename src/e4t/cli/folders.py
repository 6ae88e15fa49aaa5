"""What is shipped, what a folder is, and where a concept's domain lies."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tyro.conf import OmitArgPrefixes

from e4t.cli.options import BaseOptions, Device, Dtype, Folder, OptionalBase
from e4t.cli.terminal import device_of, dtype_of, printable, say, status
from e4t.errors import CheckpointError
from e4t.shipped import WEIGHTS, resolve

if TYPE_CHECKING:
    from e4t.checkpoint import Concept
    from e4t.pipeline import E4TPipeline


def shipped() -> dict[str, Path]:
    """Models inside the package, by name."""
    return {folder.name: folder for folder in sorted(WEIGHTS.glob("*")) if kind_of(folder)}


@dataclass(frozen=True)
class ConceptOptions(BaseOptions):
    """Where what a concept needs is found; shared by all commands on one."""

    domain: Folder = None
    """The concept's domain, where it has moved since."""
    base: OptionalBase = None
    """Another copy of the base model."""
    device: Device = "auto"
    """cpu, cuda, mps, ...; auto takes the best there is."""

    def open(
        self, folder: Path, dtype: str | None = None, *, look: bool = False, usual: str = "float32"
    ) -> tuple[Concept, E4TPipeline]:
        """The concept in ``folder``, and its domain on its base model; with the image encoder to ``look``, or if named.

        Without a ``dtype``, the ``usual``; but what it was tuned in for a concept that has to be tuned again.
        """
        from e4t.checkpoint import Concept

        concept = Concept.load(folder)
        made = made_in(concept)
        again = "float16" if made == "float16" else "float32"  # nothing is drawn in bfloat16
        used = dtype or (again if concept.to_be_replayed else usual)
        if concept.to_be_replayed and made not in (None, used):
            say(f"the concept was tuned in {made} and is tuned again in {used}, so it can differ a little")
        return concept, self.pipeline(concept, folder, used, look=look or self.image_encoder is not None)

    def pipeline(self, concept: Concept, folder: Path, dtype: str, *, look: bool = True) -> E4TPipeline:
        """The domain of the concept in ``folder`` on its base model.

        Without a ``base``, the copy that the concept was made with, if it is still where it was, else the domain's.
        """
        base, made_with = self.base, concept.base.name
        with status("loading the model"):
            from e4t.pipeline import E4TPipeline

            options = {"device": device_of(self.device), "dtype": dtype_of(dtype), "look": look} | self.given()
            # names of shipped ones mean those, whatever lies here
            own_copy = concept.domain_id is None or (made_with not in shipped() and Path(made_with).exists())
            if base is None and own_copy:
                base = resolve(made_with, shipped_first=True)
                options = concept.base.reading.given() | options
            if concept.domain_id is None:
                options = {"image_encoder": concept.base.image_encoder} | options
                return E4TPipeline.from_base(base or made_with, class_word=concept.domain.class_word, **options)
            domain = self.domain or find_domain(folder, concept.domain_id)
            return E4TPipeline.from_pretrained(domain, base=base, **options)


OfConcept = OmitArgPrefixes[ConceptOptions]


def made_in(concept: Concept) -> str | None:
    """The number type of the weights that a concept was tuned on; None where its folder does not say."""
    made = concept.provenance.get("dtype")
    return made if made in get_args(Dtype) else None


def is_domain(name: str) -> bool:
    """Whether ``name`` is that of a domain folder or of a shipped domain, and not just a word."""
    return kind_of(Path(resolve(name))) == "domain"


def remember_domain(concept: Path, domain: str) -> None:
    """Note in a concept folder where its domain lies, so that drawing it needs no further argument."""
    from e4t.writing import new_files

    place = Path(resolve(domain))
    note = domain if place == shipped().get(domain) else _way(concept.resolve(), place.resolve())
    with new_files([concept / "domain.txt"]) as (beside,):
        beside.write_text(note + "\n", encoding="utf-8", errors="surrogateescape")


def _way(start: Path, end: Path) -> str:
    """From one folder to another, as every system reads it; the whole path where they are on different drives."""
    try:
        return Path(os.path.relpath(end, start)).as_posix()
    except ValueError:
        return end.as_posix()


def find_domain(concept: Path, domain_id: str) -> str:
    """The domain of a concept folder: as noted there, else the shipped one with the same id. Its folder."""
    note = concept / "domain.txt"
    if note.is_file():
        noted = note.read_text(encoding="utf-8", errors="surrogateescape").strip()
        if noted in shipped():
            return str(shipped()[noted])
        if noted and (concept / noted).is_dir():
            return str((concept / noted).resolve())
    for folder in shipped().values():
        if _config(folder).get("id") == domain_id:
            return str(folder)
    raise CheckpointError(f"the domain of '{concept}' (id {domain_id}) is not at hand; say where with --domain FOLDER")


def description(folder: Path) -> dict[str, str]:
    """What a folder holds. Reads no weights."""
    kind = kind_of(folder)
    if kind is None:
        why = "" if folder.exists() else ": there is nothing there, and no shipped model has that name"
        raise CheckpointError(f"'{folder}' is neither a concept, nor a domain, nor a diffusers model{why}")
    from e4t.demo import folder_bytes, readable_bytes

    rows = {"kind": kind, "size": readable_bytes(folder_bytes(folder))}
    config = _config(folder)
    if kind == "base model":
        rows |= {part: of[1] for part, of in config.items() if isinstance(of, list) and len(of) == 2 and of[1]}
    else:
        domain, base = _section(config, "domain"), _section(config, "base")
        rows |= {"domain": str(domain.get("name")), "class word": str(domain.get("class_word"))}
        rows |= {"placeholder": str(domain.get("placeholder")), "base model": str(base.get("name"))}
        rows |= {"id": str(config["id"])} if "id" in config else {"domain id": str(config.get("domain_id"))}
        rows |= {"steps": str(config["steps"])} if "steps" in config else {}
        for section in ("pretrain", "personalize", "generate"):
            rows |= {f"{section}.{name}": json.dumps(value) for name, value in _section(config, section).items()}
    return rows


def describe(rows: Mapping[str, str]) -> list[str]:
    """A description as lines of text."""
    width = max(map(len, rows))
    return [printable(f"{name:<{width}}  {value}") for name, value in rows.items()]


def _config(folder: Path) -> dict[str, Any]:
    for name in ("config.json", "model_index.json"):
        if (folder / name).is_file():
            from e4t.sources import read_json

            return read_json(folder / name)
    return {}


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = config.get(name)
    return values if isinstance(values, dict) else {}


def kind_of(folder: Path) -> str | None:
    if (folder / "model_index.json").is_file():
        return "base model"
    kind = _config(folder).get("kind")
    return kind if kind in ("concept", "domain") else None
