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
