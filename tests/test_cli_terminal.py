"""What every command does alike: JSON, exit codes, colour, completion, warnings, and the check of an installation."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from commands import events
from e4t import cli
from e4t.cli import terminal


def test_what_is_not_installed_is_named_with_the_extra_that_brings_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "find_spec", lambda name: None if name == "peft" else name)
    assert cli.main(["benchmark"]) == 2
    told = capsys.readouterr().err
    assert "this needs peft: install the extra with pip install '.[benchmark]' in the checkout of e4t" in told


def test_the_version_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    from e4t import __version__

    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"e4t {__version__}\n"


def test_every_command_speaks_json() -> None:
    for command in cli.Commands.__args__:
        assert "json" in command.__origin__.__dataclass_fields__, command


def test_wrong_usage_is_an_event_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", "--json"])
    assert caught.value.code == 2
    (error,) = events(capsys)
    assert (error["event"], error["kind"], error["exit_code"]) == ("error", "usage", 2)
    assert "CONCEPT" in error["message"]


@pytest.mark.parametrize(("raised", "code"), [(KeyboardInterrupt(), 130), (AssertionError("odd"), 1)])
def test_exit_codes_of_interruptions_and_faults(
    raised: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise raised

    monkeypatch.setattr("e4t.cli.sharing.shipped", fail)
    assert cli.main(["info", "--json"]) == code
    (error,) = events(capsys)
    assert (error["event"], error["exit_code"]) == ("error", code)
    assert cli.main(["info"]) == code
    assert capsys.readouterr().out == ""


def test_doctor_says_what_is_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from e4t.cli import doctor

    assert cli.main(["doctor", "--json"]) == 0
    (result,) = events(capsys)
    found = {one["name"]: one for one in result["findings"]}
    assert result["healthy"]
    assert found["torch"]["text"] == torch.__version__
    assert found["tiny-face"]["state"] == "ok"
    broken = tmp_path / "tiny-face"
    broken.mkdir()
    (broken / "config.json").write_text('{"kind": "domain"}')
    monkeypatch.setattr(doctor, "shipped", lambda: {"tiny-face": broken})
    assert cli.main(["doctor"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"BROKEN +models +tiny-face", told)
    assert "pip install --force-reinstall --no-deps " in told
    assert "no-deps e4t\n" not in told  # which is on no package index


def test_doctor_knows_every_extra_and_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    (result,) = events(capsys)
    rows = {(one["group"], name) for one in result["findings"] for name in one["name"].split(", ")}
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^(\w+) = \[", text.partition("[project.optional-dependencies]")[2].partition("\n[")[0], re.M)
    of_makers = {"docs", "test", "browser"}
    assert {name for group, name in rows if group == "extras"} == set(extras) - of_makers
    commands = {command.__origin__.__name__.lower() for command in cli.Commands.__args__}
    of_themselves = {"info", "doctor", "completion"}
    assert commands - of_themselves <= {name for group, name in rows if group == "commands"}


def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:

    if shutil.which("bash") is None:
        pytest.skip("bash is not installed")
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "e4t.bash"
    script.write_text(capsys.readouterr().out)
    for words, wanted in (("e4t per", "personalize"), ("e4t personalize --see", "--seed")):
        parts = words.split()
        ask = f'source "{script}"; COMP_WORDS=({words}); COMP_CWORD={len(parts) - 1}; COMP_LINE="{words}"; '
        ask += f'COMP_POINT={len(words)}; _tyro_e4t e4t "{parts[-1]}" "{parts[-2]}"; echo "${{COMPREPLY[@]}}"'
        said = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=False)
        assert wanted in said.stdout, said.stderr
    for shell in ("zsh", "fish"):
        assert cli.main(["--print-completion", shell]) == 0
        assert "personalize" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("setting", "coloured"), [({}, False), ({"FORCE_COLOR": "1"}, True), ({"NO_COLOR": "1"}, False)]
)
@pytest.mark.parametrize("terminal_here", [False, True])
def test_colour_is_for_terminals_and_as_the_environment_says(
    setting: dict[str, str], coloured: bool, terminal_here: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stream(io.StringIO):
        def isatty(self) -> bool:
            return terminal_here

    for name in ("FORCE_COLOR", "NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    said = Stream()
    monkeypatch.setattr("sys.stderr", said)
    assert cli.main(["info", "nowhere"]) == 2
    assert ("\x1b[31m" in said.getvalue()) is (coloured or (terminal_here and not setting))
    clock = Clock(monkeypatch)
    with terminal.progress_bar("work") as progress:
        progress.at(1, 3)
        clock.now += 9
        progress.at(2, 3)
        progress._bar.refresh()
    assert ("work" in said.getvalue()) is terminal_here  # a coloured log is no terminal: nothing moves in it
    assert ("9 s left" in said.getvalue()) is terminal_here


class Clock:
    """A clock that stands still unless it is moved."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(terminal.time, "monotonic", lambda: self.now)


def test_time_left_is_said_to_logs_and_machines_however_seldom_something_ends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with terminal.machine_readable(True), terminal.progress_bar("draw") as progress:
        for done in (11, 12, 13):
            clock.now += 600
            progress.at(done, 20, "loss 0.1" if done < 13 else "")
    out, err = capsys.readouterr()
    assert err == "11/20  loss 0.1\n12/20  loss 0.1, 80 min left\n13/20  draw, 70 min left\n"
    assert [json.loads(line)["seconds_left"] for line in out.splitlines()] == [None, 4800, 4200]


def test_what_is_soon_done_needs_no_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    with terminal.progress_bar("draw") as progress:
        for done in range(1, 10):
            clock.now += 1
            progress.at(done, 9)
    assert capsys.readouterr().err == ""


def test_time_left_is_of_the_work_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of what was found done already, nor of another round of work."""
    clock = Clock(monkeypatch)
    with terminal.progress_bar("many") as progress:
        for done in range(1, 101):
            clock.now += 0.01
            left = progress._left(clock.now, done, 120)
        for done in range(101, 105):
            clock.now += 60
            left = progress._left(clock.now, done, 120)
        assert left == pytest.approx(16 * 60)
        assert progress._left(clock.now, 0, 5) is None
        clock.now += 7
        assert progress._left(clock.now, 1, 5) == pytest.approx(4 * 7)


@pytest.mark.parametrize(
    ("seconds", "said"), [(3.2, "3 s"), (119, "119 s"), (120, "2 min"), (9_000, "2.5 h"), (200_000, "2.3 days")]
)
def test_times_are_said_in_the_unit_that_suits_them(seconds: float, said: str) -> None:
    assert terminal._lasting(seconds) == said


@pytest.mark.parametrize(
    ("file", "shown"),
    [
        (Path(terminal.__file__).parents[1] / "memory.py", True),
        (Path("/venv/lib/python3.11/site-packages/diffusers/utils.py"), False),
        (Path("/venv/lib/python3.11/dist-packages/torch/nn/modules/linear.py"), False),
        (Path("/people/anna/diffusers/src/diffusers/utils.py"), False),
        (Path("/people/anna/torch/venv/lib/python3.11/site-packages/mine/script.py"), True),
    ],
)
def test_warnings_of_libraries_alone_are_kept_back(
    file: Path, shown: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal.show_warning("look here", UserWarning, str(file), 1)
    assert ("look here" in capsys.readouterr().err) is shown
    monkeypatch.setattr(terminal, "_OWN", Path("/people/anna/diffusers/src/e4t"))
    terminal.show_warning("and here", UserWarning, str(terminal._OWN / "memory.py"), 1)
    assert "and here" in capsys.readouterr().err


def test_what_libraries_lack_is_not_said_either() -> None:
    terminal.quiet()
    assert not logging.getLogger("bitsandbytes").isEnabledFor(logging.WARNING)


def unread(code: str) -> tuple[int, str]:
    """Exit code and stdout of a program whose stderr nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=writing, text=True, check=False
        )
    finally:
        os.close(writing)
    return done.returncode, done.stdout


def test_nobody_reading_messages_stops_nothing() -> None:
    assert unread("from e4t.cli import terminal as t; t.say('a'); t.say('b'); print('done')") == (0, "done\n")
    assert unread("import sys; from e4t import cli; sys.exit(cli.main(['info', 'nowhere']))") == (2, "")
