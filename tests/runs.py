"""Trainings of a random model in processes of their own, for tests that kill them or start several at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).parents[1] / "src"
_TORCHRUN = ["-m", "torch.distributed.run"]


def command(base: Path, pictures: Path, output: Path, settings: dict[str, Any]) -> list[str]:
    """The arguments of Python for ``e4t pretrain``."""
    file = output.with_suffix(".json")
    file.write_text(json.dumps({"pretrain": settings}))
    arguments = ["pretrain", pictures, "--domain", "face", "--base", base, "--output", output, "--config", file]
    return ["-m", "e4t.cli", *map(str, arguments), "--device", "cpu"]


def start(arguments: list[str], processes: int = 1, *, by: str = "torchrun") -> subprocess.Popen[str]:
    """Several processes by torchrun or accelerate."""
    launcher: list[str] = []
    if processes > 1 and by == "torchrun":
        launcher = [*_TORCHRUN, "--nproc-per-node", str(processes), "--master-port", str(_port())]
    elif processes > 1:
        launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
        launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launcher += ["--main_process_port", str(_port())]
    return _started([*launcher, *arguments])


def start_machines(arguments: list[str], count: int) -> list[subprocess.Popen[str]]:
    """A launcher with one process for each of so many machines."""
    place = ["--nnodes", str(count), "--master-addr", "127.0.0.1", "--master-port", str(_port())]
    launchers = ([*_TORCHRUN, *place, "--node-rank", str(rank)] for rank in range(count))
    return [_started([*launcher, "--nproc-per-node", "1", *arguments]) for launcher in launchers]


def _started(arguments: list[str]) -> subprocess.Popen[str]:
    """In a group of its own, so that all of it can be killed."""
    environment = os.environ | {"PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )


def finish(run: subprocess.Popen[str]) -> str:
    """What a run that has to succeed says."""
    _, said = run.communicate()
    assert run.returncode == 0, said[-3000:]
    return said


def kill_after(run: subprocess.Popen[str], states: Path, count: int, delay: float) -> None:
    """SIGKILL to all of it, ``delay`` seconds after its ``count``-th new state is there."""
    before = set(states.glob("step-*"))
    while len(set(states.glob("step-*")) - before) < count and run.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def _port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
