"""How options are spelt: the types of commands' fields. The second spellings are those of diffusers' scripts.

tyro takes - and _ alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from tyro.conf import UseAppendAction, arg

if TYPE_CHECKING:
    pass


Output = Annotated[Path, arg(aliases=["--output-dir", "-o"], metavar="DIR")]
OptionalBase = Annotated[
    str | None, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL", help_behavior_hint="")
]
Steps = Annotated[int | None, arg(aliases=["--max-train-steps"], metavar="N", help_behavior_hint="")]
BatchSize = Annotated[int | None, arg(aliases=["--train-batch-size"], metavar="N", help_behavior_hint="")]
Accumulation = Annotated[int | None, arg(aliases=["--gradient-accumulation-steps"], metavar="N", help_behavior_hint="")]
Every = Annotated[int | None, arg(aliases=["--checkpointing-steps"], metavar="N", help_behavior_hint="")]
Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE", help_behavior_hint="")]
Integer = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Precision = Annotated[Literal["no", "fp16", "bf16"] | None, arg(metavar="{no,fp16,bf16}", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="NAME")]
Dtype = Literal["float32", "float16", "bfloat16"]


class Command(Protocol):
    """A sub-command: its fields are the options, its docstrings the help."""

    def run(self) -> Sequence[Path | str]:
        """Do the work; what is returned is printed, a line each."""
        ...
