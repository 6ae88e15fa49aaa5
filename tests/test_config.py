from __future__ import annotations

import json

import pytest

from e4t.config import KEPT, EncoderConfig, GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError


@pytest.mark.parametrize("config", [PretrainConfig.paper("art"), PersonalizeConfig.paper(), GenerateConfig.paper()])
def test_json_round_trip(config):
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_paper_values():
    pretrain, personalize, generate = PretrainConfig.paper("cat"), PersonalizeConfig.paper(), GenerateConfig.paper()
    assert (pretrain.steps, pretrain.batch_size, pretrain.learning_rate) == (60_000, 16, 1.6e-5)
    assert (pretrain.embedding_scale, pretrain.regularisation, personalize.regularisation) == (0.1, 0.01, 0.1)
    assert (pretrain.encoder.layer_stride, pretrain.encoder.head, pretrain.offsets.form) == (2, "paper", "paper")
    assert set(personalize.tune) == {"encoder", "deltas", "unet", "text_encoder"}
    assert (generate.num_inference_steps, generate.guidance_scale) == (50, 7.5)


@pytest.mark.parametrize(("name", "value"), [("frozen_timesteps", 10_000), ("min_timestep", -1), ("max_timestep", 0)])
def test_timesteps_have_bounds(name, value):
    with pytest.raises(ConfigError, match=name):
        PersonalizeConfig().updated({name: value})


def test_a_caption_is_a_line_of_text():
    config = PersonalizeConfig().updated({"caption": " S* in\n a red hat "})
    assert config.caption == "S* in a red hat"
    assert {config.updated({"caption": blank}).caption for blank in ("  ", "none", " None\n")} == {None}
    with pytest.raises(ConfigError, match=r"caption is .*, which no file of text can hold"):
        config.updated({"caption": "S* \ud800"})
    with pytest.raises(ConfigError, match="caption is 3; it must be of type"):
        config.updated({"caption": 3})


def test_defaults_of_personalizing():
    config = PersonalizeConfig()
    assert (config.steps, config.batch_size) == (5, 16)


def test_partial_sections_override_defaults():
    config = PretrainConfig.from_dict({"steps": 3, "encoder": {"head": "linear"}})
    assert (config.steps, config.encoder) == (3, EncoderConfig(head="linear"))


@pytest.mark.parametrize(
    "make",
    [
        lambda: PretrainConfig.from_dict({"stepz": 3}),
        lambda: PersonalizeConfig(tune=("everything",)),
        lambda: GenerateConfig(embedding="cold"),
        lambda: EncoderConfig(head="hydra"),
    ],
)
def test_wrong_settings_are_named(make):
    with pytest.raises(ConfigError, match=r"stepz|everything|cold|hydra"):
        make()


def test_rates():
    config = PersonalizeConfig(learning_rate=1.0, unet_learning_rate=0.0, residual_learning_rate=3.0)
    assert [config.rate(part) for part in ("deltas", "unet", "bias")] == [1.0, 0.0, 3.0]


@pytest.mark.parametrize("kind", [PretrainConfig, PersonalizeConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", -1e-5), ("weight_decay", -0.1), ("regularisation", -1.0), ("max_grad_norm", 0.0), ("seed", -1)],
)
def test_numbers_that_no_training_can_have_are_refused(kind, name, value):
    with pytest.raises(ConfigError, match=f"{name} is {value}; it must be"):
        kind().updated({name: value})
    assert kind().updated({"seed": 0, "learning_rate": 0.0, "weight_decay": 0.0, "max_grad_norm": None}).seed == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: PretrainConfig(offsets_learning_rate=-1.0),
        *(
            lambda part=part: PersonalizeConfig(**{f"{part}_learning_rate": -1.0})
            for part in ("residual", "unet_vectors", "encoder", "deltas", "unet", "text_encoder")
        ),
    ],
)
def test_no_part_learns_backwards(make):
    with pytest.raises(ConfigError, match=r"_learning_rate is -1\.0; it must be 0 or more"):
        make()


@pytest.mark.parametrize("what", KEPT)
def test_what_is_kept_can_be_said_among_other_settings(what):
    config = PersonalizeConfig(tune=("encoder", "unet"))
    assert config.updated({"keep": what}) == config.keeping(what)
    assert config.updated({"tune": ["bias"], "keep": what}).tune == ("bias",)
    assert PersonalizeConfig(keep="replay").updated({"keep": what}).keep == ("replay" if what == "replay" else "tuned")


def test_what_is_kept_is_one_of_five():
    with pytest.raises(ConfigError, match="keep is 'all'; it must be one of 'tuned', 'full', 'vectors'"):
        PersonalizeConfig().updated({"keep": "all"})
    with pytest.raises(ConfigError, match=r"write PersonalizeConfig\(\).keeping\('low-rank'\)"):
        PersonalizeConfig(keep="low-rank")


def test_something_has_to_be_tuned():
    with pytest.raises(ConfigError, match="tune is empty; it must name some of residual"):
        PersonalizeConfig(tune=())


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: PretrainConfig(resolution=4), "resolution is 4; it must be 8 or more"),
        (lambda: GenerateConfig(height=0), "height is 0; it must be a multiple of 8"),
        (lambda: GenerateConfig(width=-8), "width is -8; it must be a multiple of 8"),
        (lambda: GenerateConfig(width=100), "width is 100; it must be a multiple of 8"),
        (lambda: GenerateConfig(seed=-1), "seed is -1; it must be 0 or more"),
    ],
)
def test_pictures_have_sides_and_seeds_that_can_be(make, why):
    with pytest.raises(ConfigError, match=why):
        make()


def test_folders_of_before_are_read_without_what_ended_automatic_tuning_then():
    assert PersonalizeConfig.from_dict({"steps": 3, "automatic_loss": 0.5}) == PersonalizeConfig(steps=3)
    with pytest.raises(ConfigError, match="unknown setting 'automatic_loss'"):
        PersonalizeConfig().updated({"automatic_loss": 0.5})
