from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from bases import save_folder
from conftest import build_backbone, build_model
from e4t.checkpoint import Concept, TrainedDomain
from e4t.config import PersonalizeConfig
from e4t.domain import Domain
from e4t.errors import ConfigError
from e4t.pipeline import E4TPipeline

# diffusers' schedulers turn tensors into arrays in a way NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS = ["DDIMScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"]


@pytest.fixture
def pipe(tiny_model):
    return with_domain(tiny_model)


@pytest.fixture(scope="module")
def concept(picture):
    """Of a pipe like that of every test; none changes it."""
    return with_domain(build_model(build_backbone())).personalize(picture)


def with_domain(model):
    trained = TrainedDomain(
        model.domain,
        model.base,
        model.encoder.config,
        model.offsets.config,
        2.0,
        model.domain_tensors(),
        personalize={"steps": 2, "batch_size": 2, "learning_rate": 1e-2, "frozen_timesteps": 2},
        generate={"num_inference_steps": 3},
    )
    return E4TPipeline(model.backbone, trained)


def arrays(output):
    return [np.asarray(image, dtype=float) for image in output.images]


def test_one_image_to_pictures(pipe, picture, tmp_path):
    concept = pipe.personalize(picture)
    concept.save(tmp_path / "anna")
    drawn = pipe("a photo of S* at the beach", concept=concept, num_images=2)
    again = pipe("a photo of S* at the beach", concept=Concept.load(tmp_path / "anna"), num_images=2)
    assert len(drawn.images) == 2
    assert drawn.seeds == [0, 1]
    assert drawn.images[0].size == (16, 16)
    for one, other in zip(arrays(drawn), arrays(again), strict=True):
        assert np.abs(one - other).max() <= 2  # a concept is saved in float16


def test_a_replay_draws_the_same_pictures(pipe, picture, tmp_path):
    tuned = pipe.personalize(picture, keep="replay")
    kept = Concept.load(tuned.save(tmp_path / "anna"))
    first, again = (arrays(pipe("a photo of S*", concept=one, seed=1)) for one in (tuned, kept))
    assert np.array_equal(first, again)
    assert pipe.ready(kept) is pipe.ready(kept)  # tuned once


def test_settings_come_from_the_domain(pipe, picture):
    assert pipe.personalize(picture).steps == 2
    assert pipe.personalize(picture, steps=1).steps == 1
    assert [c.steps for c in pipe.personalize(picture, keep_steps=True).history] == [0, 1, 2]
    assert pipe.generate_config.num_inference_steps == 3


def test_pictures_do_not_depend_on_the_batch(pipe, concept):
    together = arrays(pipe(["a photo of S*", "S* at the beach"], concept=concept, num_images=2, seed=3))
    for index, prompt in enumerate(["a photo of S*"] * 2 + ["S* at the beach"] * 2):
        alone = arrays(pipe(prompt, concept=concept, seed=3 + index))[0]
        assert np.abs(together[index] - alone).max() <= 1


@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_word_follows_the_very_sample_and_timestep(pipe, concept, scheduler, guidance_scale):
    """Euler's scaled input, Heun's two calls, no unconditional rows at guidance 1."""
    import diffusers

    calls = []
    model = pipe.model
    pipe.stock.scheduler = getattr(diffusers, scheduler).from_config(pipe.stock.scheduler.config)
    with pipe.applied(concept, "a photo of S*", negative_prompt="blue") as applied:
        handle = pipe.backbone.unet.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
        )
        applied.stock(
            prompt_embeds=applied.prompt_embeds,
            negative_prompt_embeds=applied.negative_prompt_embeds,
            num_inference_steps=3,
            guidance_scale=guidance_scale,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
        )
        handle.remove()
        tokens = model.tokens(["a photo of S*"])
        assert len(calls) == len(applied.words) >= 3
        for args, _ in calls:
            sample, timestep, embeds = args[0], args[1], args[2]
            assert len(sample) == len(embeds) == (1 if guidance_scale == 1 else 2)
            with torch.no_grad():
                offset = model.offset(sample[-1:], timestep.reshape(1), concept.tensors["image_half"][None])
                expected = model.prompt_embeds(tokens, model.word(offset))
            torch.testing.assert_close(embeds[-1:], expected)
            if guidance_scale > 1:
                assert torch.equal(embeds[:1], applied.negative_prompt_embeds)
    assert not torch.equal(applied.words[0], applied.words[-1])


def test_frozen_embedding_is_one_word(pipe, concept):
    frozen = arrays(pipe("S*", concept=concept, embedding="frozen"))[0]
    live = arrays(pipe("S*", concept=concept, embedding="live"))[0]
    assert np.isfinite(frozen).all()
    assert not np.array_equal(frozen, live)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_word_without_the_denoisers_features_is_one_from_the_start(picture, strength):
    """Nothing stands in front of the U-Net then, and what is drawn is what a word predicted at every call would."""
    pipe = with_domain(build_model(build_backbone(), unet_blocks="none"))
    concept = pipe.personalize(picture)
    model, sample = pipe.model, torch.randn(1, 4, 8, 8)
    with pipe.applied(concept, "S* in the snow", strength=strength) as applied:
        assert not pipe.backbone.unet._forward_pre_hooks
        (word,) = applied.words
        for timestep in (10, 900):
            offset = model.offset(sample, torch.tensor([timestep]), concept.tensors["image_half"][None])
            torch.testing.assert_close(word, model.word(offset, strength=strength))
        torch.testing.assert_close(
            applied.prompt_embeds, model.prompt_embeds(model.tokens(["S* in the snow"]), word.expand(1, -1))
        )
    assert not pipe.backbone.unet._forward_pre_hooks


def test_without_a_concept_it_is_the_stock_pipeline(pipe):
    drawn = arrays(pipe("a photo of S*", negative_prompt="blue", seed=5, guidance_scale=3.0))[0]
    stock = pipe.stock(
        "a photo of face",
        negative_prompt="blue",
        num_inference_steps=3,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
    ).images[0]
    assert np.abs(drawn - np.asarray(stock, dtype=float)).max() <= 1


def test_every_picture_says_how_it_was_made(pipe, concept):
    output = pipe(
        ["S*", "S* at sea"], concept=concept, negative_prompt=["", "blue"], num_images=2, seed=3, strength=0.5
    )
    assert [(made["prompt"], made["negative_prompt"], made["seed"]) for made in output.made] == [
        ("S*", "", 3),
        ("S*", "", 4),
        ("S* at sea", "blue", 5),
        ("S* at sea", "blue", 6),
    ]
    assert {(made["steps"], made["strength"], made["width"]) for made in output.made} == {(concept.steps, 0.5, 16)}
    (bare,) = pipe("S*", num_inference_steps=1).made
    assert (bare["steps"], bare["negative_prompt"], bare["concept"]) == (0, None, None)
    assert json.loads(json.dumps(bare)) == bare


def test_a_black_picture_in_half_precision_is_warned_of(pipe, concept, monkeypatch):
    """What diffusers makes of numbers that are none."""
    black = [Image.new("RGB", (8, 8))]
    monkeypatch.setattr(type(pipe.stock), "__call__", lambda *_, **__: SimpleNamespace(images=black))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe("S*", concept=concept)  # in float32 it is a picture like any other
    with pytest.warns(UserWarning, match="a picture is black.*--mixed-precision no"):
        pipe("S*", concept=concept, mixed_precision="fp16")
    for module in pipe.backbone.modules():
        module.half()
    with pytest.warns(UserWarning, match="a picture is black.*use float32"):
        pipe("S*", concept=concept)


def test_pictures_can_be_drawn_in_bfloat16(pipe, concept, monkeypatch):
    """Emulated here, where it has to be; unasked that would only be slow, so float32 is taken."""
    seen = []
    pipe.backbone.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))

    def draw(**options):
        seen.clear()
        output = pipe("a photo of S*", concept=concept, seed=1, **options)
        return arrays(output)[0], set(seen), output.made[0]["mixed_precision"]

    single, used, said = draw()
    assert (used, said) == ({torch.float32}, "no")
    monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: False)
    slow, used, said = draw(mixed_precision="bf16")
    assert (used, said) == ({torch.float32}, "no")
    assert np.array_equal(slow, single)
    monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: True)
    fast, used, said = draw(mixed_precision="bf16")
    assert (used, said) == ({torch.bfloat16}, "bf16")
    assert 0 < np.abs(fast - single).mean() < 4
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ConfigError, match="mixed_precision is 'bf8'; it must be one of 'no', 'bf16', 'fp16'"):
        draw(mixed_precision="bf8")


def test_half_precision_weights_are_drawn_with_as_they_are(pipe, monkeypatch):
    cast = []

    def stock(*_, **__):
        cast.append(torch.is_autocast_enabled("cpu"))
        return SimpleNamespace(images=[Image.new("RGB", (8, 8), "red")])

    monkeypatch.setattr(type(pipe.stock), "__call__", stock)
    monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device: True)
    assert pipe("a photo", mixed_precision="bf16").made[0]["mixed_precision"] == "bf16"
    for module in pipe.backbone.modules():
        module.half()
    assert pipe("a photo", mixed_precision="bf16").made[0]["mixed_precision"] == "no"
    assert cast == [True, False]


def test_negative_prompt_seed_and_strength_matter(pipe, concept):
    def draw(**options):
        return arrays(pipe("a photo of S*", concept=concept, **options))[0]

    plain = draw(seed=0)
    assert np.array_equal(plain, draw(seed=0))
    for options in ({"negative_prompt": "blue cat"}, {"seed": 1}, {"strength": 0.0}, {"guidance_rescale": 0.7}):
        assert not np.array_equal(plain, draw(**options)), options


@torch.no_grad()
def test_guidance_can_start_from_the_base(pipe, concept):
    unet, generator = pipe.backbone.unet, torch.Generator().manual_seed(0)
    sample, timestep = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor(500)
    predicted = {}
    for whose in ("concept", "base"):
        with pipe.applied(concept, "a photo of S*", embedding="frozen", unconditional=whose) as applied:
            rows = torch.cat([applied.negative_prompt_embeds, applied.prompt_embeds])
            predicted[whose] = unet(sample, timestep, encoder_hidden_states=rows, return_dict=False)[0]
            alone = unet(sample[1:], timestep, encoder_hidden_states=rows[1:], return_dict=False)[0]
    without = unet(sample[:1], timestep, encoder_hidden_states=rows[:1], return_dict=False)[0]
    assert torch.equal(predicted["base"][:1], without)
    assert torch.equal(predicted["base"][1:], alone)
    assert not torch.allclose(predicted["concept"][:1], without, atol=1e-4)
    torch.testing.assert_close(predicted["concept"][1:], predicted["base"][1:])
    assert "forward" not in vars(unet)
    with (
        pytest.raises(ConfigError, match="one of 'concept', 'base'"),
        pipe.applied(concept, "S*", unconditional="mine"),
    ):
        pass


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_whose_idea_guidance_starts_from_matters_only_with_guidance(pipe, concept, guidance_scale):
    drawn = [
        arrays(pipe("a photo of S*", concept=concept, guidance_scale=guidance_scale, unconditional=whose))[0]
        for whose in ("concept", "base")
    ]
    assert np.array_equal(*drawn) == (guidance_scale == 1)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_dual_path_goes_from_the_concept_to_the_base(pipe, concept, guidance_scale):
    """Only attention was tuned here, so that the base's attention and the class word are the base altogether."""

    def draw(concept, **options):
        return arrays(pipe("a photo of S*", concept=concept, guidance_scale=guidance_scale, **options))[0]

    tuned, base = draw(concept), draw(None)
    between = draw(concept, dual_path=0.5)
    assert np.array_equal(tuned, draw(concept, dual_path=0.0))
    assert np.abs(draw(concept, dual_path=1.0) - base).max() <= 1
    assert 0 < np.abs(between - base).mean() < np.abs(tuned - base).mean()
    assert np.array_equal(tuned, draw(concept))  # nothing of it stays behind


def test_dual_path_leaves_the_word_alone(pipe, concept):
    words = {}
    for share in (0.0, 0.9):
        with pipe.applied(concept, "a photo of S*", dual_path=share) as applied:
            sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
            pipe.backbone.unet(sample, torch.tensor(500), encoder_hidden_states=applied.prompt_embeds)
        words[share] = applied.words[0]
    assert torch.equal(*words.values())


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_dual_path_is_a_share(pipe, concept, share):
    with pytest.raises(ConfigError, match="dual_path"), pipe.applied(concept, "S*", dual_path=share):
        pass
    with pytest.raises(ConfigError, match="unconditional"):
        pipe("S*", concept=concept, dual_path=0.5, unconditional="base")


@pytest.mark.parametrize("embedding", ["live", "frozen"])
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_delayed_concept_comes_in_after_the_base(pipe, concept, guidance_scale, embedding):
    def draw(concept, **options):
        settings = {"guidance_scale": guidance_scale, "embedding": embedding, "num_inference_steps": 4}
        return arrays(pipe("a photo of S*", concept=concept, **settings, **options))[0]

    tuned, base, between = draw(concept), draw(None), draw(concept, delay=0.5)
    assert np.array_equal(tuned, draw(concept, delay=0.0))
    assert np.array_equal(base, draw(concept, delay=1.0))
    assert np.abs(between - base).mean() > 0
    assert np.abs(between - tuned).mean() > 0
    assert np.array_equal(tuned, draw(concept))  # nothing of it stays behind


def test_a_delayed_concept_has_no_word_and_no_weights_at_first(pipe, concept):
    with pipe.applied(concept, "a photo of S*", delay=0.3) as applied:
        sample = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))

        def call(timestep):
            return pipe.backbone.unet(sample, torch.tensor(timestep), encoder_hidden_states=applied.prompt_embeds)[0]

        early = call(700)
        assert not applied.words
        late = call(699)
        assert len(applied.words) == 1
    tokens = pipe.model.tokens(["a photo of S*"])
    plain = pipe.model.denoise(sample, torch.tensor(700), pipe.model.prompt_embeds(tokens))
    assert torch.equal(early, plain)
    assert not torch.allclose(late, early)


def test_weights_have_a_strength_of_their_own(pipe, concept):
    def draw(**options):
        return arrays(pipe("a photo of S*", concept=concept, **options))[0]

    assert np.array_equal(draw(weights=1.0), draw())
    assert np.array_equal(draw(strength=0.5, weights=0.5), draw(strength=0.5))
    with pipe.applied(concept, "a photo of S*", weights=0.0, embedding="frozen") as applied:
        word = applied.prompt_embeds
    with pipe.applied(concept, "a photo of S*", embedding="frozen") as applied:
        assert torch.equal(word, applied.prompt_embeds)
    assert not np.array_equal(draw(weights=0.0), draw())


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_delay_is_a_share(pipe, concept, share):
    with pytest.raises(ConfigError, match="delay"), pipe.applied(concept, "S*", delay=share):
        pass


def test_strength_zero_is_the_class_word(pipe, concept):
    with pipe.applied(concept, "S*", strength=0.0) as none:
        word = none.prompt_embeds
    torch.testing.assert_close(word, pipe.model.prompt_embeds(pipe.model.tokens(["S*"])))


def test_everything_is_put_back_also_after_an_error(pipe, concept):
    unet = pipe.backbone.unet
    parameters = [id(p) for p in unet.parameters()]
    scheduler = pipe.stock.scheduler
    with pytest.raises(ConfigError, match="2 pictures"), pipe.applied(concept, "S*", num_images=2) as applied:
        applied.stock(prompt_embeds=applied.prompt_embeds[:1], num_inference_steps=2, guidance_scale=1.0)
    pipe("S*", concept=concept, scheduler="EulerDiscreteScheduler")
    assert [id(p) for p in unet.parameters()] == parameters
    assert not unet._forward_pre_hooks
    assert pipe.stock.scheduler is scheduler


def test_image_to_image_and_inpainting(pipe, concept, picture):
    from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionInpaintPipeline
    from PIL import Image

    image = picture.resize((16, 16))
    for kind, extra in [
        (StableDiffusionImg2ImgPipeline, {}),
        (StableDiffusionInpaintPipeline, {"mask_image": Image.new("L", (16, 16), 255), "height": 16, "width": 16}),
    ]:
        with pipe.applied(concept, "S* at the beach") as applied:
            other = kind(**pipe.stock.components, requires_safety_checker=False)
            drawn = other(
                image=image,
                prompt_embeds=applied.prompt_embeds,
                negative_prompt_embeds=applied.negative_prompt_embeds,
                num_inference_steps=4,
                strength=0.5,
                generator=torch.Generator().manual_seed(0),
                **extra,
            )
        assert applied.words
        assert drawn.images[0].size == (16, 16)


def test_inpainting_models_show_their_first_channels(pipe, concept):
    """Nine channels: latents, mask, masked image. Only the latents are the noisy sample."""
    hooked = torch.nn.Module()
    seen = []
    hooked.forward = lambda sample, timestep, encoder_hidden_states: seen.append(encoder_hidden_states)
    with pipe.applied(concept, "S*", also=[hooked]) as applied:
        sample = torch.randn(1, 9, 8, 8)
        hooked(sample, 5, encoder_hidden_states=torch.zeros(1, 32, 32))
        expected = pipe.model.offset(sample[:, :4], torch.tensor([5]), concept.tensors["image_half"][None])
    torch.testing.assert_close(applied.words[0], pipe.model.word(expected))
    assert seen[0].any()


def test_from_folders(pipe, picture, tmp_path):
    save_folder(pipe.backbone, tmp_path / "base")
    pipe.trained.save(tmp_path / "face")
    loaded = E4TPipeline.from_pretrained(tmp_path / "face", base=tmp_path / "base", device="cpu")
    one, other = (p.personalize(picture, steps=1) for p in (pipe, loaded))
    torch.testing.assert_close(dict(one.tensors), dict(other.tensors))


def test_from_a_bare_base(pipe, picture, tmp_path):
    save_folder(pipe.backbone, tmp_path / "base")
    bare = E4TPipeline.from_base(tmp_path / "base", class_word="cat", device="cpu")
    assert bare.personalize_config == PersonalizeConfig.without_domain()
    concept = bare.personalize(picture, steps=1, batch_size=1)
    assert len(bare("S*", concept=concept, num_inference_steps=2).images) == 1


@pytest.mark.parametrize("keep", ["tuned", "replay"])
def test_what_a_concept_stores_is_drawn_without_an_image_encoder(keep, pipe, picture, tmp_path):
    base, face = save_folder(pipe.backbone, tmp_path / "base"), pipe.trained.save(tmp_path / "face")
    concept = Concept.load(pipe.personalize(picture, keep=keep).save(tmp_path / "anna"))
    whole = E4TPipeline.from_pretrained(face, base=base, device="cpu")("S*", concept=concept)
    shutil.rmtree(base / "image_encoder")
    blind = E4TPipeline.from_pretrained(face, base=base, look=False, device="cpu")
    assert np.array_equal(arrays(whole), arrays(blind("S*", concept=concept)))
    sentence = "the base was opened without its image encoder, to draw or to train from a cache; open all of it"
    for memory in (None, 8):
        with pytest.raises(ConfigError, match=sentence):
            blind.personalize(picture, memory=memory)
    with pytest.raises(ConfigError, match=sentence):
        blind.likeness(picture, picture, picture)
    bare = E4TPipeline.from_base(base, class_word="cat", look=False, device="cpu")
    assert len(bare("a cat", num_inference_steps=1).images) == 1


def test_the_safety_checker_of_a_base_stays_on(pipe, tmp_path):
    import json

    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    base = tmp_path / "base"
    save_folder(pipe.backbone, base)
    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(text_config=small, vision_config={**small, "image_size": 8, "patch_size": 8}, projection_dim=8)
    StableDiffusionSafetyChecker(config).save_pretrained(base / "safety_checker")
    CLIPImageProcessor(size=8, crop_size=8).save_pretrained(base / "feature_extractor")
    index = json.loads((base / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    index["feature_extractor"] = ["transformers", "CLIPImageProcessor"]
    (base / "model_index.json").write_text(json.dumps(index))
    pipe.trained.save(tmp_path / "domain")
    for checked in (
        E4TPipeline.from_base(base, class_word="cat", device="cpu"),
        E4TPipeline.from_pretrained(tmp_path / "domain", base=base, device="cpu"),
    ):
        asked = []
        assert isinstance(checked.stock.safety_checker, StableDiffusionSafetyChecker)
        checked.stock.safety_checker.register_forward_pre_hook(lambda module, args, asked=asked: asked.append(module))
        assert checked("a photo of S*", num_inference_steps=1).images
        assert len(asked) == 1


def test_the_mask_reaches_the_loss(pipe, picture):
    half = Image.new("L", picture.size)
    half.paste(255, (0, 0, picture.width, picture.height // 2))
    masked, plain = pipe.personalize(picture, mask=half), pipe.personalize(picture)
    assert not torch.equal(masked.tensors["residual"], plain.tensors["residual"])


def test_offsets_are_composed_once_for_a_drawing(pipe, concept):
    """Not in every attention call."""
    composed = []
    for _, offset in pipe.model.offsets.items():
        offset.register_forward_pre_hook(lambda module, args: composed.append(module))
    pipe("a photo of S*", concept=concept, num_inference_steps=3)
    assert len(composed) == len(list(pipe.model.offsets.items()))


def test_wrong_calls(pipe, tiny_backbone):
    with pytest.raises(ConfigError, match="domain"):
        E4TPipeline(tiny_backbone)
    with pytest.raises(ConfigError, match="2 negative prompts"):
        pipe("S*", negative_prompt=["a", "b"])
    with pytest.raises(ConfigError, match="one of 'live', 'frozen'"), pipe.applied(None, "S*", embedding="alive"):
        pass
    with pytest.raises(ConfigError, match="no scheduler"):
        pipe("S*", scheduler="MagicScheduler")
    assert E4TPipeline(tiny_backbone, domain=Domain.named("cat")).domain.name == "cat"


def test_prompt_without_placeholder_warns(pipe, concept):
    with pytest.warns(UserWarning, match="will not appear"):
        pipe("a photo", concept=concept)


def test_shipped_names_are_portable(monkeypatch, tmp_path):
    from e4t import shipped

    (tmp_path / "shipped" / "base").mkdir(parents=True)
    (tmp_path / "here" / "base").mkdir(parents=True)
    monkeypatch.setattr(shipped, "WEIGHTS", tmp_path / "shipped")
    monkeypatch.chdir(tmp_path / "here")
    assert shipped.portable(str(tmp_path / "shipped" / "base")) == "base"
    assert shipped.resolve("base") == "base"
    assert shipped.resolve("base", shipped_first=True) == str(tmp_path / "shipped" / "base")
    assert shipped.resolve("owner/model") == "owner/model"


def test_likeness_goes_from_a_stranger_to_the_photo_itself(pipe, picture):
    stranger, between = picture.rotate(90), Image.blend(picture, picture.rotate(90), 0.3)
    assert pipe.likeness(picture, picture, stranger) == pytest.approx(1, abs=1e-3)
    assert pipe.likeness(picture, stranger, stranger) == pytest.approx(0, abs=1e-3)
    assert 0 < pipe.likeness(picture, between, stranger) < 1


def test_the_stranger_of_a_portrait_is_drawn_once_for_all_concepts(pipe, concept, picture, monkeypatch):
    calls, draw = [], type(pipe).__call__

    def counted(self, prompt, **options):
        calls.append((prompt, options.get("concept") is not None))
        return draw(self, prompt, **options)

    monkeypatch.setattr(type(pipe), "__call__", counted)
    first, second = (pipe.portrait(concept, picture) for _ in range(2))
    assert sorted(tuned for _, tuned in calls) == [False, True, True]
    assert (first[0].tobytes(), first[1]) == (second[0].tobytes(), second[1])


def test_class_pictures_are_drawn_once_and_without_the_concept(pipe):
    pictures = pipe.class_pictures(3)
    assert pictures.latents.shape[0] == 3
    assert all("face" in prompt and "S*" not in prompt for prompt in pictures.prompts)
    assert pipe.class_pictures(3) is pictures
    with pytest.raises(ConfigError, match="leave the placeholder out"):
        pipe.class_pictures(1, ["a photo of S*"])


def test_personalizing_with_a_prior_changes_the_concept(pipe, picture):
    plain = pipe.personalize(picture)
    kept = pipe.personalize(picture, prior_weight=1.0, prior_pictures=2)
    assert plain.differences(kept)
    with pytest.raises(ConfigError, match="set prior_weight to 0"):
        pipe.personalize(picture, prior_weight=1.0, keep="replay")


@pytest.mark.parametrize("embedding", ["live", "frozen"])
def test_the_text_encoder_reads_each_prompt_once(pipe, concept, embedding):
    """Pictures of one prompt share what is read of it, unless each has a word of its own; nothing is read in vain."""
    rows = []
    handle = pipe.backbone.text_encoder.register_forward_hook(lambda _m, args, _o: rows.append(len(args[0])))
    try:
        pipe("a photo of S*", concept=concept, num_images=3, embedding=embedding, num_inference_steps=2)
    finally:
        handle.remove()
    assert rows == [1, 1] + ([3, 3] if embedding == "live" else [])  # negative, placed; each step's words


def test_pictures_of_a_frozen_word_are_the_same_alone_and_together(pipe, concept):
    options = {"concept": concept, "embedding": "frozen", "num_inference_steps": 2}
    together = pipe("a photo of S*", num_images=2, seed=5, **options)
    alone = [pipe("a photo of S*", seed=seed, **options) for seed in (5, 6)]
    for one, other in zip(together.images, alone, strict=True):
        assert np.abs(np.asarray(one, float) - np.asarray(other.images[0], float)).max() <= 1


@pytest.mark.parametrize(("sides", "size"), [({}, (16, 16)), ({"width": 24}, (24, 16)), ({"height": 8}, (16, 8))])
def test_a_side_that_is_not_said_is_the_base_s(pipe, sides, size):
    assert pipe("a photo of S*", num_inference_steps=1, **sides).images[0].size == size


def test_pictures_of_the_class_are_one_for_each_caption(pipe):
    """Whatever the domain draws of a prompt by default."""
    twice = E4TPipeline(pipe.backbone, replace(pipe.trained, generate={"num_images": 2, "num_inference_steps": 1}))
    assert len(twice.class_pictures(3).latents) == len(twice.class_pictures(3).prompts) == 3


def half_precision(backbone):
    for module in backbone.modules():
        module.half()
    return backbone


def test_a_glimpse_while_weights_of_half_precision_are_tuned_whole(tiny_backbone, picture):
    pipe = E4TPipeline(half_precision(tiny_backbone), domain=Domain.named("face"))
    tuning = {"tune": ("residual", "unet", "text_encoder"), "mixed_precision": "fp16", "steps": 1, "batch_size": 1}
    for step in pipe.personalize_steps(picture, keep_steps=True, **tuning):
        assert pipe.glimpse(step.concept, "S*", num_inference_steps=1).size == (16, 16)


def test_a_glimpse_s_negative_prompt_is_read_by_the_base(pipe, picture, monkeypatch):
    before = pipe._negative_embeds(None, 1)
    seen, drawn = [], SimpleNamespace(images=[Image.new("RGB", (16, 16))])
    monkeypatch.setattr(type(pipe.stock), "__call__", lambda self, **given: seen.append(given) or drawn)
    tuning = {"tune": ("residual", "text_encoder"), "text_encoder_learning_rate": 0.1, "steps": 1}
    for step in pipe.personalize_steps(picture, keep_steps=True, **tuning):
        pipe.glimpse(step.concept, "S*")
    assert all(torch.equal(given["negative_prompt_embeds"], before) for given in seen)
    assert not torch.equal(seen[0]["prompt_embeds"], seen[1]["prompt_embeds"])


class Checker(torch.nn.Module):
    """Stands in for a safety checker: notes where it is, and in which type, whenever it is asked."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3, 1, 1))
        self.seen = []

    @property
    def device(self):
        return self.scale.device

    def forward(self, clip_input, images):
        assert clip_input.dtype == self.scale.dtype
        self.seen.append((str(self.device), self.scale.dtype))
        return images, [False] * len(images)


def test_a_safety_checker_is_where_the_base_is(tiny_backbone, monkeypatch):
    """Also once the base has moved, or turned to another type."""
    from transformers import CLIPImageProcessor

    checker = Checker()
    safety = {"safety_checker": checker, "feature_extractor": CLIPImageProcessor(size=8, crop_size=8)}
    pipe = E4TPipeline(tiny_backbone, domain=Domain.named("face"), safety=safety)
    assert pipe("a photo of S*", num_inference_steps=1).images
    half_precision(tiny_backbone)
    assert pipe("a photo of S*", num_inference_steps=1).images
    assert checker.seen == [("cpu", torch.float32), ("cpu", torch.float16)]
    monkeypatch.setattr(type(tiny_backbone), "device", property(lambda self: torch.device("meta")))
    pipe._checker_follows()
    assert checker.device.type == "meta"
