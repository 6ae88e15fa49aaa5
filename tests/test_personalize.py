from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image

from e4t import personalize as module
from e4t.checkpoint import Concept
from e4t.config import TUNABLE, PersonalizeConfig
from e4t.data import square_pixels
from e4t.domain import Domain
from e4t.errors import CheckpointError, ConfigError, E4TError, MismatchError, PromptTooLongError
from e4t.model import E4TModel
from e4t.objective import E4TObjective
from e4t.personalize import ClassPictures, personalize, prepare, replayed


def last(model, picture, config, **options):
    *_, step = personalize(model, picture, config=config, **options)
    return step.concept


def everything(model):
    modules = [model, *model.backbone.modules()]
    return [p.detach().clone() for m in modules for p in m.parameters()]


@pytest.mark.parametrize("part", TUNABLE)
def test_each_part_can_be_tuned_alone_and_is_put_back(tiny_model, picture, quick_personalize, part):
    before = everything(tiny_model)
    concept = last(tiny_model, picture, quick_personalize.updated({"tune": (part,)}))
    after = everything(tiny_model)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    changed = {name.split("/")[0] for name, tensor in concept.tensors.items() if tensor.any()}
    assert changed - {"image_half", "frozen_offset"} == {part}


@pytest.mark.parametrize("tune", [("residual", "deltas"), ("encoder", "deltas", "unet", "text_encoder", "bias")])
@pytest.mark.parametrize("rank", [0, 2])
def test_a_saved_concept_gives_the_tuned_model_again(tiny_model, picture, quick_personalize, tmp_path, tune, rank):
    config = quick_personalize.updated({"tune": tune, "delta_rank": rank})
    noisy, t = torch.ones(1, 4, 8, 8), torch.tensor([30])

    @torch.no_grad()
    def predict(image_half):
        word = tiny_model.word(tiny_model.offset(noisy, t, image_half))
        return tiny_model.denoise(noisy, t, tiny_model.prompt_embeds(tiny_model.tokens(["a photo of S*"]), word))

    features = prepare(tiny_model, picture, None).image_features
    for step in personalize(tiny_model, picture, config=config):
        tuned = predict(tiny_model.encoder.image_half(features))
        if step.concept:
            step.concept.save(tmp_path / "anna")
    concept = Concept.load(tmp_path / "anna")
    with tiny_model.wearing(concept):
        torch.testing.assert_close(predict(concept.tensors["image_half"][None]), tuned, rtol=1e-4, atol=1e-5)


def test_it_learns_the_image(tiny_model, picture):
    config = PersonalizeConfig(steps=12, batch_size=8, tune=("deltas",), learning_rate=1e-2)
    losses = [s.training.diffusion for s in personalize(tiny_model, picture, config=config) if s.training]
    assert sum(losses[-3:]) < sum(losses[:3])


def test_steps_and_history(tiny_model, picture, quick_personalize):
    steps = list(personalize(tiny_model, picture, config=quick_personalize, keep_steps=True))
    assert [step.number for step in steps] == [0, 1, 2]
    assert [step.concept.steps for step in steps] == [0, 1, 2]
    assert not steps[0].concept.tensors["residual"].any()
    assert not torch.equal(steps[1].concept.tensors["residual"], steps[2].concept.tensors["residual"])
    plain = list(personalize(tiny_model, picture, config=quick_personalize))
    assert [step.concept is None for step in plain] == [True, True, False]
    none = list(personalize(tiny_model, picture, config=quick_personalize.updated({"steps": 0})))
    assert [step.concept.steps for step in none] == [0]


def test_later_steps_are_smaller_and_do_not_depend_on_how_many_there_are(tiny_model, picture, quick_personalize):
    falling = quick_personalize.updated({"tune": ("deltas",), "constant_steps": 1})
    four = list(personalize(tiny_model, picture, config=falling.updated({"steps": 4}), keep_steps=True))
    two = last(tiny_model, picture, falling)
    constant = last(tiny_model, picture, falling.updated({"constant_steps": None}))
    rates = [step.training.learning_rate for step in four if step.training]
    assert rates == pytest.approx([falling.learning_rate / step**2 for step in (1, 2, 3, 4)])
    assert all(torch.equal(tensor, four[2].concept.tensors[name]) for name, tensor in two.tensors.items())
    assert any(not torch.equal(tensor, constant.tensors[name]) for name, tensor in two.tensors.items())


def test_automatic_steps_end_once_a_step_brings_little(tiny_model, picture, quick_personalize, tmp_path):
    fast = quick_personalize.updated({"tune": ("deltas",), "learning_rate": 1e-2, "batch_size": 8, "constant_steps": 2})
    auto = fast.updated({"steps": "auto", "automatic_gain": 0.1})
    assert (auto.steps, auto.automatic) == (15, True)
    *_, ended = personalize(tiny_model, picture, config=auto)
    course = [step.loss_left for step in personalize(tiny_model, picture, config=auto.updated({"automatic_gain": 0.0}))]
    brought = [(a - b) / (1 - b) for a, b in pairwise([1.0, *course[1:]])]
    assert 1 < ended.number < len(brought) == 15
    assert brought[ended.number - 1] < 0.1 <= min(brought[: ended.number - 1])
    alone = last(tiny_model, picture, fast.updated({"steps": ended.number}))
    assert all(torch.equal(alone.tensors[name], tensor) for name, tensor in ended.concept.tensors.items())
    assert last(tiny_model, picture, auto.updated({"automatic_gain": 10.0})).steps == 1
    assert not auto.updated({"steps": 3}).automatic


def test_a_replay_of_automatic_steps_takes_as_many(tiny_model, picture, quick_personalize, tmp_path):
    auto = quick_personalize.updated({"steps": "auto", "automatic_gain": 10.0}).keeping("replay")
    tuned = last(tiny_model, picture, auto)
    again = replayed(tiny_model, Concept.load(tuned.save(tmp_path / "anna")))
    assert again.steps == tuned.steps == 1
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in tuned.tensors.items())


@pytest.mark.parametrize("seed", [0, 1])
def test_seeds_are_honoured(tiny_model, picture, quick_personalize, seed):
    config = quick_personalize.updated({"seed": seed, "delta_rank": 2})
    torch.manual_seed(1)
    one = last(tiny_model, picture, config)
    torch.manual_seed(2)
    other = last(tiny_model, picture, config)
    third = last(tiny_model, picture, config.updated({"seed": 7}))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)
    assert not torch.equal(one.tensors["residual"], third.tensors["residual"])


def test_batch_is_one_image_with_independent_noise_and_constants_computed_once(
    tiny_model, picture, quick_personalize, monkeypatch
):
    calls = []
    backbone = tiny_model.backbone
    for name in ("encode", "image_features"):
        real = getattr(backbone, name)
        monkeypatch.setattr(
            backbone, name, lambda *args, real=real, name=name, **kw: calls.append(name) or real(*args, **kw)
        )
    last(tiny_model, picture, quick_personalize)
    assert sorted(calls) == ["encode", "image_features"]
    batch_at = module.batches(tiny_model, prepare(tiny_model, picture, None), quick_personalize)
    batch, other = batch_at(0), batch_at(1)
    assert torch.equal(batch.latents[0], batch.latents[1])
    assert not torch.equal(batch.noise[0], batch.noise[1])
    assert batch.timesteps[0] != batch.timesteps[1]
    assert torch.equal(batch.latents, other.latents)  # no random crop, no mirroring
    assert not torch.equal(batch.noise, other.noise)


def test_a_caption_is_all_that_is_asked_while_learning(tiny_model, picture, quick_personalize, tmp_path):
    constants = prepare(tiny_model, picture, None)
    told = quick_personalize.updated({"caption": "{} in the rain", "batch_size": 6})
    batch = module.batches(tiny_model, constants, told)(0)
    (wanted,) = tiny_model.tokens(["S* in the rain"]).ids
    assert all(torch.equal(row, wanted) for row in batch.tokens.ids)
    plain = module.batches(tiny_model, constants, told.updated({"caption": None}))(0)
    assert len({tuple(row.tolist()) for row in plain.tokens.ids}) > 1
    tuned, untold = (last(tiny_model, picture, c.keeping("replay")) for c in (told, told.updated({"caption": None})))
    again = replayed(tiny_model, Concept.load(tuned.save(tmp_path / "anna")))
    assert torch.equal(again.tensors["residual"], tuned.tensors["residual"])
    assert not torch.equal(tuned.tensors["residual"], untold.tensors["residual"])


@pytest.mark.parametrize("steps", [0, 2])
def test_a_caption_that_is_too_long_is_refused_before_anything(tiny_model, picture, quick_personalize, steps):
    config = quick_personalize.updated({"caption": "S* " + "and on " * 2000, "steps": steps})
    with pytest.raises(PromptTooLongError, match="tokens long") as refused:
        next(personalize(tiny_model, picture, config=config))
    assert len(str(refused.value)) < 400


def test_the_whole_picture_is_learned_as_it_is(tiny_model, picture):
    """Its centre square: no crop at random and no mirror, not even one drawn once."""
    pixels = square_pixels(picture, 16)[None]
    constants = prepare(tiny_model, picture, None)
    assert torch.equal(constants.latents, tiny_model.backbone.encode(pixels))
    for found, expected in zip(constants.image_features, tiny_model.image_features(pixels), strict=True):
        assert torch.equal(found, expected)


def test_a_concept_holds_the_attentions_at_most_unless_asked(tiny_model, picture):
    """No gigabytes for a concept: neither U-Net nor text encoder are tuned by default."""
    assert not {"unet", "text_encoder"} & set(PersonalizeConfig().tune)
    concept = last(tiny_model, picture, PersonalizeConfig(steps=1, batch_size=1))
    attention = sum(linear.weight.numel() for linear, _ in tiny_model.offsets.items())
    assert concept.num_bytes < 2 * attention + 2000


def test_mask(tiny_model, picture, quick_personalize):
    mask = Image.new("L", picture.size)
    mask.paste(255, (0, 0, picture.width, picture.height // 2))
    small = prepare(tiny_model, picture, mask).mask
    assert small.shape == (1, 1, 8, 8)
    assert small[..., 0, :].min() == 1
    assert small[..., -1, :].max() == 0
    masked = last(tiny_model, picture, quick_personalize, mask=mask)
    plain = last(tiny_model, picture, quick_personalize)
    ignored = last(tiny_model, picture, quick_personalize.updated({"mask_loss": False}), mask=mask)
    assert not torch.equal(masked.tensors["residual"], plain.tensors["residual"])
    assert torch.equal(ignored.tensors["residual"], plain.tensors["residual"])


def test_without_a_domain(tiny_backbone, picture, quick_personalize):
    model = E4TModel.without_domain(tiny_backbone, Domain.named("cat"), embedding_scale=0.1)
    concept = last(model, picture, quick_personalize)
    assert concept.domain_id is None
    assert concept.tensors["residual"].any()


def test_stopping_early_puts_everything_back(tiny_model, picture, quick_personalize):
    before = everything(tiny_model)
    steps = personalize(tiny_model, picture, config=quick_personalize.updated({"tune": ["unet", "deltas"]}))
    next(steps)
    next(steps)
    steps.close()
    assert all(torch.equal(a, b) for a, b in zip(before, everything(tiny_model), strict=True))
    assert tiny_model.offsets.state == "ejected"


@pytest.mark.parametrize(
    "changes", [{"mixed_precision": "bf16"}, {"gradient_checkpointing": True}, {"stratified_timesteps": True}]
)
def test_options(tiny_model, picture, quick_personalize, changes):
    assert last(tiny_model, picture, quick_personalize.updated(changes)).tensors["residual"].any()
    assert not tiny_model.backbone.unet.training


def test_a_concept_is_small(tiny_model, picture):
    concept = last(tiny_model, picture, PersonalizeConfig(steps=1, batch_size=1, tune=("residual", "bias")))
    assert concept.num_bytes == 4 * 32 * 2


def test_tuned_heads_are_stored_without_their_image_side(tiny_model, picture, quick_personalize):
    concept = last(tiny_model, picture, quick_personalize.updated({"tune": ["encoder"]}))
    assert {name.split(".")[0] for name in concept.group("encoder")} == {"unet_linears"}


def test_muon_takes_matrices_and_leaves_words_to_adamw(tiny_model, picture, quick_personalize):
    changes = {"optimizer": "muon", "tune": ("unet", "text_encoder"), "steps": 1, "weight_decay": 0.0}
    concept = last(tiny_model, picture, quick_personalize.updated(changes))
    kernel, table = concept.tensors["unet/conv_out.weight"], concept.group("text_encoder")
    (words,) = (tensor for name, tensor in table.items() if name.endswith("token_embedding.weight"))
    rate = quick_personalize.learning_rate
    assert float(kernel.square().mean().sqrt()) == pytest.approx(rate, rel=0.2)
    assert kernel.abs().max() > 1.5 * rate
    assert words[words != 0].abs().quantile(0.9) <= 1.001 * rate  # signs, as in AdamW's first step


@pytest.mark.parametrize(("masked", "optimizer"), [(True, "adamw"), (False, "muon")])
def test_a_replay_is_the_concept_again_bit_for_bit(tiny_model, picture, quick_personalize, tmp_path, masked, optimizer):
    changes = {"tune": ("encoder", "deltas", "unet", "bias"), "seed": 3, "optimizer": optimizer}
    config = quick_personalize.updated(changes).keeping("replay")
    mask = Image.new("L", picture.size, 255) if masked else None
    tuned = last(tiny_model, picture, config, mask=mask)
    kept = Concept.load(tuned.save(tmp_path / "anna"))
    assert kept.to_be_replayed
    assert {name.split("/")[0] for name in kept.tensors} == {"replay"}
    assert kept.num_bytes == tuned.num_bytes < 3000
    assert "picture itself" in (tmp_path / "anna" / "README.md").read_text()
    again = replayed(tiny_model, kept)
    assert again.tensors.keys() == tuned.tensors.keys()
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in tuned.tensors.items())


def test_a_replay_has_to_be_tuned_before_it_is_worn(tiny_model, make_model, picture, quick_personalize, tmp_path):
    kept = Concept.load(last(tiny_model, picture, quick_personalize.keeping("replay")).save(tmp_path / "anna"))
    with pytest.raises(CheckpointError, match="tune it again"), tiny_model.wearing(kept):
        pass
    narrow = replace(kept, tensors={**kept.tensors, "replay/latents": torch.zeros(1, 4, 8, 7)})
    with pytest.raises(MismatchError, match="does not fit"):
        replayed(tiny_model, narrow)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"delta_rank": 10**6}, "a rank of 1000000; no matrix has more than 64"),
        ({"batch_size": 1025}, "1024 are enough"),
    ],
)
def test_a_replay_that_would_fill_the_memory_is_refused(tiny_model, picture, quick_personalize, tmp_path, asked, says):
    kept = last(tiny_model, picture, quick_personalize.keeping("replay"))
    with pytest.raises(CheckpointError, match=says):
        replayed(tiny_model, replace(kept, config={**kept.config, **asked}))


def test_what_is_kept_is_what_is_tuned(tiny_model, picture, quick_personalize):
    sizes = {}
    kept = {"full": {"deltas", "unet"}, "vectors": {"unet_vectors"}, "low-rank": {"deltas"}, "embedding": set()}
    for keep, expected in kept.items():
        concept = last(tiny_model, picture, quick_personalize.keeping(keep))
        assert {name.split("/")[0] for name in concept.tensors if "/" in name} == expected
        sizes[keep] = concept.num_bytes
    assert sizes["full"] > max(sizes["vectors"], sizes["low-rank"]) > sizes["embedding"]


def test_vectors_are_biases_and_norms_and_nothing_else(tiny_model, picture, quick_personalize, tmp_path):
    unet = tiny_model.backbone.unet
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    with pytest.raises(ConfigError, match="both unet and unet_vectors"):
        quick_personalize.updated({"tune": ("unet", "unet_vectors")})
    config = quick_personalize.keeping("vectors").updated({"unet_vectors_learning_rate": 0.01, "steps": 2})
    concept = Concept.load(last(tiny_model, picture, config).save(tmp_path / "anna"))
    with tiny_model.wearing(concept):
        moved = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
        vectors = {name for name, tensor in before.items() if tensor.ndim == 1}
        assert moved - {f"{path}.weight" for path in tiny_model.offsets.paths} == vectors  # the rest is the domain's
        most = max(float((unet.get_parameter(name) - before[name]).abs().max()) for name in vectors)
        assert 0.01 < most < 0.03  # two of Adam's steps at that rate
    assert all(torch.equal(parameter, before[name]) for name, parameter in unet.named_parameters())
    for value, sentence in (({"value": torch.zeros(5)}, r"shape \[5\]"), ({"odd": torch.zeros(1)}, "odd")):
        broken = {k: t for k, t in concept.tensors.items() if "/" not in k}
        foreign = replace(concept, tensors={**broken, **{f"unet_vectors/{k}": t for k, t in value.items()}})
        with pytest.raises(E4TError, match=sentence), tiny_model.wearing(foreign):
            pass


def held(model) -> int:
    """Bytes of every tensor that a model holds, shared ones once."""
    modules = [*model.modules(), *(part for whole in model.backbone.modules() for part in whole.modules())]
    owners = [*(vars(m) for m in modules), *(m._parameters for m in modules), *(m._buffers for m in modules)]
    owners += [vars(tuned) for tuned in model.tuned.values()]
    values = [value for owner in owners for value in owner.values()]
    values += [part for value in values if isinstance(value, (list, tuple)) for part in value]
    values += [part for value in values if isinstance(value, dict) for part in value.values()]
    storages = {t.data_ptr(): t.untyped_storage().nbytes() for t in values if isinstance(t, torch.Tensor)}
    return sum(storages.values())


def size_of(parameters) -> int:
    return sum(p.numel() * p.element_size() for p in parameters)


@pytest.mark.parametrize("tune", [("deltas",), ("deltas", "unet")])
def test_tuning_holds_one_copy_of_what_it_changes(tiny_model, picture, quick_personalize, tune):
    unet = size_of(tiny_model.backbone.unet.parameters())
    touched = size_of(linear.weight for linear, _ in tiny_model.offsets.items())
    before = held(tiny_model)
    during = [
        held(tiny_model) for _ in personalize(tiny_model, picture, config=quick_personalize.updated({"tune": tune}))
    ]
    assert before >= unet
    changed = unet if "unet" in tune else touched
    assert max(during) - before <= changed + touched  # the base weights, and D
    assert held(tiny_model) <= before + 100


@pytest.mark.parametrize("tune", [("deltas",), ("deltas", "unet")])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_folder_is_as_large_as_what_was_tuned(tiny_model, picture, quick_personalize, tmp_path, tune, dtype):
    concept = last(tiny_model, picture, quick_personalize.updated({"tune": tune, "save_dtype": dtype}))
    folder = concept.save(tmp_path / "anna")
    counted = (
        tiny_model.backbone.unet.parameters() if "unet" in tune else (i.weight for i, _ in tiny_model.offsets.items())
    )
    share = {"float16": 0.5, "float32": 1.0}[dtype]
    assert sum(f.stat().st_size for f in folder.iterdir()) <= share * size_of(counted) + 40_000
    assert {f.suffix for f in folder.iterdir()} <= {".safetensors", ".json", ".md"}


@pytest.mark.parametrize(("dtype", "autocast"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
@pytest.mark.parametrize("steps", [1, "auto"])
def test_a_base_in_half_precision_is_tuned_whole_with_its_own_autocast_alone(
    make_backbone, make_model, picture, quick_personalize, dtype, autocast, steps
):
    backbone = make_backbone()
    for part in backbone.modules():
        part.to(dtype)
    model = make_model(backbone)
    config = quick_personalize.updated({"tune": ("unet", "text_encoder"), "steps": steps, "automatic_gain": 10.0})
    with pytest.raises(ConfigError, match=f"needs mixed_precision '{autocast}'"):
        last(model, picture, config)
    ended = last(model, picture, config.updated({"mixed_precision": autocast})).steps
    assert ended < (2 if steps == 1 else 15)  # once the loss has fallen, which the first step may not do


def test_where_there_is_nothing_to_tune_it_is_said(tiny_backbone, picture, quick_personalize):
    model = E4TModel.without_domain(tiny_backbone, Domain.named("cat"), embedding_scale=0.1)
    with pytest.raises(ConfigError, match="this model has nothing to tune in encoder; add residual"):
        last(model, picture, quick_personalize.updated({"tune": ("encoder",)}))
    assert model.offsets.state == "ejected"


def test_how_well_the_image_is_known_does_not_ask_the_pictures_of_the_class(
    tiny_model, picture, quick_personalize, monkeypatch
):
    asked, forgotten = [], E4TObjective._forgotten
    monkeypatch.setattr(E4TObjective, "_forgotten", lambda self, prior: asked.append(1) or forgotten(self, prior))
    config = quick_personalize.updated({"steps": "auto", "automatic_gain": 10.0, "prior_weight": 1.0})
    prior = ClassPictures(torch.zeros(1, 4, 8, 8), ("a face",))
    assert last(tiny_model, picture, config, prior=prior).steps == 1
    assert len(asked) == 1  # by the step


def test_everything_ends_also_where_taking_off_fails(tiny_model, picture, quick_personalize, monkeypatch):
    def failing():
        raise MemoryError("no room")

    config = quick_personalize.updated({"steps": 1, "gradient_checkpointing": True})
    with monkeypatch.context() as patched:
        patched.setattr(tiny_model, "take_off", failing)
        with pytest.raises(MemoryError):
            last(tiny_model, picture, config)
    assert not tiny_model.backbone.unet.training
    tiny_model.take_off()
