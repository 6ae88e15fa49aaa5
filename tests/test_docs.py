"""Documents do what they say: every block of code runs or says why not; links, pictures and pages are there."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import groupby, takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tyro

import e4t
from desk import lay_out, lay_out_more
from e4t import cli

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
DOCUMENTS = [README, *sorted(DOCS.glob("*.md"))]
MEASURED = ("results.md",)  # every block there is a command that took hours
PROGRAMS = ("bash", "python")  # languages that are run
SHOWN = ("text", "bibtex")  # and those that are only looked at
MAX_PICTURE = 60_000
SMALLER = {
    "pretrain": "--steps 1 --batch-size 1 --resolution 16",
    "personalize": "--steps 1 --batch-size 1 --no-preview",
    "generate": "--num-inference-steps 1",
}
"""Options behind those of a block that is marked <!-- run smaller: … -->: they are on a random base of 16 pixels."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document; ``reason`` says why it is not run, ``smaller`` that it is with less work."""

    document: Path
    line: int
    language: str
    code: str
    reason: str | None
    smaller: bool

    @property
    def place(self) -> str:
        return f"{self.document.name}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of every shell command, lines that go on joined."""
        if self.language not in ("bash", ""):
            return []
        lines = self.code.replace("\\\n", " ").splitlines()
        found: list[list[str]] = []
        for line in lines:
            words = shlex.split(line, comments=True)
            parts = [list(part) for joined, part in groupby(words, ("&&", "|").__contains__) if not joined]
            found.extend(parts)
        return found


def blocks(document: Path) -> list[Block]:
    lines, found, opened = document.read_text(encoding="utf-8").splitlines(), [], None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = number
            continue
        before = next((text for text in reversed(lines[:opened]) if text.strip()), "")
        reason = re.fullmatch(r"<!-- not run: (.+) -->", before)
        smaller = re.fullmatch(r"<!-- run smaller: .+ -->", before) is not None
        code = "\n".join(lines[opened + 1 : number]) + "\n"
        found.append(Block(document, opened + 1, lines[opened][3:].strip(), code, reason and reason.group(1), smaller))
        opened = None
    assert opened is None, f"{document.name}:{opened} opens a block that nothing closes"
    return found


ALL = [block for document in DOCUMENTS for block in blocks(document) if document.name not in MEASURED]
RUN = [block for block in ALL if block.language in PROGRAMS and block.reason is None]


def test_blocks_are_found() -> None:
    """So that none of the tests below passes for lack of anything to look at."""
    assert {block.document.name for block in RUN} >= {"README.md", "quickstart.md", "concepts.md", "faq.md"}
    assert len(RUN) >= 29


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.place)
def test_every_block_says_what_it_is(block: Block) -> None:
    known = (*PROGRAMS, "json", *SHOWN)
    assert block.language in known, f"{block.place}: open it with ```{'|'.join(known)}"
    if block.language == "json":
        json.loads(block.code)
    if block.language == "python":
        compile(block.code, block.place, "exec")


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if any(b.document == d for b in RUN)], ids=lambda d: d.name)
def test_code_of_the_documents_runs(
    document: Path, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From top to bottom, in one folder and one Python; what cannot run here has a mark above it."""
    monkeypatch.chdir(lay_out(tmp_path))
    lay_out_more(tmp_path, document.name, model_folder)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in (block for block in RUN if block.document == document):
        if block.language == "python":
            exec(compile(block.code, block.place, "exec"), names)
        for words in block.commands:
            run(words, block)


def arguments_of(words: list[str]) -> list[str] | None:
    """What e4t is given, by itself or by a program that starts several of it; None where it is another program."""
    if words[0] in ("torchrun", "accelerate") and "e4t.cli" in words:
        return words[words.index("e4t.cli") + 1 :]
    return words[1:] if words[0] == "e4t" else None


def run(words: list[str], block: Block) -> None:
    """What starts several processes starts one here: tests/test_processes.py has several."""
    program, *arguments = words
    place, given = block.place, arguments_of(words)
    if given is not None:
        more = SMALLER.get(given[0], "").split() if block.smaller else []
        assert cli.main([*given, *more]) == 0, f"{place}: {shlex.join([*words, *more])}"
    elif program == "rm" and arguments[0] == "-r":
        shutil.rmtree(Path.cwd() / arguments[1])
    else:
        pytest.fail(f"{place}: nothing here runs '{program}'; mark the block: <!-- not run: reason -->")


COMMANDS = [
    pytest.param(arguments, id=f"{block.place} {arguments[0] if arguments else ''}")
    for block in [block for document in DOCUMENTS for block in blocks(document)]
    for words in block.commands
    if (arguments := arguments_of(words)) is not None
]


@pytest.mark.parametrize("arguments", COMMANDS)
def test_every_command_is_spelt_as_the_command_line_reads_it(arguments: list[str]) -> None:
    """Those that are not run, too: options and values that do not exist are found."""
    refused = io.StringIO()
    with contextlib.redirect_stdout(refused), contextlib.redirect_stderr(refused):
        try:
            tyro.cli(cli.Commands, prog="e4t", args=arguments)
        except SystemExit as end:  # 0 after --help
            code = end.code
        else:
            code = 0
    assert code == 0, refused.getvalue()


# Links, pictures, pages


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_links_and_pictures_are_there(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        path, _, anchor = link.partition("#")
        if path.startswith(("https://", "mailto:")):
            continue
        target = document.parent / path if path else document
        assert target.exists(), f"{document.name} links to {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{document.name} links to {link}"


def anchors(document: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


def test_pictures_are_small_and_used() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert pictures
    texts = "".join(document.read_text(encoding="utf-8") for document in DOCUMENTS)
    for picture in pictures:
        assert picture.stat().st_size <= MAX_PICTURE, (
            f"{picture.name}: python docs/scripts/pictures.py makes smaller ones"
        )
        assert f"pictures/{picture.name}" in texts, f"{picture.name} is on no page"


def test_lines_fit() -> None:
    for document in DOCUMENTS:
        for number, line in enumerate(document.read_text(encoding="utf-8").splitlines(), 1):
            assert len(line) <= 120 or line.startswith(("|", ">")), f"{document.name}:{number}"


def test_every_page_is_in_the_site() -> None:
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = set(re.findall(r"[\w-]+\.md", site))
    assert listed == {page.name for page in DOCS.glob("*.md")}, "nav in mkdocs.yml lists every page of docs once"


def test_every_public_name_is_in_the_reference() -> None:
    page = (DOCS / "python.md").read_text(encoding="utf-8")
    for name in set(e4t.__all__) - {"__version__"}:
        home = getattr(e4t, name).__module__
        assert f"::: {home}.{name}\n" in page or f"::: {home}\n" in page, name


def generator() -> ModuleType:
    spec = spec_from_file_location("generated", DOCS / "scripts" / "generated.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    generated = generator()
    assert generated.stale() == [], f"what they are made from has changed: run '{generated.COMMAND}'"


def test_generated_pages_know_every_command_and_setting() -> None:
    """Not only the same as last time: what is in the sources is on the page."""
    generated = generator()
    listed = [command for command, _ in generated.commands()]
    assert {(name,) for name in ("demo", "pretrain", "personalize", "generate", "export", "info")} <= set(listed)
    page = generated.settings_page()
    for section in ("PretrainConfig", "PersonalizeConfig", "GenerateConfig"):
        for field in getattr(e4t, section)().to_dict():
            assert f"| `{field}` |" in page


def test_the_site_builds(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        pytest.skip("the extra docs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    reference = (tmp_path / "site" / "python" / "index.html").read_text(encoding="utf-8")
    assert "E4TPipeline" in reference
    assert "keep_steps" in reference


def _readme_tables() -> tuple[list[list[str]], list[list[str]]]:
    """The cells of the results, and of the comparison with other methods."""
    results, compared = README.read_text().split("## Results")[1].split("##")[0].split("| joint success,")
    return tuple(
        [
            [cell.strip("* ") for cell in line.strip("|").split("|")]
            for line in table.splitlines()
            if line.startswith("|") and "%" in line
        ]
        for table in (results, compared)
    )


def test_the_comparison_of_the_readme_is_of_the_benchmark() -> None:
    _, rows = _readme_tables()
    assert len(rows) == 7
    for place, kind in enumerate(("face", "cat", "art"), 1):
        (benchmark,) = json.loads((DOCS / "results" / f"benchmark-full-{kind}.json").read_text())
        measured = {(row["method"], row["steps"]): row["joint_success"]["value"] for row in benchmark["rows"]}
        for name, *shares in rows:
            called = re.fullmatch(r"(?P<method>.+), (?P<steps>\d+) steps\b.*", name)
            assert called, name
            share = measured[called["method"], int(called["steps"])]
            assert float(shares[place - 1].strip("* %")) / 100 == pytest.approx(share, abs=0.00501)


FIFTY, DOMAIN = "Fifty of each", "The domain's pictures without encoder and offsets"


@pytest.mark.parametrize(
    ("heading", "caption", "file"),
    [
        ("Faces", "", "benchmark-face"),
        ("Cats", "", "benchmark-cat"),
        ("Art styles", "", "benchmark-art"),
        (FIFTY, "*People:*", "benchmark-full-face"),
        (FIFTY, "*Cats:*", "benchmark-full-cat"),
        (FIFTY, "*Art styles*", "benchmark-full-art"),
        (DOMAIN, "*Faces:*", "benchmark-face-on-domain"),
        (DOMAIN, "*Cats:*", "benchmark-cat-on-domain"),
        (DOMAIN, "*Art styles:*", "benchmark-art-on-domain"),
    ],
)
def test_the_tables_of_the_comparisons_are_of_the_benchmark(heading: str, caption: str, file: str) -> None:
    (benchmark,) = json.loads((DOCS / "results" / f"{file}.json").read_text())
    _, text = (DOCS / "results.md").read_text().split(f"\n### {heading}\n")
    text = text[text.index(caption) :]
    _, *table = takewhile(lambda line: line.startswith("|"), text[text.index("| | identity") :].splitlines()[1:])
    shown = {
        name: cells for name, *cells in ([cell.strip("* ") for cell in line.strip("|").split("|")] for line in table)
    }
    measured = [(f"{row['method']}, {row['steps']} steps", row) for row in benchmark["rows"]]
    called = [(name if name in shown else row["method"], row) for name, row in measured]
    if heading == DOMAIN:  # shows what the other tables do not
        called = [(name, row) for name, row in called if name in shown]
    assert [name for name, _ in called] == list(shown)
    assert len(shown) == len(table)
    names = ("identity", "rank_1_of_20_twins", "prompt_accuracy", "joint_success")
    for name, row in called:
        for cell, score in zip(shown[name], names, strict=False):
            assert float(cell.split(" (")[0]) == pytest.approx(row[score]["value"], abs=0.00501)


def test_the_table_of_the_readme_is_of_the_results() -> None:
    rows, _ = _readme_tables()
    methods = ("class word", "0 steps", "5 steps", "drawings")
    measured = [
        json.loads((DOCS / "results" / f"tiny-{kind}.json").read_text())["methods"][method]
        for kind in ("face", "cat", "art")
        for method in methods
    ]
    for (_, *shares), scores in zip(rows, measured, strict=True):
        names = ("rank_1_of_20_twins", "prompt_accuracy", "joint_success")
        for share, name in zip(shares, names, strict=True):
            assert float(share.rstrip(" %")) / 100 == pytest.approx(scores[name]["value"], abs=0.00501)
