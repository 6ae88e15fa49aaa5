"""The page without a browser: framing, prompts, saved concepts, and the studio on a random model."""

from __future__ import annotations

import base64
import errno
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from commands import events as printed
from conftest import build_backbone
from e4t import cli
from e4t.checkpoint import Concept
from e4t.cli.serving import Web, require_free
from e4t.config import PersonalizeConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, ImageError, MismatchError
from e4t.photos import Square
from e4t.pipeline import E4TPipeline
from e4t.provenance import read_notes
from e4t.web import prompts
from e4t.web.framing import COUNTS, DOES_NOT, Crop, grown, painted, shown, strokes
from e4t.web.scratch import Scratch, remove_stale
from e4t.web.shelf import Shelf
from e4t.web.studio import EXPORTS, TO_KEEP, Moment, Studio, Work, explanation

QUICK = {"prompt": "a photo of S*", "num_inference_steps": 2}
MOST_STEPS = 5  # instead of 15


class QuickPipeline(E4TPipeline):
    """As without a domain, in small batches."""

    personalize_config = PersonalizeConfig.without_domain().updated({"batch_size": 2, "frozen_timesteps": 2})


def face_pipeline() -> E4TPipeline:
    return QuickPipeline(build_backbone(), domain=Domain.named("face"))


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    pipe = face_pipeline()
    shelf = Shelf(tmp_path_factory.mktemp("shelf") / "concepts", lambda folder, domain: None)
    studio = Studio(["face"], shelf, lambda name: pipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("e4t.web.studio.MOST_STEPS", MOST_STEPS)
        yield studio
    studio.close()


def test_who_has_a_model_waits_for_nobody_who_loads_another(tmp_path: Path) -> None:
    pipe, loading = face_pipeline(), threading.Event()
    goes_on = threading.Event()

    def load(name: str) -> E4TPipeline:
        if name == "slow":
            loading.set()
            goes_on.wait(60)
        return pipe

    both = Studio(["face", "slow"], Shelf(tmp_path, lambda folder, domain: None), load)
    both.pipe("face")
    other = threading.Thread(target=both.pipe, args=("slow",))
    other.start()
    try:
        assert loading.wait(60)
        assert both.pipe("face") is pipe  # with the lock of loading taken
    finally:
        goes_on.set()
        other.join()
        both.close()


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (20, 16, 3), dtype=np.uint8))


def made(studio: Studio, seed: int = 0) -> Work:
    *_, last = studio.personalize("face", noise(seed))
    assert last.work is not None
    return last.work


@pytest.fixture(scope="module")
def work(studio: Studio) -> Work:
    return made(studio)


# Framing and prompts


@pytest.mark.parametrize(("across", "down", "size"), [(50, 50, 100), (0, 100, 40), (100, 0, 10), (-5, 200, 500)])
def test_a_crop_lies_inside(across: float, down: float, size: float) -> None:
    left, top, right, bottom = Crop(across, down, size).square((300, 200)).box
    assert 0 <= left < right <= 300
    assert 0 <= top < bottom <= 200
    assert right - left == bottom - top


def test_a_crop_around_a_square_is_that_square() -> None:
    for square in (Square(10, 20, 100), Square(200, 0, 100), Square(0, 0, 200)):
        assert Crop.around(square, (300, 200)).square((300, 200)) == square


def test_a_crop_of_hardly_any_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="5 pixels wide"):
        Crop(size=10).square((50, 60))


def test_a_mask_grows_and_shrinks() -> None:
    mask = Image.new("L", (100, 100))
    ImageDraw.Draw(mask).rectangle((30, 30, 69, 69), fill=255)
    areas = [float(np.asarray(grown(mask, percent)).mean()) for percent in (-5, 0, 5)]
    assert areas[0] < areas[1] < areas[2]


def paint(size: tuple[int, int], **boxes: tuple[int, int, int, int]) -> Image.Image:
    """What was painted in a colour, as the page sends it."""
    layer = Image.new("RGBA", size)
    for name, box in boxes.items():
        ImageDraw.Draw(layer).rectangle(box, fill={"counts": COUNTS, "not": DOES_NOT}[name])
    return layer


def test_paint_adds_to_a_mask_and_takes_away() -> None:
    mask = Image.new("L", (100, 100))
    mask.paste(255, (0, 0, 50, 100))  # of the crop at (50, 0) of a picture of 200 x 100
    layer = paint((400, 200), counts=(200, 0, 299, 19), **{"not": (100, 100, 149, 199)})  # painted at twice the size
    result = painted(mask, layer, Square(50, 0, 100), (200, 100))
    assert result is not None
    values = np.asarray(result)
    assert values[5, 60:90].min() == 255  # added
    assert values[60:, 2:20].max() == 0  # taken away
    assert values[20:45, 2:20].min() == 255
    assert values[20:, 60:].max() == 0


def test_paint_outside_of_the_crop_changes_nothing() -> None:
    mask = Image.new("L", (40, 40), 255)
    layer = paint((100, 50), **{"not": (60, 0, 99, 49)})
    assert painted(mask, layer, Square(0, 0, 40), (100, 50)) is mask
    assert painted(None, paint((100, 50)), Square(0, 0, 40), (100, 50)) is None


def test_without_a_mask_paint_takes_away_from_the_whole() -> None:
    result = painted(None, paint((50, 50), **{"not": (0, 0, 24, 49)}), Square(0, 0, 50), (50, 50))
    assert result is not None
    assert np.asarray(result)[10].tolist() == pytest.approx([0] * 25 + [255] * 25)


def test_a_mask_with_all_painted_away_is_refused() -> None:
    with pytest.raises(ImageError, match="nothing of the crop is left"):
        painted(None, paint((50, 50), **{"not": (0, 0, 49, 49)}), Square(0, 0, 50), (50, 50))


def as_sent(layer: Image.Image) -> str:
    buffer = io.BytesIO()
    layer.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def test_strokes_arrive_as_they_were_painted() -> None:
    layer = paint((20, 20), counts=(0, 0, 9, 19))
    arrived = strokes(as_sent(layer))
    assert arrived is not None
    assert arrived.tobytes() == layer.tobytes()
    assert strokes("") is strokes(None) is None


@pytest.mark.parametrize(
    "value",
    [
        "data:text/html;base64,AAAA",
        "nonsense",
        "data:image/png;base64,@@@",
        "data:image/png;base64,AAAA",
        "data:image/png;base64," + "A" * 5_000_000,
        as_sent(Image.new("L", (8001, 8001))),
    ],
    ids=["type", "form", "base64", "picture", "bytes", "pixels"],
)
def test_strokes_that_no_brush_made_are_refused(value: str) -> None:
    with pytest.raises(ImageError, match=r"clear it and paint anew|not a picture|limit is 64 million"):
        strokes(value)


def test_what_does_not_count_is_dimmed() -> None:
    image = Image.new("RGB", (100, 100), "white")
    seen = np.asarray(shown(image, Square(20, 20, 60), None))
    assert seen[50, 50].tolist() == [255, 255, 255]
    assert seen[5, 5].max() < 200


def test_every_combination_of_chips_names_the_concept_once() -> None:
    for domain in ("face", "cat", "art"):
        for chips in itertools.product(prompts.styles_of(domain), prompts.PLACES, prompts.WORN):
            text = prompts.compose(domain, "S*", *chips)
            assert text.count("S*") == 1
            assert "{" not in text
    assert prompts.compose("face", "S*", "watercolour", "snow", "nothing") == "a watercolour of S* in the snow"


# Saved concepts


@pytest.mark.parametrize("name", ["", "  ", "../..", "/"])
def test_names_without_letters_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="letters or digits"):
        Shelf(tmp_path, lambda folder, domain: None).place(name)


@pytest.mark.parametrize("name", ["../secret", "/etc", ".", ""])
def test_nothing_outside_the_shelf_is_opened_or_deleted(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    shelf = Shelf(tmp_path / "shelf", lambda folder, domain: None)
    for verb in (shelf.path, shelf.delete):
        with pytest.raises(CheckpointError, match="no saved concept"):
            verb(name)
    assert (tmp_path / "secret").is_dir()
    assert shelf.place("../secret").parent == tmp_path / "shelf"


def test_save_reopen_and_delete(studio: Studio, work: Work) -> None:
    assert studio.save(work, 3, "Anna 1") == "anna-1"
    with pytest.raises(CheckpointError, match="already a concept called 'anna-1'"):
        studio.save(work, 4, "anna 1")
    again = studio.reopen("anna-1")
    assert again.concept(99).differences(work.concept(3)) == {}
    assert (again.name, again.best) == ("anna-1", 3)
    pictures = [Image.open(studio.draw(one, 3, **QUICK)[0]).tobytes() for one in (work, again)]
    assert pictures[0] == pictures[1]
    assert [name for _, name in studio.shelf.previews()] == ["anna-1"]
    studio.shelf.delete("anna-1")
    assert studio.shelf.names() == []
    assert again.concept(3)  # a tab that has it open keeps it


def test_a_concept_of_another_domain_is_refused(studio: Studio, work: Work) -> None:
    backbone = build_backbone()
    backbone.unet.conv_in.weight.data.add_(1)
    other = Studio(["cat"], studio.shelf, lambda name: E4TPipeline(backbone, domain=Domain.named("cat")))
    studio.save(work, 1, "stray")
    try:
        with pytest.raises(MismatchError, match="made without a pre-trained domain; draw it with 'e4t generate'"):
            other.reopen("stray")
        config = studio.shelf.path("stray") / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"domain_id": "0123456789abcdef"}))
        with pytest.raises(MismatchError, match="belongs to the domain 'face'"):
            other.reopen("stray")
    finally:
        studio.shelf.delete("stray")
        other.close()


# Personalizing and drawing


def test_every_step_is_kept_and_seen(studio: Studio) -> None:
    moments = list(studio.personalize("face", noise(1), caption="S* at sea"))
    assert [moment.number for moment in moments] == list(range(MOST_STEPS + 1))
    assert moments[0].loss is None
    assert all(moment.loss is not None for moment in moments[1:])
    assert moments[-1].seconds_left == 0
    work = moments[-1].work
    assert work is not None
    assert work.concept(0).config["caption"] == "S* at sea"
    assert [work.concept(step).steps for step in (0, 2, 5)] == [0, 2, 5]
    assert len({path.read_bytes() for path in work.glimpses.values()}) > MOST_STEPS // 2
    folder = work.folder
    work.discard()
    assert not folder.exists()


def test_looking_at_steps_changes_nothing(studio: Studio, work: Work) -> None:
    """The glimpses between two steps leave no trace in what is tuned."""
    alone = face_pipeline().personalize(noise(0), steps=MOST_STEPS, seed=0)
    assert alone.differences(work.concept(MOST_STEPS)) == {}


def test_a_tab_that_leaves_half_way_leaves_the_model_usable(studio: Studio, work: Work) -> None:
    before = Image.open(studio.draw(work, 5, **QUICK)[0]).tobytes()
    leaving = studio.personalize("face", noise(2))
    folder = next(leaving).glimpse.parent
    leaving.close()
    assert Image.open(studio.draw(work, 5, **QUICK)[0]).tobytes() == before
    for _ in range(600):  # until the thread is through with the step it was at
        if not folder.exists():
            break
        time.sleep(0.1)
    assert not folder.exists()


def test_an_unknown_domain_is_refused_and_leaves_no_folder(studio: Studio) -> None:
    before = set(studio._scratch.folder.iterdir())
    with pytest.raises(ConfigError, match="no domain 'dog'"):
        next(studio.personalize("dog", noise(0)))
    for _ in range(100):
        if set(studio._scratch.folder.iterdir()) == before:
            break
        time.sleep(0.1)
    assert set(studio._scratch.folder.iterdir()) == before


def test_two_tabs_at_once_get_what_they_would_get_alone(studio: Studio, work: Work) -> None:
    alone = [work.concept(MOST_STEPS), made(studio, 3).concept(MOST_STEPS)]
    both = [studio.personalize("face", noise(seed)) for seed in (0, 3)]
    for moments in both:
        next(moments)  # both are at work, or wait for their turn
    together: list[Concept] = []
    for moments in both:
        *_, last = moments
        assert last.work is not None
        together.append(last.work.concept(MOST_STEPS))
    assert [one.differences(two) for one, two in zip(alone, together, strict=True)] == [{}, {}]
    assert alone[0].differences(alone[1])


def test_pictures_say_how_they_were_made(studio: Studio, work: Work) -> None:
    request = {**QUICK, "negative_prompt": "the beach", "seed": 7, "guidance_scale": 3.0, "num_images": 2}
    first, second = (read_notes(path) for path in studio.draw(work, 5, **request))
    assert (first["prompt"], first["negative_prompt"], first["steps"]) == ("a photo of S*", "the beach", 5)
    assert (first["seed"], second["seed"], first["guidance_scale"]) == (7, 8, 3.0)
    bare = read_notes(studio.draw(work, None, **request)[0])
    assert (bare["concept"], bare["steps"]) == (None, 0)


@pytest.mark.parametrize("count", [0, 9])
def test_too_many_pictures_are_refused(studio: Studio, work: Work, count: int) -> None:
    with pytest.raises(ConfigError, match="draws 1 to 8"):
        studio.draw(work, 5, "a photo of S*", num_images=count)


def test_exports(studio: Studio, work: Work) -> None:
    files, _ = studio.export(work, 5, "textual-inversion")
    assert [path.suffix for path in files] == [".safetensors"]
    assert [path.suffix for path in studio.export(work, 5, "concept")[0]] == [".zip"]
    with pytest.raises(ConfigError, match="does not export to 'pickle'"):
        studio.export(work, 5, "pickle")


@pytest.fixture(scope="module")
def kept(studio: Studio) -> Iterator[dict[str, Work]]:
    """A concept of each choice, in a domain that was measured with the whole U-Net, as the shipped ones were."""

    class ShippedPipeline(QuickPipeline):
        personalize_config = QuickPipeline.personalize_config.keeping("full").updated({"learning_rate": 1e-4})

    pipe = ShippedPipeline(build_backbone(), domain=Domain.named("face"))
    whole = Studio(["face"], studio.shelf, lambda name: pipe)
    made: dict[str, Work] = {}
    for keep in TO_KEEP:
        *_, last = whole.personalize("face", noise(0), keep=keep)
        assert last.work is not None
        made[keep] = last.work
    yield made
    whole.close()


def test_what_is_kept_is_chosen(studio: Studio, kept: dict[str, Work]) -> None:
    tuned = {keep: set(work.concept(5).config["tune"]) for keep, work in kept.items()}
    word = {"residual", "bias"}
    assert tuned == {
        "as measured": {*word, "deltas", "unet"},
        "low-rank": {*word, "deltas"},
        "vectors": {*word, "unet_vectors"},
        "embedding": word,
    }
    with pytest.raises(ConfigError, match="keeps nothing called 'all' of a concept; it can as measured, low-rank"):
        next(studio.personalize("face", noise(0), keep="all"))


@pytest.mark.parametrize("to", EXPORTS)
def test_every_export_can_be_had(studio: Studio, kept: dict[str, Work], to: str) -> None:
    files, _ = studio.export(kept["low-rank"], 5, to)
    assert files
    assert {path.suffix for path in files} == {".safetensors"}
    if not to.startswith("lora-"):
        assert studio.export(kept["as measured"], 5, to)[0]
        return
    with pytest.raises(ConfigError, match="choose 'low-rank' under 'What to keep' and press Personalize"):
        studio.export(kept["as measured"], 5, to)


def test_weights_of_half_precision_learn(tmp_path: Path) -> None:
    backbone = build_backbone()
    for module in (backbone.unet, backbone.vae, backbone.text_encoder, backbone.image_encoder):
        module.half()
    pipe = QuickPipeline(backbone, domain=Domain.named("face"))
    half = Studio(["face"], Shelf(tmp_path, lambda folder, domain: None), lambda name: pipe)
    try:
        moments = half.personalize("face", noise(0))
        assert next(moments).number == 0
        assert next(moments).loss is not None
    finally:
        half.close()
    with pytest.raises(SystemExit):  # concepts cannot be drawn in it
        cli.main(["web", "--dtype", "bfloat16"])


# What is temporary


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_dead_processes_left_is_removed_and_what_the_living_use_is_not(temporary: Path) -> None:
    living = Scratch()
    for name in ("e4t-web-dead", "e4t-web-starting", "mine"):
        (temporary / name).mkdir()
        (temporary / name / "photo.png").touch()
    (temporary / "e4t-web-dead" / "lock").touch()
    remove_stale()
    there = {path.name for path in temporary.iterdir()}
    assert there == {living.folder.name, "e4t-web-starting", "mine"}
    living.close()
    assert not living.folder.exists()


def test_nothing_is_written_after_the_end(temporary: Path) -> None:
    scratch = Scratch()
    folder = scratch.new_folder()
    with scratch.filling():
        scratch.close()
        folder.mkdir(parents=True)  # a thread that was at work goes on for a while
    assert list(temporary.iterdir()) == []
    with pytest.raises(CheckpointError, match="the page has ended"):
        scratch.new_folder()


ENDING = """
import signal, sys, time
from e4t.cli.serving import ended_by_signals
from e4t.web.scratch import Scratch

for one in (signal.SIGTERM, signal.SIGHUP):  # which whoever runs the tests may ignore
    signal.signal(one, signal.SIG_DFL)
with ended_by_signals():
    scratch = Scratch()
    try:
        print("ready", flush=True)
        time.sleep(20)
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        scratch.close()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_signals_end_in_order(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", ENDING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert any(tmp_path.glob("e4t-web-*"))
        process.send_signal(getattr(signal, name))
        assert process.stdout.readline() == "ended\n"
        assert process.wait(60) == 0
    assert list(tmp_path.iterdir()) == []


# Refusals


def test_a_port_in_use_is_refused_before_anything_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["web", "--port", str(port)]) == 2
    told = capsys.readouterr().err
    assert f"port {port} is in use; choose another with --port" in told
    with pytest.raises(ConfigError, match="choose another --host or --port"):
        require_free("203.0.113.1", port)  # an address for documents alone
    require_free("127.0.0.1", port)


def test_a_place_where_nothing_can_be_saved_is_refused_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    (tmp_path / "file").touch()
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    assert cli.main(["web", "--port", str(port), "--concepts", str(tmp_path / "file" / "concepts")]) == 2
    assert "is a file; choose another --concepts" in capsys.readouterr().err
    Shelf(tmp_path / "deep" / "concepts", lambda folder, domain: None).require_place()
    assert not (tmp_path / "deep").exists()


def test_what_goes_wrong_is_explained() -> None:
    assert explanation(OSError(errno.ENOSPC, "No space left on device")) == "the disk is full; make room and try again"
    denied = explanation(PermissionError(errno.EACCES, "Permission denied", "concepts/anna"))
    assert denied == "a file 'concepts/anna' could not be read or written (Permission denied)"
    assert "fewer pictures" in str(explanation(MemoryError()))
    assert "e4t personalize --memory auto" in str(explanation(MemoryError(), learning=True))
    assert explanation(ConfigError("odd")) == "odd"
    assert explanation(AssertionError("a fault of ours")) is None


# The page


def test_the_page_can_be_built(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    assert page.CSS.is_file()
    blocks = page.build(studio)
    labels = {block.label for block in blocks.blocks.values() if getattr(block, "label", None)}
    assert {"Drop a picture here", "Tuning steps", "Style", "Seed", "Saved"} <= labels
    (start,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "personalize"]
    (pressed,) = [fn for fn in blocks.fns.values() if (start._id, "click") in fn.targets]
    assert not pressed.queue  # it is seen at once that the button was pressed, whoever uses the model
    assert "Waiting for the model" in pressed.fn()[0]


@pytest.fixture(scope="module")
def events(studio: Studio, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page's handlers, with two domains."""
    pytest.importorskip("gradio")
    from e4t.web import page

    pipes = {"face": studio.pipe("face"), "art": E4TPipeline(studio.pipe("face").backbone, domain=Domain.named("art"))}
    both = Studio(
        ["face", "art"], Shelf(tmp_path_factory.mktemp("both"), lambda folder, domain: None), pipes.__getitem__
    )
    yield page.Handlers(both)
    both.close()


def test_a_new_picture_starts_with_the_whole_of_it(events: Any, tmp_path: Path) -> None:
    names = ("picture", "own_mask", "size", "across", "down", "mask", "mask_file", "grow", "brush", "caption")
    assert dict(zip(names, events.unframed(), strict=True)) == {
        "picture": None,
        "own_mask": None,
        "size": 100.0,
        "across": 50.0,
        "down": 50.0,
        "mask": "none",
        "mask_file": None,
        "grow": 0,
        "brush": "",
        "caption": "",
    }
    noise(0).save(tmp_path / "photo.png")
    picture = events.taken(str(tmp_path / "photo.png"))
    (tmp_path / "photo.png").unlink()  # as the server does after an hour
    whole = (100.0, 50.0, 50.0, "none", None, 0, "")
    assert events.look(picture, *whole)[1] == "<p>The crop is 16 × 16 pixels; all of it counts.</p>"
    half = Image.new("L", picture.size)
    half.paste(255, (0, 0, 8, 20))
    assert events.look(picture, 100.0, 50.0, 50.0, "a file of mine", half, 0, "")[1].endswith("50% of it counts.</p>")
    assert events.look(None, *whole) == (None, "<p>No picture yet: drop one above.</p>")


def test_a_file_that_is_refused_is_called_as_its_owner_does(events: Any, tmp_path: Path) -> None:
    import gradio

    (tmp_path / "broken.png").write_bytes(b"no picture")
    for take in (events.taken, events.mask_taken):
        with pytest.raises(gradio.Error, match=r"^\"'broken\.png' is not a picture"):
            take(str(tmp_path / "broken.png"))


def test_a_picture_that_is_not_learned_yet_is_said_to_be_so(events: Any, work: Work) -> None:
    import gradio

    assert "press Personalize. Until then the last concept is drawn" in events.unlearned(work, noise(1))
    assert events.unlearned(None, noise(1)) == events.unlearned(work, None) == gradio.skip()


def test_while_it_learns_the_page_says_how_long_and_then_what_to_do() -> None:
    pytest.importorskip("gradio")
    from e4t.web.page import _bar

    for seconds, said in ((89.4, "· 89 s left"), (354.0, "· 6 min left")):
        text = _bar(Moment(3, 15, Path(), 0.5, seconds))
        assert said in text
        assert "Draw it now" not in text
    assert "Draw it now, or move the slider" in _bar(
        Moment(15, 15, Path(), 0.5, 0.0, Work(Path(), "", None, "", {}, 5))
    )


def test_a_saved_concept_is_said_to_have_one_step(events: Any, work: Work) -> None:
    events.studio.save(work, 2, "once")
    try:
        slider = events.reopen("once", None, "face", "", "")[1]
        assert (slider["interactive"], slider["info"]) == (
            False,
            "A saved concept has the one step that it was saved with.",
        )
    finally:
        events.studio.shelf.delete("once")


def test_no_picture_leaves_for_another_site_and_every_format_says_what_for(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    parts = {part.elem_id: part for part in page.build(studio).blocks.values() if getattr(part, "elem_id", None)}
    assert not any("share" in (getattr(part, "buttons", None) or ()) for part in parts.values())
    assert tuple(page._FORMATS) == ("concept", *EXPORTS)
    assert [name for _, name in parts["to"].choices] == list(page._FORMATS)


def test_what_is_chosen_last_counts_however_fast(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    blocks = page.build(studio)
    chips = {part._id for part in blocks.blocks.values() if getattr(part, "label", "") in ("Style", "Place", "Wearing")}
    chips |= {part._id for part in blocks.blocks.values() if getattr(part, "elem_id", None) == "domain"}
    modes = [fn.trigger_mode for fn in blocks.fns.values() if any(number in chips for number, _ in fn.targets)]
    assert modes == ["always_last"] * 4


def test_leave_to_delete_is_given_for_one_concept(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    blocks = page.build(studio)
    parts = {part.elem_id: part for part in blocks.blocks.values() if getattr(part, "elem_id", None)}
    (changed,) = [fn for fn in blocks.fns.values() if (parts["chosen"]._id, "change") in fn.targets]
    assert changed.outputs == [parts["sure"]]
    assert changed.fn() is False


def test_another_domain_resets_the_chips_and_keeps_what_was_typed(events: Any) -> None:
    asked = events.in_domain("art", "a photo of S*", "a photo of S*")
    style, place, worn, prompt, composed, guidance, caption, face = asked
    assert not face["visible"]  # no human face is looked for in a style
    assert events.in_domain("face", None, "")[-1]["visible"]
    assert caption["placeholder"] == "S* in a red hat, or a cat in the style of S*"
    assert "value" not in caption
    assert (style["value"], place, worn) == ("a face", prompts.NOWHERE, prompts.NOTHING)
    assert prompt["value"] == composed == "a face in the style of S*"
    assert prompt["label"] == "Prompt (S* is the concept)"
    assert guidance > 0
    typed = events.in_domain("art", "my own words for S*", "a photo of S*")
    assert "value" not in typed[3]
    assert typed[4] == "a face in the style of S*"
    assert (
        events.composed("face", "pencil sketch", "snow", "crown")
        == ("a pencil sketch of S* wearing a crown in the snow",) * 2
    )


def test_reopening_a_concept_of_another_domain_sets_the_page_up_for_it(events: Any, work: Work) -> None:
    import gradio

    events.studio.save(work, 2, "anna")
    opened = events.reopen("anna", None, "art", "my own words for S*", "a face in the style of S*")
    reopened, domain, style, prompt = opened[0], opened[4], opened[5], opened[8]
    assert (reopened.domain, domain, style["value"]) == ("face", "face", "photo")
    assert "value" not in prompt
    assert events.reopen("anna", reopened, "face", "typed", "")[5:] == (gradio.skip(),) * 8


def test_a_concept_is_not_drawn_with_the_prompt_of_another_domain(events: Any, work: Work) -> None:
    import gradio

    settings = ("a face in the style of S*", "", 0, False, 1, 3.0, "the model's own", 1.0, False)
    with pytest.raises(gradio.Error, match="is of the domain 'face', but 'art' is chosen; choose 'face' to draw it"):
        events.draw("art", work, 3, *settings)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
def test_what_is_set_on_the_page_is_drawn(events: Any, work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = events.studio.draw
    monkeypatch.setattr(events.studio, "draw", lambda *given, **asked: draw(*given, **asked, num_inference_steps=2))
    own = type(events.studio.pipe("face").backbone.scheduler).__name__
    for chosen, scheduler in (("EulerDiscreteScheduler", "EulerDiscreteScheduler"), ("the model's own", own)):
        drawn, bare, *_ = events.draw("face", work, 3, "S*", "sea", 5, False, 2, 3.5, chosen, 0.5, True)
        notes = [read_notes(Path(path)) for path in (*drawn, *bare)]
        assert [made["seed"] for made in notes] == [5, 6, 5, 6]
        assert [made["concept"] for made in notes] == ["unsaved", "unsaved", None, None]
        assert {(made["scheduler"], made["guidance_scale"], made["negative_prompt"]) for made in notes} == {
            (scheduler, 3.5, "sea")
        }


# Names, and the hour until a concept is forgotten


def test_what_leaves_the_page_carries_the_name_that_was_given(events: Any, work: Work) -> None:
    studio = events.studio
    assert read_notes(studio.draw(work, 3, **QUICK)[0])["concept"] == "unsaved"
    for typed, name in (("", "my-face"), ("Bob B.", "bob-b")):  # web UIs call the word as its file is called
        assert [Path(path).name for path in events.export(work, 3, "textual-inversion", typed)[0]] == [
            f"{name}.safetensors"
        ]
    *_, saved = events.save(work, 3, "Anna S.")
    try:
        assert read_notes(studio.draw(saved, 3, **QUICK)[0])["concept"] == "anna-s"
        again = events.reopen("anna-s", None, "face", "", "")[0]
        for one in (saved, again):
            files, _ = events.export(one, 3, "diff", "Bob")
            assert [Path(path).name for path in files] == ["anna-s.S.safetensors", "anna-s.safetensors"]
            assert [Path(path).name for path in events.export(one, 3, "concept", "")[0]] == ["anna-s.zip"]
    finally:
        studio.shelf.delete("anna-s")


def test_whatever_is_done_with_a_concept_renews_its_hour(events: Any, studio: Studio) -> None:
    import gradio

    from e4t.web import page

    work = made(studio, 4)
    assert events.at_step(work, 2)[-1] is work
    assert events.export(work, 2, "concept", "")[-1] is work
    work.discard()  # as Personalize does with what it replaces, also while the slider is moved
    assert events.at_step(work, 2)[-1] == gradio.skip()
    blocks = page.build(studio)
    (state,) = [block for block in blocks.blocks.values() if getattr(block, "time_to_live", None) == 3600]
    renewed = {
        getattr(blocks.blocks[number], "elem_id", None)
        for function in blocks.fns.values()
        for number, _ in function.targets
        if state in function.outputs and number is not None
    }
    assert {"step", "draw", "save", "reopen", "export"} <= renewed


# The page as it is served


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def sent(address: str, content: bytes) -> tuple[int, str]:
    """Status and answer for a picture that is dropped."""
    edge = "eeee4444tttt"
    head = f'--{edge}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    request = urllib.request.Request(
        f"{address}/gradio_api/upload",
        head.encode() + content + f"\r\n--{edge}--\r\n".encode(),
        {"Content-Type": f"multipart/form-data; boundary={edge}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_page_is_served_to_this_machine_alone(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    monkeypatch.setattr(page, "MAX_BYTES", 2000)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(studio.uploads))
    port = free_port()
    blocks = page.launch(studio, host=Web().host, port=port)
    try:
        address = f"http://127.0.0.1:{port}"
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert answer.status == 200
            served = answer.read().decode()
        assert "e4t" in served
        assert "what counts is bright" in served  # page.js
        with pytest.raises(OSError, match=r"refused|assign|unreachable"):  # as any address but the one would be
            socket.create_connection(("127.0.0.2", port), timeout=5)
        status, told = sent(address, bytes(1500))
        assert status == 200
        (place,) = json.loads(told)
        assert Path(place).is_relative_to(studio.uploads)
        status, told = sent(address, bytes(2500))
        assert status == 413
        assert "maximum allowed size" in told
        assert [path for path in studio.uploads.rglob("*") if path.is_file()] == [Path(place)]
    finally:
        blocks.close()


def test_the_command_says_where_and_serves_until_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    pages: list[str] = []
    launched = page.launch

    def launch(studio: Studio, **where: Any) -> Any:
        blocks = launched(studio, **where)

        def looked() -> None:
            with urllib.request.urlopen(blocks.local_url, timeout=60) as answer:
                pages.append(answer.read().decode())
            blocks.close()

        blocks.block_thread = looked
        return blocks

    monkeypatch.setattr(page, "launch", launch)
    monkeypatch.setattr(E4TPipeline, "from_pretrained", lambda name, **options: face_pipeline())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    port = free_port()
    command = ["web", "--domain", "tiny-face", "--port", str(port), "--concepts", str(tmp_path / "concepts")]
    assert cli.main([*command, "--json"]) == 0
    (ready,) = [event for event in printed(capsys) if event["event"] == "ready"]
    assert ready["url"] == f"http://127.0.0.1:{port}"
    assert len(pages) == 1
    assert list(tmp_path.iterdir()) == []  # nothing temporary is left


# By keyboard


def in_order(layout: dict[str, Any]) -> Iterator[int]:
    """Parts as they follow each other in the page, which is the order of the tabulator."""
    for child in layout.get("children", []):
        yield child["id"]
        yield from in_order(child)


def test_the_tabulator_follows_the_work(studio: Studio) -> None:
    pytest.importorskip("gradio")
    from e4t.web import page

    blocks = page.build(studio)
    parts = [blocks.blocks[number] for number in in_order(blocks.get_config_file()["layout"])]
    names = [getattr(part, "elem_id", None) for part in parts]
    way = "upload domain framing caption keep personalize step style prompt count compare draw name save chosen reopen"
    assert [name for name in names if name in way.split()] == way.split()
    assert [name for name in names if name in ("delete", "sure", "to", "export")] == ["delete", "sure", "to", "export"]
    sources = [page.CSS, page.SCRIPT, page.BRUSH, page.BRUSH.with_suffix(".html")]
    assert not any("tabindex" in source.read_text(encoding="utf-8").lower() for source in sources)
    (prompt,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "prompt"]
    (draw,) = [block for block in blocks.blocks.values() if getattr(block, "elem_id", None) == "draw"]
    drawing = [function.fn for function in blocks.fns.values() if (draw._id, "click") in function.targets]
    assert [fn.fn for fn in blocks.fns.values() if (prompt._id, "submit") in fn.targets] == drawing  # Enter draws
