"""Milliseconds per drawn picture on one core, as JSON.

python benchmarks/draw.py --count 200
"""

from __future__ import annotations

import json
import statistics
import time

import cv2

from e4t.tiny.captions import training_picture
from e4t.tiny.world import draw


def main(count: int = 200, size: int = 128) -> None:
    """Draw the first ``count`` training pictures at ``size`` pixels."""
    cv2.setNumThreads(1)
    draw(training_picture(0), size)
    times: dict[str, list[float]] = {}
    for index in range(count):
        picture = training_picture(index)
        began = time.perf_counter()
        draw(picture, size)
        seconds = time.perf_counter() - began
        style = "art" if picture.art else picture.transform or picture.style
        for name in ("all", style):
            times.setdefault(name, []).append(1000 * seconds)
    means = {name: round(statistics.mean(values), 2) for name, values in sorted(times.items())}
    print(json.dumps({"size": size, "count": count, "milliseconds": means}))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
