"""The command line. Progress and messages go to stderr, the result's path to stdout.

Nothing heavy is imported before a command runs, so that ``e4t --help`` answers at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from e4t.cli.drawing import Demo, Generate
from e4t.cli.learning import Personalize, Pretrain, Replay
from e4t.cli.measuring import Benchmark, Evaluate
from e4t.cli.options import Command
from e4t.cli.serving import Web
from e4t.cli.sharing import Export, Info
from e4t.cli.terminal import get_console, refuse, show_warning
from e4t.errors import E4TError

Commands = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Personalize, subcommand("personalize")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Replay, subcommand("replay")]
    | Annotated[Benchmark, subcommand("benchmark")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Web, subcommand("web")]
    | Annotated[Info, subcommand("info")]
)
DESCRIPTION = "One image becomes a word of a text-to-image model, in a few tuning steps."


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 for what the user can put right (one sentence on stderr), 130 when interrupted."""
    command: Command = tyro.cli(
        Commands,
        prog="e4t",
        description=DESCRIPTION,
        args=arguments,
    )
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            lines = command.run()
    except E4TError as error:
        return refuse(str(error))
    except OSError as error:
        return refuse(f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error))
    except KeyboardInterrupt:
        get_console().print("interrupted")
        return 130
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        return refuse("the device ran out of memory: use a smaller batch, gradient checkpointing or another device")
    for line in lines:
        print(line)
    return 0
