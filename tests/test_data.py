from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from e4t.config import PretrainConfig
from e4t.data import ImageData, square_mask, square_pixels
from e4t.errors import ConfigError, DataError


def data(source, **options):
    values = {"resolution": 8, "crop_scale": (0.5, 1.0), "flip": True, "color_jitter": 0.2, "seed": 0}
    config = PretrainConfig(**{**values, **options})
    return ImageData(source, config, config.resolution)


def test_views_follow_from_seed_and_position(image_folder):
    one, other = data(image_folder), data(image_folder)
    one.views(0, 3)
    first, second = one.views(7, 3), other.views(7, 3)
    assert torch.equal(first.target, second.target)
    assert torch.equal(first.reference, second.reference)
    assert first.target.shape == (3, 3, 8, 8)
    assert first.reference.abs().max() <= 1
    assert not torch.equal(first.target, data(image_folder, seed=1).views(7, 3).target)


@pytest.mark.parametrize(
    "odd", [{"crop_scale": (1.0, 2.0)}, {"crop_scale": (0.0, 0.0)}, {"crop_scale": (0.9, 0.8)}, {"resolution": 0}]
)
def test_views_that_no_picture_has_are_refused(image_folder, odd):
    with pytest.raises(ConfigError, match=f"{next(iter(odd))} is"):
        data(image_folder, **odd)


def test_every_epoch_has_every_picture(image_folder):
    plain = data(image_folder, crop_scale=(1.0, 1.0), flip=False, color_jitter=0.0)
    everything = torch.stack([square_pixels(plain.entries[i].image(), 8) for i in range(5)])
    orders = []
    for epoch in range(2):
        same = (plain.views(epoch, 5).target[:, None] == everything).flatten(2).all(dim=2)
        orders.append(same.long().argmax(dim=1).tolist())
        assert same.sum(dim=0).tolist() == [1] * 5
    assert orders[0] != orders[1]


def test_target_and_reference_are_the_same_picture(image_folder):
    views = data(image_folder, crop_scale=(1.0, 1.0), color_jitter=0.0).views(0, 4)
    assert torch.equal(views.target, views.reference)


def test_an_array_gives_the_same_views(image_folder, tmp_path):
    path = tmp_path / "pictures.npy"
    squares = [square_pixels(entry.image(), 8) for entry in data(image_folder).entries]
    np.save(path, np.stack([((square + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() for square in squares]))
    plain = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0}
    assert torch.equal(data(path, **plain).views(0, 5).target, data(image_folder, **plain).views(0, 5).target)


def test_square_is_central_and_upright():
    values = np.zeros((4, 8, 3), np.uint8)
    values[:, 2:4] = 255
    pixels = square_pixels(Image.fromarray(values), 4)
    assert (pixels[:, :, 0] == 1).all()
    assert (pixels[:, :, 3] == -1).all()
    mask = square_mask(Image.fromarray(values[..., 0]), 4)
    assert mask.shape == (1, 4, 4)
    assert mask[0, :, 0].min() == 1


def test_unusable_sources(tmp_path):
    with pytest.raises(DataError, match="neither"):
        data(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no images"):
        data(tmp_path)
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(DataError, match="uint8"):
        data(tmp_path / "x.npy")
    (tmp_path / "broken.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"no picture that can be read.*broken\.png"):
        data(tmp_path).views(0, 1)
