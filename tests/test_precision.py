"""Which device there is, and the arithmetic it is fast at."""

from __future__ import annotations

import platform
from contextlib import nullcontext

import pytest
import torch

from e4t.precision import best_device, chosen_precision, has_fast_bfloat16, is_here, training_dtype


def test_what_this_machine_has_is_here():
    assert is_here("cpu")
    assert not is_here("nonsense")
    assert not is_here("cuda:99")


@pytest.mark.parametrize(("cuda", "mps", "best"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_a_gpu_comes_before_apple_s_and_that_before_the_processor(cuda, mps, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert best_device() == torch.device(best)


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_are_asked(supported, monkeypatch):
    """Each itself, as there may be several kinds: a T4 emulates bfloat16."""
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported or including_emulation)
    assert has_fast_bfloat16("cuda") == has_fast_bfloat16("cuda:1") == supported
    assert asked == ["cuda", "cuda:1"]
    assert training_dtype("cuda") == (torch.bfloat16 if supported else torch.float32)
    assert training_dtype("mps") == torch.bfloat16


@pytest.mark.parametrize("supported", [True, False])
def test_processors_are_asked(supported, monkeypatch):
    """AVX-512 alone emulates bfloat16, though oneDNN calls it supported."""
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert has_fast_bfloat16(torch.device("cpu")) == supported
    assert training_dtype("cpu") == (torch.bfloat16 if supported else torch.float32)


@pytest.mark.parametrize("supported", [True, False])
def test_arm_processors_are_asked_through_onednn(supported, monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    assert has_fast_bfloat16(torch.device("cpu")) == supported


@pytest.mark.parametrize("supported", [True, False])
def test_gpus_learn_in_what_they_are_fast_at_and_half_weights_in_their_own(supported, monkeypatch):
    monkeypatch.setattr("e4t.precision.has_fast_bfloat16", lambda device: supported)
    assert chosen_precision("cuda:1") == ("bf16" if supported else "no")
    assert chosen_precision("cpu") == chosen_precision("mps") == "no"
    assert {chosen_precision(device, torch.float16) for device in ("cpu", "cuda")} == {"fp16"}
    assert chosen_precision("cpu", torch.bfloat16) == "bf16"
    assert chosen_precision("cpu", measured="bf16") == chosen_precision("cuda", measured="bf16") == "bf16"
    assert chosen_precision("cpu", torch.float16, measured="bf16") == "fp16"


def test_a_gpu_that_is_not_here_is_taken_for_one_of_today(monkeypatch):
    """What a training would take on it can be reckoned on any machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert has_fast_bfloat16("cuda")
