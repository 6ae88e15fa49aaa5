"""A contact sheet of individuals nobody chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from e4t.errors import ConfigError
from e4t.evaluation.evaluate import input_picture
from e4t.evaluation.sheet import SheetConfig, main
from e4t.tiny.world import identity


def test_the_sheet_shows_what_was_learned_from_and_what_was_drawn(tmp_path: Path) -> None:
    output = tmp_path / "new" / "sheet.png"
    main(SheetConfig("tiny-cat", output, count=1, steps=0, num_inference_steps=1))
    sheet = np.asarray(Image.open(output))
    photo, _ = input_picture(identity("held-out-2", 0, "cat"))
    assert sheet.shape == (128 + 8, 7 * 132 + 12, 3)
    assert np.array_equal(sheet[4:132, 4:132], np.asarray(photo))
    assert sheet[4:132, 148:276].std() > 0


def test_individuals_that_were_trained_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="trained on"):
        main(SheetConfig("tiny-cat", tmp_path / "sheet.png", namespace="train"))
    assert not list(tmp_path.iterdir())
