from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import e4t


def test_import_loads_nothing_heavy():
    heavy = {"torch", "diffusers", "transformers", "numpy", "PIL"}
    code = f"import sys, e4t, e4t.config, e4t.domain; print(*{heavy} & set(sys.modules))"
    source = str(Path(e4t.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == ""


@pytest.mark.parametrize("name", e4t.__all__)
def test_public_names_exist(name):
    assert getattr(e4t, name) is not None
    assert name in dir(e4t)


def test_unknown_name():
    with pytest.raises(AttributeError, match="nothing"):
        e4t.nothing  # noqa: B018


ROOT = Path(__file__).parents[1]


def test_a_wheel_has_every_file_that_is_no_source():
    tables = pytest.importorskip("tomllib", reason="Python 3.10 has none").loads((ROOT / "pyproject.toml").read_text())[
        "tool"
    ]["setuptools"]["package-data"]
    packed = {
        path
        for package, patterns in tables.items()
        for pattern in patterns
        for path in (ROOT / "src" / package.replace(".", "/")).glob(pattern)
    }
    listed = subprocess.run(["git", "ls-files", "src/e4t"], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {ROOT / line for line in listed.stdout.splitlines() if not line.endswith(".py")}
    assert len(files) > 30
    assert sorted(files - packed) == []


def test_the_oldest_versions_are_those_that_are_allowed():
    project = pytest.importorskip("tomllib", reason="Python 3.10 has none").loads(
        (ROOT / "pyproject.toml").read_text()
    )["project"]
    allowed = dict(line.lower().replace("_", "-").split(">=") for line in project["dependencies"])
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    tried = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert tried.pop("peft").startswith("0.19")  # the extra benchmark's
    assert {name: tuple(map(int, version.split("."))) for name, version in tried.items()} == {
        name: (*map(int, version.split(".")), *[0] * (2 - version.count("."))) for name, version in allowed.items()
    }
