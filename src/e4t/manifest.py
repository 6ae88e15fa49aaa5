"""Many pictures become concepts, one after another on a warm model; the same call goes on where it stopped.

What to do is a folder of pictures, of masks named after them (``anna-mask.png`` for ``anna.jpg``) and of captions
(``anna.txt``), or a manifest: a JSON object in each line of a .jsonl file, or a .csv file with a header. Every entry
has an ``image`` and may have a ``name`` (or ``word``: of its folder), a ``mask``, an ``output``, a ``domain``,
``overrides``, and any field of `PersonalizeConfig`. Paths of pictures are relative to the manifest.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from PIL import Image

from e4t.checkpoint import Concept
from e4t.config import PersonalizeConfig
from e4t.errors import ConfigError, E4TError, out_of_memory
from e4t.images import SUFFIXES
from e4t.memory import fitted
from e4t.photos import opened
from e4t.pictures import caption_beside, with_masks
from e4t.pipeline import E4TPipeline
from e4t.provenance import image_digest
from e4t.saved import require_place

MANIFESTS = (".jsonl", ".csv")
_KEYS = ("image", "name", "word", "mask", "output", "domain", "overrides")
_SETTINGS = tuple(one.name for one in fields(PersonalizeConfig))


@dataclass(frozen=True)
class Entry:
    """One picture to personalize on, and where its concept goes."""

    image: Path
    output: Path
    domain: str
    mask: str | Path | None = None  # a file, or "auto" (`e4t.photos.framed`)
    overrides: Mapping[str, Any] = field(default_factory=dict)  # fields of PersonalizeConfig


@dataclass(frozen=True)
class Outcome:
    """What became of an entry: ``status`` is "made", "kept" (it was there and matches) or "failed", with a sentence."""

    entry: Entry
    status: str
    seconds: float
    error: str | None = None
    likeness: float | None = None  # `E4TPipeline.likeness` of the preview
    concept: Concept | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()  # what was decided about a photo, as to which of two faces was taken


@dataclass(frozen=True)
class EntryStep:
    """``done`` entries of ``total``, with the share of the one at hand; its last step has the outcome."""

    entry: Entry
    done: float
    total: int
    outcome: Outcome | None = None


def means_many(source: Path) -> bool:
    """Whether a path means many pictures: a folder or a manifest."""
    return source.is_dir() or source.suffix.lower() in MANIFESTS


def read_entries(
    source: str | Path,
    output: str | Path,
    *,
    domain: str | None = None,
    mask: str | None = None,
    captions: bool = True,
) -> list[Entry]:
    """The entries of a folder or manifest; ``domain`` and ``mask`` ("auto", "none") are of those which name none.

    In a folder, ``anna-mask.png`` is the mask of ``anna.jpg``, unless ``mask`` is "none", and ``anna.txt`` its caption,
    if ``captions`` are wanted. Warns of what is left out of it: sub-folders, files of other kinds, masks without a
    picture.

    Raises ConfigError, with the line, for a manifest that cannot be meant, for a caption that cannot be read, and for
    two entries with one output: also one up to capitals, which is the same folder on some disks.
    """
    source, output = Path(source), Path(output)
    rows = _pictures(source, mask != "none", captions) if source.is_dir() else _rows(source)
    entries: list[Entry] = []
    taken: dict[str, str] = {}
    for where, row in rows:
        entry = _entry(row, where, source if source.is_dir() else source.parent, output, domain, mask)
        place = os.path.abspath(entry.output).casefold()
        if place in taken:
            raise ConfigError(f"{where} and {taken[place]} would both write '{entry.output}': give them other names")
        taken[place] = where
        entries.append(entry)
    if not entries:
        raise ConfigError(f"'{source}' holds no pictures to personalize on")
    return entries


def _pictures(folder: Path, masks: bool, captions: bool) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The pictures of a folder, each with the mask and the caption that are named after it."""
    shown = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    known = [path for path in shown if path.suffix.lower() in SUFFIXES and not path.is_dir()]
    pictures = with_masks(known)
    stems = {path.stem for path in pictures}
    beside = [path for path in shown if path.suffix == ".txt" and path.stem in stems]
    used = {*pictures, *pictures.values()}
    lonely = [path.name for path in known if path not in used]
    _say_what_is_left_out(folder, shown, [*known, *beside], lonely)
    for path, mask in pictures.items():
        given = {
            "mask": mask.name if mask and masks else None,
            "caption": _caption(path) if captions else None,
        }
        yield f"'{path}'", {"image": path.name, **{name: value for name, value in given.items() if value}}


def _caption(picture: Path) -> str | None:
    try:
        return caption_beside(picture)
    except OSError as error:
        raise ConfigError(f"the caption of '{picture}' cannot be read: {error.strerror}") from error


def _say_what_is_left_out(folder: Path, shown: list[Path], known: list[Path], lonely: Collection[str]) -> None:
    others = [path for path in shown if path not in known and not path.is_dir()]
    endings = ", ".join(sorted({path.suffix.lower() or "no ending" for path in others}))
    folders = sum(path.is_dir() for path in shown)
    counts = {
        f"of other kinds than {', '.join(SUFFIXES)}: {len(others)} ({endings})": len(others),
        f"sub-folders: {folders}": folders,
        f"masks without a picture: {len(lonely)} ({', '.join(sorted(lonely))})": len(lonely),
    }
    if any(counts.values()):
        told = "; ".join(text for text, count in counts.items() if count)
        warnings.warn(f"in '{folder}' these are left out: {told}", stacklevel=4)


def _rows(manifest: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where each row stands, and its names and values; empty values are left out."""
    try:
        text = manifest.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"there is no manifest '{manifest}'") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"'{manifest}' is not text in UTF-8: {error}") from error
    lines = _csv(text, manifest) if manifest.suffix.lower() == ".csv" else _jsonl(text, manifest)
    for number, row in lines:
        yield f"'{manifest}' line {number}", {name: value for name, value in row.items() if value not in ("", None)}


def _jsonl(text: str, manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):  # other line breaks may stand in a string
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"'{manifest}' line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise ConfigError(f"'{manifest}' line {number} is no JSON object of names and values")
        yield number, row


def _csv(text: str, manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = [name.strip() for name in reader.fieldnames or ()]
        if "" in names or len(set(names)) < len(names):
            raise ConfigError(f"'{manifest}' needs a header in which every column has a name of its own")
        for row in reader:
            if None in row or None in row.values():
                raise ConfigError(f"'{manifest}' line {reader.line_num} does not have as many values as the header")
            yield reader.line_num, {name.strip(): _value(name.strip(), value.strip()) for name, value in row.items()}
    except csv.Error as error:
        raise ConfigError(f"'{manifest}' line {reader.line_num} is not CSV: {error}") from error


def _value(name: str, text: str) -> Any:
    """Settings are JSON, or else text; file names are text."""
    if name == "caption" or (name in _KEYS and name != "overrides"):
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _entry(
    row: Mapping[str, Any], where: str, folder: Path, output: Path, domain: str | None, mask: str | None
) -> Entry:
    unknown = [name for name in row if name not in (*_KEYS, *_SETTINGS)]
    if unknown:
        known = ", ".join(_KEYS)
        raise ConfigError(f"{where} has {unknown[0]!r}; known are {known} and the settings of PersonalizeConfig")
    texts = {name: row[name] for name in _KEYS if name in row and name != "overrides"}
    odd = [name for name, value in texts.items() if not isinstance(value, str)]
    if odd or "image" not in texts:
        raise ConfigError(f"{where} has {f'a {odd[0]} that is no text' if odd else 'no image'}")
    name = texts.get("name", texts.get("word", Path(texts["image"]).stem))
    if name != Path(name).name or name in ("", ".", ".."):
        raise ConfigError(f"{where} has the name {name!r}, which cannot be that of a folder; say where with output")
    overrides = row.get("overrides", {})
    if not isinstance(overrides, dict):
        raise ConfigError(f"{where} has overrides that are no JSON object")
    overrides = {**overrides, **{name: row[name] for name in _SETTINGS if name in row}}
    try:
        PersonalizeConfig().updated(overrides)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    kind = texts.get("domain", domain)
    if kind is None:
        raise ConfigError(f"{where} names no domain, and none is given for all")
    mask = texts.get("mask", mask)
    cut = mask if mask in (None, "auto", "none") else folder / mask
    return Entry(folder / texts["image"], output / texts.get("output", name), kind, cut, overrides)


def personalize_many(
    entries: Sequence[Entry],
    *,
    open_pipeline: Callable[[str], E4TPipeline] = E4TPipeline.from_pretrained,
    settings: Callable[[E4TPipeline], PersonalizeConfig] = lambda pipe: pipe.personalize_config,
    preview: bool = True,
) -> Iterator[EntryStep]:
    """Make the concepts of all entries, domain by domain; yields every tuning step.

    ``open_pipeline`` loads a domain, each once and one at a time; ``settings`` are those that overrides come on top of.
    An entry whose concept is complete and was made of the same picture, mask, settings, domain and base is kept. One
    that fails is an outcome and stops nothing; a domain that cannot be opened fails all its entries, and raises its
    E4TError where there is no other.
    """
    domains = list(dict.fromkeys(entry.domain for entry in entries))
    ended, pipe = 0, None
    for domain in domains:
        own = [entry for entry in entries if entry.domain == domain]
        pipe = None  # lets go of the one before, so that there are never two
        try:
            pipe = open_pipeline(domain)
        except (E4TError, OSError) as error:
            if len(domains) == 1:
                raise
            for entry in own:
                ended += 1
                yield EntryStep(entry, ended, len(entries), Outcome(entry, "failed", 0.0, str(error)))
            continue
        config = settings(pipe)
        for entry in own:
            began = time.perf_counter()
            try:
                for share, outcome in _made(pipe, entry, config, preview, began):
                    yield EntryStep(entry, ended + share, len(entries), outcome)
            except (E4TError, OSError, ValueError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not out_of_memory(error):
                    raise
                failed = Outcome(entry, "failed", time.perf_counter() - began, " ".join(str(error).split()))
                yield EntryStep(entry, ended + 1, len(entries), failed)
            ended += 1


def _made(
    pipe: E4TPipeline, entry: Entry, config: PersonalizeConfig, preview: bool, began: float
) -> Iterator[tuple[float, Outcome | None]]:
    """The share of an entry that is done, and with the last its outcome."""
    config = fitted(pipe.model, config.updated(entry.overrides))  # what was fitted is what a concept records
    photo = opened(entry.image, entry.mask, pipe.domain)
    image, mask = photo.picture, photo.mask
    preview = preview and pipe.draws_concepts
    present = _present(entry.output)
    if present is not None and _matches(present, pipe, config, image, mask) and (present.preview or not preview):
        yield 1.0, Outcome(entry, "kept", time.perf_counter() - began, concept=present, notes=photo.notes)
        return
    require_place(entry.output, "concept")
    for step in pipe.personalize_steps(image, mask=mask, config=config):
        yield step.number / (step.total_steps + 1), None
    concept, likeness = noted(step.kept, entry.mask), None
    if preview:
        drawn, likeness = pipe.portrait(concept, image)
        concept = concept.with_preview(drawn)
    concept.save(entry.output)
    seconds = time.perf_counter() - began
    yield 1.0, Outcome(entry, "made", seconds, likeness=likeness, concept=concept, notes=photo.notes)


def noted(concept: Concept, mask: str | Path | None) -> Concept:
    """With a note in it that the picture was cropped and masked by "auto", so that a repetition can do the same."""
    return replace(concept, provenance={**concept.provenance, "framing": "auto"}) if mask == "auto" else concept


def _present(folder: Path) -> Concept | None:
    """The whole concept in a folder; what is damaged or of another kind is none."""
    try:
        return Concept.load(folder)
    except E4TError:
        return None


def _matches(
    concept: Concept, pipe: E4TPipeline, config: PersonalizeConfig, image: Image.Image, mask: Image.Image | None
) -> bool:
    """Whether making a concept again would start from what this one was made of."""
    used = mask if config.mask_loss else None
    digests = {"image": image_digest(image), "mask": image_digest(used) if used is not None else None}
    return (
        (concept.domain, concept.domain_id) == (pipe.domain, pipe.model.domain_id)
        and concept.base.fingerprint == pipe.model.base.fingerprint
        and _plain(PersonalizeConfig.from_dict(concept.config)) == _plain(config)
        and all(concept.provenance.get(name) == digest for name, digest in digests.items())
    )


def _plain(config: PersonalizeConfig) -> PersonalizeConfig:
    """Without what only saves memory, since how much is free may differ the next time, or changes nothing here."""
    if config.constant_steps is not None and config.steps <= config.constant_steps:
        config = replace(config, constant_steps=None)
    if not config.automatic:
        config = replace(config, automatic_gain=0.0)
    return replace(config, memory=None, micro_batch_size=None, gradient_checkpointing=False, unload=False)
