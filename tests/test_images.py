import io
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from e4t import images
from e4t.errors import ImageError
from e4t.images import decode_image, decode_layer, load_image, load_mask, preview, square

RED, BLUE = (220, 30, 40), (20, 40, 200)


def halves(mode: str = "RGB", size: tuple[int, int] = (32, 16)) -> Image.Image:
    """Left red, right blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image.quantize(2) if mode == "P" else image.convert(mode)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def near(pixel: tuple[int, ...], colour: tuple[int, ...], tolerance: int = 25) -> bool:
    return max(abs(a - b) for a, b in zip(pixel, colour, strict=True)) <= tolerance


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *[("RGB", kind) for kind in ("PNG", "JPEG", "WEBP", "BMP", "TIFF")],
        *[("P", "PNG"), ("P", "GIF"), ("RGBA", "PNG"), ("LAB", "TIFF")],
        *[("CMYK", "JPEG"), ("CMYK", "TIFF"), ("YCbCr", "JPEG")],
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, kind: str) -> None:
    source = halves()
    if mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        converted = ImageCms.applyTransform(source, transform)
        assert converted is not None
    else:
        converted = halves(mode)
    image = load_image(write(tmp_path / f"picture.{kind.lower()}", encoded(converted, kind)))
    assert image.mode == "RGB"
    assert image.size == (32, 16)
    assert near(image.getpixel((4, 8)), RED, 40)
    assert near(image.getpixel((28, 8)), BLUE, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_has_three_equal_channels(tmp_path: Path, mode: str) -> None:
    pixels = np.asarray(load_image(write(tmp_path / "grey.png", encoded(halves(mode), "PNG"))))
    assert pixels.shape == (16, 32, 3)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut_off(tmp_path: Path, kind: str) -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (16, 1))
    path = write(tmp_path / "deep", encoded(Image.fromarray(ramp), kind))
    grey = np.asarray(load_image(path))[0, :, 0].astype(int)
    assert np.abs(grey - np.linspace(0, 255, 64)).max() <= 1


def test_every_sixteen_bit_value_is_rounded() -> None:
    values = np.arange(65536).astype(np.uint16).reshape(256, 256)
    grey = np.asarray(load_image(Image.fromarray(values)))[..., 0]
    assert (grey == np.floor(values / 257 + 0.5)).all()


@pytest.mark.parametrize(
    ("top", "full"), [(255, 255), (256, 65535), (65535, 65535), (65536, 2**24), (2**31 - 1, 2**31)]
)
def test_of_numbers_of_32_bits_the_smallest_range_that_holds_them_is_scaled(top: int, full: int) -> None:
    ramp = np.tile(np.linspace(0, top, 64).astype(np.int32), (16, 1))
    ramp[0, 0] = -5
    grey = np.asarray(load_image(Image.fromarray(ramp)))[..., 0].astype(int)
    assert np.abs(grey - ramp.clip(0) * (255 / full)).max() <= 1


def test_deep_grey_takes_no_more_memory_than_its_colours_would(tmp_path: Path) -> None:
    import tracemalloc

    image = Image.fromarray(np.zeros((1000, 1000), np.uint16))
    tracemalloc.start()
    load_image(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000  # of numpy's arrays; in float64 it would be eight bytes for each of two of them


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path: Path) -> None:
    path = write(tmp_path / "dark.png", encoded(Image.fromarray(np.full((16, 16), 200, np.uint16)), "PNG"))
    assert np.asarray(load_image(path)).max() <= 1


@pytest.mark.parametrize(("scale", "top"), [(1.0, 255), (255.0, 255)])
def test_floats_of_both_usual_ranges(tmp_path: Path, scale: float, top: int) -> None:
    ramp = np.tile(np.linspace(0, scale, 64).astype(np.float32), (16, 1))
    pixels = np.asarray(load_image(write(tmp_path / "float.tiff", encoded(Image.fromarray(ramp), "TIFF"))))
    assert (pixels.min(), pixels.max()) == (0, top)


def test_transparency_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((*RED, 255), (0, 0, 8, 16))
    loaded = load_image(write(tmp_path / "alpha.png", encoded(image, "PNG")))
    assert loaded.getpixel((2, 8)) == RED
    assert loaded.getpixel((12, 8)) == (255, 255, 255)


def test_a_transparent_palette_colour_is_put_on_white(tmp_path: Path) -> None:
    image = halves("P")
    path = write(tmp_path / "palette.png", encoded(image, "PNG", transparency=image.getpixel((0, 0))))
    assert load_image(path).getpixel((4, 8)) == (255, 255, 255)


# Where EXIF orientation n puts the stored picture's left half once it is upright.
@pytest.mark.parametrize(
    ("orientation", "red_at"),
    [(1, "left"), (2, "right"), (3, "right"), (4, "left"), (5, "top"), (6, "top"), (7, "bottom"), (8, "bottom")],
)
def test_exif_orientation(tmp_path: Path, orientation: int, red_at: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(write(tmp_path / "turned.jpg", encoded(halves(), "JPEG", exif=exif, quality=95)))
    width, height = image.size
    assert (width > height) == (orientation < 5)
    at = {
        "left": (2, height // 2),
        "right": (width - 3, height // 2),
        "top": (width // 2, 2),
        "bottom": (width // 2, height - 3),
    }
    assert near(image.getpixel(at[red_at]), RED)


def _profile(red: tuple[float, float] = (0.680, 0.320)) -> bytes:
    """A profile of matrices and curves: Display P3, as its primaries and sRGB's curve are written into a file."""
    primaries = {"r": red, "g": (0.265, 0.690), "b": (0.150, 0.060)}
    white = np.array([0.9642, 1.0, 0.8249])
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries.values()]).T
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    d65 = np.array([0.95047, 1.0, 1.08883])
    matrix = columns * np.linalg.solve(columns, d65)
    matrix = np.linalg.inv(bradford) @ np.diag((bradford @ white) / (bradford @ d65)) @ bradford @ matrix

    def fixed(*numbers: float) -> bytes:
        return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)

    name = b"Wide\0"
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name)) + name + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + fixed(*white),
        **{f"{k}XYZ".encode(): b"XYZ " + bytes(4) + fixed(*matrix[:, n]) for n, k in enumerate(primaries)},
        **{
            f"{k}TRC".encode(): b"para" + bytes(4) + struct.pack(">HH", 3, 0)
            + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
            for k in primaries
        },
    }  # fmt: skip
    table, body = struct.pack(">I", len(tags)), b""
    for tag, data in tags.items():
        data += bytes(-len(data) % 4)
        table += tag + struct.pack(">II", 128 + 4 + 12 * len(tags) + len(body), len(data))
        body += data
    size = 128 + len(table) + len(body)
    header = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x02400000, b"mntr", b"RGB ", b"XYZ ") + bytes(12) + b"acsp"
    return header + bytes(28) + fixed(*white) + bytes(128 - 80) + table + body


def test_colours_of_a_wide_profile_become_those_of_srgb(tmp_path: Path) -> None:
    """In Display P3, sRGB's own colours have these numbers (CSS Color 4's conversion)."""
    wide = {(234, 51, 35): (255, 0, 0), (117, 251, 76): (0, 255, 0), (128, 128, 128): (128, 128, 128)}
    for stored, expected in wide.items():
        for mode in ("RGB", "RGBA"):
            image = Image.new("RGB", (16, 16), stored).convert(mode)
            path = write(tmp_path / "wide.png", encoded(image, "PNG", icc_profile=_profile()))
            loaded = load_image(path)
            assert near(loaded.getpixel((8, 8)), expected, 3)
            assert loaded.info == {}
            assert decode_image(path.read_bytes(), "wide").tobytes() == loaded.tobytes()


def test_profiles_that_change_nothing_are_left_alone(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for profile in (srgb, lab, b"no profile", _profile()[:200], b""):  # sRGB's, another kind's, broken ones, none
        path = write(tmp_path / "picture.png", encoded(NOISE, "PNG", icc_profile=profile))
        assert load_image(path).tobytes() == NOISE.tobytes()
    for mode in ("L", "CMYK", "P"):  # a profile of RGB does not say what these numbers mean, but a palette's
        image = halves(mode)
        image.info["icc_profile"] = _profile()
        assert (load_image(image).tobytes() == halves(mode).convert("RGB").tobytes()) == (mode != "P")


def test_metadata_does_not_survive(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    image = load_image(write(tmp_path / "private.jpg", encoded(halves(), "JPEG", exif=exif, comment=b"a name")))
    saved = encoded(image, "JPEG")
    assert b"home" not in saved
    assert b"a name" not in saved


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in (RED, BLUE, BLUE)]
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert near(load_image(write(tmp_path / "animation", data)).getpixel((8, 8)), RED, 8)


def test_a_picture_in_memory_is_not_changed() -> None:
    source = halves("RGBA")
    source.info["comment"] = "kept"
    assert load_image(source).mode == "RGB"
    assert source.mode == "RGBA"
    assert source.info["comment"] == "kept"


def test_a_cut_file_that_somebody_else_opened_is_one_sentence(tmp_path: Path) -> None:
    whole = encoded(NOISE, "JPEG")
    cut = Image.open(write(tmp_path / "cut.jpg", whole[: len(whole) // 2]))
    with cut, pytest.raises(ImageError, match="the picture is damaged or cut off"):
        load_image(cut)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("data", [encoded(halves(), "PNG"), b""], ids=["picture", "nothing"])
def test_a_picture_comes_through_a_pipe(tmp_path: Path, data: bytes) -> None:
    """As a shell gives a program's output to another one."""
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(data,))
    writer.start()
    if data:
        assert load_image(tmp_path / "pipe").tobytes() == halves().tobytes()
    else:
        with pytest.raises(ImageError, match="pipe' is empty"):
            load_image(tmp_path / "pipe")
    writer.join()


@pytest.mark.filterwarnings("default")
def test_threads_leave_other_warnings_alone() -> None:
    data = encoded(Image.new("1", (8000, 8000)), "PNG"), encoded(NOISE, "PNG")
    with warnings.catch_warnings(record=True) as caught:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda n: decode_image(data[n % 16 > 0], "picture"), range(160)))
        assert caught == []
        before = list(warnings.filters)
        load_image(NOISE)
        decode_image(data[1], "picture")
        assert warnings.filters == before  # one filter, once
        warnings.warn("the prompt has no S*", stacklevel=1)
    assert [str(one.message) for one in caught] == ["the prompt has no S*"]


def test_text_path_and_path_object(tmp_path: Path) -> None:
    path = write(tmp_path / "picture.png", encoded(halves(), "PNG"))
    assert load_image(path).tobytes() == load_image(str(path)).tobytes()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"not a picture at all", "is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "is not a picture"),
        (b"\x89PNG\r\n\x1a\n", "not a picture|damaged"),
        (encoded(halves(size=(4, 400)), "PNG"), "at least 8"),
    ],
    ids=["empty", "text", "svg", "eps", "signature", "thin"],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        load_image(write(tmp_path / "file.png", data))
    assert "\n" not in str(caught.value)


def test_missing_file_folder_and_impossible_path(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="there is no picture"):
        load_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="is a folder"):
        load_image(tmp_path)
    with pytest.raises(ImageError):
        load_image("nul\0byte.png")


def _bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(9000, 9000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (10**8, 9)])
def test_decompression_bombs_are_refused_unread(tmp_path: Path, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="make it smaller"):
        load_image(write(tmp_path / "bomb.png", _bomb(*size)))


def test_too_many_bytes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "picture.png", encoded(halves(), "PNG"))
    monkeypatch.setattr(images, "MAX_BYTES", 20)
    with pytest.raises(ImageError, match="limit"):
        load_image(path)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8))
WHOLE = {kind: encoded(NOISE, kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_cut_off_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    with pytest.raises(ImageError):
        load_image(write(tmp_path / "cut", WHOLE[kind][: int(len(WHOLE[kind]) * share)]))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(WHOLE)), st.data())
def test_no_damage_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    broken = bytearray(WHOLE[kind])
    for _ in range(data.draw(st.integers(1, 4))):
        broken[data.draw(st.integers(0, len(broken) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path_factory.getbasetemp() / "broken", bytes(broken[: data.draw(st.integers(0, len(broken)))]))
    try:
        image = load_image(path)
    except ImageError as error:
        text = str(error)
    else:
        text = ""
        assert image.mode == "RGB"
    assert "\n" not in text


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = write(tmp_path_factory.getbasetemp() / "bytes", data)
    with pytest.raises(ImageError):
        load_image(path)


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(1, 70))
def test_square_has_the_size_asked_for(width: int, height: int, size: int) -> None:
    assert square(Image.new("RGB", (width, height), RED), size).size == (size, size)


def test_square_takes_the_centre() -> None:
    image = Image.new("RGB", (300, 100), BLUE)
    image.paste(RED, (100, 0, 200, 100))
    for size in (100, 50, 200):
        assert (np.asarray(square(image, size)) == RED).all()
    with pytest.raises(ImageError):
        square(image, 0)


def test_square_of_a_square_is_the_picture_itself() -> None:
    assert square(NOISE, 48).tobytes() == NOISE.tobytes()


def test_mask_from_brightness_and_from_transparency(tmp_path: Path) -> None:
    bright = Image.new("L", (64, 32), 0)
    bright.paste(255, (16, 0, 48, 32))
    mask = load_mask(write(tmp_path / "mask.png", encoded(bright, "PNG")))
    assert (mask.mode, mask.size) == ("L", (64, 32))
    assert np.asarray(square(mask, 16)).min() == 255  # the centre square is all subject
    clear = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 8, 16))
    cut_out = np.asarray(load_mask(write(tmp_path / "cut.png", encoded(clear, "PNG"))))
    assert (cut_out[:, :8] == 255).all()
    assert (cut_out[:, 8:] == 0).all()
    with pytest.raises(ImageError, match="empty mask"):
        load_mask(Image.new("L", (16, 16), 0))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA"])
def test_every_mode_can_be_a_mask_a_layer_and_a_preview(mode: str) -> None:
    bands = len(Image.new(mode, (1, 1)).getbands())
    image = halves("P") if mode == "P" else Image.new(mode, (16, 16), (200,) * bands if bands > 1 else 1)
    assert load_mask(image).mode == "L"
    assert load_image(image).mode == "RGB"
    assert preview(image)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_multiplied_transparency(mode: str) -> None:
    image = Image.new(mode, (16, 16), (0, 0, 0, 0)[: len(mode)])
    image.paste((255, 0) if mode == "LA" else (255, 255, 255, 0), (0, 0, 8, 16))
    image.paste((0, 255) if mode == "LA" else (0, 0, 0, 255), (8, 0, 16, 16))
    multiplied = image.convert(mode[:-1] + "a")
    assert load_image(multiplied).tobytes() == load_image(image).tobytes()
    assert load_mask(multiplied).tobytes() == load_mask(image).tobytes()
    assert preview(multiplied)


@pytest.mark.parametrize("values", [np.full((16, 16), 40_000, np.uint16), np.full((16, 16), 0.5, np.float32)])
def test_a_deep_layer_is_scaled(values: np.ndarray) -> None:
    layer = decode_layer(encoded(Image.fromarray(values), "TIFF"), "layer")
    assert layer.mode == "RGBA"
    assert 120 < layer.getpixel((8, 8))[0] < 160


def test_a_layer_keeps_its_transparency_and_is_as_little_trusted() -> None:
    painted = Image.new("RGBA", (32, 16))
    painted.paste((*BLUE, 255), (0, 0, 16, 16))
    layer = decode_layer(encoded(painted, "PNG"), "layer")
    assert (layer.mode, layer.size) == ("RGBA", (32, 16))
    assert (layer.getpixel((4, 8)), layer.getpixel((28, 8))[3]) == ((*BLUE, 255), 0)
    with pytest.raises(ImageError, match="not a picture"):
        decode_layer(b"%!PS-Adobe-3.0 EPSF-3.0", "layer")
    with pytest.raises(ImageError, match="limit is 64 million"):
        decode_layer(encoded(Image.new("1", (9000, 9000)), "PNG"), "layer")
