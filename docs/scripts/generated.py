"""The pages that nobody writes: docs/cli.md from every command's --help, docs/settings.md from the configurations.

    python docs/scripts/generated.py            # write them
    python docs/scripts/generated.py --check    # say which are stale; the exit code counts them

Run it after a command, an option, a setting or a default has changed; tests/test_docs.py says when that was forgotten.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import e4t.config
from e4t.cli import main as e4t_main

DOCS = Path(__file__).parents[1]
COMMAND = "python docs/scripts/generated.py"
NOTE = f"<!-- Written by {COMMAND}: change the source instead. -->\n\n"
WIDTH = "100"

# docs/cli.md

CLI_HEAD = """# Every option

What `e4t` and each of its commands answer to `--help`. Exit codes, manifests, events as JSON and completion are in
[The command line](command-line.md). Where an option has several spellings, the others are those of diffusers' training
scripts.

"""


def help_of(command: Sequence[str]) -> str:
    """What a command answers to --help, as on a terminal of `WIDTH` columns."""
    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            e4t_main([*command, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return "\n".join(line.rstrip() for line in said.getvalue().strip().splitlines())


def commands(command: Sequence[str] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Every command and its help, those of commands below commands too, as the help lists them."""
    text = help_of(command)
    yield tuple(command), text
    for name in re.findall(r"^ +• (\S+)", text.partition("\n subcommands\n")[2], re.MULTILINE):
        yield from commands([*command, name])


def cli_page() -> str:
    sections = []
    for command, text in commands():
        title = f"## {' '.join(('e4t', *command))}\n\n" if command else ""
        sections.append(f"{title}```text\n{text}\n```\n")
    return NOTE + CLI_HEAD + "\n".join(sections)


# docs/settings.md

SETTINGS_HEAD = """# Settings

Every setting and its default, from `src/e4t/config.py`. In Python they are arguments (`pipe.personalize(image,
steps=15)`), on the command line the common ones are options and all of them can be given as `--set NAME=VALUE`, those
of a group as `--set encoder.head=linear`; in a file they are JSON, in the sections `pretrain`, `personalize` and
`generate` (`e4t pretrain --config FILE`).

What comes later wins: the defaults here, what was measured for the domain (its `config.json`; `e4t info tiny-face`
shows it), a file, `--set`, an option of its own. Learning rates, `embedding_scale` and `regularisation` depend on the
width of the word embeddings: values for Stable Diffusion do not serve a smaller model, nor the other way round.

*Standing*: **P** is said by the authors, **R** agreed on by independent re-implementations, **?** open, our choice.
The *paper* column is what `--preset paper` sets, where that differs from the default.

"""
SECTIONS: dict[str, tuple[str, Callable[[], Any] | None]] = {
    "PretrainConfig": ("Pre-training a domain (`e4t pretrain`)", e4t.config.PretrainConfig.paper),
    "EncoderConfig": ("The encoder (`encoder.…` of pre-training)", None),
    "OffsetsConfig": ("The weight offsets (`offsets.…` of pre-training)", None),
    "PersonalizeConfig": ("Personalizing (`e4t personalize`)", e4t.config.PersonalizeConfig.paper),
    "GenerateConfig": ("Drawing (`e4t generate`)", None),
    "BaseConfig": ("Reading a base model (options of every command that takes `--base`)", None),
}


def settings_page() -> str:
    source = inspect.getsource(e4t.config)
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    configurations = {name for name, node in classes.items() if node.decorator_list}
    if configurations != set(SECTIONS):
        raise SystemExit(f"SECTIONS must name these classes, and no others: {', '.join(sorted(configurations))}")
    parts = [section(name, classes[name], source.splitlines()) for name in SECTIONS]
    return NOTE + SETTINGS_HEAD + "\n".join(parts)


def section(name: str, node: ast.ClassDef, lines: Sequence[str]) -> str:
    title, preset = SECTIONS[name]
    paper = preset() if preset else None
    default = getattr(e4t.config, name)()
    head = ["setting", "type", "default", *(["paper"] if paper else []), "standing", "meaning"]
    rows = [head, ["---"] * len(head)]
    for field in (part for part in node.body if isinstance(part, ast.AnnAssign)):
        assert isinstance(field.target, ast.Name)
        setting = field.target.id
        standing, meaning = comment_of(field, lines)
        value, other = getattr(default, setting), getattr(paper, setting, None)
        differs = [shown(other) if other != value else ""] if paper else []
        rows.append([f"`{setting}`", kind_of(field), shown(value), *differs, standing, meaning])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    about = " ".join(str(ast.get_docstring(node)).split())
    return f"## {title}\n\n`{name}`: {about}\n\n{table}\n"


def comment_of(field: ast.AnnAssign, lines: Sequence[str]) -> tuple[str, str]:
    """The mark and the words of the comment behind a field, which may be spread over lines."""
    assert field.end_lineno is not None
    behind = [re.search(r"  # (.*)|^ +# (.*)", line) for line in lines[field.lineno - 1 : field.end_lineno]]
    text = " ".join(found.group(1) or found.group(2) for found in behind if found)
    mark = re.match(r"\[([PR?])\][ ;,]*", text)
    words = text[mark.end() :] if mark else text
    return mark.group(1) if mark else "", re.sub(r"\[([PR?])\]", r"(\1)", words).replace("|", "or")


def kind_of(field: ast.AnnAssign) -> str:
    """A type as people say it: no bar, which would end a cell of the table."""
    return ast.unparse(field.annotation).replace(" | None", ", or none").replace("|", "or")


def shown(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value is None else str(value)


PAGES: dict[str, Callable[[], str]] = {"cli.md": cli_page, "settings.md": settings_page}


def stale() -> list[str]:
    """Pages that do not say what the sources say."""
    old = {name: DOCS / name for name in PAGES}
    return [
        name
        for name, page in PAGES.items()
        if not old[name].is_file() or old[name].read_text(encoding="utf-8") != page()
    ]


def main() -> int:
    if "--check" in sys.argv[1:]:
        wrong = stale()
        print("\n".join(f"docs/{name} is stale: run {COMMAND}" for name in wrong) or "all pages are up to date")
        return len(wrong)
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")
        print(f"docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
