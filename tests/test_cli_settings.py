"""How options, settings and their spellings become one configuration, and how wrong ones are refused."""

from __future__ import annotations

import ast
import inspect
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from e4t import cli
from e4t.cli import learning, settings
from e4t.cli.domains import Pretrain
from e4t.cli.drawing import Generate
from e4t.cli.elsewhere import ELSEWHERE
from e4t.cli.options import each
from e4t.config import GenerateConfig, PersonalizeConfig, PretrainConfig
from e4t.domain import Domain
from e4t.errors import ConfigError


def test_switches_turn_off_what_is_on_by_default() -> None:
    off = ["--no-gradient-checkpointing", "--no-use-8bit-adam"]
    on = ["--gradient-checkpointing", "--use_8bit_adam"]
    pretrain = ["pretrain", "photos", "--domain", "face", "--base", "tiny", "--output", "face"]
    personalize = ["personalize", "tiny-face", "a.png", "--output", "anna"]
    saving = {"gradient_checkpointing": True, "optimizer": "adamw8bit"}
    for command, config in ((pretrain, PretrainConfig()), (personalize, PersonalizeConfig())):
        for given, wanted in ((off, (False, "adamw")), (on, (True, "adamw8bit")), ([], (True, "adamw8bit"))):
            parsed = cli._parsed([*command, *given])
            assert isinstance(parsed, (Pretrain, learning.Personalize))
            result = settings.overridden(config.updated(saving), (), parsed._given())
            assert (result.gradient_checkpointing, result.optimizer) == wanted
    parsed = cli._parsed([*pretrain, "--no-compile"])
    assert isinstance(parsed, Pretrain)
    assert parsed._given()["compile"] is False


def test_options_of_diffusers_scripts_are_understood() -> None:
    spelt = ["--checkpoints_total_limit", "3", "--validation_steps", "50"]
    pretrain = cli._parsed(["pretrain", "photos", "--domain", "face", "--base", "tiny", "--output", "face", *spelt])
    assert isinstance(pretrain, Pretrain)
    assert (pretrain.keep_states, pretrain.validate_every) == (3, 50)
    spelt = ["--gradient_accumulation_steps", "4", "--use_8bit_adam"]
    personalize = cli._parsed(["personalize", "tiny-face", "a.png", "--output_dir", "anna", *spelt])
    assert isinstance(personalize, learning.Personalize)
    assert (personalize._given()["accumulation"], personalize._given()["optimizer"]) == (4, "adamw8bit")
    told = cli._parsed(["personalize", "tiny-art", "a.png", "-o", "anna", "--instance_prompt", "a cat by S*"])
    assert isinstance(told, learning.Personalize)
    assert told._given()["caption"] == "a cat by S*"


def documented(command: type) -> dict[str, str]:
    """What --help says of each option."""
    (defined,) = ast.parse(inspect.getsource(command)).body
    assert isinstance(defined, ast.ClassDef)
    return {
        one.target.id: " ".join(text.value.value.split())
        for one, text in pairwise(defined.body)
        if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
    }


@pytest.mark.parametrize(
    ("command", "config"),
    [(Pretrain, PretrainConfig()), (learning.Personalize, PersonalizeConfig()), (Generate, GenerateConfig())],
)
def test_help_says_the_default_of_every_setting(command: type, config: Any) -> None:
    said = documented(command)
    options = {name: value for name, value in config.to_dict().items() if name in said and value is not None}
    assert {"seed", "batch_size"} <= set(options) or "guidance_scale" in options
    for name, value in options.items():
        if name == "keep":  # what is tuned says that
            continue
        default = "off" if value is False else value if isinstance(value, str) else f"{value:g}"
        assert re.search(rf"Default: .*\b{re.escape(default)}\b", said[name]), f"{name} is {default}: {said[name]}"


OF_DIFFUSERS = """
--pretrained_model_name_or_path m --revision r --variant fp16 --output_dir d --seed 1 --resolution 512
--train_batch_size 2 --gradient_accumulation_steps 2 --gradient_checkpointing --learning_rate 1e-4 --scale_lr
--lr_scheduler constant_with_warmup --lr_warmup_steps 5 --max_train_steps 9 --checkpointing_steps 3
--checkpoints_total_limit 2 --resume_from_checkpoint latest --mixed_precision fp16 --allow_tf32 --use_8bit_adam
--enable_xformers_memory_efficient_attention --report_to tensorboard --validation_prompt a --num_validation_images 2
--validation_steps 7 --push_to_hub --hub_model_id n --placeholder_token <anna> --initializer_token face
--instance_prompt c
"""


@pytest.mark.parametrize("spelt", re.findall(r"--\w+(?: [^-\s]\S*)?", OF_DIFFUSERS))
def test_every_option_of_diffusers_scripts_is_understood_or_answered(
    spelt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {"--output_dir": "-o", "--pretrained_model_name_or_path": "--base"}
    required = {"-o": "x", "--base": "x"}
    required.pop(wanted.get(spelt.split()[0], ""), None)
    rest = [word for pair in required.items() for word in pair]
    for command in (["pretrain", "photos", "--domain", "face"], ["personalize", "tiny-face", "a.png"]):
        try:
            assert cli._parsed([*command, *rest, *spelt.split()])
        except SystemExit:
            said = capsys.readouterr().err
            answered = said.startswith(f"error: {spelt.split()[0]} is no option here; ") and said.count("\n") == 1
        else:
            return
    assert answered


def test_options_that_are_answered_are_none_of_ours() -> None:
    own = set(re.findall(r"--([\w-]+)", (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")))
    assert len(own) > 50
    assert not own & set(ELSEWHERE)


def test_a_domain_s_words_can_be_chosen() -> None:
    line = "pretrain photos --domain art --base tiny --output x --placeholder_token <him> --lr_scheduler"
    words = ["constant_with_warmup", "--prompt-template", "art by <him>", "--prompt-template", "a {} thing"]
    told = cli._parsed([*line.split(), *words])
    assert isinstance(told, Pretrain)
    domain = told._domain()
    assert (domain.class_word, domain.placeholder) == ("art", "<him>")
    assert domain.prompts == ("art by <him>", "a <him> thing")
    assert told._given()["schedule"] == "constant"
    plain = cli._parsed("pretrain photos --domain art --base tiny --output x".split())
    assert isinstance(plain, Pretrain)
    assert plain._domain() == Domain.named("art")


@pytest.mark.parametrize(
    ("option", "says"), [("--crop-scale 1 2", "crop_scale is"), ("--resolution 0", "resolution is 0")]
)
def test_views_that_no_picture_has_are_refused_at_once(
    option: str, says: str, noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["cache", str(noise_folder), "--base", "nowhere", "--output", str(tmp_path / "cache"), *option.split()]
    assert cli.main(command) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("info nowhere", "neither a concept"),
        (
            "generate nowhere S*",
            "no concept folder 'nowhere'; 'e4t personalize DOMAIN IMAGE --output FOLDER' makes one",
        ),
        ("personalize nowhere PICTURE --output x", "no domain folder"),
        ("personalize dog PICTURE --output x", "a class word needs --base MODEL"),
        ("personalize nowhere nothing.png --output x", "there is no picture"),
        ("demo --image nothing.png", "there is no picture"),
        ("demo --steps -1", "0 or more"),
        ("evaluate nowhere --count 0", "2 or more"),
        ("evaluate nowhere --steps 0 -1", "0 or more"),
        ("generate nowhere S* --num-images 0", "1 or more"),
        ("pretrain PHOTOS --domain face --base nowhere --output x", "nowhere"),
        ("pretrain nowhere --domain face --base x --output x --steps 0", "1 or more"),
        ("pretrain PHOTOS --domain face --base x.ckpt --output x", "is a pickle, which can run programs"),
        ("pretrain PHOTOS --domain face --base x.safetensors --output x", "there is no file"),
        ("pretrain PHOTOS --domain face --base owner/model --output x", "the Hub cannot be reached"),
        ("pretrain PHOTOS --domain face --base owner/model --layout y --output x", "leave --layout out"),
        ("personalize dog PICTURE --base PICTURE --output x", "is not a model"),
        ("pretrain nowhere --domain face --base x --output x --set steps", "has no value"),
        ("pretrain nowhere --domain face --base x --output x --set stepz=3", "unknown setting"),
        ("pretrain nowhere --domain face --base x --output x --config nothing.json", "no settings file"),
        ("personalize nowhere PICTURE --output x --device nonsense", "cannot be used"),
    ],
)
def test_what_the_user_can_put_right_is_one_sentence(
    command: str, says: str, noise_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = command.replace("PICTURE", str(noise_folder / "0.png")).replace("PHOTOS", str(noise_folder))
    assert cli.main(given.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["", "paint", "demo --nonsense", "personalize tiny-face"])
def test_wrong_usage_exits_with_2(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(command.split())
    assert caught.value.code == 2
    assert capsys.readouterr().out == ""


def test_settings_have_the_type_of_what_they_replace() -> None:
    config = settings.overridden(
        PretrainConfig(), ["crop_scale=[0.5, 1.0]", "resolution=64", "encoder.head=linear"], {}
    )
    assert (config.crop_scale, config.resolution, config.encoder.head) == ((0.5, 1.0), 64, "linear")
    assert settings.overridden(PersonalizeConfig(), ["tune=residual, deltas"], {}).tune == ("residual", "deltas")
    assert settings.overridden(GenerateConfig(), ["guidance_scale=3"], {"seed": 0, "height": None}).guidance_scale == 3
    for pair in ("steps=many", "steps=1.5", "steps=true", "flip=3", "encoder=3", "seed.x=1", "encoder.head=round"):
        with pytest.raises(ConfigError):
            settings.overridden(PretrainConfig(), [pair], {})


@pytest.mark.parametrize(
    ("config", "pairs", "wanted"),
    [
        (PretrainConfig(), ["offsets.form=none"], {"offsets": {"form": "none"}}),
        (PretrainConfig(), ["encoder.unet_blocks=none"], {"encoder": {"unet_blocks": "none"}}),
        (PretrainConfig(), ["encoder.head='linear'", "encoder.head_gain=1"], {"encoder": {"head_gain": 1.0}}),
        (PretrainConfig(), ["crop_scale=0.7,1.0"], {"crop_scale": (0.7, 1.0)}),
        (PretrainConfig(), ["crop_scale=(.7, 1)", "flip=True"], {"crop_scale": (0.7, 1.0), "flip": True}),
        (PretrainConfig(), ["resolution=none", "offsets.projections=[]"], {"resolution": None}),
        (PersonalizeConfig(), ["automatic=on", "learning_rate=.001"], {"automatic": True, "learning_rate": 0.001}),
        (PersonalizeConfig(), ["steps=auto", "memory=8"], {"steps": 15, "automatic": True, "memory": 8.0}),
        (PersonalizeConfig(), ["memory=auto", 'tune=["unet", "residual"]'], {"memory": "auto"}),
        (GenerateConfig(), ["scheduler=None", "guidance_scale=3"], {"scheduler": None, "guidance_scale": 3.0}),
    ],
)
def test_settings_are_read_as_they_are_documented(config: PretrainConfig, pairs: list[str], wanted: dict) -> None:
    values = settings.overridden(config, pairs, {}).to_dict()
    for name, value in wanted.items():
        assert values[name] == (values[name] | value if isinstance(value, dict) else value)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_settings_does_not_matter(order: tuple[int, ...]) -> None:
    pairs = ("cache=true", "crop_scale=[1.0,1.0]", "sample_latents=false")
    assert settings.overridden(PretrainConfig(), [pairs[place] for place in order], {}).cache
    with pytest.raises(ConfigError, match=r"cache needs crop_scale \[1.0, 1.0\]"):
        settings.overridden(PretrainConfig(), ["cache=true"], {})


def test_options_beat_settings_and_zero_counts() -> None:
    config = settings.overridden(PretrainConfig(), ["seed=4", "steps=9"], {"seed": 0, "steps": None})
    assert (config.seed, config.steps) == (0, 9)


def test_an_option_of_several_values_may_be_given_again() -> None:
    given = [
        ("demo --image a.png --image b.png c.png --domain x --domain y", ("image", "domain")),
        ("benchmark --domain x --domain y z --method p --method q --prompts r --prompts s", ("domain", "method")),
        ("evaluate d --steps 0 --steps 5 15", ("steps",)),
        ("web --domain x --domain y z", ("domain",)),
    ]
    for line, names in given:
        command = cli._parsed(line.split())
        for name in names:
            said = re.findall(rf"--{name} ([^-]+)", line)
            assert " ".join(map(str, each(getattr(command, name)))) == " ".join(said).replace("  ", " ").strip()
