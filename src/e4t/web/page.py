"""What the page looks like, and what happens when something on it is pressed. The only file that knows gradio."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image, ImageStat

from e4t.errors import ConfigError, ImageError
from e4t.images import MAX_BYTES, load_image, load_mask
from e4t.photos import Square, face_square, fitting_mask, subject_mask
from e4t.web import prompts
from e4t.web.framing import COUNTS, DOES_NOT, Crop, grown, painted, shown, strokes
from e4t.web.studio import (
    AS_MEASURED,
    MOST_PICTURES,
    MOST_STEPS,
    TO_KEEP,
    Moment,
    Studio,
    Work,
    explanation,
    random_seed,
)

CSS = Path(__file__).with_name("page.css")
BRUSH = Path(__file__).with_name("brush.js")
SCRIPT = Path(__file__).with_name("page.js")
_MOST_CAPTION = 300  # characters; a text encoder reads 77 tokens
_OF_DOMAIN = 8  # parts of the page that change with the domain: what `Handlers.in_domain` gives
_IDLE_SECONDS = 3600  # after which a tab's concept is forgotten
_NO_MASK, _FOUND_MASK, _OWN_MASK = "none", "find the subject", "a file of mine"
_LIVE = "element.setAttribute('role', 'status'); element.setAttribute('aria-live', 'polite')"
"""Script of an area whose changes screen readers say."""
_NO_PICTURE = "<p>No picture yet: drop one above.</p>"
_NO_CONCEPT = "<p>No concept yet: give a picture, then press Personalize.</p>"
_ANOTHER_PICTURE = "<p>This picture is not learned yet: press Personalize. Until then the last concept is drawn.</p>"
_STEPS_KEPT = "Every step is kept: more are more like the picture; take fewer where prompts are not followed."
_ONE_STEP = "A saved concept has the one step that it was saved with."
_GALLERY_BUTTONS = ["download", "download_all", "fullscreen"]  # gradio's fourth would send pictures to a public site
_FORMATS = {
    "concept": "for e4t itself (zip)",
    "textual-inversion": "the word alone",
    "diff": "changed weights, for web UIs",
    "lora-diffusers": "LoRA, for diffusers",
    "lora-kohya": "LoRA, for web UIs",
    "single-file": "the whole model, for web UIs",
}
"""What can be exported, and what for."""
_OWN_SCHEDULER = "the model's own"
_SCHEDULERS = (
    _OWN_SCHEDULER,
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
)
_WELCOME = """# One picture becomes a word
Give one picture of somebody the model has never seen. After a few tuning steps the word **S\\*** stands for them, and
you can put them into any scene and style. Only with the consent of the people shown.
"""


@contextmanager
def _explained(*, learning: bool = False) -> Iterator[None]:
    """Refusals as a notice on the page."""
    try:
        yield
    except Exception as error:
        sentence = explanation(error, learning=learning)
        if sentence is None:
            raise
        raise gr.Error(sentence, duration=None) from error


@contextmanager
def _called_as_given(upload: str | None) -> Iterator[None]:
    """Refusals call a file as its owner does, not by the place where the server has put it."""
    try:
        yield
    except ImageError as error:
        raise ImageError(str(error).replace(str(upload), Path(str(upload)).name)) from error


def theme() -> Any:
    """Fonts of the system: the page fetches nothing from elsewhere."""
    return gr.themes.Default(
        primary_hue="orange",
        neutral_hue="stone",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        button_primary_background_fill="#b3401a",
        button_primary_background_fill_hover="#8f3010",
        button_primary_text_color="white",
        button_primary_background_fill_dark="#b3401a",
        button_primary_text_color_dark="white",
        # What is faint in gradio's own theme, in colours that reach the contrasts of WCAG 2.1 AA
        slider_color="#b3401a",
        slider_color_dark="#ea7a45",
        body_text_color_subdued="#6b645e",
        body_text_color_subdued_dark="#b8b2ad",
        input_placeholder_color="#6b645e",
        input_placeholder_color_dark="#b8b2ad",
        input_border_color="#8c857f",
        input_border_color_dark="#8c857f",
        checkbox_border_color="#8c857f",
        checkbox_border_color_dark="#8c857f",
        checkbox_border_color_selected="#b3401a",
        checkbox_border_color_selected_dark="#ea7a45",
        checkbox_background_color_selected="#b3401a",
        checkbox_background_color_selected_dark="#c9531f",
        button_cancel_background_fill="#b91c1c",
        button_cancel_background_fill_hover="#991b1b",
    )


def launch(studio: Studio, *, host: str, port: int) -> Any:
    """Serve the page; what is returned has ``close()`` and ``block_thread()``."""
    blocks = build(studio)
    blocks.queue(default_concurrency_limit=8, max_size=32)
    blocks.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css_paths=[CSS],
        js=SCRIPT.read_text(encoding="utf-8"),
        max_file_size=MAX_BYTES,
        allowed_paths=[str(studio.shelf.folder.resolve())],
        prevent_thread_lock=True,
        show_error=False,
        quiet=True,
        ssr_mode=False,
        footer_links=[],
        share=False,
    )
    return blocks


def build(studio: Studio) -> Any:
    """The page on a studio, not served yet."""
    with gr.Blocks(title="e4t", analytics_enabled=False, delete_cache=(_IDLE_SECONDS // 60, _IDLE_SECONDS)) as blocks:
        work = gr.State(None, time_to_live=_IDLE_SECONDS, delete_callback=_forget)
        gr.Markdown(_WELCOME, elem_id="intro")
        with gr.Row():
            with gr.Column(min_width=320):
                picture, tuning = _Picture(studio), _Tuning(studio)
            with gr.Column(min_width=320):
                drawing, shelf = _Drawing(studio), _Shelf(studio)
        do = Handlers(studio)
        of_domain = [*drawing.of_domain, tuning.caption, picture.face]
        _bind_picture(do, picture, tuning.caption, tuning.progress, work)
        _bind_tuning(do, tuning, picture, work)
        _bind_drawing(do, drawing, picture.domain, tuning.step, work)
        _bind_shelf(do, shelf, tuning, drawing, picture.domain, of_domain, work)
        picture.domain.input(
            do.in_domain,
            [picture.domain, drawing.prompt, drawing.composed],
            of_domain,
            **_BY_MODEL,
            trigger_mode="always_last",
        )
        blocks.load(do.listed, None, shelf.listed, show_progress="hidden")
    return blocks


def _forget(work: Work | None) -> None:
    if work is not None:
        work.discard()


# Layout: what each of the four stages shows


class _Picture:
    def __init__(self, studio: Studio) -> None:
        # pictures are in memory: the files that were sent go after an hour, also while the tab is in use
        self.picture, self.own_mask = gr.State(None), gr.State(None)
        with gr.Column(elem_classes="stage"):
            gr.Markdown(f"## 1. Your picture\nUp to {MAX_BYTES // 2**20} MB. One face, clearly seen, works best.")
            self.upload = gr.File(label="Drop a picture here", file_types=["image"], height=150, elem_id="upload")
            self.frame = gr.Image(
                label="What counts is bright", interactive=False, height=220, elem_id="frame", buttons=[]
            )
            self.counted = gr.HTML(_NO_PICTURE, js_on_load=_LIVE, elem_id="counted", elem_classes="progress")
            self.domain = gr.Radio(
                list(studio.domains), value=studio.domains[0], label="What it shows (domain)", elem_id="domain"
            )
            with gr.Accordion("Crop and mask", open=False, elem_id="framing"):
                self.face = gr.Button("Crop to the largest human face", size="sm", elem_id="face")
                self.size = gr.Slider(1, 100, 100, step=1, label="Crop: size in %", elem_id="crop-size")
                self.across = gr.Slider(0, 100, 50, step=1, label="Crop: from left to right")
                self.down = gr.Slider(0, 100, 50, step=1, label="Crop: from top to bottom")
                self.mask = gr.Radio([_NO_MASK, _FOUND_MASK, _OWN_MASK], value=_NO_MASK, label="Mask", elem_id="mask")
                self.mask_file = gr.File(
                    label="White where the subject is", file_types=["image"], height=90, visible=False
                )
                self.grow = gr.Slider(-10, 10, 0, step=0.5, label="Mask: narrower or wider, in %")
                self.brush = gr.HTML(
                    "",
                    html_template=BRUSH.with_suffix(".html").read_text(encoding="utf-8"),
                    js_on_load=BRUSH.read_text(encoding="utf-8"),
                    counts=COUNTS,
                    does_not=DOES_NOT,
                    elem_id="brush",
                )
        self.crop = [self.size, self.across, self.down]
        self.framing = [
            self.picture,
            *self.crop,
            self.mask,
            self.own_mask,
            self.grow,
            self.brush,
        ]  # as `_framed` has it


def _caption_hints(placeholder: str) -> dict[str, str]:
    return {
        "info": f"Put {placeholder} where your concept is. What else you name is left to the words.",  # 2 * are italics
        "placeholder": f"{placeholder} in a red hat, or a cat in the style of {placeholder}",
    }


class _Tuning:
    def __init__(self, studio: Studio) -> None:
        placeholder = studio.pipe(studio.domains[0]).domain.placeholder
        with gr.Column(elem_classes="stage"):
            gr.Markdown("## 2. Personalize")
            self.caption = gr.Textbox(
                **_caption_hints(placeholder),
                label="What the picture shows (not needed)",
                max_length=_MOST_CAPTION,
                elem_id="caption",
            )
            self.keep = gr.Radio(
                list(TO_KEEP),
                value=AS_MEASURED,
                label="What to keep",
                info="What is best for the domain was measured. The others take less room; LoRA files need low-rank or "
                "embedding.",
                elem_classes="chips",
                elem_id="keep",
            )
            self.start = gr.Button("Personalize", variant="primary", elem_id="personalize")
            self.progress = gr.HTML(_NO_CONCEPT, js_on_load=_LIVE, elem_id="progress", elem_classes="progress")
            self.step = gr.Slider(
                0,
                MOST_STEPS,
                0,
                step=1,
                label="Tuning steps",
                info=_STEPS_KEPT,
                interactive=False,
                elem_id="step",
            )
            with gr.Row():
                self.glimpse = gr.Image(
                    label="A quick look at this step", interactive=False, height=220, elem_id="glimpse", buttons=[]
                )


class _Drawing:
    def __init__(self, studio: Studio) -> None:
        pipe = studio.pipe(studio.domains[0])
        kind, guidance_scale = pipe.domain, pipe.generate_config.guidance_scale
        with gr.Column(elem_classes="stage"):
            gr.Markdown("## 3. Draw")
            kinds = prompts.styles_of(kind.class_word)
            self.style = gr.Radio(kinds, value=kinds[0], label="Style", elem_classes="chips", elem_id="style")
            self.place = gr.Radio(list(prompts.PLACES), value=prompts.NOWHERE, label="Place", elem_classes="chips")
            self.worn = gr.Radio(list(prompts.WORN), value=prompts.NOTHING, label="Wearing", elem_classes="chips")
            plain = prompts.compose(kind.class_word, kind.placeholder, kinds[0], prompts.NOWHERE, prompts.NOTHING)
            self.prompt = gr.Textbox(plain, label=_prompt_label(kind.placeholder), max_length=500, elem_id="prompt")
            self.composed = gr.State(plain)  # what the chips wrote last: anything else was typed
            with gr.Row():
                self.count = gr.Slider(1, MOST_PICTURES, 1, step=1, label="Pictures", elem_id="count")
                self.strength = gr.Slider(0, 1.5, 1, step=0.05, label="Strength")
            self.compare = gr.Checkbox(label="Beside it, the same without the concept", elem_id="compare")
            with gr.Accordion("More settings", open=False):
                self.negative = gr.Textbox("", label="Negative prompt: what to keep out", max_length=500)
                with gr.Row():
                    self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=2**31, elem_id="seed")
                    self.randomise = gr.Checkbox(label="A new seed every time")
                self.guidance = gr.Slider(
                    1, 15, guidance_scale, step=0.5, label="Guidance: how strictly to follow the prompt"
                )
                self.scheduler = gr.Dropdown(list(_SCHEDULERS), value=_OWN_SCHEDULER, label="Scheduler")
            self.draw = gr.Button("Draw", variant="primary", elem_id="draw")
            with gr.Row():
                look: dict[str, Any] = {"columns": 2, "format": "png", "height": "auto", "buttons": _GALLERY_BUTTONS}
                self.gallery = gr.Gallery(label="With the concept", elem_id="gallery", **look)
                self.without = gr.Gallery(label="Without the concept", elem_id="without", visible=False, **look)
        self.chips = [self.style, self.place, self.worn]
        self.of_domain = [*self.chips, self.prompt, self.composed, self.guidance]  # the first that `in_domain` gives


class _Shelf:
    def __init__(self, studio: Studio) -> None:
        with gr.Column(elem_classes="stage"):
            gr.Markdown("## 4. My concepts")
            with gr.Row():
                self.name = gr.Textbox("", label="Name", placeholder="anna", max_length=60, elem_id="name")
                self.save = gr.Button("Save this step", elem_id="save")
            previews = studio.shelf.previews()
            self.saved = gr.Gallery(
                previews,
                visible=bool(previews),
                label="Saved",
                columns=4,
                fit_columns=False,
                height="auto",
                allow_preview=False,
                elem_id="saved",
                interactive=False,
                buttons=[],
            )
            self.chosen = gr.Dropdown(studio.shelf.names(), value=None, label="A saved concept", elem_id="chosen")
            with gr.Row():
                self.reopen = gr.Button("Reopen", elem_id="reopen")
                self.delete = gr.Button("Delete", variant="stop", elem_id="delete")
            self.sure = gr.Checkbox(label="Yes, delete it for good", elem_id="sure")
            with gr.Accordion("Export for other programs", open=False, elem_id="exporting"):
                formats = [(f"{name}: {use}", name) for name, use in _FORMATS.items()]
                self.to = gr.Dropdown(formats, value="concept", label="Format", elem_id="to")
                self.export = gr.Button("Export this step", elem_id="export")
                self.files = gr.File(label="Files", file_count="multiple", interactive=False, elem_id="files")
        self.listed = [self.saved, self.chosen]


# Events: which handler each part calls, with what, and where its answer goes

_BY_MODEL: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
"""Handlers that use the model share one queue."""
_HIDDEN: dict[str, Any] = {"show_progress": "hidden"}


def _bind_picture(do: Handlers, stage: _Picture, caption: Any, progress: Any, work: Any) -> None:
    look = {"fn": do.look, "inputs": stage.framing, "outputs": [stage.frame, stage.counted]}
    quietly = {**_HIDDEN, "trigger_mode": "always_last"}
    for part in (*stage.crop, stage.mask, stage.grow):
        part.change(**look, **quietly)
    stage.brush.input(**look, **quietly)
    own = [stage.picture, stage.own_mask, *stage.crop, stage.mask, stage.mask_file, stage.grow, stage.brush, caption]
    unframed = stage.upload.change(do.unframed, None, own, **quietly)
    taken = unframed.then(do.taken, stage.upload, stage.picture, **quietly).then(**look, **quietly)
    taken.then(do.unlearned, [work, stage.picture], progress, **quietly)
    stage.mask_file.change(do.mask_taken, stage.mask_file, stage.own_mask, **quietly).then(**look, **quietly)
    stage.mask.change(lambda kind: gr.update(visible=kind == _OWN_MASK), stage.mask, stage.mask_file, queue=False)
    stage.face.click(do.to_face, stage.picture, stage.crop)


def _bind_tuning(do: Handlers, stage: _Tuning, picture: _Picture, work: Any) -> None:
    start = stage.start.click(
        lambda: ("<p>Waiting for the model …</p>", gr.update(interactive=False)),  # at once, however long it takes
        None,
        [stage.progress, stage.start],
        queue=False,
        **_HIDDEN,
    )
    learning = start.then(
        do.personalize,
        [picture.domain, work, stage.keep, stage.caption, *picture.framing],
        [stage.progress, stage.glimpse, stage.step, stage.start, work],
        **_BY_MODEL,
        **_HIDDEN,
    )
    learning.failure(
        lambda: (gr.update(interactive=True), "<p>Nothing was learned.</p>"),
        None,
        [stage.start, stage.progress],
        queue=False,
    )
    stage.step.change(do.at_step, [work, stage.step], [stage.glimpse, work], queue=False, **_HIDDEN)


def _bind_drawing(do: Handlers, stage: _Drawing, domain: Any, step: Any, work: Any) -> None:
    for chip in stage.chips:
        chip.input(
            do.composed,
            [domain, *stage.chips],
            [stage.prompt, stage.composed],
            **_HIDDEN,
            trigger_mode="always_last",  # as arrow keys choose on the way
        )
    stage.compare.change(lambda on: gr.update(visible=on), stage.compare, stage.without, queue=False)
    asked = [stage.prompt, stage.negative, stage.seed, stage.randomise, stage.count]
    asked += [stage.guidance, stage.scheduler, stage.strength, stage.compare]
    for press in (stage.draw.click, stage.prompt.submit):
        press(do.draw, [domain, work, step, *asked], [stage.gallery, stage.without, stage.seed, work], **_BY_MODEL)


def _bind_shelf(
    do: Handlers, stage: _Shelf, tuning: _Tuning, drawing: _Drawing, domain: Any, of_domain: list[Any], work: Any
) -> None:
    # hidden, because gradio lays a refusal over the fields, where it is in the way of what is to be put right
    stage.save.click(do.save, [work, tuning.step, stage.name], [*stage.listed, work], **_HIDDEN)
    stage.saved.select(do.pick, None, stage.chosen, **_HIDDEN)
    stage.chosen.change(lambda: False, None, stage.sure, queue=False, **_HIDDEN)  # it was of another
    stage.reopen.click(
        do.reopen,
        [stage.chosen, work, domain, drawing.prompt, drawing.composed],
        [work, tuning.step, tuning.glimpse, tuning.progress, domain, *of_domain],
        **_BY_MODEL,
        **_HIDDEN,
    )
    stage.delete.click(do.delete, [stage.chosen, stage.sure], [*stage.listed, stage.sure], **_HIDDEN)
    stage.export.click(do.export, [work, tuning.step, stage.to, stage.name], [stage.files, work], **_BY_MODEL)


class Handlers:
    """What happens when something is pressed. What they take and give is in the order of the events above."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    # The picture

    def unframed(self) -> tuple[Any, ...]:
        """What was set for the last picture is not meant for the next; nor is that picture there any more."""
        crop = Crop()
        return None, None, crop.size, crop.across, crop.down, _NO_MASK, None, 0, "", ""

    def taken(self, upload: str | None) -> Image.Image | None:
        """The picture itself: its file is removed while the tab may still need it."""
        with _explained(), _called_as_given(upload):
            return load_image(upload) if upload is not None else None

    def mask_taken(self, upload: str | None) -> Image.Image | None:
        with _explained(), _called_as_given(upload):
            return load_mask(upload) if upload is not None else None

    def unlearned(self, work: Work | None, picture: Image.Image | None) -> Any:
        """Says that a concept in work is not of the picture that has just been given."""
        return gr.skip() if work is None or picture is None else _ANOTHER_PICTURE

    def look(self, picture: Image.Image | None, *framing: Any) -> tuple[Image.Image | None, str]:
        """The picture with crop and mask drawn in, and how much of it counts in words."""
        if picture is None:
            return None, _NO_PICTURE
        with _explained():
            _, mask, square = _framed(picture, *framing)
            return shown(picture, square, mask), _share(square, mask)

    def to_face(self, picture: Image.Image | None) -> tuple[float, float, float]:
        with _explained():
            image = _given(picture)
            square, notes = face_square(image)
            for note in notes:
                gr.Warning(note)
            crop = Crop.around(square, image.size)
            return crop.size, crop.across, crop.down

    def in_domain(self, domain: str, prompt: str | None, composed: str) -> tuple[Any, ...]:
        """The chips as at the start and the prompt they make, if none was typed; the placeholder in all hints.

        And whether there is a human face to look for.
        """
        with _explained():
            pipe = self.studio.pipe(domain)
            kinds, placeholder = prompts.styles_of(pipe.domain.class_word), pipe.domain.placeholder
            plain = prompts.compose(pipe.domain.class_word, placeholder, kinds[0], prompts.NOWHERE, prompts.NOTHING)
            typed = (prompt or "").strip() not in ("", composed)
            text = gr.update(label=_prompt_label(placeholder), **({} if typed else {"value": plain}))
            style, guidance = gr.update(choices=kinds, value=kinds[0]), pipe.generate_config.guidance_scale
            hints = gr.update(**_caption_hints(placeholder))
            faces = gr.update(visible=pipe.domain.shows_people)
            return style, prompts.NOWHERE, prompts.NOTHING, text, plain, guidance, hints, faces

    # Tuning

    def personalize(
        self, domain: str, old: Work | None, keep: str, caption: str, given: Image.Image | None, *framing: Any
    ) -> Iterator[tuple[Any, ...]]:
        with _explained(learning=True):
            picture, mask, _ = _framed(_given(given), *framing)
            for moment in self.studio.personalize(domain, picture, mask, keep=keep, caption=caption):
                work = moment.work
                if work is None:
                    yield _bar(moment), str(moment.glimpse), gr.skip(), gr.skip(), gr.skip()
                    continue
                if old is not None:
                    old.discard()
                at = gr.update(value=work.best, maximum=MOST_STEPS, interactive=True, info=_STEPS_KEPT)
                yield _bar(moment), str(work.glimpses[work.best]), at, gr.update(interactive=True), work

    def at_step(self, work: Work | None, step: int) -> tuple[Any, Any]:
        """At once: the picture of every step has been kept."""
        if work is None or not work.glimpses:
            return gr.skip(), gr.skip()
        return str(work.glimpses[work.nearest(step)]), _in_use(work)

    # Drawing

    def composed(self, domain: str, style: str, place: str, worn: str) -> tuple[str, str]:
        """The prompt of the chips, and the same to know it by."""
        with _explained():
            kind = self.studio.pipe(domain).domain
            text = prompts.compose(kind.class_word, kind.placeholder, style, place, worn)
            return text, text

    def draw(
        self,
        domain: str,
        work: Work | None,
        step: int,
        prompt: str,
        negative: str,
        seed: float | None,
        randomise: bool,
        count: int,
        guidance: float,
        scheduler: str,
        strength: float,
        compare: bool,
    ) -> tuple[Any, ...]:
        with _explained():
            work = _in_work(work)
            _require_same(work.domain, domain)
            chosen = random_seed() if randomise or seed is None else int(seed)
            asked: dict[str, Any] = {
                "prompt": prompt or "",  # a field that was never typed into can be None
                "negative_prompt": negative or "",
                "seed": chosen,
                "num_images": int(count),
                "guidance_scale": float(guidance),
                "strength": float(strength),
                **({"scheduler": scheduler} if scheduler not in (None, _OWN_SCHEDULER) else {}),
            }
            drawn = self.studio.draw(work, int(step), **asked)
            bare = self.studio.draw(work, None, **asked) if compare else []
            return [str(path) for path in drawn], [str(path) for path in bare], chosen, _in_use(work)

    # Saved concepts

    def listed(self, chosen: str | None = None) -> tuple[Any, Any]:
        shelf = self.studio.shelf
        previews = shelf.previews()
        return gr.update(value=previews, visible=bool(previews)), gr.update(choices=shelf.names(), value=chosen)

    def save(self, work: Work | None, step: int, name: str) -> tuple[Any, ...]:
        """What is drawn and exported from now on is called as it was saved."""
        with _explained():
            work = _in_work(work)
            kept = self.studio.save(work, int(step), name or "")
            gr.Info(f"saved as {kept}")
            return *self.listed(kept), _in_use(replace(work, name=kept))

    def pick(self, event: gr.SelectData) -> str:
        return str(event.value["caption"])  # what this tab shows; another may have changed the shelf since

    def reopen(
        self, name: str | None, old: Work | None, domain: str, prompt: str | None, composed: str
    ) -> tuple[Any, ...]:
        with _explained():
            work = self.studio.reopen(_chosen(name))
            if old is not None:
                old.discard()
            glimpse = str(next(iter(work.glimpses.values()))) if work.glimpses else None
            said = f"<p>Reopened: {work.name}, after {work.best} steps. Draw it now.</p>"
            most = max(MOST_STEPS, work.best)
            same = work.domain == domain
            prompting = [gr.skip()] * _OF_DOMAIN if same else self.in_domain(work.domain, prompt, composed)
            step = gr.update(value=work.best, maximum=most, interactive=False, info=_ONE_STEP)
            return work, step, glimpse, said, work.domain, *prompting

    def delete(self, name: str | None, sure: bool) -> tuple[Any, ...]:
        with _explained():
            chosen = _chosen(name)
            if not sure:
                gr.Warning(f"tick the box below to delete {chosen}")
                return gr.skip(), gr.skip(), gr.skip()
            self.studio.shelf.delete(chosen)
            return *self.listed(), False

    def export(self, work: Work | None, step: int, to: str, name: str) -> tuple[list[str], Any]:
        with _explained():
            work = _in_work(work)
            files, notes = self.studio.export(work, int(step), to, name or "")
            for note in notes:
                gr.Info(note)
            return [str(path) for path in files], _in_use(work)


def _framed(
    image: Image.Image,
    size: float,
    across: float,
    down: float,
    kind: str,
    own_mask: Image.Image | None,
    grow: float,
    brush: str | None,
) -> tuple[Image.Image, Image.Image | None, Square]:
    """Crop, mask on it, and where the crop lies. Raises ImageError for a mask of another shape."""
    square = Crop(across, down, size).square(image.size)
    picture = image.crop(square.box)
    mask = None
    if kind == _FOUND_MASK:
        mask = subject_mask(picture)
        if mask is None:
            gr.Warning("the subject does not stand out from its surroundings; the whole crop counts")
    elif kind == _OWN_MASK and own_mask is not None:
        mask = fitting_mask(own_mask, image).crop(square.box)
    if mask is not None:
        mask = grown(mask, grow)
    layer = strokes(brush)
    if layer is not None:
        mask = painted(mask, layer, square, image.size)
    return picture, mask, square


def _share(square: Square, mask: Image.Image | None) -> str:
    """What the picture shows by its brightness, for those who do not see it."""
    counts = "all of it counts" if mask is None else f"{ImageStat.Stat(mask).mean[0] / 255:.0%} of it counts"
    return f"<p>The crop is {square.side} × {square.side} pixels; {counts}.</p>"


def _given(picture: Image.Image | None) -> Image.Image:
    if picture is None:
        raise ImageError("there is no picture yet; drop one into the first field")
    return picture


def _prompt_label(placeholder: str) -> str:
    return f"Prompt ({placeholder} is the concept)"


def _require_same(concept: str, chosen: str) -> None:
    """The prompt's chips are those of the chosen domain."""
    if concept != chosen:
        raise ConfigError(
            f"the concept in work is of the domain '{concept}', but '{chosen}' is chosen; choose '{concept}' to draw "
            "it, or press Personalize to learn the picture anew"
        )


def _in_work(work: Work | None) -> Work:
    if work is None:
        raise ConfigError("there is no concept yet; press Personalize, or reopen a saved one")
    return work


def _in_use(work: Work) -> Any:
    """Given out again, so that its hour begins anew; but not where Personalize has put another in its place."""
    return work if work.folder.is_dir() else gr.skip()


def _chosen(name: str | None) -> str:
    if not name:
        raise ConfigError("choose a saved concept first")
    return name


def _bar(moment: Moment) -> str:
    """Step, loss and time left, and a bar."""
    loss = f" · loss {moment.loss:.3f}" if moment.loss is not None else ""
    left = f" · {_duration(moment.seconds_left)} left" if moment.work is None else " · done"
    text = f"Step {moment.number} of {moment.total}{loss}{left}"
    bar = f'<progress aria-label="Tuning steps" max="{moment.total}" value="{moment.number}">{text}</progress>'
    advice = "" if moment.work is None else "<p>Draw it now, or move the slider to another step.</p>"
    return f"<p>{text}</p>{bar}{advice}"


def _duration(seconds: float) -> str:
    """("8 s", "3 min"): no more of it than a guess is worth."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
