"""The pictures of README and docs/concepts.md, in docs/pictures: at most 60 kB each.

    python docs/scripts/pictures.py            # all of them: minutes on a CPU
    python docs/scripts/pictures.py idea flow  # some

idea.jpg is cut from the contact sheet of the last evaluation, its first people, none selected. dials.jpg is drawn by
tiny-face from the first shipped example. page.png is the web page in a browser, with the second of them; it needs the
extras "web" and "browser" and a Chromium. flow.svg and word.svg are diagrams.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw, ImageFont

DOCS = Path(__file__).parents[1]
PICTURES = DOCS / "pictures"
MAX_BYTES = 60_000
INK, SOFT, PAPER, ACCENT, TINT = "#1d1b26", "#5f5b6d", "#fbfaf7", "#b8431c", "#fbe9df"


# idea.jpg

SHEET = DOCS / "results" / "tiny-face.jpg"
CELL, GAP, AFTER_INPUT = 128, 4, 8  # of the contact sheet, as e4t.evaluation.evaluate pastes it
ASKED = (
    "a photo of S* at the beach",
    "a watercolour of S* in a garden",
    "a photo of a snow globe with S*",
    "a photo of S* wearing a crown in a library",
    "a pencil sketch of S* laughing",
    "an oil painting of S* in the snow",
)


def idea(people: int = 4) -> None:
    """One picture of somebody, and what six prompts make of it."""
    sheet = Image.open(SHEET).convert("RGB")
    head, side, arrow = 62, 118, 76
    width = 24 + side + arrow + len(ASKED) * (side + 6)
    canvas = Image.new("RGB", (width + 12, head + people * (side + 8) + 12), PAPER)
    draw = ImageDraw.Draw(canvas)
    small, large = ImageFont.load_default(13), ImageFont.load_default(17)
    draw.text((18, head - 30), "one picture", INK, large)
    for column, prompt in enumerate(ASKED):
        x = 18 + side + arrow + column * (side + 6) + side / 2
        draw.multiline_text((x, head - 10), wrapped(prompt, 17), INK, small, anchor="md", align="center", spacing=3)
    for person in range(people):
        top = head + person * (side + 8)
        for column in range(1 + len(ASKED)):
            left = GAP + column * (CELL + GAP) + (AFTER_INPUT if column else 0)
            above = GAP + person * (CELL + GAP)
            tile = sheet.crop((left, above, left + CELL, above + CELL)).resize((side, side), Image.Resampling.LANCZOS)
            canvas.paste(tile, (18 + column * (side + 6) + (arrow - 6 if column else 0), top))
        middle, start, end = top + side / 2, 18 + side + 10, 18 + side + arrow - 12
        draw.line((start, middle, end, middle), ACCENT, 3)
        draw.polygon([(end + 4, middle), (end - 6, middle - 6), (end - 6, middle + 6)], ACCENT)
        draw.text(((start + end) / 2, middle - 8), "S*", ACCENT, large, anchor="md")
        draw.text(((start + end) / 2, middle + 8), "5 steps", SOFT, small, anchor="ma")
    save(canvas, "idea.jpg")


# dials.jpg

STEPS = (0, 1, 2, 5, 10, 15)
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.3)
PHOTO, SKETCH = "a photo of S* at the beach", "a pencil sketch of S*"


def dials() -> None:
    """Tuning steps and strength, by the first shipped person: what more of each does."""
    from e4t import E4TPipeline
    from e4t.demo import example_pictures, mask_of

    path = example_pictures("face")[0]
    pipe = E4TPipeline.from_pretrained("tiny-face")
    concept = pipe.personalize(path, mask=mask_of(path), steps=max(STEPS), keep_steps=True)
    tuned = [concept.history[step] for step in STEPS]
    usual = concept.history[pipe.personalize_config.steps]
    rows = [
        ("tuning steps", list(map(str, STEPS)), [pipe(PHOTO, concept=one).images[0] for one in tuned]),
        ("", list(map(str, STEPS)), [pipe(SKETCH, concept=one).images[0] for one in tuned]),
        (
            "strength",
            list(map(str, STRENGTHS)),
            [pipe(SKETCH, concept=usual, strength=strength).images[0] for strength in STRENGTHS],
        ),
    ]
    save(table(Image.open(path).convert("RGB"), rows), "dials.jpg")


Row = tuple[str, Sequence[str], Sequence[Image.Image]]


def table(given: Image.Image, rows: Sequence[Row], *, side: int = 112) -> Image.Image:
    """The input at the left, and beside it rows of pictures with a value over each."""
    left, label, line = 24 + side, 40, side + 24
    canvas = Image.new("RGB", (left + label + 6 * (side + 6) + 12, 12 + len(rows) * line), PAPER)
    draw = ImageDraw.Draw(canvas)
    small, bold = ImageFont.load_default(13), ImageFont.load_default(14)
    canvas.paste(given.resize((side, side), Image.Resampling.LANCZOS), (12, 28))
    draw.text((12, 32 + side), "the one picture", SOFT, small)
    for number, (name, values, pictures) in enumerate(rows):
        top = 8 + number * line
        draw.multiline_text((left + label - 6, top + 24), name.replace(" ", "\n"), ACCENT, bold, "ra", align="right")
        for column, (value, picture) in enumerate(zip(values, pictures, strict=True)):
            x = left + label + column * (side + 6)
            draw.text((x + side / 2, top + 2), value, INK, small, anchor="ma")
            canvas.paste(picture.resize((side, side), Image.Resampling.LANCZOS), (x, top + 20))
    return canvas


# Diagrams


class Diagram:
    """Boxes, arrows and words as an SVG that reads well on light and dark pages."""

    def __init__(self, width: int, height: int, title: str) -> None:
        self.head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
            f'font-family="DejaVu Sans, Helvetica, Arial, sans-serif">\n<title>{escape(title)}</title>\n'
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{SOFT}"/></marker></defs>\n'
            f'<rect width="{width}" height="{height}" rx="10" fill="{PAPER}"/>\n'
        )
        self.parts: list[str] = []

    def text(self, x: float, y: float, words: str, *, size: int = 13, fill: str = INK, anchor: str = "middle") -> None:
        for number, line in enumerate(words.split("\n")):
            self.parts.append(
                f'<text x="{x}" y="{y + number * size * 1.3:.1f}" font-size="{size}" fill="{fill}" '
                f'text-anchor="{anchor}">{escape(line)}</text>'
            )

    def box(self, x: float, y: float, width: float, height: float, words: str, *, learns: bool = False) -> None:
        """A part of the model; those that learn are tinted."""
        colours = f'fill="{TINT}" stroke="{ACCENT}"' if learns else f'fill="#fff" stroke="{SOFT}"'
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" stroke-width="1.4" {colours}/>'
        )
        lines = words.count("\n")
        self.text(x + width / 2, y + height / 2 + 4.5 - lines * 8.4, words)

    def arrow(self, *points: float) -> None:
        """Through x, y, x, y, …"""
        through = " ".join(f"{x},{y}" for x, y in zip(points[::2], points[1::2], strict=True))
        self.parts.append(
            f'<polyline points="{through}" fill="none" stroke="{SOFT}" stroke-width="1.6" marker-end="url(#tip)"/>'
        )

    def write(self, name: str) -> None:
        publish(name, (self.head + "\n".join(self.parts) + "\n</svg>\n").encode())


def flow() -> None:
    """Domain, concept, drawing: what is made of what, and how often."""
    diagram = Diagram(900, 286, "A domain is pre-trained once, a concept takes a few steps, drawing needs both")
    titles = ("once per domain", "once per concept", "for every picture")
    for column, title in enumerate(titles):
        diagram.text(150 + column * 300, 34, title, size=16, fill=ACCENT)
    diagram.box(30, 58, 240, 52, "thousands of pictures\nof faces")
    diagram.box(30, 146, 240, 52, "encoder + weight offsets\nlearn; the base is frozen", learns=True)
    diagram.box(30, 228, 240, 38, "domain: a folder of megabytes")
    diagram.box(330, 58, 240, 52, "one picture of somebody")
    diagram.box(330, 146, 240, 52, "5 to 15 steps\non that picture alone", learns=True)
    diagram.box(330, 228, 240, 38, "concept: only what differs")
    diagram.box(630, 58, 240, 52, "“a pencil sketch of S*\nat the beach”")
    diagram.box(630, 146, 240, 52, "base + domain + concept\nin a stock diffusers pipeline")
    diagram.box(630, 228, 240, 38, "a picture")
    for x in (150, 450, 750):
        diagram.arrow(x, 110, x, 144)
        diagram.arrow(x, 198, x, 226)
    diagram.arrow(270, 247, 300, 247, 300, 172, 328, 172)
    diagram.arrow(570, 247, 600, 247, 600, 172, 628, 172)
    diagram.write("flow.svg")


def word() -> None:
    """How one denoising step gets its word and its weights."""
    diagram = Diagram(900, 330, "At every denoising step the encoder predicts the word that S* stands for")
    diagram.box(24, 40, 150, 50, "the one picture")
    diagram.box(24, 140, 150, 50, "noisy latent z_t\nand its timestep t")
    diagram.box(24, 244, 150, 50, "the prompt\n“… of S* …”")
    diagram.box(224, 40, 150, 50, "CLIP: [CLS] of\nevery 2nd layer")
    diagram.box(224, 140, 150, 50, "U-Net's first half,\nbase weights")
    diagram.box(424, 84, 120, 62, "encoder E", learns=True)
    diagram.box(594, 84, 282, 62, "v* = word of “face” + s · E\nthe embedding that S* has now")
    diagram.box(424, 244, 160, 50, "text encoder")
    diagram.box(634, 244, 242, 50, "U-Net: W ⊙ (1 + Δ) + D\nΔ the domain's, D the concept's", learns=True)
    diagram.arrow(174, 65, 222, 65)
    diagram.arrow(174, 165, 222, 165)
    diagram.arrow(374, 65, 400, 65, 400, 105, 422, 105)
    diagram.arrow(374, 165, 400, 165, 400, 127, 422, 127)
    diagram.arrow(544, 115, 592, 115)
    diagram.arrow(735, 146, 735, 190, 504, 190, 504, 242)
    diagram.arrow(174, 269, 422, 269)
    diagram.arrow(584, 269, 632, 269)
    diagram.arrow(99, 190, 99, 216, 660, 216, 660, 242)
    diagram.arrow(800, 294, 800, 312, 14, 312, 14, 165, 22, 165)
    diagram.text(450, 307, "the next, less noisy latent", size=12, fill=SOFT)
    diagram.write("word.svg")


# page.png


def page() -> None:
    """The page, after the second shipped person was learned there, drawn beside the class word, and saved."""
    import os
    import shutil
    import tempfile

    from playwright.sync_api import sync_playwright

    from e4t import E4TPipeline
    from e4t.demo import example_pictures
    from e4t.web.shelf import Shelf
    from e4t.web.studio import Studio

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as running:
        names = ["tiny-face", "tiny-cat", "tiny-art"]
        studio = Studio(names, Shelf(Path(folder), lambda *_: None), E4TPipeline.from_pretrained)
        os.environ["GRADIO_TEMP_DIR"] = str(studio.uploads)
        from e4t.web.page import launch

        served = launch(studio, host="127.0.0.1", port=7898)
        browser = running.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        seen = browser.new_page(viewport={"width": 1040, "height": 1640}, device_scale_factor=0.8)
        seen.set_default_timeout(600_000)
        seen.goto(served.local_url)
        seen.set_input_files("#upload input[type=file]", str(example_pictures("face")[1]))
        seen.wait_for_selector("#frame img")
        seen.click("#personalize")
        seen.wait_for_selector("#progress:has-text('done')")
        seen.locator("#style label", has_text="watercolour").click()
        seen.check("#compare input")
        seen.click("#draw")
        seen.wait_for_selector("#gallery img")
        seen.wait_for_selector("#without img")
        seen.fill("#name input, #name textarea", "anna")
        seen.click("#save")
        seen.wait_for_selector("#saved img")
        seen.locator("button[aria-label='Dismiss toast message'], .toast-close").first.click()
        seen.wait_for_timeout(1500)
        shot = Image.open(io.BytesIO(seen.screenshot())).convert("RGB")
        browser.close()
        served.close()
        studio.close()
    save(shot, "page.png")


# Writing


def wrapped(words: str, width: int) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(words, width))


def in_jpeg(picture: Image.Image) -> Iterator[bytes]:
    """The best first."""
    for quality in range(92, 30, -4):
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=quality, optimize=True)
        yield data.getvalue()


def in_few_colours(picture: Image.Image) -> Iterator[bytes]:
    """PNGs, for the flat colours of a page; the best first."""
    for colours in (256, 128, 64, 32):
        data = io.BytesIO()
        picture.quantize(colours, dither=Image.Dither.NONE).save(data, "PNG", optimize=True)
        yield data.getvalue()


def save(picture: Image.Image, name: str) -> None:
    """The best JPEG, or PNG of few colours, that is small enough."""
    for data in in_few_colours(picture) if name.endswith(".png") else in_jpeg(picture):
        if len(data) <= MAX_BYTES:
            return publish(name, data)
    raise SystemExit(f"{name} does not fit into {MAX_BYTES} bytes; draw it smaller")


def publish(name: str, data: bytes) -> None:
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / name).write_bytes(data)
    print(f"docs/pictures/{name}: {len(data):,} bytes")


ALL: dict[str, Callable[[], None]] = {"idea": idea, "dials": dials, "page": page, "flow": flow, "word": word}


def main() -> None:
    chosen = sys.argv[1:] or list(ALL)
    if unknown := set(chosen) - set(ALL):
        raise SystemExit(f"there is no picture called {min(unknown)}; there are {', '.join(ALL)}")
    for name in chosen:
        ALL[name]()


if __name__ == "__main__":
    main()
