from __future__ import annotations

import json

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn import functional as F

from bases import save_folder
from e4t.backbone import Backbone, draw_noise
from e4t.errors import CheckpointError, ConfigError


def test_features_are_cls_of_every_second_layer(tiny_backbone):
    """Not patch tokens of the last layer, as an early re-implementation had it."""
    seen = []
    for layer in tiny_backbone.image_encoder.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: seen.append(output[:, 0]))
    features = tiny_backbone.image_features(torch.rand(2, 3, 16, 16) * 2 - 1, layer_stride=2)
    assert len(features) == 2
    for feature, expected in zip(features, seen[1::2], strict=True):
        torch.testing.assert_close(feature, expected)


def test_image_pixels_are_normalised_and_resized(tiny_backbone):
    grey = tiny_backbone.image_pixels(torch.zeros(1, 3, 40, 40))
    assert grey.shape == (1, 3, 16, 16)
    expected = (0.5 - torch.tensor(tiny_backbone.image_mean)) / torch.tensor(tiny_backbone.image_std)
    torch.testing.assert_close(grey[0, :, 3, 3], expected)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_noise_and_target_agree_with_diffusers(make_backbone, kind):
    from diffusers import DDPMScheduler

    backbone = make_backbone(kind)
    reference = DDPMScheduler.from_config(backbone.scheduler.config)
    latents, noise, timesteps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0, 500, 999])
    noisy = backbone.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, reference.add_noise(latents, noise, timesteps))
    target = backbone.target(latents, noise, timesteps)
    expected = noise if kind == "epsilon" else reference.get_velocity(latents, noise, timesteps)
    torch.testing.assert_close(target, expected)
    if kind == "v_prediction":
        torch.testing.assert_close(noisy[2], noise[2])  # zero terminal SNR


def test_unknown_prediction_type(tiny_backbone):
    tiny_backbone.scheduler.register_to_config(prediction_type="sample")
    with pytest.raises(ConfigError, match="sample"):
        tiny_backbone.target(torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 8, 8), torch.tensor([0]))


def test_encode_and_decode(tiny_backbone):
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    mean = tiny_backbone.encode(pixels)
    assert torch.equal(mean, tiny_backbone.encode(pixels))
    draws = [tiny_backbone.encode(pixels, torch.Generator().manual_seed(0)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], mean)
    decoded = tiny_backbone.decode(mean)
    assert decoded.shape == pixels.shape
    assert decoded.abs().max() <= 1


def test_folder_round_trip(tiny_backbone, tmp_path):
    save_folder(tiny_backbone, tmp_path / "base")
    loaded = Backbone.from_pretrained(tmp_path / "base")
    assert loaded.fingerprint == tiny_backbone.fingerprint
    assert loaded.image_encoder_name is None
    pixels = torch.zeros(1, 3, 16, 16)
    torch.testing.assert_close(loaded.image_features(pixels), tiny_backbone.image_features(pixels))
    assert not any(p.requires_grad for module in loaded.modules() for p in module.parameters())
    half = Backbone.from_pretrained(tmp_path / "base", dtype=torch.float16)
    assert half.dtype == torch.float16
    assert half.fingerprint == loaded.fingerprint


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_a_base_is_the_same_in_whatever_type_it_is_loaded(stored, make_backbone, tmp_path):
    """Domains and caches made in one type belong to the base in another, and loading draws no random numbers."""
    base = make_backbone()
    for module in base.modules():
        module.to(stored)
    save_folder(base, tmp_path / "base")
    found, drawn = set(), torch.get_rng_state()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        loaded = Backbone.from_pretrained(tmp_path / "base", device="cpu", dtype=dtype)
        assert {p.dtype for module in loaded.modules() for p in module.parameters()} == {dtype}
        found.add((loaded.fingerprint, loaded.image_encoder_fingerprint))
        eyes = {"vae": dict(base.vae.config), "image_encoder": base.image_encoder.config.to_dict()}
        eyes |= {"image_encoder_name": None, "known_image_encoder": base.image_encoder_fingerprint}
        blind = Backbone.from_pretrained(tmp_path / "base", device="cpu", dtype=dtype, eyes=eyes)
        assert (blind.dtype, blind.fingerprint) == (dtype, loaded.fingerprint)
    assert found == {(base.fingerprint, base.image_encoder_fingerprint)}
    assert torch.equal(torch.get_rng_state(), drawn)


def test_parts_that_wait_elsewhere_come_back_also_when_one_cannot_leave(tiny_backbone, monkeypatch):
    moves = []

    def moving(name, *, fails=False):
        def to(place):
            moves.append((name, str(place)))
            if fails and place == "cpu":
                raise MemoryError("no room")

        return to

    monkeypatch.setattr(Backbone, "device", property(lambda self: torch.device("xpu")))
    monkeypatch.setattr(tiny_backbone.vae, "to", moving("vae"))
    monkeypatch.setattr(tiny_backbone.image_encoder, "to", moving("image_encoder"))
    with tiny_backbone.unloaded():
        assert moves == [("vae", "cpu"), ("image_encoder", "cpu")]
    assert sorted(moves[2:]) == [("image_encoder", "xpu"), ("vae", "xpu")]
    moves.clear()
    monkeypatch.setattr(tiny_backbone.image_encoder, "to", moving("image_encoder", fails=True))
    with pytest.raises(MemoryError), tiny_backbone.unloaded():
        pass
    assert ("vae", "xpu") in moves


def test_image_encoder_of_a_whole_clip_and_its_preprocessor(tiny_backbone, tmp_path):
    from transformers import CLIPConfig, CLIPModel

    save_folder(tiny_backbone, tmp_path / "base")
    config = CLIPConfig(
        text_config=tiny_backbone.text_encoder.config.to_dict(),
        vision_config=tiny_backbone.image_encoder.config.to_dict(),
    )
    CLIPModel(config).save_pretrained(tmp_path / "clip")
    values = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(values))
    loaded = Backbone.from_pretrained(tmp_path / "base", image_encoder=tmp_path / "clip")
    assert loaded.image_encoder_name == str(tmp_path / "clip")
    assert len(loaded.image_features(torch.zeros(1, 3, 16, 16), layer_stride=2)) == 2
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(loaded.image_pixels(pixels), pixels)


def test_image_encoder_with_a_projection_is_read_without_it(tiny_backbone, tmp_path, caplog):
    from transformers import CLIPVisionModelWithProjection

    save_folder(tiny_backbone, tmp_path / "base")
    projecting = CLIPVisionModelWithProjection(tiny_backbone.image_encoder.config)
    projecting.save_pretrained(tmp_path / "vision")
    loaded = Backbone.from_pretrained(tmp_path / "base", image_encoder=tmp_path / "vision")
    pixels = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        states = projecting(pixel_values=loaded.image_pixels(pixels), output_hidden_states=True).hidden_states
    torch.testing.assert_close(loaded.image_features(pixels, layer_stride=2)[0], states[2][:, 0])
    assert "UNEXPECTED" not in caplog.text


def test_missing_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="empty"):
        Backbone.from_pretrained(tmp_path / "empty")


def test_fingerprint_tells_weights_apart(make_backbone):
    one, other = make_backbone(), make_backbone()
    assert one.fingerprint == other.fingerprint
    third = make_backbone()
    third.unet.conv_in.weight.data.add_(1)
    assert third.fingerprint != one.fingerprint


def test_noise_is_the_same_anywhere():
    one, other = (draw_noise((2, 3), torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(one, other)
    assert F.mse_loss(one, torch.zeros_like(one)) > 0


def test_pickled_weights_beside_a_model_are_not_read(tiny_backbone, tmp_path):
    """A folder whose U-Net is there as a pickle only."""
    save_folder(tiny_backbone, tmp_path / "base")
    unet = tmp_path / "base" / "unet"
    torch.save(tiny_backbone.unet.state_dict(), unet / "diffusion_pytorch_model.bin")
    (unet / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        Backbone.from_pretrained(tmp_path / "base", device="cpu")


def test_attention_for_training_is_the_same_and_goes_away(tiny_backbone):
    unet = tiny_backbone.unet
    before = unet.attn_processors
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    torch.manual_seed(0)
    inputs = torch.randn(2, 4, size, size), torch.tensor([1, 500]), torch.randn(2, 7, width, requires_grad=True)
    outputs, gradients = [unet(*inputs).sample], []
    gradients.append(torch.autograd.grad(outputs[0].square().sum(), inputs[2])[0])
    with tiny_backbone.differentiable_attention():
        assert {type(processor) for processor in unet.attn_processors.values()} == {AttnProcessor}
        outputs.append(unet(*inputs).sample)
        gradients.append(torch.autograd.grad(outputs[1].square().sum(), inputs[2])[0])
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
    assert unet.attn_processors == before


def test_attention_of_somebody_else_is_left_alone(tiny_backbone):
    class Own(AttnProcessor2_0):
        pass

    tiny_backbone.unet.set_attn_processor(Own())
    with tiny_backbone.differentiable_attention():
        assert {type(processor) for processor in tiny_backbone.unet.attn_processors.values()} == {Own}


def test_attention_of_many_tokens_stays_fused(tiny_backbone):
    tiny_backbone.unet.register_to_config(sample_size=64)
    with tiny_backbone.differentiable_attention():
        assert {type(processor) for processor in tiny_backbone.unet.attn_processors.values()} == {AttnProcessor2_0}


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_without_a_device_the_best_there_is_is_taken(cuda, mps, best, tiny_backbone, tmp_path, monkeypatch):
    save_folder(tiny_backbone, tmp_path / "base")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    placed = []
    monkeypatch.setattr(Backbone, "to", lambda self, device: placed.append(torch.device(device)) or self)
    Backbone.from_pretrained(tmp_path / "base")
    assert placed == [torch.device(best)]


@pytest.mark.slow  # as a part of training: test_a_compiled_unet_learns_the_same
def test_the_unet_is_compiled_for_a_while(tiny_backbone, monkeypatch):
    """With a backend that leaves the arithmetic alone: what is tested is that it is called, and goes away."""
    unet, plain = tiny_backbone.unet, torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: plain(function, backend="eager"))
    size, width = unet.config.sample_size, unet.config.cross_attention_dim
    inputs = torch.randn(2, 4, size, size), torch.tensor([1, 500]), torch.randn(2, 7, width)
    with torch.no_grad():
        before = unet(*inputs).sample
        with tiny_backbone.compiled():
            assert "forward" in vars(unet)
            torch.testing.assert_close(unet(*inputs).sample, before)
    assert "forward" not in vars(unet)


def test_where_nothing_can_be_compiled_it_is_said(tiny_backbone, monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    failed = BackendCompilerFailed.__new__(BackendCompilerFailed)  # its arguments differ between versions of torch
    failed.inner_exception = RuntimeError("no compiler\nand more")
    monkeypatch.setattr(torch, "compile", lambda function: function)
    refused = pytest.raises(ConfigError, match=r"cannot be compiled here \(no compiler\); leave --compile out")
    with refused, tiny_backbone.compiled():
        raise failed
    assert "forward" not in vars(tiny_backbone.unet)
