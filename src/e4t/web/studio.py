"""The warm models, and what is made with them. Every browser tab has a `Work` of its own; models take turns."""

from __future__ import annotations

import errno
import queue
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from e4t.checkpoint import Concept
from e4t.config import PersonalizeConfig
from e4t.errors import ConfigError, E4TError, MismatchError, out_of_memory
from e4t.export import export
from e4t.precision import chosen_precision
from e4t.provenance import picture_notes
from e4t.saved import PREVIEW
from e4t.web.scratch import Scratch
from e4t.web.shelf import Shelf
from e4t.writing import slug

if TYPE_CHECKING:
    from e4t.pipeline import E4TPipeline

MOST_STEPS = 15
MOST_PICTURES = 8
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))  # the disk, or the user's share of it
_UNSAVED = "unsaved"  # the concept of a picture drawn before it has a name
AS_MEASURED = "as measured"
TO_KEEP = (AS_MEASURED, "low-rank", "vectors", "embedding")
"""What to keep of a concept: what the domain was measured with, or as `PersonalizeConfig.keeping` says."""
EXPORTS = ("textual-inversion", "diff", "lora-diffusers", "lora-kohya", "single-file")
"""Formats that are one file; `e4t export` also writes a folder."""


@dataclass(frozen=True)
class Work:
    """One concept in one browser tab: a concept folder for every kept step, in a folder of the tab's own."""

    folder: Path
    domain: str  # as the studio calls it
    name: str | None  # under which it is on the shelf
    placeholder: str
    steps: dict[int, Path]
    best: int  # the domain's own number of steps
    glimpses: dict[int, Path] = field(default_factory=dict)

    def concept(self, step: int) -> Concept:
        return Concept.load(self.steps[self.nearest(step)])

    def nearest(self, step: int) -> int:
        """The kept step next to the one asked for."""
        return min(self.steps, key=lambda kept: (abs(kept - step), kept))

    def discard(self) -> None:
        """Remove the tab's folder; saved concepts lie elsewhere."""
        _remove(self.folder)


@dataclass(frozen=True)
class Moment:
    """After one step of tuning. ``work`` comes with the last one."""

    number: int
    total: int
    glimpse: Path
    loss: float | None
    seconds_left: float
    work: Work | None = None


class Studio:
    """``load`` gives the pipeline of a domain's name; each is loaded once and stays."""

    def __init__(self, domains: Sequence[str], shelf: Shelf, load: Callable[[str], E4TPipeline]) -> None:
        if not domains:
            raise ConfigError("the page needs at least one domain")
        self.domains = tuple(domains)
        self.shelf = shelf
        self._load = load
        self._pipes: dict[str, E4TPipeline] = {}
        self._turn = threading.Lock()  # of whoever changes or uses the models' weights
        self._loading = threading.Lock()
        self._keeping = threading.Lock()  # of whoever puts something on the shelf
        self._scratch = Scratch()

    def pipe(self, domain: str) -> E4TPipeline:
        if domain not in self.domains:
            raise ConfigError(f"the page has no domain {domain[:60]!r}; choose one of the list")
        if domain in self._pipes:  # nobody waits for another domain to be loaded
            return self._pipes[domain]
        with self._loading:
            if domain not in self._pipes:
                with self._turn:  # loading changes things that drawing depends on
                    self._pipes[domain] = self._load(domain)
            return self._pipes[domain]

    @property
    def uploads(self) -> Path:
        """A folder for what browsers send; it goes when the studio is closed."""
        return self._scratch.uploads

    def close(self) -> None:
        """Remove everything temporary. Threads that are still at work write nothing any more."""
        self._scratch.close()

    # Personalizing

    def personalize(
        self,
        domain: str,
        picture: Image.Image,
        mask: Image.Image | None = None,
        *,
        keep: str = AS_MEASURED,
        caption: str = "",
        seed: int = 0,
    ) -> Iterator[Moment]:
        """Tune `MOST_STEPS` steps and keep all of them; yields every one.

        ``keep`` is one of `TO_KEEP`, ``caption`` is `PersonalizeConfig`'s.

        The work is done by a thread of its own: where nobody listens any more, as when a tab is closed half way, it
        ends after the step it is at, leaves the models as they were, and nothing of it is kept.
        """
        folder = self._scratch.new_folder()
        moments = self._moments(folder, domain, picture, mask, keep, {"caption": caption, "seed": seed})
        yield from _by_a_thread(moments, forget=partial(_remove, folder))

    def _moments(
        self,
        folder: Path,
        domain: str,
        picture: Image.Image,
        mask: Image.Image | None,
        keep: str,
        settings: dict[str, Any],
    ) -> Generator[Moment, None, None]:
        pipe = self.pipe(domain)
        config = _config(pipe, keep).updated(settings)
        steps: dict[int, Path] = {}
        glimpses: dict[int, Path] = {}
        prompt = pipe.domain.prompts[0]
        best = min(config.steps, MOST_STEPS)
        with (
            self._turn,
            closing(
                pipe.personalize_steps(
                    picture, mask=mask, config=config, steps=MOST_STEPS, keep_steps=True, unload=False, memory=None
                )  # nothing unloaded: glimpses need all of it
            ) as run,
        ):  # closed before the turn ends: until then the models are not as they were
            began = time.perf_counter()
            for step in run:
                glimpse = pipe.glimpse(step.kept, prompt)
                glimpses[step.number] = folder / f"glimpse-{step.number:02d}.png"
                with self._scratch.writing():
                    steps[step.number] = step.kept.with_preview(glimpse).save(folder / f"step-{step.number:02d}")
                    glimpse.save(glimpses[step.number])
                last = step.number == step.total_steps
                work = Work(folder, domain, None, pipe.domain.placeholder, steps, best, glimpses) if last else None
                left = (time.perf_counter() - began) / (step.number + 1) * (step.total_steps - step.number)
                loss = step.training.loss if step.training else None
                yield Moment(step.number, step.total_steps, glimpses[step.number], loss, left, work)

    # Drawing

    def draw(
        self,
        work: Work,
        step: int | None,
        prompt: str,
        *,
        negative_prompt: str = "",
        num_images: int = 1,
        **settings: Any,
    ) -> list[Path]:
        """PNG files that say how they were made. Without ``step``, what the domain draws for the bare class word.

        ``settings`` are of `GenerateConfig`, on top of the domain's. Raises ConfigError for more pictures than the page
        draws at a time.
        """
        if not 1 <= num_images <= MOST_PICTURES:
            raise ConfigError(f"{num_images} pictures were asked for; the page draws 1 to {MOST_PICTURES}")
        pipe = self.pipe(work.domain)
        config = pipe.generate_config.updated({"num_images": num_images, **settings})
        concept = work.concept(step) if step is not None else None
        negative = negative_prompt.strip() or None
        with self._turn:
            drawn = pipe(prompt, concept=concept, negative_prompt=negative, config=config)
        folder = self._scratch.new_folder(work.folder)
        paths = []
        stem = slug(prompt) or "picture"
        for image, seed, made in zip(drawn.images, drawn.seeds, drawn.made, strict=True):
            paths.append(folder / f"{stem}-{seed}{'' if concept else '-without'}.png")
            notes = picture_notes({**made, "concept": (work.name or _UNSAVED) if concept else None})
            with self._scratch.writing():
                image.save(paths[-1], pnginfo=notes)
        return paths

    # Keeping

    def save(self, work: Work, step: int, name: str) -> str:
        """Put the concept of a step on the shelf; the name it has there."""
        concept, trained = work.concept(step), self.pipe(work.domain).trained
        with self._keeping:
            place = self.shelf.place(name)
            concept.save(place)
            if trained is not None:
                self.shelf.remember(place, work.domain)
        return place.name

    def reopen(self, name: str) -> Work:
        """A saved concept, copied, so that deleting it elsewhere takes nothing away from this tab."""
        concept = Concept.load(self.shelf.path(name))
        domain = self._domain_of(concept)
        folder = self._scratch.new_folder()
        with self._scratch.writing():
            step = concept.save(folder / f"step-{concept.steps:02d}")
        placeholder = concept.domain.placeholder
        return Work(folder, domain, name, placeholder, {concept.steps: step}, concept.steps, _preview(step, concept))

    def _domain_of(self, concept: Concept) -> str:
        """Loads domains in turn until one is the concept's."""
        for domain in sorted(self.domains, key=lambda name: name not in self._pipes):
            try:
                self.pipe(domain).model.check(concept)
            except MismatchError:
                continue
            return domain
        if concept.domain_id is None:
            raise MismatchError("the concept was made without a pre-trained domain; draw it with 'e4t generate'")
        raise MismatchError(
            f"the concept belongs to the domain '{concept.domain.name}' ({concept.domain_id}), which this page does "
            "not have; start it with e4t web --domain FOLDER"
        )

    def export(self, work: Work, step: int, to: str, name: str = "") -> tuple[list[Path], list[str]]:
        """Files for other programs, or ("concept") the folder as a zip; and what there is to say about them.

        Programs call the word as its file is called: as the concept, or before it is saved, as ``name`` says.
        """
        concept = work.concept(step)
        stem = work.name or slug(name) or f"my-{slug(concept.domain.name)}"
        place = self._scratch.new_folder(work.folder)
        if to == "concept":
            folder = work.steps[work.nearest(step)]
            with self._scratch.writing():
                return [Path(shutil.make_archive(str(place / stem), "zip", folder))], []
        if to not in EXPORTS:
            raise ConfigError(f"the page does not export to {to[:40]!r}; it can {', '.join(('concept', *EXPORTS))}")
        pipe = self.pipe(work.domain)
        with self._turn, self._scratch.filling(), _advised(to):
            report = export(pipe, concept, place / f"{stem}.safetensors", to=to)
        notes = [f"keeps {report.kept:.0%} of the concept"] if report.kept is not None else []
        return sorted(path for path in place.rglob("*") if path.is_file()), [*notes, *report.notes]


def _config(pipe: E4TPipeline, keep: str) -> PersonalizeConfig:
    """Raises ConfigError for a ``keep`` that is none of `TO_KEEP`."""
    if keep not in TO_KEEP:
        raise ConfigError(f"the page keeps nothing called {keep[:40]!r} of a concept; it can {', '.join(TO_KEEP)}")
    config = pipe.personalize_config
    chosen = chosen_precision(pipe.backbone.device, pipe.backbone.dtype, measured=config.mixed_precision)
    changes = {"mixed_precision": chosen}
    return config.updated(changes if keep == AS_MEASURED else {**changes, "keep": keep})


@contextmanager
def _advised(to: str) -> Iterator[None]:
    """A LoRA that would lose too much is refused with what can be done about it on the page."""
    try:
        yield
    except ConfigError as error:
        if not to.startswith("lora-"):
            raise
        advice = "choose 'low-rank' under 'What to keep' and press Personalize, or export to 'single-file'"
        raise ConfigError(f"{error}; on this page, {advice}") from error


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _preview(step: Path, concept: Concept) -> dict[int, Path]:
    return {concept.steps: step / PREVIEW} if concept.preview else {}


def _by_a_thread(moments: Generator[Moment, None, None], forget: Callable[[], None]) -> Iterator[Moment]:
    """The same, worked off by a thread; ``forget`` is called after it where it failed, or nobody went on listening."""
    said: queue.SimpleQueue[Moment | BaseException | None] = queue.SimpleQueue()
    left, ended = threading.Event(), threading.Event()

    def work() -> None:
        try:
            for moment in moments:
                said.put(moment)
                if left.is_set():
                    break
            said.put(None)
        except BaseException as error:  # handed over to whoever listens
            said.put(error)
        moments.close()  # takes off what was put onto the models
        ended.set()
        if left.is_set():
            forget()

    threading.Thread(target=work, daemon=True).start()
    try:
        while (moment := said.get()) is not None:
            if isinstance(moment, BaseException):
                raise moment
            yield moment
    except BaseException:
        left.set()
        if ended.is_set():  # else the thread sees that nobody is left; both may, and forgetting twice does no harm
            forget()
        raise


def explanation(error: Exception, *, learning: bool = False) -> str | None:
    """What to tell the user, if they can put it right; None for a fault of ours. ``learning``: not while drawing."""
    if isinstance(error, E4TError):
        return str(error)
    if out_of_memory(error):
        advice = "close other programs, or use 'e4t personalize --memory auto' and reopen the concept here"
        return f"the device ran out of memory; {advice if learning else 'draw fewer pictures at a time'}"
    if isinstance(error, OSError):
        if error.errno in _FULL:
            return "the disk is full; make room and try again"
        name = f" '{error.filename}'" if error.filename else ""
        return f"a file{name} could not be read or written ({error.strerror or error})"
    return None


def random_seed() -> int:
    import secrets

    return secrets.randbelow(2**31)
