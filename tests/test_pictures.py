from __future__ import annotations

import io
import os
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from e4t.config import PretrainConfig
from e4t.data import ImageData
from e4t.errors import DataError, ImageError
from e4t.pictures import open_pictures
from packed import png, write_tar

FILES = {"b/1.png": png(1), "a/0.png": png(0), "a/0.txt": b" two \n lines ", "notes.md": b"no picture"}


def pixels(entry):
    return np.asarray(entry.image())


def packed(tmp_path, kind):
    path = tmp_path / f"pictures.{kind}"
    if kind == "tar":
        return write_tar(path, FILES)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as file:
            for name, data in FILES.items():
                file.writestr(name, data)
        return path
    for name, data in FILES.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_every_kind_of_package_holds_the_same_pictures(tmp_path, kind):
    entries = open_pictures(packed(tmp_path, kind))
    assert [entry.name.replace("\\", "/")[-7:] for entry in entries] == ["a/0.png", "b/1.png"]
    assert [entry.caption() for entry in entries] == ["two lines", None]
    for seed, entry in enumerate(entries):
        assert pixels(entry).shape == (20, 24, 3)
        assert (pixels(entry) == np.random.default_rng(seed).integers(0, 255, (20, 24, 3), dtype=np.uint8)).all()


def test_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"picture": [{"bytes": png(n), "path": None} for n in range(3)], "text": ["face", " ", None], "n": [1, 2, 3]}
    kinds = datasets.Features(picture=datasets.Image(), text=datasets.Value("string"), n=datasets.Value("int32"))
    table = datasets.Dataset.from_dict(rows, features=kinds)
    table.save_to_disk(tmp_path / "table")
    datasets.DatasetDict(train=table).save_to_disk(tmp_path / "splits")
    for name in ("table", "splits"):
        entries = open_pictures(tmp_path / name)
        assert [entry.caption() for entry in entries] == ["face", None, None]
        assert pixels(entries[2]).shape == (20, 24, 3)
    table.remove_columns("picture").save_to_disk(tmp_path / "words")
    with pytest.raises(DataError, match=r"no column of images, only 'text', 'n'"):
        open_pictures(tmp_path / "words")
    with pytest.raises(DataError, match=r"the dataset 'hf:nobody/nothing' cannot be opened"):
        open_pictures("hf:nobody/nothing")


def test_what_holds_no_pictures_is_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"'.*empty' holds no images \(.avif, .bmp, "):
        open_pictures(tmp_path / "empty")
    with pytest.raises(DataError, match="holds no images"):
        open_pictures(write_tar(tmp_path / "words.tar", {"a.txt": b"a"}))
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as file:
        file.add(packed(tmp_path, "folder"), "pictures")
    with pytest.raises(DataError, match="compressed as a whole"):
        open_pictures(tmp_path / "all.tar.gz")
    (tmp_path / "odd.zip").write_bytes(b"odd")
    with pytest.raises(DataError, match=r"neither a whole \.zip or \.tar archive"):
        open_pictures(tmp_path / "odd.zip")


def test_ways_of_packing_that_cannot_be_bounded_are_refused(tmp_path):
    """A member of 1,000 bytes, as it says, may become any number of them before the library cuts it."""
    for way in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with zipfile.ZipFile(tmp_path / "odd.zip", "w") as file:
            file.writestr("a.png", png(0), compress_type=way)
            file.writestr("b.png", png(1), compress_type=zipfile.ZIP_DEFLATED)
            file.writestr("b.txt", b"a face", compress_type=way)
        odd, plain = open_pictures(tmp_path / "odd.zip")
        for refused in (odd.image, plain.caption):
            with pytest.raises(ImageError, match=r"odd.zip:.*' is packed in an uncommon way; pack it anew"):
                refused()
        assert pixels(plain).shape == (20, 24, 3)


def test_a_zip_of_a_later_version_is_one_sentence(tmp_path):
    data = bytearray(packed(tmp_path, "zip").read_bytes())
    data[data.find(b"PK\1\2") + 6] = 99
    (tmp_path / "later.zip").write_bytes(data)
    with pytest.raises(DataError, match=r"later.zip' is neither a whole .*version 9\.9"):
        open_pictures(tmp_path / "later.zip")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe_among_pictures(image_folder):
    os.mkfifo(image_folder / "9.png")
    *_, pipe = open_pictures(image_folder)
    with pytest.raises(ImageError, match="is a pipe, not a file"):
        pipe.image()


def test_threads_read_a_tar_beside_one_another(tmp_path):
    entries = open_pictures(write_tar(tmp_path / "all.tar", {f"{n:02d}.png": png(n) for n in range(20)}))
    with ThreadPoolExecutor(4) as threads:
        seen = list(threads.map(pixels, [*entries] * 5))
    for number, shown in enumerate(seen):
        assert (shown == np.asarray(Image.open(io.BytesIO(png(number % 20))))).all()


def test_a_cut_archive_still_has_the_pictures_before_the_cut(tmp_path):
    path = write_tar(tmp_path / "all.tar", {f"{n}.png": png(n) for n in range(3)})
    path.write_bytes(path.read_bytes()[: 2 * 2048 + 512 + 700])
    entries = open_pictures(path)
    assert pixels(entries[0]).shape == (20, 24, 3)
    with pytest.raises(ImageError, match=r"ends in the middle|damaged"):
        entries[-1].image()


def test_broken_pictures_are_left_out_counted_and_replaced_by_the_next(image_folder):
    plain = PretrainConfig(crop_scale=(1.0, 1.0))
    whole = ImageData(image_folder, plain, 8)
    order = whole.picks(range(10))
    (image_folder / f"{order[1]}.png").write_bytes(b"no picture")
    data = ImageData(image_folder, plain, 8)
    shown, expected = data.views(0, 4).target, whole.entries
    assert len(data.broken) == 1
    assert next(iter(data.broken)).endswith(f"{order[1]}.png")
    assert (shown[1] == shown[2]).all()
    assert len(expected) == 5
    again = ImageData(image_folder, plain, 8).views_at([1])  # alone, as a resumed training meets it
    assert (again.target[0] == shown[1]).all()
