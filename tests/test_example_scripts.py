"""The programs and the notebook in examples run from beginning to end, on a quick copy of the shipped domain."""

from __future__ import annotations

import ast
import json
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import build_backbone
from desk import lay_out
from e4t import Concept
from e4t.demo import example_pictures
from e4t.images import load_image

EXAMPLES = Path(__file__).parents[1] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("desk")) / "tiny-face"


@pytest.fixture
def run(quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs an example in an empty folder; returns the files it names."""
    (tmp_path / "tiny-face").symlink_to(quick)
    monkeypatch.chdir(tmp_path)

    def run_one(name: str, *arguments: str) -> list[Path]:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return [tmp_path / line for line in capsys.readouterr().out.splitlines() if (tmp_path / line).exists()]

    return run_one


def drawn(path: Path) -> np.ndarray[Any, Any]:
    values = np.asarray(Image.open(path))
    assert values.shape == (128, 128, 3)
    assert values.std() > 5  # not one colour
    return values


def test_every_example_is_tried_here() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    for script in EXAMPLES.glob("*.py"):
        assert f'run("{script.name}"' in tried, script.name
    assert NOTEBOOKS


def test_quickstart(run) -> None:
    first, second = run("quickstart.py")
    assert not np.array_equal(drawn(first), drawn(second))
    assert Concept.load(first.parent / "concept").preview is not None


def test_own_domain(run) -> None:
    settings = ["--steps", "2", "--batch-size", "2", "--num-inference-steps", "2"]
    domain, picture = run("own_domain.py", *settings)
    config = json.loads((domain / "config.json").read_text(encoding="utf-8"))
    assert (config["kind"], config["training"]["pictures"]) == ("domain", 3)
    drawn(picture)


def test_img2img_starts_from_the_picture(run) -> None:
    (much,) = run("img2img.py", "--keep", "0.5", "--output", "much.png")
    (little,) = run("img2img.py", "--keep", "0", "--output", "little.png")
    start = np.asarray(load_image(example_pictures("face")[1])).astype(float)
    assert np.abs(drawn(much) - start).mean() < np.abs(drawn(little) - start).mean()


def test_controlnet(run) -> None:
    (picture,) = run("controlnet.py")
    drawn(picture)


def test_a_controlnet_is_loaded_to_where_the_unet_is(tmp_path: Path) -> None:
    from diffusers import ControlNetModel

    unet = build_backbone().unet
    ControlNetModel.from_unet(unet).save_pretrained(tmp_path)
    net = runpy.run_path(str(EXAMPLES / "controlnet.py"))["pretrained"](str(tmp_path), unet.half())
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float16}


def test_batch_goes_on_and_leaves_out_what_is_no_picture(
    run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, picture in enumerate(example_pictures("face")[:2]):
        load_image(picture).save(photos / f"{number}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    (photos / "0.txt").write_text("a smiling S*")
    Image.new("L", (128, 128), 255).save(photos / "1-mask.png")
    (photos / "notes.txt").write_text("not looked at")
    with pytest.warns(UserWarning, match="these are left out"):
        made = run("batch.py", "photos", "--prompts", "a photo of S*")
    (photos / "notes.txt").unlink()
    assert [path.name for path in made] == ["0-0.png", "1-0.png"]
    assert not (tmp_path / "out" / "batch" / "broken").exists()
    made[1].unlink()
    before = (tmp_path / "out" / "batch" / "1" / "config.json").stat().st_mtime_ns
    assert run("batch.py", "photos", "--prompts", "a photo of S*") == made[1:]
    assert (tmp_path / "out" / "batch" / "1" / "config.json").stat().st_mtime_ns == before
    assert Concept.load(tmp_path / "out" / "batch" / "1").provenance["mask"] is not None
    load_image(example_pictures("face")[2]).save(photos / "0.png")  # another picture is another concept
    assert run("batch.py", "photos", "--prompts", "a photo of S*") == made[:1]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs_from_top_to_bottom(
    notebook: Path, quick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib", reason="the extra 'tiny' is not installed")
    (tmp_path / "tiny-face").symlink_to(quick)
    monkeypatch.chdir(tmp_path)
    content = json.loads(notebook.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    names: dict[str, Any] = {"__name__": "__main__"}
    shown = [execute("".join(cell["source"]), names) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert sum(isinstance(value, Image.Image) for value in shown) >= 4


def execute(code: str, names: dict[str, Any]) -> Any:
    """Run a cell; the value of its last line is what a notebook shows."""
    body = ast.parse(code).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if isinstance(last, ast.Expr) else None


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_holds_no_results(notebook: Path) -> None:
    """Nothing stale, and nothing of the machine it was written on."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    for cell in cells:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
