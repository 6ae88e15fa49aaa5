"""The page in a real browser: from a picture to a saved concept, at desktop and phone width.

On a random model, and once on the shipped domain. Screenshots are left in $E4T_SCREENSHOTS, where that is set.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import build_backbone
from e4t.config import PersonalizeConfig
from e4t.demo import example_pictures
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.pipeline import E4TPipeline
from e4t.provenance import read_notes
from e4t.web.shelf import Shelf
from e4t.web.studio import Studio

pytestmark = pytest.mark.slow
CHROMIUM = which("chromium") or which("chromium-browser") or which("google-chrome")
WAIT = 180_000  # milliseconds: the machine may be busy with something else
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


class QuickPipeline(E4TPipeline):
    personalize_config = PersonalizeConfig.without_domain().updated({"batch_size": 2, "frozen_timesteps": 2})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    return Shelf(tmp_path_factory.mktemp("shelf") / "concepts", lambda folder, domain: None)


@pytest.fixture(scope="module")
def studio(shelf: Shelf) -> Iterator[Studio]:
    pipe = QuickPipeline(build_backbone(), domain=Domain.named("face"))
    studio = Studio(["face"], shelf, lambda name: pipe)
    yield studio
    studio.close()


@pytest.fixture(scope="module")
def address(studio: Studio) -> Iterator[str]:
    pytest.importorskip("gradio")
    from e4t.web.page import launch

    blocks = launch(studio, host="127.0.0.1", port=7899)
    yield blocks.local_url
    blocks.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra 'browser' is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; install the system's package, e.g. apt-get install chromium")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def picture(folder: Path, seed: int) -> Path:
    path = folder / f"{seed}.png"
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (60, 48, 3), dtype=np.uint8)).save(path)
    return path


def opened(browser: Any, address: str, size: tuple[int, int]) -> Any:
    page = browser.new_page(viewport={"width": size[0], "height": size[1]})
    page.set_default_timeout(WAIT)
    page.goto(address)
    return page


def personalized(page: Any, path: Path) -> None:
    page.set_input_files("#upload input[type=file]", str(path))
    page.wait_for_selector("#frame img")
    page.click("#personalize")
    page.wait_for_selector("#progress:has-text('done')")


def told(page: Any, script: str) -> Any:
    """What a script of this folder finds on the page."""
    return page.evaluate(f"({(Path(__file__).parent / script).read_text(encoding='utf-8')})()")


def photographed(page: Any, name: str) -> None:
    """A picture of the page, for people to look at."""
    if folder := os.environ.get("E4T_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)


def drawn(page: Any) -> str:
    """Address of the first picture, after a press of the button."""
    before = page.locator("#gallery img").first.get_attribute("src") if page.locator("#gallery img").count() else None
    page.click("#draw")
    page.wait_for_function(
        "old => { const i = document.querySelector('#gallery img'); return i && i.getAttribute('src') !== old }",
        arg=before,
    )
    return str(page.locator("#gallery img").first.get_attribute("src"))


@pytest.mark.parametrize("device", SIZES)
def test_the_whole_path(browser: Any, address: str, shelf: Shelf, tmp_path: Path, device: str) -> None:
    page = opened(browser, address, SIZES[device])
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    personalized(page, picture(tmp_path, 0))
    for area, said in (("#progress", "done"), ("#counted", "48 × 48 pixels; all of it counts")):  # for screen readers
        live = page.locator(f"{area}[role=status][aria-live=polite], {area} [role=status][aria-live=polite]")
        assert said in live.inner_text()
    assert page.locator("#progress progress").get_attribute("aria-label") == "Tuning steps"
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= SIZES[device][0]

    seen = page.locator("#glimpse img").get_attribute("src")
    page.locator("#step input[type=range]").focus()
    page.keyboard.press("ArrowLeft")  # 14: by keyboard
    page.wait_for_function("old => document.querySelector('#glimpse img').getAttribute('src') !== old", arg=seen)
    assert page.locator("#step input[type=number]").input_value() == "14"

    page.locator("#style label", has_text="pencil sketch").click()
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a pencil sketch of S*'")
    source = drawn(page)
    file = tmp_path / "drawn.png"
    file.write_bytes(page.request.get(source).body())
    notes = read_notes(file)
    assert (notes["prompt"], notes["steps"]) == ("a pencil sketch of S*", 14)

    page.fill("#name input, #name textarea", f"anna {device}")
    page.click("#save")
    page.wait_for_function("name => document.querySelector('#chosen input').value === name", arg=f"anna-{device}")
    assert f"anna-{device}" in shelf.names()
    page.click("#exporting button")
    page.click("#export")
    page.wait_for_selector(f"#files a:has-text('anna-{device}'), #files :text('anna-{device}')")
    reach = told(page, "reach.js")
    assert reach["count"] > 40
    assert reach["faults"] == []
    photographed(page, f"path-{device}")
    page.click("#reopen")
    page.wait_for_selector(f"#progress:has-text('Reopened: anna-{device}, after 14 steps')")
    again = tmp_path / "again.png"
    again.write_bytes(page.request.get(drawn(page)).body())
    assert Image.open(again).tobytes() == Image.open(file).tobytes()

    page.click("#delete")
    page.wait_for_selector("text=tick the box below")
    page.check("#sure input")
    page.click("#delete")
    page.wait_for_function("document.querySelector('#chosen input').value === ''")
    assert f"anna-{device}" not in shelf.names()
    assert faults == []
    page.close()


def test_two_tabs_do_not_mix(browser: Any, address: str, tmp_path: Path) -> None:
    first, second = (opened(browser, address, SIZES["desktop"]) for _ in range(2))
    for page, seed in ((first, 1), (second, 2)):
        page.set_input_files("#upload input[type=file]", str(picture(tmp_path, seed)))
        page.wait_for_selector("#frame img")
    first.click("#personalize")
    second.click("#personalize")
    for page in (first, second):
        page.wait_for_selector("#progress:has-text('done')")
    pictures = [page.request.get(drawn(page)).body() for page in (first, second)]
    assert pictures[0] != pictures[1]
    for style in ("pencil sketch", "photo"):  # another picture in between: the same one has the same address
        first.locator("#style label", has_text=style).click()
        first.wait_for_function(
            "text => document.querySelector('#prompt textarea').value === text", arg=f"a {style} of S*"
        )
        again = first.request.get(drawn(first)).body()
    assert again == pictures[0]
    assert pictures[0].startswith(b"\x89PNG")
    first.close()
    second.close()


# By keyboard

WAY = "upload domain framing caption keep personalize step style prompt count compare draw name save chosen reopen"


def focused(page: Any) -> str:
    """The named part that the focus is in."""
    parts = ",".join(f"#{name}" for name in (*WAY.split(), "delete", "sure", "exporting"))
    return str(page.evaluate("parts => document.activeElement.closest(parts)?.id ?? ''", parts))


def at_the_top(page: Any) -> None:
    """The tabulator begins behind what was pressed or clicked last."""
    page.evaluate("window.scrollTo(0, 0)")
    page.mouse.click(5, 5)


def tabbed_to(page: Any, name: str) -> None:
    for _ in range(80):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"the tabulator does not reach {name}")


def test_by_keyboard_alone(browser: Any, address: str, tmp_path: Path) -> None:
    page = opened(browser, address, SIZES["desktop"])
    uploaded(page, picture(tmp_path, 6))
    at_the_top(page)
    tabbed_to(page, "keep")
    page.keyboard.press("ArrowRight")  # low-rank
    assert page.locator("#keep input:checked").get_attribute("value") == "low-rank"
    tabbed_to(page, "personalize")
    page.keyboard.press("Enter")
    tabbed_to(page, "style")
    for _ in range(2):  # as fast as a key that is held down, and faster than the page answers
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(30)
    page.wait_for_function("document.querySelector('#prompt textarea').value === 'a watercolour of S*'")
    page.wait_for_selector("#progress:has-text('done')")
    page.wait_for_selector("#step input[type=range]:enabled")

    at_the_top(page)
    visited: list[str] = []
    for _ in range(80):
        page.keyboard.press("Tab")
        if (name := focused(page)) and name not in visited:
            visited.append(name)
    assert visited == [*WAY.split(), "delete", "sure", "exporting"]

    tabbed_to(page, "draw")
    page.keyboard.press("Space")
    page.wait_for_selector("#gallery img")
    tabbed_to(page, "name")
    page.keyboard.type("keys")
    tabbed_to(page, "save")
    page.keyboard.press("Enter")
    page.wait_for_selector("#saved button img")
    page.wait_for_function("document.querySelector('#chosen input').value === 'keys'")
    page.locator("#saved button:has(img)").first.focus()
    page.keyboard.press("Enter")
    tabbed_to(page, "exporting")
    page.keyboard.press("Enter")
    page.wait_for_selector("#to input")
    page.close()


# The shipped domain


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Studio, str]]:
    pytest.importorskip("gradio")
    from e4t.web.page import launch

    shelf = Shelf(tmp_path_factory.mktemp("shipped") / "concepts", lambda folder, domain: None)
    studio = Studio(["tiny-face"], shelf, E4TPipeline.from_pretrained)
    blocks = launch(studio, host="127.0.0.1", port=7900)
    yield studio, blocks.local_url
    blocks.close()
    studio.close()


def stepped(page: Any, step: int) -> np.ndarray:
    """The quick look at a step, after the slider has been set to it by its number."""
    before = page.locator("#glimpse img").get_attribute("src")
    page.fill("#step input[type=number]", str(step))
    page.keyboard.press("Enter")
    page.wait_for_function("old => document.querySelector('#glimpse img').getAttribute('src') !== old", arg=before)
    source = page.locator("#glimpse img").get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB"), float)


def test_the_shipped_domain_from_a_picture_to_a_named_export(browser: Any, shipped: tuple[Studio, str]) -> None:
    studio, address = shipped
    page = opened(browser, address, SIZES["desktop"])
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    photo = example_pictures("face")[1]
    uploaded(page, photo)
    page.click("#personalize")
    page.wait_for_selector("#progress:has-text('Step 3 of 15')")
    page.wait_for_selector("#glimpse img")  # while it learns
    photographed(page, "tiny-learning")
    page.wait_for_selector("#progress:has-text('done')")
    assert page.locator("#step input[type=number]").input_value() == str(
        studio.pipe("tiny-face").personalize_config.steps
    )

    given = np.asarray(Image.open(photo).convert("RGB").resize((128, 128)), float)
    off = {step: np.abs(np.asarray(stepped(page, step)) - given).mean() for step in (0, 15, 5)}
    assert off[15] < off[0]  # more steps are more like the picture

    page.check("#compare input")
    with_concept = page.request.get(drawn(page)).body()
    page.wait_for_selector("#without img")
    without = page.request.get(page.locator("#without img").first.get_attribute("src")).body()
    assert with_concept != without
    photographed(page, "tiny-drawn")

    page.fill("#name input, #name textarea", "Anna")
    page.click("#save")
    page.wait_for_function("document.querySelector('#chosen input').value === 'anna'")
    page.click("#exporting button")
    page.click("#to input")
    page.locator("[role=option]", has_text="single-file").click()
    page.click("#export")
    page.wait_for_selector("#files :text('anna.S')")
    photographed(page, "tiny-exported")

    page.click("#reopen")
    page.wait_for_selector("#progress:has-text('Reopened: anna, after 5 steps')")
    again = page.request.get(drawn(page)).body()
    assert Image.open(io.BytesIO(again)).tobytes() == Image.open(io.BytesIO(with_concept)).tobytes()
    assert faults == []
    page.close()


# The mask by brush


def stroke(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Paint from one place of the picture to another, both in shares of its width and height; wait until it is seen."""
    before = page.evaluate("document.querySelector('#frame img').src")
    canvas = page.locator("#brush canvas")
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end[0], box["y"] + box["height"] * end[1], steps=10)
    page.mouse.up()
    page.wait_for_function("old => document.querySelector('#frame img').src !== old", arg=before)


def uploaded(page: Any, path: Path) -> None:
    if page.locator("#frame img").count():
        page.click("#upload button[aria-label='Clear']")
        page.wait_for_selector("#frame img", state="detached")
    before = page.evaluate("document.querySelector('#frame img')?.src")
    page.set_input_files("#upload input[type=file]", str(path))
    page.wait_for_function("old => (document.querySelector('#frame img')?.src ?? old) !== old", arg=before)


def painted(page: Any) -> int:
    """How many pixels of the canvas are painted on."""
    count = """() => {
        const canvas = document.querySelector('#brush canvas');
        const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        return data.filter((value, index) => index % 4 === 3 && value).length;
    }"""
    return int(page.evaluate(count))


@pytest.mark.parametrize("device", SIZES)
def test_the_mask_is_painted_and_the_caption_typed(
    browser: Any, address: str, studio: Studio, tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks: list[np.ndarray | None] = []
    captions: list[str] = []

    def noted(
        domain: str, image: Image.Image, mask: Image.Image | None = None, *, keep: str, caption: str
    ) -> Iterator[Any]:
        masks.append(None if mask is None else np.asarray(mask))
        captions.append(caption)
        raise ConfigError("this is about the mask alone")

    monkeypatch.setattr(studio, "personalize", noted)
    page = opened(browser, address, SIZES[device])
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    large = tmp_path / "large.png"
    Image.open(picture(tmp_path, 3)).resize((960, 1200)).save(large)
    uploaded(page, large)
    page.click("#framing button")
    page.wait_for_selector("#brush canvas")
    page.locator("#brush label", has_text="does not count").click()
    stroke(page, (0.1, 0.5), (0.9, 0.5))
    page.locator("#brush label", has_text="rubber").click()
    stroke(page, (0.7, 0.5), (1.0, 0.5))
    assert painted(page) > 0

    def mask() -> np.ndarray | None:
        count = len(masks)
        page.click("#personalize")
        page.wait_for_selector("text=this is about the mask alone")
        page.locator("button[aria-label='Dismiss toast message'], .toast-close").first.click()
        page.wait_for_selector("text=this is about the mask alone", state="detached")
        assert len(masks) == count + 1
        return masks[-1]

    found = mask()
    assert found is not None
    assert found.shape == (960, 960)  # the crop in the middle of the picture
    assert (found[480, 150:550].max(), found[480, 900:].min()) == (0, 255)  # painted over, and taken back
    assert (found[:300].min(), found[-300:].min()) == (255, 255)

    page.locator("#brush label", has_text="counts").first.click()
    stroke(page, (0.4, 0.5), (0.5, 0.5))
    again = mask()
    assert again is not None
    assert (again[480, 150:300].max(), again[480, 400:460].min()) == (0, 255)

    uploaded(page, picture(tmp_path, 4))  # what was painted on the last picture is not for the next
    page.wait_for_function("document.querySelector('#brush canvas').width === 48")
    assert painted(page) == 0
    assert "Put S* where" in page.locator("#caption").inner_text()
    page.fill("#caption textarea, #caption input", "S* in a red hat")
    assert mask() is None
    uploaded(page, picture(tmp_path, 5))  # nor is what was said of it
    page.wait_for_function("document.querySelector('#caption textarea, #caption input').value === ''")
    assert mask() is None
    assert captions == ["", "", "S* in a red hat", ""]
    assert faults == []
    page.close()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_all_can_be_read(browser: Any, address: str, tmp_path: Path, theme: str) -> None:
    """Contrast as WCAG 2.1 AA asks for, of the colours that the browser computed."""
    page = opened(browser, f"{address}?__theme={theme}", SIZES["desktop"])
    uploaded(page, picture(tmp_path, 5))
    for accordion in page.locator("button.label-wrap").all():
        if "open" not in (accordion.get_attribute("class") or "").split():
            accordion.click()
    page.wait_for_selector("#brush canvas")
    page.locator("#mask label", has_text="a file of mine").click()
    page.check("#compare input")
    page.wait_for_timeout(1500)  # transitions
    seen = told(page, "contrast.js")
    assert seen["count"] > 60
    assert seen["faint"] == []
    sliders = page.locator("input[type=range]:enabled").all()
    assert len(sliders) > 6
    for slider in sliders:
        looks = np.asarray(Image.open(io.BytesIO(slider.screenshot())).convert("RGB")) / 255
        linear = np.where(looks <= 0.03928, looks / 12.92, ((looks + 0.055) / 1.055) ** 2.4) @ (0.2126, 0.7152, 0.0722)
        around = linear[0, 0] + 0.05
        assert max((linear.max() + 0.05) / around, around / (linear.min() + 0.05)) >= 3
    page.close()
