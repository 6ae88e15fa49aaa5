"""What the repository promises about itself: layers, the map of files, quick help, clean words, pinned versions."""

from __future__ import annotations

import ast
import os
import re
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def processor_seconds(*arguments: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert python(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.slow  # `make test` runs the linter itself
def test_layers_point_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    if not linter.exists():
        pytest.skip("import-linter is not installed")
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [str(linter), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout


def test_every_file_of_the_map_exists_and_every_source_is_in_it() -> None:
    section = README.split("\n## Map\n")[1].split("\n## ")[0]
    mapped = set(re.findall(r"`(src/[^`]+)`", section))
    assert {path for path in mapped if not (ROOT / path).is_file()} == set()
    present = {path.relative_to(ROOT).as_posix() for path in SOURCES if path.name != "__init__.py"}
    assert present - mapped == set()


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for document in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).exists(), (document.name, link)


COMMANDS = (
    "- demo cache pretrain personalize generate export replay benchmark evaluate web info doctor completion".split()
)


HELPS = """
import contextlib, io, sys
from e4t import cli

for command in sys.argv[1:]:
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            cli.main([*command.strip("-").split(), "--help"])
        except SystemExit as end:
            assert end.code == 0, command
    assert "usage: e4t" in said.getvalue(), command
    print(command, *sys.modules)
"""


def test_help_is_quick_and_loads_nothing_heavy() -> None:
    result = python("-c", HELPS, *COMMANDS)
    assert result.returncode == 0, result.stderr
    for line in result.stdout.splitlines():
        command, *loaded = line.split()
        assert "e4t.config" in loaded  # the list is what it should be
        heavy = {"torch", "diffusers", "transformers", "huggingface_hub", "numpy", "PIL", "cv2", "psutil"}
        assert not heavy & set(loaded), command
    assert len(result.stdout.splitlines()) == len(COMMANDS)


def test_help_takes_little_longer_than_the_libraries_it_is_made_with() -> None:
    """A ratio of processor times, taken in turns: a slow or busy machine slows both alike."""
    code = "import tyro, typeguard, rich.console"
    for _ in range(3):
        bare = processor_seconds("-c", code)
        ratio = processor_seconds("-m", "e4t.cli", "personalize", "--help") / bare
        if ratio < 3:
            break
    assert ratio < 3


def test_pins_are_exact_and_true_of_this_installation() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    names = [re.split("==| ;", pin)[0] for pin in pins]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+( ; python_version (<|>=) \"3\.\d+\")?", pin) for pin in pins)
    assert names == sorted(names)
    wanted = [re.match(r"[\w-]+", line).group() for line in re.findall(r'"([\w-]+(?:>=)[^"]*)"', PYPROJECT)]
    normal = {re.sub("[-_.]+", "-", name).lower() for name in wanted} - {"setuptools"}
    assert normal <= set(names)
    assert not {"torchvision", "open-clip-torch"} & set(names)


def test_what_is_installed_is_allowed() -> None:
    from packaging.requirements import Requirement

    for line in re.findall(r'"([\w-]+>=[\w.]+)"', PYPROJECT):
        requirement = Requirement(line)
        try:
            version = distribution(requirement.name).version
        except PackageNotFoundError:
            continue
        assert requirement.specifier.contains(version, prereleases=True), line


def test_licence_is_whole() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS", "APPENDIX"):
        assert part in licence
    assert 'license = "Apache-2.0"' in PYPROJECT


def test_no_pickle_no_copied_models_no_miscellany() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not imported & {"pickle", "dill", "joblib", "torchvision", "open_clip"}, path
        assert path.stem not in ("utils", "common", "helpers", "misc"), path
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in ("load", "save")
            ):
                owner = node.func.value
                assert not (isinstance(owner, ast.Name) and owner.id == "torch"), f"{path}: torch.{node.func.attr}"


def test_no_version_is_forced_on_users() -> None:
    """Ranges have a lower end and nothing else; the two commands of the README pin in constraints.txt."""
    tables = (
        PYPROJECT.split("dependencies]")[0]
        + PYPROJECT.split("[project.optional-dependencies]")[1].split("[project.")[0]
    )
    listed = re.findall(r"^dependencies = \[(.*?)^\]", tables, re.DOTALL | re.MULTILINE)
    listed += re.findall(
        r"^\w+ = \[(.*?)\]$", PYPROJECT.split("[project.optional-dependencies]")[1].split("[project.")[0], re.MULTILINE
    )
    names = [name for part in listed for name in re.findall(r'"([^"]+)"', part)]
    assert len(names) > 15
    for name in names:
        assert re.fullmatch(r"e4t\[\w+\]|[\w-]+>=[\d.]+", name), name


def test_heavy_libraries_are_imported_where_they_are_needed() -> None:
    """Only the tiny model's own training loads diffusers and transformers at its head, and only the page gradio."""
    for path in SOURCES:
        if "tiny" in path.parts or path.parts[-2:] == ("web", "page.py"):
            continue
        body = ast.parse(path.read_text(encoding="utf-8")).body
        heads = {node.module or "" for node in body if isinstance(node, ast.ImportFrom)}
        heads |= {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        assert not {head.split(".")[0] for head in heads} & {"diffusers", "transformers", "gradio", "peft"}, path


def test_no_class_is_a_copy_of_the_libraries() -> None:
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        assert "HuggingFace Team" not in source, path
        classes = {node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)}
        copied = [
            name for name in classes if re.search(r"UNet|Attention\b|AttnProcessor|AutoencoderKL|CLIP|Scheduler$", name)
        ]
        assert copied == [], path


def test_every_module_says_what_it_is_for() -> None:
    for path in SOURCES:
        source = path.read_text(encoding="utf-8")
        assert not source.strip() or ast.get_docstring(ast.parse(source)), path


# Spelled in parts, so that this file passes its own test.
FORBIDDEN = [
    "TO" + "DO",
    "FIX" + "ME",
    "X" * 3 + r"\b",
    "/" + "home/",
    "/" + "root/",
    "/" + "work/",
    "/" + "tmp/",
    "pypi" + r"\.org",
    "files\\.python" + "hosted",
    "lorem" + " ipsum",
    r"\b" + "chat" + "gpt",
    r"\b" + "cla" + "ude",
    r"\bas an " + "ai\\b",
    r"\biss" + r"ue #?\d",
    r"\bsub-?" + r"agents?\b",
]
TEXTS = [*SOURCES, *(ROOT / "tests").rglob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("*.t*"), ROOT / "Makefile"]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_forbidden_words(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = [word for word in FORBIDDEN if re.search(word, text, re.IGNORECASE if word[0] == "\\" else 0)]
    assert found == []
    assert not re.search(r"[ \t]$", text, re.MULTILINE), "blanks at the end of a line"
    assert text.endswith("\n") or not text


def test_lines_of_the_documents_fit() -> None:
    for path in ROOT.glob("*.md"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120, f"{path.name}:{number}"
