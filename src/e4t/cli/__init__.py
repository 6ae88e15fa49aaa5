"""The command line. Progress and messages go to stderr, the result's path to stdout; with ``--json``, lines of JSON.

Nothing heavy is imported before a command runs, so that ``e4t --help`` answers at once.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import tyro
from tyro.conf import subcommand

from e4t import __version__
from e4t.cli.doctor import Doctor
from e4t.cli.domains import Cache, Pretrain
from e4t.cli.drawing import Demo, Generate
from e4t.cli.elsewhere import advice
from e4t.cli.learning import Personalize, Replay
from e4t.cli.measuring import Benchmark, Evaluate
from e4t.cli.options import Command
from e4t.cli.serving import Web
from e4t.cli.sharing import Completion, Export, Info
from e4t.cli.terminal import emit, machine_readable, refuse, say, show_warning
from e4t.errors import E4TError, out_of_memory

Commands = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[Cache, subcommand("cache")]
    | Annotated[Pretrain, subcommand("pretrain")]
    | Annotated[Personalize, subcommand("personalize")]
    | Annotated[Generate, subcommand("generate")]
    | Annotated[Export, subcommand("export")]
    | Annotated[Replay, subcommand("replay")]
    | Annotated[Benchmark, subcommand("benchmark")]
    | Annotated[Evaluate, subcommand("evaluate")]
    | Annotated[Web, subcommand("web")]
    | Annotated[Info, subcommand("info")]
    | Annotated[Doctor, subcommand("doctor")]
    | Annotated[Completion, subcommand("completion")]
)
DESCRIPTION = "One image becomes a word of a text-to-image model, in a few tuning steps. --version tells the version."


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 for a fault of ours or where a part failed, 2 for what the user can put right, 130."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["--version"]:
        print(f"e4t {__version__}")
        return 0
    if given[:1] == ["--print-completion"]:
        given[0] = "completion"
    with machine_readable("--json" in given):
        command = _parsed(given)
        try:
            code = _run(command)
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # whoever read the output has had enough, as head has
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0


def _parsed(given: Sequence[str]) -> Command:
    """Raises SystemExit for help (0) and wrong usage (2), which with ``--json`` is an event too."""
    if told := advice(given):
        raise SystemExit(refuse(told, kind="usage"))
    if os.environ.get("NO_COLOR"):
        getattr(tyro, "_experimental_options", {})["ansi_codes"] = False
    if "--json" not in given or "--help" in given or "-h" in given:
        return tyro.cli(Commands, prog="e4t", description=DESCRIPTION, args=given)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Commands, prog="e4t", description=DESCRIPTION, args=given)
    except SystemExit:
        sentence = re.sub(r"[\u2500-\u257f]+|\x1b\[[\d;]*m", " ", said.getvalue())
        raise SystemExit(refuse(sentence, kind="usage")) from None


def _run(command: Command) -> int:
    name = type(command).__name__.lower()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            result = command.run()
    except E4TError as error:
        return refuse(str(error), kind=type(error).__name__)
    except BrokenPipeError:
        raise
    except OSError as error:
        text = f"{error.strerror or error}: '{error.filename}'" if error.filename else str(error)
        return refuse(text, kind=type(error).__name__)
    except KeyboardInterrupt:
        return refuse("interrupted", kind="KeyboardInterrupt", exit_code=130)
    except Exception as error:
        if out_of_memory(error):
            advice = (
                "the device ran out of memory: personalize with --memory auto, draw with --dtype float16 or fewer "
                "pictures at a time, or train with --gradient-checkpointing, or a smaller --batch-size and more "
                "--accumulation; a training goes on from its last saved state"
            )
            return refuse(advice, kind="OutOfMemoryError")
        say(traceback.format_exc())
        return refuse(f"a fault of this program, please report it: {error!r}", kind=type(error).__name__, exit_code=1)
    emit("result", command=name, exit_code=result.exit_code, **result.values)
    if not command.json:
        for line in result.lines:
            print(line)
    return result.exit_code
