"""What holding the weights of attention gains in pre-training on a CPU, as JSON: with and without, in turn.

    python benchmarks/attention.py --domain tiny-face --pairs 5

Seconds are medians of three steps with all that goes around them; the ratio is of single pairs, smallest, median and
largest, so that what else the machine does falls on both.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest import mock

import torch

from e4t.backbone import Backbone
from e4t.config import PretrainConfig
from e4t.pipeline import E4TPipeline
from e4t.pretrain import pretrain

PICTURES = Path(__file__).parents[1] / "src" / "e4t" / "tiny" / "examples"


@contextmanager
def fused() -> Iterator[None]:
    """Torch's fused attention, as everywhere else."""
    with mock.patch.object(Backbone, "differentiable_attention", return_value=nullcontext()):
        yield


def seconds(job: Callable[[], object]) -> float:
    """How long ``job`` takes."""
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def main(domain: str = "tiny-face", pairs: int = 5) -> None:
    """Time three steps of pre-training at the domain's own batch size and precision."""
    torch.set_flush_denormal(True)
    pipe = E4TPipeline.from_pretrained(domain, device="cpu")
    assert pipe.trained is not None
    settings = PretrainConfig.from_dict({**pipe.trained.pretrain, "steps": 3, "warmup_steps": 0, "cooldown_steps": 0})

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "domain"
            list(pretrain(pipe.domain, PICTURES, backbone=pipe.backbone, config=settings, output=output))

    train()
    rows = []
    for _ in range(pairs):
        held = seconds(train)
        with fused():
            rows.append((held, seconds(train)))
    ratios = sorted(slow / held for held, slow in rows)
    report = {
        "held": round(statistics.median(held for held, _ in rows), 2),
        "fused": round(statistics.median(slow for _, slow in rows), 2),
        "fused / held": [round(ratio, 2) for ratio in (ratios[0], statistics.median(ratios), ratios[-1])],
    }
    print(json.dumps({"threads": torch.get_num_threads(), "pairs": pairs, **report}))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
