"""Hostile files: damaged and forged concepts, domains and pictures are read as written, or refused in one sentence.

    python -m e4t.evaluation.hostile tiny-face --output docs/results/hostile.json --page docs/reliability.md

Every file begins as a good one and is then damaged at random, by a seed. Where the file names the hash of its weights,
half of the damage is also tried with that hash taken out, so that it reaches what lies behind. Anything but a right
reading or one of this package's own errors counts as a failure; so do a model that is not what it was before, a file
left behind, and a reading that takes seconds.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from PIL import Image
from safetensors.torch import load_file, save_file

from e4t.checkpoint import Concept, TrainedDomain
from e4t.errors import E4TError
from e4t.images import load_image
from e4t.model import E4TModel
from e4t.pipeline import E4TPipeline

LONGEST_SENTENCE = 1000  # some list every setting there is
MOST_SECONDS = 5.0
CONFIG, SEAL = "config.json", "weights_sha256"

FileMutation = Callable[[bytes, random.Random], bytes]
Place = Callable[[Path], Path]
TensorMutation = Callable[[dict[str, torch.Tensor], random.Random], dict[str, torch.Tensor]]
JsonMutation = Callable[[dict[str, Any], random.Random], Any]


# Bytes of any file


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits turned."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early_bits(data: bytes, rng: random.Random) -> bytes:
    """The same within the first 200 bytes, where formats keep what they are."""
    return flip_bits(data[:200], rng) + data[200:]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Only a beginning, of any length."""
    return data[: rng.randrange(len(data))]


def grow(data: bytes, rng: random.Random) -> bytes:
    """Up to a kilobyte of noise at the end."""
    return data + rng.randbytes(rng.randint(1, 1024))


def noise(data: bytes, rng: random.Random) -> bytes:
    """Nothing of the file but its length."""
    return rng.randbytes(len(data))


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A stretch of noise in the middle."""
    start, length = rng.randrange(len(data)), rng.randint(1, 256)
    return data[:start] + rng.randbytes(length) + data[start + length :]


def pickled(data: bytes, rng: random.Random) -> bytes:
    """A pickle that leaves a trace if anybody opens it; written out, so that nothing here can open one."""
    return f"c{_spring.__module__}\n_spring\n(tR.".encode()


_sprung: list[bool] = []


def _spring() -> None:
    _sprung.append(True)


BYTES: tuple[FileMutation, ...] = (flip_bits, flip_early_bits, cut, grow, noise, overwrite, pickled)


# The header of safetensors: eight bytes of length, then JSON


def giant_header(data: bytes, rng: random.Random) -> bytes:
    """A header that claims to be longer than any memory."""
    return struct.pack("<Q", rng.choice((2**63 - 1, 2**40, len(data) * 2, 10**8 + 1))) + data[8:]


def wild_offsets(data: bytes, rng: random.Random) -> bytes:
    """A tensor that claims to lie somewhere else: overlapping, backwards, or beyond the end."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([key for key in header if key != "__metadata__"])
    field_name = rng.choice(("data_offsets", "shape", "dtype"))
    header[name][field_name] = {
        "data_offsets": rng.choice(([0, 2**62], [-1, 4], [8, 4], [0, 0], [4, 12])),
        "shape": rng.choice(([2**62], [-1], [], [0], [2**31, 2**31])),
        "dtype": rng.choice(("F8", "I64", "BOOL", "F64", "../F32", 3)),
    }[field_name]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def nested_header(data: bytes, rng: random.Random) -> bytes:
    """A header of brackets."""
    text = b"[" * rng.choice((1_000, 100_000))
    return struct.pack("<Q", len(text)) + text


HEADER: tuple[FileMutation, ...] = (giant_header, wild_offsets, nested_header)


# Tensors: well-formed files with the wrong things in them


def _any(tensors: Mapping[str, torch.Tensor], rng: random.Random) -> str:
    return rng.choice(sorted(tensors))


def transpose(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor with its axes swapped, or one axis too many."""
    name = _any(tensors, rng)
    old = tensors[name]
    return tensors | {name: old.T.contiguous() if old.ndim == 2 else old[None]}


def shrink(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor with fewer rows: one less, one in all, or none."""
    name = _any(tensors, rng)
    old = tensors[name]
    return tensors | {name: old[: rng.choice((len(old) - 1, 1, 0))].clone()}


def widen(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor with its rows twice."""
    name = _any(tensors, rng)
    return tensors | {name: torch.cat([tensors[name]] * 2)}


def swap(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """Two tensors under each other's names."""
    one, other = rng.sample(sorted(tensors), 2)
    return tensors | {one: tensors[other], other: tensors[one]}


def retype(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor of another type."""
    name, dtype = _any(tensors, rng), rng.choice((torch.int64, torch.bool, torch.uint8, torch.float64, torch.bfloat16))
    return tensors | {name: tensors[name].to(dtype)}


def poison(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """One value that is no number, or infinite."""
    name = _any(tensors, rng)
    values = tensors[name].clone()
    values.view(-1)[rng.randrange(values.numel())] = rng.choice((float("nan"), float("inf"), float("-inf")))
    return tensors | {name: values}


def remove(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor less."""
    name = _any(tensors, rng)
    return {key: tensor for key, tensor in tensors.items() if key != name}


def empty(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """No tensors at all."""
    return {}


def stray(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A foreign tensor, some under names that are paths."""
    names = ("lora_unet_down.lora_up.weight", "../../etc/passwd", "encoder/", "unet/conv_in.weight", "deltas/odd", "")
    return tensors | {rng.choice(names): torch.ones(rng.randint(1, 5))}


def rename(tensors: dict[str, torch.Tensor], rng: random.Random) -> dict[str, torch.Tensor]:
    """A tensor under another name."""
    name = _any(tensors, rng)
    new = rng.choice((name.upper(), f"{name}.", name[:-1], f"unet/{name}", "x" * 5000))
    return {(new if key == name else key): tensor for key, tensor in tensors.items()}


TENSORS: tuple[TensorMutation, ...] = (
    transpose,
    shrink,
    widen,
    swap,
    retype,
    poison,
    remove,
    empty,
    stray,
    rename,
)


# JSON


VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    10**400,
    float("inf"),
    float("nan"),
    "",
    "five",
    "../../../etc/passwd",
    "\x00",
    "x" * 100_000,
    [],
    {},
    [[[[]]]],
    {"a": 1},
    [1, 2],
)


def _places(config: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON document, by its keys."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from _places(value, (*path, key))


def _parent(config: Any, path: tuple[Any, ...]) -> Any:
    for key in path[:-1]:
        config = config[key]
    return config


def replace_value(config: dict[str, Any], rng: random.Random) -> Any:
    """Any value, at any depth, replaced by one of `VALUES`."""
    path = rng.choice(list(_places(config)))
    _parent(config, path)[path[-1]] = rng.choice(VALUES)
    return config


def remove_value(config: dict[str, Any], rng: random.Random) -> Any:
    """Any value taken out."""
    path = rng.choice(list(_places(config)))
    del _parent(config, path)[path[-1]]
    return config


def stray_value(config: dict[str, Any], rng: random.Random) -> Any:
    """A name nobody knows, in any section."""
    sections = [config, *(value for value in config.values() if isinstance(value, dict))]
    rng.choice(sections)[rng.choice(("stepz", "__class__", "", "x" * 10_000))] = rng.choice(VALUES)
    return config


def other_document(config: dict[str, Any], rng: random.Random) -> Any:
    """Valid JSON that is no config."""
    return rng.choice(VALUES)


def nest(config: dict[str, Any], rng: random.Random) -> Any:
    """Brackets a thousand deep in place of a value; deeper ones come as text in `nested_text`."""
    value: Any = []
    for _ in range(400):
        value = [value]
    config[rng.choice(sorted(config))] = value
    return config


JSON: tuple[JsonMutation, ...] = (
    replace_value,
    replace_value,
    replace_value,
    remove_value,
    stray_value,
    other_document,
    nest,
)


def nested_text(data: bytes, rng: random.Random) -> bytes:
    """JSON nested deeper than a parser's stack."""
    return b'{"kind":' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def huge_text(data: bytes, rng: random.Random) -> bytes:
    """A config of eight megabytes."""
    return data[:-2] + b" " * 2**23 + b"}"


def huge_number(data: bytes, rng: random.Random) -> bytes:
    """A number of a hundred thousand digits."""
    return b'{"format_version": ' + b"9" * 100_000 + b", " + data[1:]


TEXT: tuple[FileMutation, ...] = (nested_text, huge_text, huge_number)


# Trying


@dataclass
class Tally:
    """What became of the files of one kind."""

    loaded: int = 0
    refused: int = 0
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0  # seconds
    by_damage: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, damage: str, problem: str | None, *, refused: bool, seconds: float) -> None:
        outcome = "failed" if problem else "refused" if refused else "loaded"
        self.by_damage.setdefault(damage, Counter())[outcome] += 1
        self.slowest = max(self.slowest, seconds)
        if problem:
            self.failures.append(f"{damage}: {problem}")
        else:
            self.refused += refused
            self.loaded += not refused

    def to_dict(self) -> dict[str, Any]:
        return {
            "files": self.loaded + self.refused + len(self.failures),
            "loaded": self.loaded,
            "refused": self.refused,
            "failed": len(self.failures),
            "failures": self.failures[:20],
            "slowest_seconds": round(self.slowest, 2),
            "by_damage": {damage: dict(counts) for damage, counts in sorted(self.by_damage.items())},
        }


def attempt(tally: Tally, damage: str, read: Callable[[], None]) -> None:
    """Count one reading: right, refused in one sentence, or a failure."""
    began = time.perf_counter()
    problem, refused = None, False
    try:
        read()
    except E4TError as error:
        refused, sentence = True, str(error)
        if "\n" in sentence or not 0 < len(sentence) <= LONGEST_SENTENCE:
            problem = f"refused, but not in one sentence: {sentence[:200]!r}"
    except Exception as error:  # whatever else a file leads to is what is looked for
        problem = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.perf_counter() - began
    if _sprung:
        problem = "a pickle was opened"
    if problem is None and seconds > MOST_SECONDS:
        problem = f"took {seconds:.1f} s"
    tally.add(damage, problem, refused=refused, seconds=seconds)


@dataclass(frozen=True)
class Damage:
    """One way to damage a folder."""

    name: str
    apply: Callable[[Path, random.Random], None]


def _weights(folder: Path) -> Path:
    """The folder's safetensors file, called after what the folder is."""
    return next(folder.glob("*.safetensors"))


def _config(folder: Path) -> Path:
    return folder / CONFIG


def _of_bytes(mutate: FileMutation, place: Place) -> Damage:
    def apply(folder: Path, rng: random.Random) -> None:
        file = place(folder)
        file.write_bytes(mutate(file.read_bytes(), rng))

    return Damage(f"{mutate.__name__} in {_NAMES[place]}", apply)


def _of_tensors(mutate: TensorMutation) -> Damage:
    def apply(folder: Path, rng: random.Random) -> None:
        save_file(mutate(load_file(_weights(folder)), rng), _weights(folder))

    return Damage(f"{mutate.__name__} of tensors", apply)


def _of_json(mutate: JsonMutation) -> Damage:
    def apply(folder: Path, rng: random.Random) -> None:
        config = mutate(json.loads((folder / CONFIG).read_text()), rng)
        (folder / CONFIG).write_text(json.dumps(config))

    return Damage(f"{mutate.__name__} in {CONFIG}", apply)


def _missing(place: Place) -> Damage:
    return Damage(f"{_NAMES[place]} missing", lambda folder, rng: place(folder).unlink())


def _folder_instead(place: Place) -> Damage:
    def apply(folder: Path, rng: random.Random) -> None:
        file = place(folder)
        file.unlink()
        file.mkdir()

    return Damage(f"a folder instead of {_NAMES[place]}", apply)


_NAMES: dict[Place, str] = {_weights: "the weights", _config: CONFIG}


DAMAGES: tuple[Damage, ...] = (
    *(_of_bytes(mutate, _weights) for mutate in (*BYTES, *HEADER)),
    *(_of_bytes(mutate, _config) for mutate in (*BYTES, *TEXT)),
    *map(_of_tensors, TENSORS),
    *map(_of_json, JSON),
    *map(_missing, _NAMES),
    *map(_folder_instead, _NAMES),
)


def unseal(folder: Path) -> None:
    """Take the hash of the weights out of a folder's config, so that damage to them is not caught by it."""
    config = json.loads((folder / CONFIG).read_text())
    config.pop(SEAL, None)
    (folder / CONFIG).write_text(json.dumps(config))


def examine_folder(folder: Path, read: Callable[[Path], None], intact: Callable[[], bool], count: int) -> Tally:
    """``count`` damaged copies of ``folder``: every damage in turn, every other time without the weights' hash."""
    tally = Tally()
    for number in range(count):
        rng = random.Random(number)
        damage = DAMAGES[number % len(DAMAGES)]
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(shutil.copytree(folder, Path(scratch) / "copy"))
            if (number // len(DAMAGES)) % 2:
                unseal(copy)
            damage.apply(copy, rng)
            attempt(tally, damage.name, partial(_read_carefully, read, copy, intact))
    return tally


def _read_carefully(read: Callable[[Path], None], folder: Path, intact: Callable[[], bool]) -> None:
    """``read`` the folder, and find out whether that left anything behind or changed the model."""
    before = sorted(folder.parent.rglob("*"))
    try:
        read(folder)
    finally:
        if sorted(folder.parent.rglob("*")) != before:
            raise AssertionError("files were left behind")
        if not intact():
            raise AssertionError("the model is not what it was before")


def _as_written(tensors: Mapping[str, torch.Tensor], folder: Path) -> None:
    stored = load_file(_weights(folder))
    if stored.keys() != tensors.keys() or any(not torch.equal(tensors[n], t.float()) for n, t in stored.items()):
        raise AssertionError("the tensors in memory are not those of the file")


def concept_reader(pipe: E4TPipeline) -> Callable[[Path], None]:
    """Loads a concept, tunes it again if it is kept as a replay, and puts it on the model."""

    def read(folder: Path) -> None:
        concept = Concept.load(folder)
        with pipe.model.wearing(pipe.ready(concept)):
            _as_written(concept.tensors, folder)

    return read


def domain_reader(pipe: E4TPipeline) -> Callable[[Path], None]:
    """Loads a domain and puts its offsets on the model."""

    def read(folder: Path) -> None:
        trained = TrainedDomain.load(folder)
        with E4TModel.from_domain(pipe.backbone, trained).offsets.fused():
            _as_written(trained.tensors, folder)

    return read


def watch(pipe: E4TPipeline) -> Callable[[], bool]:
    """Whether U-Net, text encoder and encoder are, tensor by tensor, what they were at the time of this call."""

    def state() -> dict[str, torch.Tensor]:
        parts = {"unet": pipe.backbone.unet, "text": pipe.backbone.text_encoder, "encoder": pipe.model.encoder}
        return {f"{part}.{name}": t for part, module in parts.items() for name, t in module.state_dict().items()}

    kept = {name: tensor.clone() for name, tensor in state().items()}

    def intact() -> bool:
        now = state()
        return kept.keys() == now.keys() and all(torch.equal(kept[name], tensor) for name, tensor in now.items())

    return intact


PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


def examine_pictures(count: int) -> Tally:
    """``count`` damaged pictures of every common format."""
    values = np.random.default_rng(0).integers(0, 255, (48, 40, 3), dtype=np.uint8)
    whole = {}
    for name in PICTURE_FORMATS:
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, name)
        whole[name] = buffer.getvalue()
    mutations = (*BYTES, bomb, misnamed)
    tally = Tally()
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(count):
            rng = random.Random(number)
            mutate = mutations[number % len(mutations)]
            name = PICTURE_FORMATS[number // len(mutations) % len(PICTURE_FORMATS)]
            file = Path(scratch) / f"picture.{name.lower()}"
            file.write_bytes(mutate(whole[name], rng))
            attempt(tally, f"{mutate.__name__} in a picture", partial(_read_picture, file))
    return tally


def _read_picture(file: Path) -> None:
    image = load_image(file)
    if image.mode != "RGB" or np.asarray(image).shape != (image.height, image.width, 3):
        raise AssertionError(f"loaded as {image.mode} {image.size}")


def bomb(data: bytes, rng: random.Random) -> bytes:
    """A small PNG that claims sides of up to two thousand million pixels."""
    side = rng.choice((0, 1, 20_000, 2**31 - 1))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, rng.choice((0, side, 2**31 - 1)), 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + chunk + data[33:]


def misnamed(data: bytes, rng: random.Random) -> bytes:
    """Other kinds of file: programs of PostScript, vector graphics, an archive, text, nothing."""
    return rng.choice(
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"PK\x03\x04", b"hi", b"")
    )


# All of it


def examine(pipe: E4TPipeline, *, folders: int, pictures: int) -> dict[str, Any]:
    """Examine ``folders`` damaged concepts, as many domains, a quarter as many replays, and ``pictures`` pictures."""
    if pipe.trained is None:
        raise E4TError("the examination needs a pre-trained domain")
    memory = _peak_megabytes()
    intact = watch(pipe)
    side = pipe.backbone.resolution
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (side, side, 3), dtype=np.uint8))
    with tempfile.TemporaryDirectory() as scratch:
        concept = pipe.personalize(picture, steps=1, batch_size=2).save(Path(scratch) / "concept")
        replay = pipe.personalize(picture, steps=1, batch_size=2, keep="replay").save(Path(scratch) / "replay")
        domain = pipe.trained.save(Path(scratch) / "domain", dtype="float16")
        tallies = {
            "concept folders": examine_folder(concept, concept_reader(pipe), intact, folders),
            "replay folders": examine_folder(replay, concept_reader(pipe), intact, folders // 4),
            "domain folders": examine_folder(domain, domain_reader(pipe), intact, folders),
            "pictures": examine_pictures(pictures),
        }
    report = {name: tally.to_dict() for name, tally in tallies.items()}
    return {"kinds": report, "peak_memory_growth_mb": round(_peak_megabytes() - memory)}


def _peak_megabytes() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def page(report: Mapping[str, Any], command: str) -> str:
    """docs/reliability.md, from the report."""
    kinds = report["kinds"]
    total = sum(values["files"] for values in kinds.values())
    failed = sum(values["failed"] for values in kinds.values())
    rows = [
        f"| {name} | {v['files']:,} | {v['loaded']:,} | {v['refused']:,} | {v['failed']:,} | {v['slowest_seconds']} s |"
        for name, v in kinds.items()
    ]
    damages = sorted({damage for values in kinds.values() for damage in values["by_damage"]})
    counts = {d: sum((Counter(v["by_damage"].get(d, {})) for v in kinds.values()), Counter()) for d in damages}
    details = [f"| {d} | {c['loaded']:,} | {c['refused']:,} | {c['failed']:,} |" for d, c in counts.items()]
    lines = "\n".join
    return f"""# Reliability

Files come from strangers. What is read here is safetensors, JSON and pictures; never a pickle. A file is either read as
it was written or refused in one sentence that says what is wrong with it, and after a refusal the model in memory is,
bit for bit, what it was before.

Every folder names the SHA-256 of its weights in `config.json`, as `weights_sha256`, so that any damage to them is
found. Whoever edits weights on purpose takes that line out; what stands behind it (names, shapes, types, no NaN and no
infinity) is checked all the same.

This was tried on {total:,} damaged and forged files; {failed:,} of them did anything else. The peak of memory grew by
{report["peak_memory_growth_mb"]:,} MB, the working of the model itself included.

<!-- not run: thousands of files; tests/test_hostile.py runs some -->
```bash
{command}
```

| | files | read as written | refused | failed | slowest |
|---|---|---|---|---|---|
{lines(rows)}

By kind of damage. What is read as written is damage that leaves a valid file, such as another learning rate in the
record, or noise behind the end of a picture.

| damage | read as written | refused | failed |
|---|---|---|---|
{lines(details)}
"""


@dataclass(frozen=True)
class HostileConfig:
    """What to damage, and where the counts go."""

    domain: tyro.conf.Positional[str]  # folder or shipped name
    output: Path
    page: Path | None = None  # the page for people, in markdown
    folders: int = 1000  # damaged concepts, and as many domains
    pictures: int = 500


def main(config: HostileConfig) -> None:
    """Examine, write the counts, and exit with 1 if there was a failure."""
    pipe = E4TPipeline.from_pretrained(config.domain, device="cpu")
    report = examine(pipe, folders=config.folders, pictures=config.pictures)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    config.output.write_text(json.dumps(report, indent=2) + "\n")
    if config.page is not None:
        config.page.write_text(page(report, f"python -m e4t.evaluation.hostile {' '.join(sys.argv[1:])}"))
    for name, values in report["kinds"].items():
        print(f"{name}: {values['files']} files, {values['failed']} failed", *values["failures"], sep="\n  ")
    if any(values["failed"] for values in report["kinds"].values()):
        sys.exit(1)


if __name__ == "__main__":
    main(tyro.cli(HostileConfig))
