"""The whole job on shipped pictures: each becomes a concept, which is drawn in new scenes and styles.

Writes a page that needs nothing but itself (index.html), the same as one picture (grid.png), and the concepts.
"""

from __future__ import annotations

import html
import io
import itertools
import textwrap
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from e4t.errors import CheckpointError, ImageError
from e4t.images import data_url, load_image, load_mask, square
from e4t.pictures import caption_beside
from e4t.shipped import example_pictures as example_pictures
from e4t.writing import new_files

if TYPE_CHECKING:
    from e4t.checkpoint import Concept
    from e4t.pipeline import E4TPipeline

SUBJECT_PROMPTS: dict[str, dict[str, str]] = {
    "a photo of S*": {"style": "photo"},
    "a photo of S* at the beach": {"style": "photo", "scene": "beach"},
    "a photo of S* wearing sunglasses": {"style": "photo", "accessory": "sunglasses"},
    "a pencil sketch of S*": {"style": "pencil sketch"},
    "a watercolour of S* in the snow": {"style": "watercolour", "scene": "snow"},
    "pixel art of S* in space": {"style": "pixel art", "scene": "space"},
    "a snow globe with S*": {"transform": "snow globe"},
    "a stained glass window of S* wearing a crown": {"transform": "stained glass window", "accessory": "crown"},
}
"""Scene, accessory, style, two combinations of style and scene, two transforms, one of them with an accessory; and what
a judge should find in each picture."""
ART_PROMPTS: dict[str, dict[str, str]] = {
    "a face in the style of S*": {"subject": "face"},
    "a cat in the style of S*": {"subject": "cat"},
    "a face at the beach in the style of S*": {"subject": "face", "scene": "beach"},
    "a cat in the snow in the style of S*": {"subject": "cat", "scene": "snow"},
    "a face wearing sunglasses in the style of S*": {"subject": "face", "accessory": "sunglasses"},
    "a cat in space in the style of S*": {"subject": "cat", "scene": "space"},
    "a face wearing a crown in a forest in the style of S*": {
        "subject": "face",
        "accessory": "crown",
        "scene": "forest",
    },
    "a cat in a library in the style of S*": {"subject": "cat", "scene": "library"},
}
Scores = Mapping[str, Mapping[str, float]]
"""Score to column to value in [0, 1]."""

DOMAINS = ("tiny-face", "tiny-cat", "tiny-art")
_AT_ONCE = 4  # pictures
_PAGE = Path(__file__).with_suffix(".html")


@dataclass(frozen=True)
class Stage:
    """One finished part of the demo."""

    text: str
    seconds: float
    done: int
    total: int
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Shown:
    """One input picture and what was drawn of it: one picture per prompt in each list."""

    name: str
    picture: Image.Image
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]
    seconds: float  # of personalizing
    num_bytes: int
    masked: bool  # whether the picture came with a mask of its subject
    caption: str | None  # what was said of the picture


@dataclass(frozen=True)
class Gallery:
    """All that is shown of one domain."""

    domain: str
    class_word: str
    steps: int
    prompts: Sequence[str]
    class_only: Sequence[Image.Image]  # the same for every concept
    concepts: Sequence[Shown]
    scores: Scores = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, str, str]:
        return "class word only", "0 steps", f"{self.steps} steps"


@dataclass
class _Run:
    """A run of ``total`` stages, each timed from the end of the one before."""

    output: Path
    total: int
    num_inference_steps: int
    seed: int
    device: str
    stages: list[Stage] = field(default_factory=list)
    folders: set[Path] = field(default_factory=set)  # of concepts
    began: float = field(default_factory=time.perf_counter)

    def stage(self, text: str, notes: Sequence[str] = ()) -> Stage:
        now = time.perf_counter()
        self.stages.append(Stage(text, now - self.began, len(self.stages) + 1, self.total, notes))
        self.began = now
        return self.stages[-1]

    def draw(self, pipe: E4TPipeline, prompts: Sequence[str], concept: Concept | None) -> list[Image.Image]:
        """Every prompt once, a few at a time; prompt i with seed + i, whatever is drawn."""
        images: list[Image.Image] = []
        for start in range(0, len(prompts), _AT_ONCE):
            images += pipe(
                prompts[start : start + _AT_ONCE],
                concept=concept,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed + start,
                num_images=1,
            ).images
        return images

    def folder(self, domain: str, picture: Path) -> Path:
        """("tiny-face", "photos/anna.png") → "tiny-face-anna", with -2, -3, … where that is taken in this run."""
        first = self.output / f"{Path(domain).resolve().name}-{picture.stem}"
        others = (first.with_name(f"{first.name}-{number}") for number in itertools.count(2))
        place = next(path for path in itertools.chain([first], others) if path not in self.folders)
        self.folders.add(place)
        return place


def demo(
    output: Path,
    *,
    domains: Sequence[str] = DOMAINS,
    pictures: Sequence[Path] = (),
    steps: int | None = None,
    num_inference_steps: int = 25,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[Stage]:
    """Run the demo into the folder ``output``; yields each stage as it ends.

    Every domain shows the first of its shipped pictures, or all of ``pictures``. ``steps`` None: as each domain has it.
    Concepts are in folders named after domain and picture ("tiny-face-anna").
    """
    run = _Run(output, len(domains) * (3 + 3 * max(1, len(pictures))) + 1, num_inference_steps, seed, device)
    galleries = []
    for domain in domains:
        galleries.append((yield from _show(run, domain, pictures, {} if steps is None else {"steps": steps})))
    _write(output, galleries, run.stages)
    yield run.stage("write the page")


def _show(
    run: _Run, domain: str, pictures: Sequence[Path], overrides: Mapping[str, Any]
) -> Generator[Stage, None, Gallery]:
    """The stages of one domain, and at their end what there is to show of it."""
    from e4t.pipeline import E4TPipeline

    pipe = E4TPipeline.from_pretrained(domain, device=run.device)
    kind = pipe.domain
    chosen = list(pictures) or example_pictures(kind.class_word)[:1]
    if not chosen:
        raise ImageError(f"no example pictures are shipped of a {kind.class_word}; give one with --image")
    prompts = [prompt.replace("S*", kind.placeholder) for prompt in prompts_of(kind.class_word)]
    yield run.stage(f"{domain}: load the model")
    class_only = run.draw(pipe, prompts, None)
    yield run.stage(f"{domain}: {len(prompts)} pictures of the bare class word")
    concepts: list[Shown] = []
    for path in chosen:
        image, mask, said = load_image(path), mask_of(path), caption_of(path)
        caption = said.replace("S*", kind.placeholder) if said is not None else None
        untuned = pipe.personalize(image, steps=0)
        tuned = pipe.personalize(image, mask=mask, caption=caption, **overrides)
        stage = run.stage(f"{path.stem}: {tuned.steps} tuning steps")
        yield stage
        before = run.draw(pipe, prompts, untuned)
        yield run.stage(f"{path.stem}: {len(prompts)} pictures after 0 steps")
        after = run.draw(pipe, prompts, tuned)
        saved = tuned.with_preview(after[0]).save(run.folder(domain, path))
        yield run.stage(f"{path.stem}: {len(prompts)} pictures after {tuned.steps} steps")
        concepts.append(
            Shown(path.stem, image, before, after, stage.seconds, folder_bytes(saved), mask is not None, caption)
        )
    gallery = Gallery(domain, kind.class_word, tuned.steps, prompts, class_only, concepts)
    gallery = replace(gallery, scores={} if pictures else _scores_of(gallery, chosen))
    yield run.stage(f"{domain}: read the pictures with the judge", _score_lines(gallery))
    return gallery


def prompts_of(kind: str) -> dict[str, dict[str, str]]:
    """What is drawn of a kind of concept, and what a judge should find in each picture."""
    return ART_PROMPTS if kind == "art" else SUBJECT_PROMPTS


def mask_of(picture: Path) -> Image.Image | None:
    """The subject mask that is shipped with an example; None for any other picture."""
    path = picture.parent / "truth" / picture.name
    return load_mask(path) if path.exists() else None


def caption_of(picture: Path) -> str | None:
    """What a picture shows beside its style, "a cat in the rain in the style of S*", where that lies by its truth."""
    return caption_beside(picture.parent / "truth" / picture.name)


def _scores_of(gallery: Gallery, pictures: Sequence[Path]) -> Scores:
    """What a judge says of shipped examples; nothing without a judge, or without what draws the world."""
    try:
        from e4t.evaluation.examples import score_examples, truth_of
        from e4t.evaluation.judge import Judge

        judge = Judge.of(gallery.class_word)
    except ModuleNotFoundError as error:
        if error.name not in ("cv2", "resvg_py"):
            raise
        return {}
    except CheckpointError:
        return {}
    drawn = {
        gallery.columns[0]: [gallery.class_only] * len(gallery.concepts),
        gallery.columns[1]: [concept.before for concept in gallery.concepts],
        gallery.columns[2]: [concept.after for concept in gallery.concepts],
    }
    prompts = list(prompts_of(gallery.class_word).values())
    return score_examples(judge, [truth_of(path) for path in pictures], prompts, drawn)


def _score_lines(gallery: Gallery) -> list[str]:
    """The scores as text, a line each."""
    return [
        f"{name}: " + ", ".join(f"{value:.2f} {column}" for column, value in row.items())
        for name, row in gallery.scores.items()
    ]


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable_bytes(count: int) -> str:
    """123456 → '123 kB'."""
    if count < 10_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def _write(output: Path, galleries: Sequence[Gallery], stages: Sequence[Stage]) -> None:
    with new_files([output / "grid.png", output / "index.html"]) as (picture, text):
        grid(galleries).save(picture, "PNG")
        text.write_text(page(galleries, stages), encoding="utf-8")


# The grid

_INK, _SOFT, _PAPER, _ACCENT = "#1d1b26", "#6f6b7d", "#fbfaf7", "#d9572b"


def grid(galleries: Sequence[Gallery]) -> Image.Image:
    """One picture: the sheets of all domains, one below the other."""
    sheets = [_sheet(gallery) for gallery in galleries]
    together = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), _PAPER)
    top = 0
    for sheet in sheets:
        together.paste(sheet, (0, top))
        top += sheet.height
    return together


def _sheet(gallery: Gallery) -> Image.Image:
    """One domain: a band of three rows for each concept, a column for each prompt, the input at the left."""
    cell, gap, label, head, margin, between = 128, 6, 104, 58, 20, 26
    columns = len(gallery.prompts)
    input_side = cell + cell // 2
    left = margin + input_side + 2 * gap
    start = left + label
    band = 3 * (cell + gap) - gap
    width = start + columns * (cell + gap) - gap + margin
    height = margin + head + len(gallery.concepts) * (band + between) - between + margin
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    for column, prompt in enumerate(gallery.prompts):
        x = start + column * (cell + gap) + cell / 2
        text = "\n".join(textwrap.wrap(prompt, 20)[:4])
        draw.multiline_text((x, margin + head - 8), text, _INK, small, anchor="md", align="center", spacing=2)
    for row, concept in enumerate(gallery.concepts):
        top = margin + head + row * (band + between)
        sheet.paste(square(concept.picture, input_side), (margin, top))
        given = ", its ".join(["one picture"] + ["mask"] * concept.masked + ["caption"] * (concept.caption is not None))
        note = f"{given}\n{gallery.steps} steps in {concept.seconds:.1f} s\n{readable_bytes(concept.num_bytes)}"
        draw.multiline_text((margin, top + input_side + 8), note, _SOFT, small, spacing=4)
        for line, images in enumerate((gallery.class_only, concept.before, concept.after)):
            y = top + line * (cell + gap)
            last = line == 2
            text = "\n".join(textwrap.wrap(gallery.columns[line], 10))
            draw.multiline_text(
                (start - 10, y + cell / 2),
                text,
                _ACCENT if last else _SOFT,
                bold if last else small,
                anchor="rm",
                align="right",
            )
            for column, image in enumerate(images):
                sheet.paste(square(image, cell), (start + column * (cell + gap), y))
    return sheet


# The page


def page(galleries: Sequence[Gallery], stages: Sequence[Stage]) -> str:
    """A page with all pictures inside; it fetches nothing."""
    domains = "\n".join(_domain(gallery) for gallery in galleries)
    words = _listed([f"a {gallery.class_word}" if gallery.class_word != "art" else "a style" for gallery in galleries])
    times = "\n".join(
        f"<tr><td>{html.escape(stage.text)}</td><td class=n>{stage.seconds:.1f} s</td></tr>" for stage in stages
    )
    first, second, last = galleries[0].columns
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(
        style=_PAGE.with_suffix(".css").read_text(encoding="utf-8"),
        names=html.escape(", ".join(gallery.domain for gallery in galleries)),
        words=html.escape(words).capitalize(),
        first=first,
        second=second,
        last=last,
        domains=domains,
        times=times,
        together=f"{sum(stage.seconds for stage in stages):.1f}",
    )


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _domain(gallery: Gallery) -> str:
    return "\n".join([*(_concept(gallery, concept) for concept in gallery.concepts), _scores(gallery)])


def _concept(gallery: Gallery, concept: Shown) -> str:
    names = gallery.columns
    cards = []
    for prompt, *images in zip(gallery.prompts, gallery.class_only, concept.before, concept.after, strict=True):
        figures = "".join(
            f"<figure{' class=tuned' if index == 2 else ''}>"
            f'<img src="{_png(image)}" alt="{html.escape(prompt)}, {names[index]}" loading="lazy">'
            f"<figcaption>{names[index]}</figcaption></figure>"
            for index, image in enumerate(images)
        )
        shown = html.escape(prompt).replace("S*", '<b class="word">S*</b>')
        cards.append(f'<article><h3>{shown}</h3><div class="three">{figures}</div></article>')
    said = f"<q>{html.escape(concept.caption)}</q><br>" if concept.caption is not None else ""
    return f"""<section class="concept">
<aside>
<img src="{_png(square(concept.picture, 256))}" alt="the input picture {html.escape(concept.name)}">
<p><b>The only input{", with a mask" if concept.masked else ""}</b><br>{said}
{gallery.steps} steps · {concept.seconds:.1f} s<br>
{readable_bytes(concept.num_bytes)} on disk</p>
</aside>
<div class="cards">{"".join(cards)}</div>
</section>"""


def _scores(gallery: Gallery) -> str:
    if not gallery.scores:
        return ""
    columns = list(dict.fromkeys(column for row in gallery.scores.values() for column in row))
    head = "".join(f"<th class=n>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td class=n>{row[c]:.2f}</td>" if c in row else "<td class=n>–</td>" for c in columns)
        + "</tr>"
        for name, row in gallery.scores.items()
    )
    title = f"<h2>Scores of {html.escape(gallery.domain)}</h2>"
    return f'<section class="numbers">{title}<table><tr><th></th>{head}</tr>{rows}</table></section>'


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return data_url(buffer.getvalue(), "png")
