"""The whole job on shipped pictures: each becomes a concept, which is drawn in new scenes and styles.

Writes a page that needs nothing but itself (index.html), the same as one picture (grid.png), and the concepts.
"""

from __future__ import annotations

import base64
import html
import io
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from e4t.errors import CheckpointError, ImageError
from e4t.images import load_image, load_mask, square

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
ART_PROMPTS = (
    "art by S*",
    "a face by S*",
    "a cat by S*",
    "a face at the beach by S*",
    "a cat in the snow by S*",
    "a face wearing sunglasses by S*",
    "a cat in space by S*",
    "a face wearing a crown in a forest by S*",
)
Scores = Mapping[str, Mapping[str, float]]
"""Score to column to value in [0, 1]."""

EXAMPLES = 2
"""How many of the shipped pictures are shown."""


@dataclass(frozen=True)
class Stage:
    """One finished part of the demo."""

    text: str
    seconds: float
    done: int
    total: int
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Person:
    """One input picture and what was drawn of it: one picture per prompt in each list."""

    name: str
    picture: Image.Image
    before: Sequence[Image.Image]
    after: Sequence[Image.Image]
    seconds: float  # of personalizing
    num_bytes: int
    masked: bool  # whether the picture came with a mask of its subject


@dataclass(frozen=True)
class Report:
    """All that the page and the grid show."""

    domain: str
    class_word: str
    steps: int
    prompts: Sequence[str]
    class_only: Sequence[Image.Image]  # the same for everyone
    people: Sequence[Person]
    seconds: Sequence[Stage] = ()
    scores: Scores = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, str, str]:
        return "class word only", "0 steps", f"{self.steps} steps"


def example_pictures(domain: str) -> list[Path]:
    """The shipped pictures of a domain: individuals that nothing here was trained on."""
    folder = Path(str(resources.files("e4t.tiny") / "examples"))
    return sorted(folder.glob(f"{domain}-*.png"))


def demo(
    output: Path,
    *,
    domain: str = "tiny-face",
    pictures: Sequence[Path] = (),
    steps: int | None = None,
    num_inference_steps: int = 25,
    seed: int = 0,
    device: str = "cpu",
) -> Iterator[Stage]:
    """Run the demo into the folder ``output``; yields each stage as it ends. ``steps`` None: as the domain has it."""
    from e4t.pipeline import E4TPipeline

    began = time.perf_counter()
    pipe = E4TPipeline.from_pretrained(domain, device=device)
    kind = pipe.domain
    chosen = list(pictures) or example_pictures(kind.name)[:EXAMPLES]
    if not chosen:
        raise ImageError(f"no example pictures are shipped for the domain '{kind.name}'; give one with --image")
    placed = ART_PROMPTS if kind.name == "art" else tuple(SUBJECT_PROMPTS)
    prompts = [prompt.replace("S*", kind.placeholder) for prompt in placed]
    draw = _Draw(pipe, prompts, num_inference_steps, seed)
    scorer = None if pictures or kind.name == "art" else _scorer(kind.class_word, chosen)
    total = 3 + 3 * len(chosen) + (scorer is not None)
    stages = [Stage("load the model", time.perf_counter() - began, 1, total)]
    yield stages[-1]

    def finished(text: str, since: float) -> Stage:
        stages.append(Stage(text, time.perf_counter() - since, len(stages) + 1, total))
        return stages[-1]

    began = time.perf_counter()
    class_only = draw(None)
    yield finished(f"{len(prompts)} pictures of the bare class word", began)

    people: list[Person] = []
    for path in chosen:
        image, mask = load_image(path), mask_of(path)
        untuned = pipe.personalize(image, steps=0)
        began = time.perf_counter()
        concept = pipe.personalize(image, mask=mask, steps=pipe.personalize_config.steps if steps is None else steps)
        yield finished(f"{path.stem}: {concept.steps} tuning steps", began)
        seconds = stages[-1].seconds
        began = time.perf_counter()
        before = draw(untuned)
        yield finished(f"{path.stem}: {len(prompts)} pictures after 0 steps", began)
        began = time.perf_counter()
        after = draw(concept)
        yield finished(f"{path.stem}: {len(prompts)} pictures after {concept.steps} steps", began)
        saved = concept.with_preview(after[0]).save(output / path.stem)
        people.append(Person(path.stem, image, before, after, seconds, folder_bytes(saved), mask is not None))
        tuned_steps = concept.steps

    began = time.perf_counter()
    report = Report(domain, kind.class_word, tuned_steps, prompts, class_only, people)
    if scorer is not None:
        report = replace(report, scores=scorer(report))
        yield replace(finished("read the pictures with the judge", began), notes=_score_lines(report))
        began = time.perf_counter()
    _write(output, replace(report, seconds=tuple(stages)))
    yield finished("write the page", began)


def mask_of(picture: Path) -> Image.Image | None:
    """The subject mask that is shipped with an example; None for any other picture."""
    path = picture.parent / "truth" / picture.name
    return load_mask(path) if path.exists() else None


def _scorer(class_word: str, pictures: Sequence[Path]) -> Callable[[Report], Scores] | None:
    """What reads the pictures of shipped individuals; None without a judge, or without what draws the world."""
    try:
        from e4t.evaluation.examples import score_examples, truth_of
        from e4t.evaluation.judge import Judge

        judge = Judge.shipped(class_word)
    except ModuleNotFoundError as error:
        if error.name not in ("cv2", "resvg_py"):
            raise
        return None
    except CheckpointError:
        return None
    subjects = [truth_of(path) for path in pictures]

    def scores(report: Report) -> Scores:
        drawn = {
            report.columns[0]: [report.class_only] * len(report.people),
            report.columns[1]: [person.before for person in report.people],
            report.columns[2]: [person.after for person in report.people],
        }
        return score_examples(judge, subjects, list(SUBJECT_PROMPTS.values()), drawn)

    return scores


def _score_lines(report: Report) -> list[str]:
    """The scores as text, a line each."""
    return [
        f"{name}: " + ", ".join(f"{value:.2f} {column}" for column, value in row.items())
        for name, row in report.scores.items()
    ]


class _Draw:
    """Every prompt once, a few at a time; prompt i with seed + i, whatever is drawn."""

    AT_ONCE = 4

    def __init__(self, pipe: E4TPipeline, prompts: Sequence[str], num_inference_steps: int, seed: int) -> None:
        self.pipe, self.prompts, self.num_inference_steps, self.seed = pipe, prompts, num_inference_steps, seed

    def __call__(self, concept: Concept | None) -> list[Image.Image]:
        images: list[Image.Image] = []
        for start in range(0, len(self.prompts), self.AT_ONCE):
            images += self.pipe(
                self.prompts[start : start + self.AT_ONCE],
                concept=concept,
                num_inference_steps=self.num_inference_steps,
                seed=self.seed + start,
                num_images=1,
            ).images
        return images


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def readable_bytes(count: int) -> str:
    """123456 → '123 kB'."""
    if count < 10_000:
        return f"{count / 1000:.1f} kB"
    return f"{count / 1000:.0f} kB" if count < 1_000_000 else f"{count / 1_000_000:.1f} MB"


def _write(output: Path, report: Report) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        grid(report).save(output / "grid.png")
        (output / "index.html").write_text(page(report), encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"'{output}' cannot be written ({error.strerror or error}); choose another place."
        ) from error


# The grid

_INK, _SOFT, _PAPER, _ACCENT = "#1d1b26", "#6f6b7d", "#fbfaf7", "#d9572b"


def grid(report: Report, *, cell: int = 128, gap: int = 6) -> Image.Image:
    """One picture: a band of three rows for each person, a column for each prompt, the input at the left."""
    label, head, margin, between = 104, 58, 20, 26
    columns = len(report.prompts)
    input_side = cell + cell // 2
    left = margin + input_side + 2 * gap
    start = left + label
    band = 3 * (cell + gap) - gap
    width = start + columns * (cell + gap) - gap + margin
    height = margin + head + len(report.people) * (band + between) - between + margin
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(15)
    for column, prompt in enumerate(report.prompts):
        x = start + column * (cell + gap) + cell / 2
        text = "\n".join(textwrap.wrap(prompt, 20)[:3])
        draw.multiline_text((x, margin + head - 8), text, _INK, small, anchor="md", align="center", spacing=2)
    for row, person in enumerate(report.people):
        top = margin + head + row * (band + between)
        sheet.paste(square(person.picture, input_side), (margin, top))
        given = "one picture, its mask" if person.masked else "one picture"
        note = f"{given}\n{report.steps} steps in {person.seconds:.1f} s\n{readable_bytes(person.num_bytes)}"
        draw.multiline_text((margin, top + input_side + 8), note, _SOFT, small, spacing=4)
        for line, images in enumerate((report.class_only, person.before, person.after)):
            y = top + line * (cell + gap)
            last = line == 2
            text = "\n".join(textwrap.wrap(report.columns[line], 10))
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


def page(report: Report) -> str:
    """A page with all pictures inside; it fetches nothing."""
    people = "\n".join(_person(report, person) for person in report.people)
    stages = "\n".join(
        f"<tr><td>{html.escape(stage.text)}</td><td class=n>{stage.seconds:.1f} s</td></tr>" for stage in report.seconds
    )
    together = sum(stage.seconds for stage in report.seconds)
    return f"""<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>One picture becomes a word</title>
<style>{_STYLE}</style>
<body>
<header>
<p class="eyebrow">encoder-based domain tuning · {html.escape(report.domain)}</p>
<h1>One picture becomes a word.</h1>
<p class="lead">Each {html.escape(report.class_word)} below was seen for the first time, in one picture. After
{report.steps} tuning steps the word <b class="word">S*</b> stands for it, and a text prompt can put it into any scene
and style. The three pictures of a prompt have the same seed; none were selected.</p>
<ul class="key">
<li><i></i>{report.columns[0]}: what the model draws for “a {html.escape(report.class_word)}”</li>
<li><i></i>{report.columns[1]}: the encoder's first guess</li>
<li class="tuned"><i></i>{report.columns[2]}: the concept</li>
</ul>
</header>
<main>
{people}
{_scores(report)}
<section class="numbers">
<h2>Time</h2>
<table>{stages}<tr class="sum"><td>together</td><td class=n>{together:.1f} s</td></tr></table>
</section>
</main>
</body>
</html>
"""


def _person(report: Report, person: Person) -> str:
    names = report.columns
    cards = []
    for prompt, *images in zip(report.prompts, report.class_only, person.before, person.after, strict=True):
        figures = "".join(
            f"<figure{' class=tuned' if index == 2 else ''}>"
            f'<img src="{_data_url(image)}" alt="{html.escape(prompt)}, {names[index]}" loading="lazy">'
            f"<figcaption>{names[index]}</figcaption></figure>"
            for index, image in enumerate(images)
        )
        shown = html.escape(prompt).replace("S*", '<b class="word">S*</b>')
        cards.append(f'<article><h3>{shown}</h3><div class="three">{figures}</div></article>')
    return f"""<section class="person">
<aside>
<img src="{_data_url(square(person.picture, 256))}" alt="the input picture {html.escape(person.name)}">
<p><b>The only input{", with a mask" if person.masked else ""}</b><br>{report.steps} steps · {person.seconds:.1f} s<br>
{readable_bytes(person.num_bytes)} on disk</p>
</aside>
<div class="cards">{"".join(cards)}</div>
</section>"""


def _scores(report: Report) -> str:
    if not report.scores:
        return ""
    columns = list(dict.fromkeys(column for row in report.scores.values() for column in row))
    head = "".join(f"<th class=n>{html.escape(column)}</th>" for column in columns)
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td>"
        + "".join(f"<td class=n>{row[c]:.2f}</td>" if c in row else "<td class=n>–</td>" for c in columns)
        + "</tr>"
        for name, row in report.scores.items()
    )
    return f'<section class="numbers"><h2>Scores</h2><table><tr><th></th>{head}</tr>{rows}</table></section>'


def _data_url(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1d1b26; --soft: #6f6b7d; --line: #e7e3da;
  --accent: #d9572b; --tint: #fdeee7; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15141b; --card: #1e1d27; --ink: #f1eff7; --soft: #a19db2; --line: #312f3d; --accent: #ff8a5c;
    --tint: #3a241c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 ui-sans-serif, system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; }
header, main { max-width: 1180px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 64px; padding-bottom: 24px; }
.eyebrow { margin: 0; color: var(--accent); font-size: 13px; letter-spacing: .08em; text-transform: uppercase; }
h1 { margin: 8px 0 12px; font: 700 clamp(34px, 6vw, 58px)/1.08 ui-serif, Georgia, "Times New Roman", serif; }
h2 { margin: 0 0 12px; font: 700 24px/1.2 ui-serif, Georgia, serif; }
h3 { margin: 0 0 10px; font-size: 15px; font-weight: 500; }
.lead { max-width: 64ch; font-size: 18px; }
.word { padding: 1px 6px; border-radius: 6px; background: var(--tint); color: var(--accent); font-weight: 650; }
.key { display: flex; flex-wrap: wrap; gap: 6px 26px; margin: 20px 0 0; padding: 0; list-style: none;
  color: var(--soft); font-size: 14px; }
.key i { display: inline-block; width: 12px; height: 12px; margin-right: 8px; border: 2px solid var(--line);
  border-radius: 4px; vertical-align: -1px; }
.key .tuned i { border-color: var(--accent); }
.person { display: grid; grid-template-columns: 216px 1fr; gap: 32px; padding: 36px 0;
  border-top: 1px solid var(--line); }
aside { position: sticky; top: 24px; align-self: start; color: var(--soft); font-size: 14px; }
aside img { width: 100%; border-radius: 18px; box-shadow: 0 10px 30px rgb(0 0 0 / .16); display: block; }
aside b { color: var(--ink); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 18px; }
article { padding: 14px 16px 12px; border: 1px solid var(--line); border-radius: 16px; background: var(--card); }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 8px; }
figure { margin: 0; text-align: center; }
figure img { display: block; width: 100%; aspect-ratio: 1; border-radius: 10px; }
figure.tuned img { outline: 2px solid var(--accent); outline-offset: 1px; }
figcaption { margin-top: 5px; color: var(--soft); font-size: 12px; }
.tuned figcaption { color: var(--accent); font-weight: 600; }
.numbers { padding: 36px 0 24px; border-top: 1px solid var(--line); }
table { border-collapse: collapse; font-size: 15px; }
td, th { padding: 5px 28px 5px 0; border-bottom: 1px solid var(--line); text-align: left; }
.n { padding-right: 0; padding-left: 24px; text-align: right; font-variant-numeric: tabular-nums; }
.sum td { border-bottom: 0; font-weight: 650; }
@media (max-width: 760px) {
  .person { grid-template-columns: 1fr; gap: 20px; }
  aside { position: static; display: flex; gap: 18px; align-items: center; }
  aside img { width: 132px; }
  .cards { grid-template-columns: 1fr; } }
"""
