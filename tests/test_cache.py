"""Latents and features in shards: what they hold, and that training from them needs nothing else."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from bases import save_folder
from conftest import build_backbone
from e4t import cli
from e4t.backbone import Backbone
from e4t.batches import batches
from e4t.cache import CacheConfig, CachedData, write_cache
from e4t.checkpoint import TrainedDomain
from e4t.config import EncoderConfig, PretrainConfig
from e4t.data import ImageData
from e4t.domain import Domain
from e4t.errors import ConfigError, DataError, MismatchError
from e4t.pretrain import Pretraining, data_of, new_model
from e4t.processes import Processes
from packed import write_shards

PLAIN = {"crop_scale": (1.0, 1.0), "flip": False, "color_jitter": 0.0}
QUICK = PretrainConfig(steps=2, batch_size=2, learning_rate=1e-2).updated(PLAIN)


def written(source, backbone, output, processes=None, **options):
    data = ImageData(source, PretrainConfig(shuffle_buffer=1, **PLAIN), 16)
    list(write_cache(data, backbone, CacheConfig(**{"shard_size": 2, **options}), output, processes))
    return data


def test_a_batch_from_a_cache_is_one_from_pictures(make_backbone, image_folder, tmp_path):
    backbone = make_backbone()
    written(image_folder, backbone, tmp_path / "cache", dtype="float32", layer_stride=1)
    model = new_model(backbone, Domain.named("face"), QUICK)
    seen = [batches(model, data_of(source, backbone, QUICK), QUICK)(1) for source in (image_folder, tmp_path / "cache")]
    one, two = seen
    torch.testing.assert_close(one.latents, two.latents, rtol=1e-4, atol=1e-4)
    assert len(one.image_features) == len(two.image_features) == 2
    for layer, other in zip(one.image_features, two.image_features, strict=True):
        torch.testing.assert_close(layer, other, rtol=1e-4, atol=1e-4)
    assert torch.equal(one.noise, two.noise)
    assert torch.equal(one.tokens.ids, two.tokens.ids)


def test_from_the_command_line_without_the_networks_that_looked(image_folder, tmp_path, capsys):
    base = save_folder(build_backbone(), tmp_path / "base")
    (image_folder / "5.png").write_bytes(b"no picture")
    cache = ["cache", str(image_folder), "--base", str(base), "--output", str(tmp_path / "cache"), "--device", "cpu"]
    assert cli.main([*cache, "--views", "2", "--crop-scale", "0.8", "1", "--shard-size", "3"]) == 0
    assert "1 pictures or shards could not be read to their end" in capsys.readouterr().err
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert [(shard["rows"], shard["skipped"]) for shard in index["shards"]] == [(6, 0), (4, 1)]

    shutil.rmtree(base / "image_encoder")
    for file in (base / "vae").glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:200] + bytes(file.stat().st_size - 200))  # nothing in it is read
    domain = tmp_path / "face"
    command = ["pretrain", str(tmp_path / "cache"), "--domain", "face", "--base", str(base), "--output", str(domain)]
    assert cli.main([*command, "--steps", "2", "--batch-size", "2", "--device", "cpu"]) == 0
    trained = TrainedDomain.load(domain)
    whole = build_backbone()
    assert trained.base.image_encoder_fingerprint == whole.image_encoder_fingerprint
    assert trained.training["pictures"] == 5
    assert trained.pretrain["crop_scale"] == [0.8, 1.0]
    blind = Backbone.from_pretrained(base, device="cpu", eyes=CachedData(tmp_path / "cache", seed=0).eyes())
    with pytest.raises(ConfigError, match="opened without its autoencoder"):
        blind.encode(torch.zeros(1, 3, 16, 16))


def test_pictures_that_no_training_takes_are_refused_before_anything_is_loaded(tmp_path, capsys):
    cache = ["cache", "nowhere", "--base", "nothing", "--output", str(tmp_path / "cache"), "--device", "cpu"]
    assert cli.main([*cache, "--resolution", "7"]) == 2
    assert "resolution is 7; it must be 8 or more" in capsys.readouterr().err
    assert cli.main([*cache, "--crop-scale", "0", "1"]) == 2
    assert "it must be two shares of the area" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_shards_and_processes_share_the_work(make_backbone, tmp_path):
    pytest.importorskip("webdataset")
    write_shards(tmp_path / "shards", (3, 2))
    backbone = make_backbone()
    written(tmp_path / "shards", backbone, tmp_path / "one")
    data = ImageData(tmp_path / "shards", PretrainConfig(shuffle_buffer=1, **PLAIN), 16)
    first = write_cache(data, backbone, CacheConfig(shard_size=2), tmp_path / "two", Processes(0, 2))
    next(first)
    written(tmp_path / "shards", backbone, tmp_path / "two", Processes(1, 2))
    assert list(first) == []  # it only had to end what both wrote
    assert (tmp_path / "one" / "index.json").read_bytes() == (tmp_path / "two" / "index.json").read_bytes()
    for name in ("00000.safetensors", "00001.safetensors"):
        one, two = (load_file(tmp_path / folder / name) for folder in ("one", "two"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one)  # headers put their entries in any order
    seen = CachedData(tmp_path / "one", seed=0).at(range(5), layer_stride=2)
    assert sorted(seen.captions) == [f"face {n}" for n in range(5)]
    assert [layer.shape for layer in seen.features] == [(5, 32)] * 2
    assert [layer.shape for layer in CachedData(tmp_path / "one", seed=0).at([0], layer_stride=4).features] == [(1, 32)]


def spoilt(monkeypatch, *, above: float, most: int | None = None):
    """The autoencoder overflows at views whose first value is ``above`` that, ``most`` of those it sees together."""
    whole = Backbone.posterior

    def posterior(self, pixels):
        mean, std = whole(self, pixels)
        mean[(pixels[:, 0, 0, 0] > above).nonzero()[:most, 0]] = float("inf")
        return mean, std

    monkeypatch.setattr(Backbone, "posterior", posterior)


def test_a_picture_in_which_no_numbers_are_seen_is_left_out_with_all_its_views(
    make_backbone, image_folder, tmp_path, monkeypatch
):
    backbone = make_backbone()
    for n in range(5):
        Image.new("RGB", (20, 24), (255, 255, 255) if n in (1, 4) else (0, 0, 0)).save(image_folder / f"{n}.png")
    written(image_folder, backbone, tmp_path / "whole", views=5)
    spoilt(monkeypatch, above=0.5, most=1)
    data = written(image_folder, backbone, tmp_path / "cache", views=5, shard_size=3)
    assert list(data.broken) == [str(image_folder / f"{n}.png") for n in (1, 4)]
    assert "1.png' is no number in float32; the base may be damaged" in data.broken[str(image_folder / "1.png")]
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert [(shard["rows"], shard["skipped"]) for shard in index["shards"]] == [(10, 1), (5, 1)]
    left = load_file(tmp_path / "cache" / "00000.safetensors")
    assert all(values.isfinite().all() for values in left.values())
    whole = load_file(tmp_path / "whole" / "00000.safetensors")
    torch.testing.assert_close(left["features"][:5], whole["features"][:5])
    spoilt(monkeypatch, above=-2.0)
    backbone.vae.half()
    with pytest.raises(DataError, match="all 3 pictures of a shard is no number in float16; --dtype float32 may help"):
        written(image_folder, backbone, tmp_path / "none", shard_size=3)
    assert not list((tmp_path / "none").glob("*.safetensors"))


def test_threads_that_decode_ahead_change_nothing(make_backbone, image_folder, tmp_path):
    backbone = make_backbone()
    (image_folder / "2.png").write_bytes(b"no picture")
    for workers in (0, 2):
        data = written(image_folder, backbone, tmp_path / str(workers), views=2, shard_size=3, workers=workers)
        assert list(data.broken) == [str(image_folder / "2.png")]
    for name in ("00000.safetensors", "00001.safetensors"):
        one, two = (load_file(tmp_path / workers / name) for workers in ("0", "2"))
        assert all(torch.equal(one[key], two[key]) for key in one)
    assert (tmp_path / "0" / "index.json").read_bytes() == (tmp_path / "2" / "index.json").read_bytes()


def test_it_goes_on_where_it_was(make_backbone, image_folder, tmp_path):
    backbone = make_backbone()
    written(image_folder, backbone, tmp_path / "whole")
    data = ImageData(image_folder, PretrainConfig(shuffle_buffer=1, **PLAIN), 16)
    begun = write_cache(data, backbone, CacheConfig(shard_size=2), tmp_path / "half")
    next(begun)
    begun.close()
    with pytest.raises(DataError, match="is unfinished: run the same 'e4t cache' again"):
        CachedData(tmp_path / "half", seed=0)
    before = (tmp_path / "half" / "00000.safetensors").stat().st_mtime_ns
    written(image_folder, backbone, tmp_path / "half")
    assert (tmp_path / "half" / "00000.safetensors").stat().st_mtime_ns == before
    assert (tmp_path / "half" / "index.json").read_bytes() == (tmp_path / "whole" / "index.json").read_bytes()
    with pytest.raises(DataError, match="a cache of other pictures, settings or networks"):
        written(image_folder, backbone, tmp_path / "half", views=3)
    with pytest.raises(DataError, match="is not empty and no cache"):
        written(image_folder, backbone, image_folder)


def test_it_goes_on_in_another_number_type(make_backbone, image_folder, tmp_path):
    """As it says where half precision sees no numbers."""
    save_folder(make_backbone(), tmp_path / "base")
    half, whole = (
        Backbone.from_pretrained(tmp_path / "base", device="cpu", dtype=dtype)
        for dtype in (torch.float16, torch.float32)
    )
    data = ImageData(image_folder, PretrainConfig(shuffle_buffer=1, **PLAIN), 16)
    begun = write_cache(data, half, CacheConfig(shard_size=2), tmp_path / "cache")
    next(begun)
    begun.close()
    written(image_folder, whole, tmp_path / "cache")
    assert len(CachedData(tmp_path / "cache", seed=0)) == 5


def test_it_goes_on_after_an_upgrade_and_with_a_base_of_another_name(make_backbone, image_folder, tmp_path):
    backbone = make_backbone()
    backbone.vae.register_to_config(_name_or_path="/anna/base/vae")
    written(image_folder, backbone, tmp_path / "cache")
    index = json.loads((tmp_path / "cache" / "index.json").read_text())
    assert "/anna" not in json.dumps(index)
    before = {
        **index,
        "base": {**index["base"], "name": "/anna/base", "image_encoder": "clip"},
        "vae": {**index["vae"], "_name_or_path": "/anna/base/vae", "_diffusers_version": "0.1.0"},
        "image_encoder": {**index["image_encoder"], "transformers_version": "0.1.0", "gone": True},
    }
    (tmp_path / "cache" / "begun.json").write_text(json.dumps({**before, "shards": None}))
    (tmp_path / "cache" / "index.json").unlink()
    written(image_folder, backbone, tmp_path / "cache")
    assert json.loads((tmp_path / "cache" / "index.json").read_text()) == index
    (tmp_path / "cache" / "index.json").write_text(json.dumps(before))
    assert len(CachedData(tmp_path / "cache", seed=0)) == 5
    other = (("base", {"fingerprint": "x"}), ("vae", {"latent_channels": 8}), ("image_encoder", {"hidden_act": "gelu"}))
    for network, change in other:
        changed = json.dumps({**before, network: {**before[network], **change}})
        (tmp_path / "cache" / "index.json").write_text(changed)
        with pytest.raises(DataError, match="a cache of other pictures, settings or networks"):
            written(image_folder, backbone, tmp_path / "cache")


def test_what_cannot_be_reached_is_not_written_as_done(make_backbone, tmp_path):
    pytest.importorskip("webdataset")
    shards = write_shards(tmp_path / "shards", (2, 3, 1))
    source, away = f"{tmp_path}/shards/{{000..002}}.tar", tmp_path / "away.tar"
    backbone = make_backbone()
    written(source, backbone, tmp_path / "whole")
    shards[1].rename(away)
    with pytest.raises(
        DataError, match=r"1 of 3 shards of .* could not be read here and now, the first because '.*001.tar'"
    ):
        written(source, backbone, tmp_path / "cache")
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "00000.safetensors", "00002.safetensors", "begun.json",
    ]  # fmt: skip
    away.rename(shards[1])
    written(source, backbone, tmp_path / "cache")
    assert (tmp_path / "cache" / "index.json").read_bytes() == (tmp_path / "whole" / "index.json").read_bytes()


def test_what_a_killed_process_left_is_removed_and_nothing_else(make_backbone, image_folder, tmp_path):
    backbone, output = make_backbone(), tmp_path / "cache"
    output.mkdir()
    (output / ".begun.json.0123abcd.new").write_text("{")
    (output / "mine.new").write_text("mine")
    with pytest.raises(DataError, match="is not empty and no cache"):
        written(image_folder, backbone, output)
    with pytest.raises(DataError, match="is not empty and no cache"):  # whichever of several processes looks
        written(image_folder, backbone, output, Processes(1, 2))
    assert (output / ".begun.json.0123abcd.new").exists()
    (output / "mine.new").unlink()
    written(image_folder, backbone, output)
    assert sorted(path.name for path in output.iterdir()) == [*(f"0000{n}.safetensors" for n in range(3)), "index.json"]


def test_a_full_disk_leaves_a_folder_that_can_be_gone_on_with(make_backbone, image_folder, tmp_path):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    backbone = make_backbone()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(DataError, match=r"begun.json' cannot be written \("):
            written(image_folder, backbone, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "cache").iterdir()) == []
    written(image_folder, backbone, tmp_path / "cache")


@pytest.fixture
def small_cache(tmp_path):
    """Two rows of nothing, and a function that changes the index, the tensors and the captions."""
    whole = {"mean": torch.zeros(2, 4, 2, 2), "std": torch.zeros(2, 4, 2, 2), "features": torch.zeros(2, 3, 8)}
    pictures = {"resolution": 16, "crop_scale": [1.0, 1.0], "flip": False, "color_jitter": 0.0}
    base = {"name": "a", "fingerprint": "b", "image_encoder": None}
    index = {
        "kind": "cache", "format_version": 1, "base": base, "vae": {}, "image_encoder": {}, "pictures": pictures,
        "views": 1, "layer_stride": 2, "shards": [{"file": "0.safetensors", "rows": 2, "skipped": 0}],
    }  # fmt: skip

    def read(changed=(), tensors=whole, captions="[null, null]"):
        metadata = {"rows": "2", "skipped": "0", "captions": captions}
        save_file(dict(tensors), tmp_path / "0.safetensors", metadata=metadata)
        (tmp_path / "index.json").write_text(json.dumps(index | dict(changed)))
        return CachedData(tmp_path, seed=0).at([0, 1, 2], layer_stride=2)

    return read


@pytest.mark.parametrize(
    "changed",
    [
        {"views": 0}, {"views": -1}, {"views": 3}, {"views": float("inf")}, {"views": "1"}, {"layer_stride": 0},
        {"shards": []}, {"shards": {"a": 1}}, {"shards": [{"file": "0.safetensors", "rows": -2}]},
        {"shards": [{"file": 5, "rows": 2}]}, {"base": "x"}, {"base": [1]}, {"base": {"name": "a"}},
        {"pictures": {}}, {"pictures": 5}, {"vae": 5}, {"image_encoder": [1]},
    ],
    ids=str,
)  # fmt: skip
def test_a_broken_index_is_one_sentence(small_cache, changed):
    assert len(small_cache().captions) == 3
    with pytest.raises(DataError) as error:
        small_cache(changed)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tensors", "captions"),
    [
        (None, "x"), (None, "[null]"), (None, "[1, 2]"), (None, "{}"), (None, "[" * 100_000), ({}, "[null, null]"),
        ({"mean": (2, 4, 2, 2), "std": (2, 4, 2, 2)}, "[null, null]"),
        ({"mean": (2, 4, 2, 2), "std": (2, 4, 2, 2), "features": (1, 3, 8)}, "[null, null]"),
        ({"mean": (2, 4, 2, 2), "std": (2, 4, 2, 1), "features": (2, 3, 8)}, "[null, null]"),
        ({"mean": (2,), "std": (2,), "features": (2,)}, "[null, null]"),
    ],
)  # fmt: skip
def test_a_broken_shard_is_one_sentence(small_cache, tensors, captions):
    given = {} if tensors is None else {"tensors": {name: torch.zeros(shape) for name, shape in tensors.items()}}
    with pytest.raises(DataError, match=r"0.safetensors' is missing, cut or damaged \("):
        small_cache(captions=captions, **given)


def test_what_does_not_fit_is_one_sentence(make_backbone, image_folder, tmp_path):
    backbone = make_backbone()
    written(image_folder, backbone, tmp_path / "cache")
    strange = make_backbone()
    torch.nn.init.ones_(strange.unet.conv_in.weight)
    with pytest.raises(MismatchError, match=r"the cache '.*' was made for the base model 'tiny' \(.*\), but"):
        data_of(tmp_path / "cache", strange, QUICK)
    blurred = make_backbone()
    torch.nn.init.ones_(blurred.image_encoder.embeddings.patch_embedding.weight)
    with pytest.raises(MismatchError, match=r"the cache '.*' was made for the image encoder of 'tiny' \(.*\), but"):
        data_of(tmp_path / "cache", blurred, QUICK)
    assert len(data_of(tmp_path / "cache", blurred, QUICK.updated({"encoder": {"use_image": False}}))) == 5
    odd = PretrainConfig(steps=1, encoder=EncoderConfig(layer_stride=1))
    run = Pretraining(Domain.named("face"), tmp_path / "cache", backbone=backbone, config=odd, output=tmp_path / "x")
    with pytest.raises(ConfigError, match="keeps every 2th layer of CLIP, from which every 1th"):
        next(run.steps())
    smaller = QUICK.updated({"resolution": 8})
    with pytest.raises(ConfigError, match=r"resolution is 8, but the cache '.*' was made with 16; leave it out"):
        Pretraining(Domain.named("face"), tmp_path / "cache", backbone=backbone, config=smaller, output=tmp_path / "x")
    made = CachedData(tmp_path / "cache", seed=0).pictures["crop_scale"]
    same = QUICK.updated({"crop_scale": made})
    run = Pretraining(Domain.named("face"), tmp_path / "cache", backbone=backbone, config=same, output=tmp_path / "x")
    assert run.config.crop_scale == tuple(made) != PretrainConfig().crop_scale
    shard = tmp_path / "cache" / "00001.safetensors"
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    with pytest.raises(DataError, match="is missing, cut or damaged"):
        CachedData(tmp_path / "cache", seed=0)
