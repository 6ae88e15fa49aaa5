"""Commands about what others get: export and info."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from e4t.cli.folders import ConceptOptions, OfConcept, describe, description, kind_of, shipped
from e4t.cli.options import Integer, Json, Result, Text
from e4t.cli.terminal import get_console, printable, progress_bar, quiet
from e4t.config import at_least
from e4t.shipped import resolve

if TYPE_CHECKING:
    from e4t.export import LoraRow


@dataclass(frozen=True)
class Export:
    """Write a concept as a file or folder that other programs load, and say how much of it that keeps."""

    concept: Annotated[Positional[Path], arg(metavar="CONCEPT")]
    """A concept folder."""
    to: Literal["textual-inversion", "pipeline", "single-file", "diff", "lora-diffusers", "lora-kohya"]
    """textual-inversion: the bare word; pipeline: a diffusers folder; single-file: a checkpoint for web UIs;
    diff: dense changes for AUTOMATIC1111 and ComfyUI; lora-...: an approximation of them. The last four write the word
    into a second, small file, which has to be loaded as well."""
    output: Annotated[Path, arg(aliases=["-o"], metavar="PATH")]
    """The folder (pipeline) or .safetensors file to write; the file of the word is named after it."""
    token: Text = None
    """What prompts will say for the concept. Default: the placeholder, S*."""
    dtype: Annotated[Literal["float16", "float32"] | None, arg(metavar="{float16,float32}", help_behavior_hint="")] = (
        None
    )
    """Number type of the written weights. Default: float16, and the base's own for pipeline."""
    rank: Integer = None
    """Rank of the LoRA. Default: the smallest that keeps 95 % of the identity with an error of at most 2 %."""
    model: OfConcept = field(default_factory=ConceptOptions)
    json: Json = False

    def run(self) -> Result:
        from e4t.errors import UnfaithfulError
        from e4t.export import export

        at_least("rank", self.rank, 1)
        quiet()
        concept, pipe = self.model.open(self.concept, "float32", look=self.to.startswith("lora-"))  # likeness is told
        options: dict[str, Any] = {"to": self.to, "token": self.token, "dtype": self.dtype, "rank": self.rank}
        try:
            with progress_bar(f"export to {self.to}") as progress:
                report = export(pipe, concept, self.output, progress=progress.at, **options)
        except UnfaithfulError as error:
            self._show(error.table)
            raise
        self._show(report.table)
        console = get_console()
        if report.kept is not None:
            console.print(f"keeps {report.kept:.1%} of what the concept does to the noise prediction")
        console.print(f"frozen word: cosine {report.similarity.cosine:.3f} with the live one")
        for note in report.notes:
            console.print(note)
        paths = [path for path in (report.path, report.embedding) if path is not None]
        return Result(paths, {**asdict(report), "paths": paths})

    def _show(self, table: Sequence[LoraRow]) -> None:
        for row in table:
            get_console().print(
                f"rank {row.rank:>3}: noise prediction {row.kept:.1%} (error {row.error:.4f}), identity "
                f"{row.identity:.1%}, energy {row.energy:.1%}, {row.megabytes:.2f} MB"
            )


@dataclass(frozen=True)
class Info:
    """Say what a folder or export is, or how a picture was made; without a path, list what comes with the package."""

    path: Annotated[Positional[str | None], arg(metavar="[PATH]", help_behavior_hint="")] = None
    """Folder of a concept, domain or base model, name of a shipped model, drawn picture, or file by 'e4t export'."""
    json: Json = False

    def run(self) -> Result:
        if self.path is not None and Path(self.path).is_file():
            return self._of_a_file(Path(self.path))
        if self.path is None:
            kinds = {name: kind_of(folder) for name, folder in shipped().items()}
            return Result(
                [f"{name}: {kind}" for name, kind in kinds.items()] or ["no models are shipped"], {"shipped": kinds}
            )
        rows = description(Path(resolve(self.path)))
        return Result(describe(rows), {"folder": rows})

    def _of_a_file(self, path: Path) -> Result:
        if path.suffix.lower() == ".safetensors":
            from e4t.export.labels import read_labels

            said = read_labels(path)
            return Result(describe(said), {"export": said})
        from e4t.provenance import read_notes

        made = read_notes(path)
        lines = [printable(f"{name}: {json.dumps(value, ensure_ascii=False)}") for name, value in made.items()]
        return Result(lines, {"picture": made})


@dataclass(frozen=True)
class Completion:
    """Print what makes a shell complete e4t's commands and options: source it, or put it where the shell looks."""

    shell: Annotated[Positional[Literal["bash", "zsh", "fish"]], arg(metavar="{bash,zsh,fish}")]
    """bash: eval "$(e4t completion bash)" in .bashrc; docs/command-line.md says where zsh and fish look."""
    json: Json = False

    def run(self) -> Result:
        script = completion_script(self.shell)
        return Result([script], {"shell": self.shell, "script": script})


def completion_script(shell: str) -> str:
    """As tyro makes it of the commands themselves."""
    import contextlib
    import io

    import tyro

    from e4t.cli import DESCRIPTION, Commands

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        tyro.cli(Commands, prog="e4t", description=DESCRIPTION, args=["--tyro-print-completion", shell])
    return said.getvalue().rstrip()
