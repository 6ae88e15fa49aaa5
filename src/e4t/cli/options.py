"""How options are spelt: the types of commands' fields. The second spellings are those of diffusers' scripts.

tyro takes - and _ alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from tyro.conf import DisallowNone, FlagCreatePairsOff, OmitArgPrefixes, UseAppendAction, arg

_T = TypeVar("_T")
Many = UseAppendAction[tuple[tuple[_T, ...], ...]]
"""Values after one option and after the same option again; `each` gives all of them."""

Output = Annotated[Path, arg(aliases=["--output-dir", "-o"], metavar="DIR")]
OptionalBase = Annotated[
    str | None, arg(aliases=["--pretrained-model-name-or-path"], metavar="MODEL", help_behavior_hint="")
]
Steps = Annotated[int | None, arg(aliases=["--max-train-steps"], metavar="N", help_behavior_hint="")]
StepsOrAuto = Annotated[
    int | Literal["auto"] | None, arg(aliases=["--max-train-steps"], metavar="N|auto", help_behavior_hint="")
]
BatchSize = Annotated[int | None, arg(aliases=["--train-batch-size"], metavar="N", help_behavior_hint="")]
Accumulation = Annotated[int | None, arg(aliases=["--gradient-accumulation-steps"], metavar="N", help_behavior_hint="")]
KeepStates = Annotated[int | None, arg(aliases=["--checkpoints-total-limit"], metavar="N", help_behavior_hint="")]
Every = Annotated[int | None, arg(aliases=["--checkpointing-steps"], metavar="N", help_behavior_hint="")]
Settings = Annotated[UseAppendAction[tuple[str, ...]], arg(name="set", metavar="NAME=VALUE", help_behavior_hint="")]
Integer = Annotated[int | None, arg(metavar="N", help_behavior_hint="")]
Number = Annotated[float | None, arg(metavar="X", help_behavior_hint="")]
Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
ClassWord = Annotated[str | None, arg(aliases=["--initializer-token"], metavar="TEXT", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Switch = Annotated[DisallowNone[bool | None], arg(help_behavior_hint="")]
"""--name or --no-name; None, where neither is given, leaves what a domain or file of settings says."""
Mask = Annotated[str | None, arg(metavar="auto|none|FILE", help_behavior_hint="")]
Precision = Annotated[Literal["no", "fp16", "bf16"] | None, arg(metavar="{no,fp16,bf16}", help_behavior_hint="")]
Device = Annotated[str, arg(metavar="NAME")]
Json = Annotated[FlagCreatePairsOff[bool], arg(help="Events, result and errors as lines of JSON on stdout.")]
Dtype = Literal["float32", "float16", "bfloat16"]
OptionalDtype = Annotated[Dtype | None, arg(metavar="{float32,float16,bfloat16}", help_behavior_hint="")]
Memory = Annotated[float | Literal["auto"] | None, arg(metavar="GB|auto", help_behavior_hint="")]


def each(given: Sequence[Sequence[_T]]) -> tuple[_T, ...]:
    """The values of `Many`, in the order they were given in."""
    return tuple(chain.from_iterable(given))


def optimizer_of(use_8bit_adam: bool | None) -> str | None:
    """What ``--use-8bit-adam`` means as a setting; None where it was not given."""
    return {True: "adamw8bit", False: "adamw", None: None}[use_8bit_adam]


@dataclass(frozen=True)
class BaseOptions:
    """How the base model is read, where its name alone does not say; docs/bases.md tells more."""

    image_encoder: Text = None
    """A CLIP in transformers' format: a folder or hub id. Default: the domain's, the base's own, else ViT-H/14."""
    revision: Text = None
    """Branch, tag or commit of a hub id."""
    variant: Text = None
    """Which weight files of a folder or hub id are read, e.g. fp16."""
    layout: Annotated[str | None, arg(metavar="MODEL", help_behavior_hint="")] = None
    """For a single file of unusual shapes: a folder or hub id with its configs and tokenizer."""
    prediction_type: Annotated[
        Literal["epsilon", "v_prediction"] | None, arg(metavar="{epsilon,v_prediction}", help_behavior_hint="")
    ] = None
    """What a single-file model predicts. Default: as it says, else epsilon for 1.x, and found by trying for 2.x."""

    def given(self) -> dict[str, str]:
        """As arguments of `Backbone.from_pretrained`."""
        return {field.name: value for field in fields(BaseOptions) if (value := getattr(self, field.name)) is not None}


Reading = OmitArgPrefixes[BaseOptions]


@dataclass(frozen=True)
class Result:
    """What a command ends with: lines for people, names and values for machines, and the exit code."""

    lines: Sequence[Path | str]
    values: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int = 0


class Command(Protocol):
    """A sub-command: its fields are the options, its docstrings the help."""

    @property
    def json(self) -> bool: ...

    def run(self) -> Result:
        """Do the work; the lines of what is returned are printed, or its values as JSON."""
        ...
