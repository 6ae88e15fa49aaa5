from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from e4t.checkpoint import BaseModel, Concept, TrainedDomain
from e4t.config import BaseConfig, EncoderConfig, OffsetsConfig
from e4t.domain import Domain
from e4t.errors import CheckpointError, MismatchError
from e4t.optimizers import load_optimizer_tensors, optimizer_tensors
from e4t.saved import require_place
from e4t.states import TrainingState


@pytest.fixture
def trained():
    return TrainedDomain(
        domain=Domain.named("face"),
        base=BaseModel("tiny", "abc"),
        encoder=EncoderConfig(head="linear"),
        offsets=OffsetsConfig(),
        embedding_scale=0.3,
        tensors={"encoder/x": torch.randn(3, 2), "offsets/y": torch.randn(4)},
        personalize={"steps": 7},
        generate={"guidance_scale": 3.0},
    )


@pytest.fixture
def concept(trained):
    vectors = {name: torch.randn(3) for name in ("image_half", "bias", "residual", "frozen_offset")}
    tensors = {**vectors, "deltas/a.left": torch.randn(3, 1)}
    return Concept(trained.domain, trained.id, trained.base, 5, tensors, {"save_dtype": "float32"})


def files(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_domain_round_trip(trained, tmp_path, dtype):
    trained.save(tmp_path / "face", dtype=dtype)
    loaded = TrainedDomain.load(tmp_path / "face")
    assert files(tmp_path) == ["face"]
    assert files(tmp_path / "face") == ["README.md", "config.json", "domain.safetensors"]
    assert (loaded.domain, loaded.base, loaded.encoder, loaded.id) == (
        trained.domain, trained.base, trained.encoder, trained.id,
    )  # fmt: skip
    assert loaded.personalize_config.steps == 7
    assert loaded.generate_config.guidance_scale == 3.0
    for name, tensor in trained.tensors.items():
        torch.testing.assert_close(loaded.tensors[name], tensor, rtol=1e-3, atol=1e-3)


def test_concept_round_trip_and_overwriting(concept, tmp_path):
    for _ in range(2):
        concept.save(tmp_path / "anna")
    loaded = Concept.load(tmp_path / "anna")
    assert files(tmp_path) == ["anna"]
    assert (loaded.domain, loaded.domain_id, loaded.steps) == (concept.domain, concept.domain_id, 5)
    assert torch.equal(loaded.group("deltas")["a.left"], concept.tensors["deltas/a.left"])
    assert concept.num_bytes == 4 * 15


def test_mismatches_name_both(concept, trained):
    with pytest.raises(MismatchError, match=r"'face'.*'cat'"):
        concept.check(Domain.named("cat"), "other")
    alone = dataclasses.replace(concept, domain_id=None)
    alone.check(Domain.named("face"), None)
    with pytest.raises(MismatchError, match=r"'face' \(not pre-trained\), but 'cat' \(not pre-trained\)"):
        alone.check(Domain.named("cat"), None)
    with pytest.raises(MismatchError, match=r"'tiny'.*'big'"):
        trained.base.check(BaseModel("big", "def"), owner="the domain 'face'")
    trained.base.check(BaseModel("a copy", "abc"), owner="the domain 'face'")


def test_image_encoders_are_told_apart_where_they_were_recorded():
    one, other = BaseModel("tiny", "abc", None, "123"), BaseModel("tiny", "abc", "a/clip", "456")
    with pytest.raises(MismatchError, match=r"'tiny' \(123\).*'a/clip' \(456\)"):
        one.check(other, owner="the domain 'face'", eyes=True)
    one.check(BaseModel("a copy", "abc", "elsewhere", "123"), owner="the domain 'face'", eyes=True)
    older = BaseModel.from_dict({"name": "tiny", "fingerprint": "abc", "image_encoder": None})
    older.check(other, owner="the domain 'face'", eyes=True)
    with pytest.raises(ValueError, match="image_encoder_fingerprint"):
        BaseModel.from_dict({**vars(one), "image_encoder_fingerprint": 7})


def test_foreign_and_broken_folders(trained, concept, tmp_path):
    with pytest.raises(CheckpointError, match="no concept folder"):
        Concept.load(tmp_path / "nowhere")
    folder = trained.save(tmp_path / "face")
    with pytest.raises(CheckpointError, match="domain folder, not a concept"):
        Concept.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format_version": 99}))
    with pytest.raises(CheckpointError, match="version 99"):
        TrainedDomain.load(folder)
    del config["base"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="base"):
        TrainedDomain.load(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        TrainedDomain.load(folder)
    folder = concept.save(tmp_path / "anna")
    (folder / "concept.safetensors").write_bytes(b"broken")
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        Concept.load(folder)


def test_foreign_folder_is_not_overwritten(concept, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"dear")
    with pytest.raises(CheckpointError, match="photos"):
        concept.save(tmp_path / "photos")
    assert (tmp_path / "photos" / "holiday.jpg").read_bytes() == b"dear"
    assert files(tmp_path) == ["photos"]


def test_only_a_folder_of_the_same_kind_is_written_over(concept, trained, tmp_path):
    domain = trained.save(tmp_path / "face")
    (domain / "notes.txt").write_text("dear")
    clip = tmp_path / "clip"
    clip.mkdir()
    (clip / "config.json").write_text('{"architectures": ["CLIPModel"]}')
    (clip / "model.safetensors").write_bytes(b"dear")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folder, what in (
        (domain, "exists and is no concept folder: it is a domain folder; choose another"),
        (clip, "exists and is no concept folder; choose another"),
        (broken, "config.json' cannot be read"),
    ):
        for refused in (lambda at: require_place(at, "concept"), concept.save):
            with pytest.raises(CheckpointError, match=what):
                refused(folder)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with pytest.raises(CheckpointError, match="is no domain folder: it is a concept folder"):
        require_place(concept.save(tmp_path / "anna"))
    require_place(domain)
    require_place(tmp_path / "anna", "concept")
    trained.save(domain)
    assert (domain / "notes.txt").read_text() == "dear"


def test_where_a_folder_cannot_be_exchanged_is_known_at_once(concept, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (".", "/"):
        for refused in (require_place, concept.save):
            with pytest.raises(CheckpointError, match="is the folder this runs in, or a whole disk"):
                refused(place)
    assert files(tmp_path) == []


def test_cards_name_no_place_on_a_disk_and_any_path_can_be_written(concept, trained, tmp_path):
    known = {"owner/model": "owner/model", "../clients/secret/sd15": "sd15", "models\\sd\udcff15": "sd?15"}
    for made in (concept, trained):
        for name, shown in known.items():
            base = dataclasses.replace(made.base, name=name)
            folder = dataclasses.replace(made, base=base).save(tmp_path / type(made).__name__)
            card = (folder / "README.md").read_text(encoding="utf-8")
            assert card.count(f"base_model: {shown}\n") == card.count(f"`{shown}`") == 1
            assert type(made).load(folder).base.name == name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64, torch.int32])
def test_numbers_that_are_no_floats_are_one_sentence(concept, tmp_path, dtype):
    folder = concept.save(tmp_path / "anna")
    save_file({name: tensor.to(dtype) for name, tensor in concept.tensors.items()}, folder / "concept.safetensors")
    config = json.loads((folder / "config.json").read_text())
    del config["weights_sha256"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="not a float of 16 bits or more"):
        Concept.load(folder)


def test_optimizer_round_trip(tmp_path):
    def steps(parameter, optimizer, count):
        for _ in range(count):
            (parameter**2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()

    straight, broken = (torch.nn.Parameter(torch.ones(3)) for _ in range(2))
    steps(straight, torch.optim.AdamW([straight], lr=0.1), 4)
    first = torch.optim.AdamW([broken], lr=0.1)
    steps(broken, first, 2)
    TrainingState(2, {}, optimizer_tensors(first)).save(tmp_path / "state")
    second = torch.optim.AdamW([broken], lr=0.1)
    load_optimizer_tensors(second, TrainingState.load(tmp_path / "state").tensors)
    steps(broken, second, 2)
    assert torch.equal(straight, broken)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no domain folder 'nowhere'"):
        TrainedDomain.load("nowhere")


def test_a_preview_is_kept_small_and_shown_in_the_card(concept, tmp_path):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 700, 3), dtype=np.uint8))
    folder = concept.with_preview(noise).save(tmp_path / "anna")
    assert (folder / "preview.jpg").stat().st_size <= 30_000
    with Image.open(folder / "preview.jpg") as shown:
        assert max(shown.size) == 256
    assert "](preview.jpg)" in (folder / "README.md").read_text()
    assert Concept.load(folder).preview == (folder / "preview.jpg").read_bytes()
    for odd in (b"not a picture", b"\xff\xd8\xff" + bytes(50_000)):
        (folder / "preview.jpg").write_bytes(odd)
        assert Concept.load(folder).preview is None
    assert "preview" not in (concept.save(folder) / "README.md").read_text()
    assert not (folder / "preview.jpg").exists()


def test_a_card_says_how_a_concept_is_opened(concept, tmp_path):
    card = concept.save(tmp_path / "anna").joinpath("README.md").read_text()
    assert f"Needs its domain (`{concept.domain_id}`) and" in card
    assert 'E4TPipeline.from_pretrained("path/to/the/domain")' in card
    bare = dataclasses.replace(concept, domain_id=None, steps=1).save(tmp_path / "bare")
    card = (bare / "README.md").read_text()
    assert "in 1 step. Needs no domain, only" in card
    assert f'E4TPipeline.from_base("path/to/the/base", class_word="{concept.domain.class_word}")' in card


def test_how_the_base_is_read_is_remembered(trained, tmp_path):
    base = dataclasses.replace(trained.base, reading=BaseConfig(variant="fp16", revision="main"))
    folder = dataclasses.replace(trained, base=base).save(tmp_path / "face")
    assert TrainedDomain.load(folder).base == base
    config = json.loads((folder / "config.json").read_text())
    assert config["base"]["reading"] == {"variant": "fp16", "revision": "main"}
    del config["base"]["reading"]  # as folders were before
    (folder / "config.json").write_text(json.dumps(config))
    assert TrainedDomain.load(folder).base.reading == BaseConfig()
    for odd in ({"speed": "fast"}, {"variant": 16}, "fp16"):
        config["base"]["reading"] = odd
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="incomplete or broken"):
            TrainedDomain.load(folder)
