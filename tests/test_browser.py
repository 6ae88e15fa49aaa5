"""The page in a real browser, on a random model: from a picture to a saved concept, at desktop and phone width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from shutil import which
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import build_backbone
from e4t.config import PersonalizeConfig
from e4t.domain import Domain
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
def address(shelf: Shelf) -> Iterator[str]:
    pytest.importorskip("gradio")
    from e4t.web.page import launch

    pipe = QuickPipeline(build_backbone(), domain=Domain.named("face"))
    studio = Studio(["face"], shelf, lambda name: pipe)
    blocks = launch(studio, host="127.0.0.1", port=7899)
    yield blocks.local_url
    blocks.close()
    studio.close()


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
    page.click("#reopen")
    page.wait_for_selector(f"#progress:has-text('Reopened: anna-{device}, after 14 steps')")
    again = tmp_path / "again.png"
    again.write_bytes(page.request.get(drawn(page)).body())
    assert Image.open(again).tobytes() == Image.open(file).tobytes()

    page.click("#exporting button")
    page.click("#export")
    page.wait_for_selector("#files a:has-text('zip'), #files :text('zip')")
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
