"""Every stage of the tiny model's training for a few steps from nothing, resuming, and the exported folder."""

from __future__ import annotations

import json
import multiprocessing.dummy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from e4t.evaluation import curve
from e4t.evaluation.curve import CurveConfig
from e4t.evaluation.judge import Judge, JudgeNetwork
from e4t.tiny import architecture, pictures, samples, train
from e4t.tiny.train import TinyConfig, train_tiny
from e4t.tiny.trained import Trained, step_of

STAGES = ("vae", "smooth", "base", "clip")
READ = ("pictures", "tokenizer", "latents.safetensors", "tokens.safetensors", "scaling_factor.json")


def config_of(work: Path) -> TinyConfig:
    return TinyConfig(
        work,
        pictures=6,
        vae_steps=4,
        smooth_steps=4,
        base_steps=4,
        clip_steps=4,
        vae_batch=2,
        base_batch=2,
        clip_batch=2,
        warmup=2,
        checkpoint_every=2,
        sample_every=4,
        keep_every=2,
    )


@pytest.fixture(scope="module", autouse=True)
def small_shards() -> object:
    """Three pictures a shard, drawn in threads of this process so that they see it; less of all that is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "PROMPTS", samples.PROMPTS[:2])
        patch.setattr(pictures, "SHARD", 3)
        patch.setattr(train, "captions_of", lambda indices, *rest: pictures.captions_of(indices[:300], *rest))
        patch.setattr(pictures, "multiprocessing", SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> TinyConfig:
    config = config_of(tmp_path_factory.mktemp("tiny"))
    train_tiny(config)
    return config


def lend(trained: TinyConfig, work: Path, *names: str) -> None:
    """To a folder that goes on from some of what another has made."""
    for name in names:
        (work / name).symlink_to(trained.work / name)


def test_shards_hold_the_stream_in_order(trained: TinyConfig) -> None:
    from e4t.tiny.captions import training_picture
    from e4t.tiny.world import draw

    rgb, indices = pictures.load_shards(trained.work / "pictures")
    assert rgb.shape == (6, 128, 128, 3)
    assert indices.tolist() == list(range(6))
    np.testing.assert_array_equal(rgb[4], draw(training_picture(4), 128).rgb)


def test_every_stage_leaves_its_checkpoint(trained: TinyConfig) -> None:
    for stage in STAGES:
        state = load_file(trained.work / f"{stage}.safetensors")
        assert all(torch.isfinite(tensor).all() for tensor in state.values())
        assert step_of(trained.work / f"{stage}.safetensors") == 4
    latents = load_file(trained.work / "latents.safetensors")["latents"]
    assert latents.shape == (6, architecture.LATENT_CHANNELS, 16, 16)
    assert 0.5 < latents.float().std() < 2


def test_the_same_command_again_changes_nothing(trained: TinyConfig) -> None:
    before = {stage: load_file(trained.work / f"{stage}.safetensors") for stage in STAGES}
    train_tiny(trained)
    for stage in STAGES:
        after = load_file(trained.work / f"{stage}.safetensors")
        for key, tensor in before[stage].items():
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_is_the_same_as_going_on(trained: TinyConfig, stage: str, tmp_path: Path) -> None:
    """Stop the stage in the middle, as Ctrl-C would, and run the same command again."""
    resumed = replace(trained, work=tmp_path / "work", stages=(stage,), sample_every=1000)
    resumed.work.mkdir()
    earlier = [f"{s}.safetensors" for s in STAGES[: STAGES.index(stage)]]
    lend(trained, resumed.work, *earlier, *READ)
    with pytest.MonkeyPatch.context() as patch:
        save = Trained.save

        def save_and_stop(state: Trained, path: Path) -> None:
            save(state, path)
            raise KeyboardInterrupt

        patch.setattr(Trained, "save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(resumed)
    assert step_of(resumed.work / f"{stage}.safetensors") == 2
    train_tiny(resumed)
    expected = load_file(trained.work / f"{stage}.safetensors")
    for key, tensor in load_file(resumed.work / f"{stage}.safetensors").items():
        torch.testing.assert_close(tensor, expected[key], rtol=0, atol=0, msg=key)


def test_the_text_encoder_settles_on_its_average_while_the_unet_goes_on(trained: TinyConfig, tmp_path: Path) -> None:
    config = replace(trained, work=tmp_path / "work", stages=("base",), text_steps=2, sample_every=1000)
    config.work.mkdir()
    lend(trained, config.work, "smooth.safetensors", *READ)
    train_tiny(replace(config, base_steps=2))
    early = load_file(config.work / "base.safetensors")
    train_tiny(replace(config, base_steps=4))
    late = load_file(config.work / "base.safetensors")
    text = [key for key in early if key.startswith(("ema/text_encoder.", "ema/spelling.", "ema/words."))]
    assert text
    for key in text:
        torch.testing.assert_close(late[key], early[key], rtol=0, atol=1e-6)
        torch.testing.assert_close(late[key.replace("ema/", "master/")], early[key], rtol=0, atol=1e-6)
    assert any(not torch.equal(late[key], early[key]) for key in early if key.startswith("ema/unet."))


def test_more_steps_continue_a_finished_stage(trained: TinyConfig, tmp_path: Path) -> None:
    longer = replace(trained, work=tmp_path / "work", stages=("base",), base_steps=5, sample_every=1000)
    longer.work.mkdir()
    lend(trained, longer.work, "smooth.safetensors", *READ)
    (longer.work / "base.safetensors").write_bytes((trained.work / "base.safetensors").read_bytes())
    train_tiny(longer)
    assert step_of(longer.work / "base.safetensors") == 5


def test_samples_are_kept(trained: TinyConfig) -> None:
    kept = {}
    for path in (trained.work / "samples").iterdir():
        with Image.open(path) as image:
            kept[path.name] = image.size
    assert kept == {
        "vae-000004.png": (6 * 128, 2 * 128),
        "smooth-000004.png": (6 * 128, 2 * 128),
        "base-000004.png": (2 * 128, 2 * 128),
    }


def test_settings_and_losses_are_logged(trained: TinyConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first, *_ = map(json.loads, (trained.work / "log.jsonl").read_text().splitlines())
    assert first["stage"] == "start"
    assert first["config"]["base_steps"] == "4"
    seldom = {"checkpoint_every": 50, "sample_every": 1000}
    longer = replace(trained, work=tmp_path, vae_steps=50, stages=("vae",), vae_batch=1, **seldom)
    lend(trained, tmp_path, "pictures", "tokenizer")
    train_tiny(longer)
    last = json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])
    assert (last["stage"], last["step"]) == ("vae", 50)
    assert 0 < last["loss"] < 10


def test_small_updates_are_not_lost() -> None:
    layer = torch.nn.Linear(4, 4)
    state = Trained({"layer": layer}, 1e-4, warmup=1, ema_decay=0.9, steps=100, dtype=torch.bfloat16)
    before = {key: master.clone() for key, master in state.masters.items()}
    for _ in range(3):
        state.update(layer(torch.ones(1, 4).bfloat16()).float().square().sum())
    assert layer.weight.dtype == torch.bfloat16
    for key, master in state.masters.items():
        assert ((master - before[key]).abs() > 0).all()


# The exported folder


def test_stock_diffusers_loads_and_samples(trained: TinyConfig) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(trained.work / "tiny")
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a watercolour of a face", num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
    assert image.size == (128, 128)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert 0.1 < pipe.vae.config.scaling_factor < 100


def test_clip_comes_back_whole_from_its_parts(trained: TinyConfig) -> None:
    from transformers import CLIPTextModel

    clip = architecture.load_clip(trained.work / "tiny")
    text = CLIPTextModel.from_pretrained(trained.work / "tiny" / "text_encoder")
    ids = torch.arange(10)[None]
    with torch.no_grad():
        states = [model(input_ids=ids).last_hidden_state for model in (clip.text_model, text)]
    torch.testing.assert_close(*states, rtol=0, atol=0)
    learned = load_file(trained.work / "clip.safetensors")
    for key, tensor in clip.state_dict().items():
        if not key.startswith("text_model.") and f"ema/clip.{key}" in learned:
            torch.testing.assert_close(tensor, learned[f"ema/clip.{key}"].half().float(), rtol=0, atol=0, msg=key)


def test_exported_weights_are_the_averages(trained: TinyConfig) -> None:
    from diffusers import UNet2DConditionModel

    unet = UNet2DConditionModel.from_pretrained(trained.work / "tiny" / "unet")
    state = load_file(trained.work / "base.safetensors")
    for key, tensor in unet.state_dict().items():
        torch.testing.assert_close(tensor.half(), state[f"ema/unet.{key}"].half(), rtol=0, atol=0)


def test_the_curve_is_of_what_was_kept_on_the_way(trained: TinyConfig, tmp_path: Path) -> None:
    """The kept averages become pipelines, the last of them the exported one; a judge reads them all."""
    pipes = dict(train.kept_pipelines(trained))
    assert list(pipes) == [2, 4]
    exported = load_file(trained.work / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    kept = pipes[4].unet.state_dict()
    assert all(torch.equal(kept[key].half(), tensor) for key, tensor in exported.items())
    assert any(not torch.equal(kept[key], tensor) for key, tensor in pipes[2].unet.state_dict().items())
    Judge(JudgeNetwork(1, "face"), 1, "face", np.ones(41, bool)).save(tmp_path / "judge")
    few = {"count": 2, "named": 2, "num_inference_steps": 1}
    curve.main(CurveConfig(trained.work, tmp_path / "curve.json", judge_folder=tmp_path / "judge", before=10, **few))
    report = json.loads((tmp_path / "curve.json").read_text())
    assert [row["pictures"] for row in report["rows"]] == [10 + TinyConfig.base_batch * step for step in (2, 4)]
    assert (tmp_path / "curve.md").read_text().count("\n") == 4
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.width > 500


def test_vision_tower_is_deep_enough(trained: TinyConfig) -> None:
    from transformers import CLIPVisionModel

    vision = CLIPVisionModel.from_pretrained(trained.work / "tiny" / "image_encoder")
    states = vision(torch.zeros(1, 3, 128, 128), output_hidden_states=True).hidden_states
    assert len(states) >= 9


def test_tokens_of_unknown_words_exist(trained: TinyConfig) -> None:
    tokenizer = train.tokenizer_of(trained)
    ids = train.tokenise(tokenizer, ["a Zebra's ß in xylophone 42!"])
    assert ids.shape == (1, architecture.MAX_TOKENS)
    assert ids.max() < len(tokenizer)


def test_naming_words_counts_words_alone() -> None:
    start, end, vocabulary = 8, 9, 10
    ids = torch.tensor([[start, 2, 5, end, end], [start, end, end, end, end]])
    logits = torch.full((2, vocabulary), -20.0)
    logits[0, [2, 5]] = 20.0
    kinds = torch.full_like(ids, -1)
    assert float(train._words_loss(logits, ids, kinds)) == pytest.approx(np.log(2), abs=1e-3)  # one of two words, each
    assert float(train._words_loss(logits[1:], ids[1:], kinds[1:])) == 0  # nothing is said
    kinds[0, 1] = 0  # a name, which is told otherwise
    assert float(train._words_loss(logits, ids, kinds)) == pytest.approx(np.log(2), abs=1e-3)
    assert float(train._words_loss(logits, ids, torch.zeros_like(ids))) == 0


def test_going_on_from_an_exported_folder(trained: TinyConfig, tmp_path: Path) -> None:
    lend(trained, tmp_path, "pictures", "tokenizer")
    config = replace(trained, work=tmp_path, initial=trained.work / "tiny", base_steps=0, clip_steps=0)
    train_tiny(config)
    assert not (tmp_path / "vae.safetensors").exists()
    for path in sorted((trained.work / "tiny").glob("*/*.safetensors")):
        before, after = load_file(path), load_file(tmp_path / "tiny" / path.parent.name / path.name)
        assert before.keys() == after.keys()
        for key, tensor in before.items():
            spelt = key.endswith("token_embedding.weight")  # names are spelt anew, by the map found in half precision
            torch.testing.assert_close(after[key], tensor, rtol=0, atol=1e-3 if spelt else 0, msg=f"{path} {key}")
    train_tiny(replace(config, base_steps=2, stages=("base",)))
    assert step_of(tmp_path / "base.safetensors") == 2


def test_a_stage_that_is_not_adopted_begins_from_nothing(trained: TinyConfig, tmp_path: Path) -> None:
    first = trained.work / "tiny"
    lend(trained, tmp_path, "pictures", "tokenizer")
    train_tiny(replace(trained, work=tmp_path, initial=first, adopted=("smooth", "base"), base_steps=0, clip_steps=0))
    before, after = (load_file(folder / "image_encoder" / "model.safetensors") for folder in (first, tmp_path / "tiny"))
    same = {key for key in before if torch.equal(before[key], after[key])}
    kept = {key for key in before if key.startswith("text_model.") and not key.endswith("token_embedding.weight")}
    assert kept <= same
    assert not any(key.startswith("vision_model.encoder") and key.endswith("proj.weight") for key in same)


def test_a_new_word_starts_from_the_pieces_it_was_read_in(tmp_path: Path) -> None:
    before = architecture.build_tokenizer(["mira kolan"], tmp_path / "before")
    after = architecture.build_tokenizer(["mira kolan mirakol"], tmp_path / "after")
    rows = torch.randn(len(before), 4)
    translated = train._translated(rows, tmp_path / "before", after)
    assert translated.shape == (len(after), 4)
    kept, pieces = before.get_vocab()["kolan</w>"], before("mirakol", add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    torch.testing.assert_close(translated[after.get_vocab()["kolan</w>"]], rows[kept])
    torch.testing.assert_close(translated[after.get_vocab()["mirakol</w>"]], rows[pieces].mean(dim=0))
