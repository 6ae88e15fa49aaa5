"""Unmodified diffusers pipelines draw a concept, and the base is afterwards as it was.

Pictures are floats in [0, 1]. On these tiny models rounding in float32 moves a pixel by about 1e-6, a concept by 1e-2.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from bases import save_folder
from conftest import build_backbone, build_model
from e4t.checkpoint import Concept
from e4t.domain import Domain
from e4t.errors import E4TError, OffsetsError
from e4t.model import E4TModel
from e4t.pipeline import E4TPipeline
from test_model import trained

# diffusers' schedulers turn tensors into arrays in a way NumPy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

PROMPT = "a photo of S* at the beach"
QUICK = {"steps": 2, "batch_size": 2, "learning_rate": 1e-2, "frozen_timesteps": 2, "save_dtype": "float32"}
PREDICTIONS = ("epsilon", "v_prediction")
TEXT = "StableDiffusionPipeline"
IMAGE = "StableDiffusionImg2ImgPipeline"
FAR = 0.005  # mean over all pixels
NOISE = 1e-5  # largest of all pixels


@dataclass(frozen=True)
class Case:
    """A stock pipeline: its class, the parts it has beside or instead of the base's, what it is called with."""

    kind: str = TEXT
    parts: dict[str, Any] = field(default_factory=dict)
    also: tuple[nn.Module, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What the U-Net or a ControlNet was called with, after the concept's hook."""

    module: nn.Module
    sample: Tensor
    timestep: Tensor
    embeds: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Drawn:
    pictures: np.ndarray  # [N, 16, 16, 3]
    words: list[Tensor]
    calls: list[Call]
    negative: Tensor


@pytest.fixture
def pipe(tiny_model):
    return with_domain(tiny_model)


@pytest.fixture(scope="module")
def like_pipe():
    """The same as that of every test, to personalize on once."""
    return with_domain(build_model(build_backbone()))


@pytest.fixture(scope="module")
def anna(like_pipe, picture):
    return like_pipe.personalize(picture, **QUICK)


@pytest.fixture(scope="module")
def ben(like_pipe):
    """Another picture, and the whole U-Net and text encoder tuned."""
    other = Image.fromarray(np.random.default_rng(1).integers(0, 255, (16, 16, 3), dtype=np.uint8))
    return like_pipe.personalize(other, tune=["residual", "deltas", "unet", "text_encoder"], **QUICK)


@pytest.fixture(scope="module")
def of_prediction(picture):
    """A concept on a base of each type of prediction."""
    return {kind: with_domain(build_model(build_backbone(kind))).personalize(picture, **QUICK) for kind in PREDICTIONS}


def with_domain(model: E4TModel) -> E4TPipeline:
    """With words that go far from the class word."""
    return E4TPipeline(model.backbone, replace(trained(model), embedding_scale=2.0))


def draw(pipe: E4TPipeline, concept: Concept | None, case: Case | None = None, *, count: int = 1, **options) -> Drawn:
    """Four steps of a stock pipeline that is put together from the base's own parts."""
    import diffusers

    case = case or Case()
    calls: list[Call] = []

    def record(module, args, kwargs):
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        values = (bound[name].clone() for name in ("sample", "timestep", "encoder_hidden_states"))
        calls.append(Call(module, *values, attention_weight(module).clone()))

    with ExitStack() as stack:
        applied = stack.enter_context(pipe.applied(concept, PROMPT, num_images=count, also=case.also))
        parts = {**pipe.stock.components, **case.parts}
        for module in dict.fromkeys((parts["unet"], *case.also)):
            stack.callback(module.register_forward_pre_hook(record, with_kwargs=True).remove)
        stock = getattr(diffusers, case.kind)(**parts, requires_safety_checker=False)
        stock.set_progress_bar_config(disable=True)
        arguments = {
            "prompt_embeds": applied.prompt_embeds,
            "negative_prompt_embeds": applied.negative_prompt_embeds,
            "num_inference_steps": 4,
            "guidance_scale": 4.0,
            "generator": [torch.Generator().manual_seed(seed) for seed in range(count)],
            "output_type": "np",
        }
        pictures = stock(**{**arguments, **case.options, **options}).images
    return Drawn(pictures, applied.words, calls, applied.negative_prompt_embeds)


def attention_weight(module: nn.Module) -> Tensor:
    """One of those with offsets, in a U-Net or a ControlNet."""
    return module.get_parameter("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v.weight")


def distance(one: Drawn, other: Drawn) -> float:
    assert one.pictures.shape == other.pictures.shape
    return float(np.abs(one.pictures - other.pictures).mean())


def check_words(pipe: E4TPipeline, concept: Concept, drawn: Drawn, *, count: int = 1) -> None:
    """Every call had the word that the model gives for its very sample and timestep, in its conditional rows alone.

    And the base's own U-Net had the concept's weights.
    """
    assert len(drawn.words) == len(drawn.calls) > 0
    unet = pipe.backbone.unet
    base = attention_weight(unet)
    tokens = pipe.model.tokens([PROMPT]).repeat(count)
    with pipe.model.wearing(concept), torch.no_grad():
        for word, call in zip(drawn.words, drawn.calls, strict=True):
            noisy, timesteps = call.sample[-count:, :4], call.timestep.reshape(-1)[-1:].expand(count)
            expected = pipe.model.word(pipe.model.offset(noisy, timesteps, concept.tensors["image_half"][None]))
            torch.testing.assert_close(word, expected)
            torch.testing.assert_close(call.embeds[-count:], pipe.model.prompt_embeds(tokens, word))
            assert torch.equal(call.embeds[:-count], drawn.negative[: len(call.embeds) - count])
            assert call.module is not unet or torch.equal(call.weight, attention_weight(unet))
        assert not torch.equal(attention_weight(unet), base)


# Pipelines


def make_case(name: str, pipe: E4TPipeline) -> Case:
    values = np.random.default_rng(2).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    image, half = Image.fromarray(values), Image.fromarray(np.repeat(np.uint8([0, 255]), 128).reshape(16, 16))
    if name == "image to image":
        return Case(IMAGE, options={"image": image, "strength": 0.75})
    if name == "image to image, two at once":
        return Case(IMAGE, options={"image": [image, image], "strength": 0.75})
    if name.startswith("inpainting"):
        options = {"image": image, "mask_image": half, "height": 16, "width": 16, "strength": 1.0}
        if "nine" not in name:
            return Case("StableDiffusionInpaintPipeline", options=options)
        unet = nine_channels(pipe.backbone.unet)
        return Case("StableDiffusionInpaintPipeline", {"unet": unet}, (unet,), options)
    control = control_net(pipe.backbone.unet)
    options = {"image": image, "guess_mode": "guess" in name}
    return Case("StableDiffusionControlNetPipeline", {"controlnet": control}, (control,), options)


def nine_channels(unet: Any) -> Any:
    """An inpainting model as it is made of a U-Net: the first layer also takes a mask and a masked picture."""
    wide = type(unet).from_config({**unet.config, "in_channels": 9}).eval().requires_grad_(False)
    state = dict(unet.state_dict())
    first = state["conv_in.weight"]
    state["conv_in.weight"] = torch.cat([first, 0.5 * first, first[:, :1]], dim=1)
    wide.load_state_dict(state)
    return wide


def control_net(unet: Any) -> Any:
    """With last layers that are not zero, so that it has a say."""
    from diffusers import ControlNetModel

    control = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for layer in (
        *control.controlnet_down_blocks,
        control.controlnet_mid_block,
        control.controlnet_cond_embedding.conv_out,
    ):
        layer.weight.normal_(std=0.1, generator=generator)
    return control


@pytest.mark.parametrize(
    "name", ["image to image", "inpainting", "inpainting, nine channels", "ControlNet", "ControlNet, guess mode"]
)
def test_a_stock_pipeline_draws_the_concept(pipe, anna, name):
    case = make_case(name, pipe)
    drawn, again, bare = draw(pipe, anna, case), draw(pipe, anna, case), draw(pipe, None, case)
    assert drawn.pictures.shape == (1, 16, 16, 3)
    assert np.isfinite(drawn.pictures).all()
    assert np.array_equal(drawn.pictures, again.pictures)
    assert distance(drawn, bare) > FAR
    assert bare.words == []
    check_words(pipe, anna, drawn)


def test_a_base_of_nine_channels_is_refused(make_backbone):
    """An inpainting model draws a concept of another base, but nothing can be trained on it."""
    with pytest.raises(E4TError, match="9 channels"):
        E4TPipeline(make_backbone(in_channels=9), domain=Domain.named("face"))


def test_how_far_rounding_goes(pipe, anna):
    """What `FAR` is to be compared with: the same picture drawn alone and with another."""
    alone, together = draw(pipe, anna).pictures, draw(pipe, anna, count=2).pictures
    assert 0 < np.abs(alone - together[:1]).max() < NOISE
    assert NOISE < FAR / 100


def test_a_controlnet_gets_the_word_too(pipe, anna):
    case = make_case("ControlNet", pipe)
    drawn = draw(pipe, anna, case)
    kinds = [type(call.module).__name__ for call in drawn.calls]
    assert kinds == ["ControlNetModel", "UNet2DConditionModel"] * 4
    for control, unet in zip(drawn.words[::2], drawn.words[1::2], strict=True):
        assert torch.equal(control, unet)
    left_out = draw(pipe, anna, Case(case.kind, case.parts, (), case.options))
    assert len(left_out.words) == 4
    assert np.abs(drawn.pictures - left_out.pictures).max() > NOISE


# Schedulers


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverSinglestepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("LCMScheduler", {}),
        ("PNDMScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),  # as Stable Diffusion 1.x has it
    ],
    ids=lambda value: value.removesuffix("Scheduler") if isinstance(value, str) else ",".join(value) or "plain",
)
def test_schedulers(of_prediction, prediction, name, settings):
    import diffusers

    pipe, concept = with_domain(build_model(build_backbone(prediction))), of_prediction[prediction]
    scheduler = getattr(diffusers, name).from_config(pipe.backbone.scheduler.config, **settings)
    case = Case(parts={"scheduler": scheduler})
    drawn, again, bare = draw(pipe, concept, case), draw(pipe, concept, case), draw(pipe, None, case)
    assert np.isfinite(drawn.pictures).all()
    assert np.array_equal(drawn.pictures, again.pictures)
    assert distance(drawn, bare) > FAR
    check_words(pipe, concept, drawn)


@pytest.mark.parametrize("name", ["EulerAncestralDiscreteScheduler", "PNDMScheduler"])
def test_a_scheduler_by_its_name_is_the_stock_one(pipe, anna, name):
    """The first draws noise in every step, the second calls the U-Net more often than there are steps."""
    import diffusers

    scheduler = getattr(diffusers, name).from_config(pipe.backbone.scheduler.config)
    stock = draw(pipe, anna, Case(parts={"scheduler": scheduler}))
    own = pipe(PROMPT, concept=anna, scheduler=name, num_inference_steps=4, guidance_scale=4.0).images[0]
    assert np.array_equal(np.asarray(own), (255 * stock.pictures[0]).round())


# Guidance


@pytest.mark.parametrize("negative", ["given", "left out"])
@pytest.mark.parametrize("name", ["text to image", "image to image, two at once"])
def test_without_guidance_there_are_no_unconditional_rows(pipe, anna, name, negative):
    case = Case() if name == "text to image" else make_case(name, pipe)
    options = {"guidance_scale": 1.0} | ({"negative_prompt_embeds": None} if negative == "left out" else {})
    drawn, bare = (draw(pipe, concept, case, count=2, **options) for concept in (anna, None))
    assert np.isfinite(drawn.pictures).all()
    assert distance(drawn, bare) > FAR
    assert {len(call.sample) for call in drawn.calls} == {len(call.embeds) for call in drawn.calls} == {2}
    check_words(pipe, anna, drawn, count=2)


# Callbacks


def test_a_callback_reads_the_latents_of_every_step(pipe, anna):
    seen = []

    def read(stock, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].clone()))
        return tensors

    drawn = draw(pipe, anna, callback_on_step_end=read)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [timestep for _, timestep, _ in seen] == [int(call.timestep) for call in drawn.calls]
    for (_, _, latents), call in zip(seen, drawn.calls[1:], strict=False):
        assert torch.equal(latents, call.sample[-1:])
    assert np.array_equal(drawn.pictures, draw(pipe, anna).pictures)


def test_a_callback_changes_the_latents_and_the_word_follows(pipe, anna):
    changed = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(4))

    def change(stock, step, timestep, tensors):
        return {"latents": changed} if step == 1 else tensors

    drawn, plain = draw(pipe, anna, callback_on_step_end=change), draw(pipe, anna)
    assert torch.equal(drawn.calls[2].sample[-1:], changed)
    check_words(pipe, anna, drawn)
    assert torch.equal(drawn.words[1], plain.words[1])
    assert not torch.equal(drawn.words[2], plain.words[2])
    assert distance(drawn, plain) > FAR


def test_a_callback_switches_guidance_off_half_way(pipe, anna):
    """The recipe of diffusers' own documentation."""

    def switch_off(stock, step, timestep, tensors):
        if step == 1:
            stock._guidance_scale = 0.0
            tensors["prompt_embeds"] = tensors["prompt_embeds"][-1:]
        return tensors

    names = ["latents", "prompt_embeds"]
    drawn = draw(pipe, anna, callback_on_step_end=switch_off, callback_on_step_end_tensor_inputs=names)
    assert [len(call.embeds) for call in drawn.calls] == [2, 2, 1, 1]
    check_words(pipe, anna, drawn)
    assert distance(drawn, draw(pipe, anna)) > NOISE


# Offloading


def test_the_hooks_of_model_offloading_are_no_hindrance(pipe, anna):
    """Offloaded to where it already is: what wraps every forward pass is real, the copying is not."""
    settings = {"seed": 1, "num_inference_steps": 2}
    expected = [np.asarray(pipe(PROMPT, concept=concept, **settings).images[0]) for concept in (anna, None)]
    before = digests(pipe)
    pipe.stock.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        for concept, picture in zip((anna, None), expected, strict=True):
            assert np.array_equal(np.asarray(pipe(PROMPT, concept=concept, **settings).images[0]), picture)
    assert hasattr(pipe.backbone.unet, "_hf_hook")
    pipe.stock.remove_all_hooks()
    assert digests(pipe) == before


@pytest.mark.parametrize("how", ["model by model", "layer by layer", "groups on disk"])
def test_weights_that_are_not_in_place_are_refused(pipe, anna, tmp_path, how):
    """Offsets would be composed with what stands in for the weights while they are away.

    The meta device is the only second one that every machine has: values do not survive there, devices are compared.
    """
    from accelerate import cpu_offload, cpu_offload_with_hook

    here, unet = torch.device("cpu"), pipe.backbone.unet
    if how == "model by model":
        cpu_offload_with_hook(pipe.backbone.text_encoder, torch.device("meta"))
    elif how == "layer by layer":
        cpu_offload(unet, here)
    else:
        unet.enable_group_offload(here, here, offload_type="leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(E4TError, match="offload"):
        pipe(PROMPT, concept=anna)


# The base afterwards


def state(pipe: E4TPipeline, *others: nn.Module) -> dict[str, Any]:
    """Every tensor with its identity and bytes, every hook, every mode, the scheduler."""
    base = pipe.backbone
    found: dict[str, Any] = {
        "scheduler": (id(pipe.stock.scheduler), id(base.scheduler), dict(base.scheduler.config)),
        "parts": [id(part) for part in pipe.stock.components.values()],
        "offsets": (pipe.model.offsets.state, len(pipe.model.offsets.concept_parameters()), len(pipe.model.tuned)),
    }
    for index, module in enumerate((base.unet, base.text_encoder, base.vae, base.image_encoder, pipe.model, *others)):
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest = hashlib.sha256(tensor.detach().numpy().tobytes()).hexdigest()
            found[f"{index}.{name}"] = (id(tensor), digest, tensor.requires_grad, tensor.dtype)
        for name, part in module.named_modules():
            hooks = [list(hooks) for hooks in (part._forward_pre_hooks, part._forward_hooks, part._backward_hooks)]
            found[f"{index}.{name} as a module"] = (id(part), hooks, part.training, hasattr(part, "parametrizations"))
    return found


def digests(pipe: E4TPipeline) -> dict[str, str]:
    return {name: value[1] for name, value in state(pipe).items() if isinstance(value[1], str)}


def stop(*_args):
    raise InterruptedError


@pytest.mark.parametrize("end", ["drawn", "error in the block", "error while drawing", "error inside the hook"])
@pytest.mark.parametrize("who", ["anna", "ben"])
def test_the_base_is_as_it_was(pipe, request, who, end):
    concept = request.getfixturevalue(who)
    case = make_case("ControlNet", pipe)
    before, bare = state(pipe, *case.also), draw(pipe, None, case).pictures
    assert state(pipe, *case.also) == before
    with ExitStack() as stack:
        if end != "drawn":
            stack.enter_context(pytest.raises(InterruptedError))
        if end == "error in the block":
            with pipe.applied(concept, PROMPT, also=case.also):
                assert state(pipe, *case.also) != before
                raise InterruptedError
        elif end == "error inside the hook":
            stack.callback(pipe.backbone.unet.mid_block.register_forward_hook(stop).remove)
            draw(pipe, concept, case)
        else:
            draw(pipe, concept, case, **({"callback_on_step_end": stop} if end == "error while drawing" else {}))
    assert state(pipe, *case.also) == before
    assert not pipe.model.encoder.bias.any()
    assert not pipe.model.encoder.residual.any()
    assert np.array_equal(draw(pipe, None, case).pictures, bare)


def test_the_scheduler_is_put_back_after_an_error(pipe, anna):
    before = state(pipe)
    with pytest.raises(E4TError, match="2 negative prompts were given for 1"):
        pipe(PROMPT, concept=anna, scheduler="EulerDiscreteScheduler", negative_prompt=["a", "b"])
    assert state(pipe) == before


@pytest.mark.parametrize("what", ["a second concept", "personalizing"])
def test_what_cannot_be_done_while_a_concept_is_on_harms_nothing(pipe, ben, picture, quick_personalize, what):
    actions = {
        "a second concept": lambda: pipe(PROMPT, concept=ben),
        "personalizing": lambda: pipe.personalize(picture, config=quick_personalize, tune=["deltas", "unet"]),
    }
    pipe.personalize(picture, config=quick_personalize)  # transformers hangs up hooks of its own, once
    before, expected = state(pipe), draw(pipe, ben)
    with pipe.applied(ben, PROMPT):
        worn = state(pipe)
        with pytest.raises(OffsetsError):
            actions[what]()
        kept = state(pipe) == worn
    assert state(pipe) == before
    assert kept
    assert np.array_equal(draw(pipe, ben).pictures, expected.pictures)


# The same again


def test_a_concept_does_not_depend_on_what_was_drawn_before(pipe, make_backbone, make_model, anna, ben, picture):
    def bytes_of(drawer, concept):
        options = {"scheduler": "DPMSolverMultistepScheduler", "num_inference_steps": 4, "seed": 7}
        return [image.tobytes() for image in drawer(PROMPT, concept=concept, num_images=2, **options).images]

    first, other = bytes_of(pipe, anna), bytes_of(pipe, ben)
    assert first != other
    assert bytes_of(pipe, anna) == first
    pipe.personalize(picture, steps=1, batch_size=1, frozen_timesteps=1, seed=5)
    assert bytes_of(pipe, anna) == first
    assert bytes_of(pipe, ben) == other

    fresh = E4TPipeline(make_backbone(), pipe.trained)
    assert bytes_of(fresh, ben) == other  # ben first
    assert bytes_of(fresh, anna) == first


DRAW = """
import hashlib, sys, warnings
import torch
from e4t import Concept, E4TPipeline

warnings.simplefilter("ignore")
domain, base, folder, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
pipe = E4TPipeline.from_pretrained(domain, base=base, device="cpu")
settings = dict(num_images=2, seed=3, num_inference_steps=4, scheduler="EulerAncestralDiscreteScheduler")
drawn = pipe(["a photo of S*", "S* at the beach"], concept=Concept.load(folder), **settings)
print(*(hashlib.sha256(image.tobytes()).hexdigest() for image in drawn.images))
"""


def test_another_process_draws_the_same_bytes(pipe, ben, tmp_path, capsys, monkeypatch):
    save_folder(pipe.backbone, tmp_path / "base")
    arguments = [
        str(pipe.trained.save(tmp_path / "face")),
        str(tmp_path / "base"),
        str(ben.save(tmp_path / "ben")),
        str(torch.get_num_threads()),
    ]
    monkeypatch.setattr(sys, "argv", ["draw", *arguments])
    capsys.readouterr()
    exec(DRAW, {})
    here = capsys.readouterr().out.split()
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    command = [sys.executable, "-c", DRAW, *arguments]
    there = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert len(set(here)) == 4
    assert there == here
