from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from e4t.config import OffsetsConfig
from e4t.errors import OffsetsError
from e4t.models.offsets import LowRank, PaperForm, WeightOffset, WeightOffsets
from e4t.models.tuned import TunedWeights


def randomize(module: nn.Module, scale: float = 0.1) -> None:
    for parameter in module.parameters():
        parameter.data.add_(scale * torch.randn_like(parameter))


def run(unet: nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    sample, prompt = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor(3), encoder_hidden_states=prompt).sample


def delta(form: PaperForm | LowRank) -> torch.Tensor:
    left, right = form.factors()
    return left @ right.T


def four_linears(form: PaperForm) -> torch.Tensor:
    """Δ literally as in the paper's figure."""
    outer = form.to_column(form.v0)[:, None] * form.to_row(form.v0)[None, :]
    return form.row_wise(form.column_wise(outer.T).T)


def test_paper_form_has_values_and_gradients_of_four_linears():
    form = PaperForm(6, 5)
    randomize(form)
    weight = torch.randn(6, 5)
    gradients = []
    for value in (four_linears(form), delta(form)):
        form.zero_grad()
        (value * weight).sum().backward()
        gradients.append([p.grad.clone() for p in form.parameters()])
    torch.testing.assert_close(delta(form), four_linears(form))
    for plain, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, fast)
    assert torch.linalg.matrix_rank(delta(form).detach()) <= 3


@pytest.mark.parametrize("form", [PaperForm(6, 5), LowRank(6, 5, 3)])
def test_delta_starts_at_zero_and_learns(form):
    """Through its last factor alone: were more of it zero, the rest could never learn."""
    assert not delta(form).any()
    wanted = torch.randn(6, 5)
    (delta(form) * wanted).sum().backward()
    last = {"row_wise.weight", "row_wise.bias", "right"}
    for name, parameter in form.named_parameters():
        assert bool(parameter.grad is not None and parameter.grad.any()) == (name in last), name
    with torch.no_grad():
        for parameter in form.parameters():
            parameter -= 0.1 * parameter.grad
    (delta(form) * wanted).sum().backward()
    assert all(parameter.grad.any() for parameter in form.parameters())


@pytest.mark.parametrize("form", ["paper", "lowrank"])
def test_new_offsets_do_not_change_the_model(tiny_backbone, form):
    before = run(tiny_backbone.unet)
    with WeightOffsets(tiny_backbone.unet, OffsetsConfig(form=form)).injected():
        assert torch.equal(run(tiny_backbone.unet), before)


def test_inject_eject_twice_restores_exactly(tiny_backbone):
    unet = tiny_backbone.unet
    offsets = WeightOffsets(unet, OffsetsConfig())
    randomize(offsets)
    before, state, parameters = run(unet), set(unet.state_dict()), {id(p) for p in unet.parameters()}
    for _ in range(2):
        with offsets.injected():
            changed = run(unet)
            assert not torch.equal(changed, before)
        assert torch.equal(run(unet), before)
        with offsets.fused():
            torch.testing.assert_close(run(unet), changed)
        assert torch.equal(run(unet), before)
    assert set(unet.state_dict()) == state
    assert {id(p) for p in unet.parameters()} == parameters


def test_base_weights_by_reference(tiny_backbone):
    unet = tiny_backbone.unet
    offsets = WeightOffsets(unet, OffsetsConfig())
    randomize(offsets)
    linear = next(iter(offsets.items()))[0]
    base, before = linear.weight, run(unet)
    for state in (offsets.injected, offsets.fused):
        with state():
            live = run(unet)
            with offsets.base_weights():
                assert linear.weight is base
                with offsets.base_weights():
                    pass
                assert torch.equal(run(unet), before)
            assert torch.equal(run(unet), live)


def test_which_projections(tiny_backbone):
    unet = tiny_backbone.unet
    every = WeightOffsets(unet, OffsetsConfig(projections=("to_q", "to_k", "to_v", "to_out")))
    cross = WeightOffsets(unet, OffsetsConfig(projections=("to_k",), attentions=("cross",)))
    attentions = sum(path.endswith(("attn1", "attn2")) for path, _ in unet.named_modules())
    assert len(list(every.items())) == 4 * attentions
    assert len(list(cross.items())) == attentions // 2
    assert all(linear.in_features == 32 for linear, _ in cross.items())


def test_composition_with_a_concept_and_strength():
    offset = WeightOffset(6, 5, form="lowrank", rank=3)
    offset.add_concept(0)
    randomize(offset)
    weight = torch.randn(6, 5)
    offset.strength = 0.5
    torch.testing.assert_close(offset(weight), weight * (1 + delta(offset.domain)) + 0.5 * offset.concept())


def test_half_precision_weights_are_composed_in_float32(tiny_backbone):
    """A change of 0.1 % is lost in bfloat16 arithmetic; a fuse into float16 must really change the weights."""
    unet = tiny_backbone.unet.half()
    offsets = WeightOffsets(unet, OffsetsConfig(form="lowrank"))
    for _, offset in offsets.items():
        offset.domain.left.data.fill_(0.1)
        offset.domain.right.data.fill_(0.01 / 3)
    before = {id(linear): linear.weight.clone() for linear, _ in offsets.items()}
    with offsets.fused():
        changed = total = 0
        for linear, _ in offsets.items():
            expected = (before[id(linear)].float() * 1.001).half()
            assert torch.equal(linear.weight, expected)
            changed += int((linear.weight != before[id(linear)]).sum())
            total += linear.weight.numel()
    assert changed > 0.8 * total
    assert all(p.dtype == torch.float32 for p in offsets.parameters())


def test_half_precision_is_cast_once(tiny_backbone):
    """Casting after Δ and again after D would round twice."""
    unet = tiny_backbone.unet.half()
    offsets = WeightOffsets(unet, OffsetsConfig())
    offsets.add_concept(0)
    randomize(offsets, 0.03)
    base = [linear.weight.float() for linear, _ in offsets.items()]
    with offsets.fused():
        for (linear, offset), weight in zip(offsets.items(), base, strict=True):
            expected = weight * (1 + delta(offset.domain)) + offset.concept()
            assert linear.weight.dtype == torch.float16
            assert torch.equal(linear.weight, expected.half())


def test_tuned_copies_of_half_precision_weights_are_float32(tiny_backbone):
    tuned = TunedWeights(tiny_backbone.unet.half())
    live = tuned.start()
    assert all(parameter.dtype == torch.float32 for parameter in live)
    with torch.no_grad():
        live[0] += 1e-5  # less than half precision can tell
    difference = tuned.difference()
    tuned.apply(difference)
    tuned.restore()
    name = next(iter(difference))
    assert 5e-6 < difference[name].mean() < 2e-5


def test_fusing_into_bfloat16_is_refused(tiny_backbone):
    offsets = WeightOffsets(tiny_backbone.unet.bfloat16(), OffsetsConfig())
    with pytest.raises(OffsetsError, match="bfloat16"):
        offsets.fuse()


def test_wrong_order_is_refused(tiny_backbone):
    first, second = (WeightOffsets(tiny_backbone.unet, OffsetsConfig()) for _ in range(2))
    with first.injected():
        with pytest.raises(OffsetsError, match="injected"):
            first.fuse()
        with pytest.raises(OffsetsError, match="another"):
            second.inject()
    first.eject()  # twice is harmless
    with first.fused(), pytest.raises(OffsetsError, match="another"):
        second.fuse()


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("put_on", ["inject", "fuse"])
def test_what_ends_half_way_leaves_nothing_behind(tiny_backbone, monkeypatch, put_on, error):
    """At the fifth matrix: those before it have to be undone, and all of it can be done anew."""
    unet = tiny_backbone.unet
    offsets = WeightOffsets(unet, OffsetsConfig())
    randomize(offsets)
    before, parameters, forward, calls = run(unet), [*unet.parameters()], WeightOffset.forward, []

    def failing(self, weight):
        calls.append(self)
        if len(calls) == 5:
            raise error
        return forward(self, weight)

    with monkeypatch.context() as patched:
        patched.setattr(WeightOffset, "forward", failing)
        with pytest.raises(type(error)):
            getattr(offsets, put_on)()
    assert (len(calls), offsets.state) == (5, "ejected")
    assert {id(parameter) for parameter in unet.parameters()} == {id(parameter) for parameter in parameters}
    assert torch.equal(run(unet), before)
    getattr(offsets, put_on)()
    assert not torch.equal(run(unet), before)
    offsets.eject()
    assert torch.equal(run(unet), before)


def test_offsets_own_only_their_parameters(tiny_backbone):
    offsets = WeightOffsets(tiny_backbone.unet, OffsetsConfig())
    base = {id(p) for p in tiny_backbone.unet.parameters()}
    assert not base & {id(p) for p in offsets.parameters()}


def test_domain_state_reduces_the_paper_form_exactly(tiny_backbone):
    trained = WeightOffsets(tiny_backbone.unet, OffsetsConfig())
    randomize(trained)
    loaded = WeightOffsets(tiny_backbone.unet, OffsetsConfig())
    loaded.load_domain_state(trained.domain_state())
    for (_, one), (_, other) in zip(trained.items(), loaded.items(), strict=True):
        assert torch.equal(delta(one.domain), delta(other.domain))
    assert sum(t.numel() for t in trained.domain_state().values()) < sum(p.numel() for p in trained.parameters()) / 3
    assert (loaded.config.form, loaded.config.rank) == ("lowrank", 3)  # as which it can be built again, to count with
    assert trained.config.form == "paper"


@pytest.mark.parametrize("rank", [0, 2])
def test_concept_state_round_trip(tiny_backbone, rank):
    offsets = WeightOffsets(tiny_backbone.unet, OffsetsConfig(form="none"))
    before = run(tiny_backbone.unet)
    offsets.add_concept(rank)
    with offsets.injected():
        assert torch.equal(run(tiny_backbone.unet), before)
    randomize(offsets)
    with offsets.injected():
        expected = run(tiny_backbone.unet)
    other = WeightOffsets(tiny_backbone.unet, OffsetsConfig(form="none"))
    drawn = torch.get_rng_state()
    other.load_concept_state(offsets.concept_state())
    assert torch.equal(torch.get_rng_state(), drawn)
    with other.injected():
        assert torch.equal(run(tiny_backbone.unet), expected)
    assert len(offsets.concept_state()) == (2 if rank else 1)  # few tensors: names cost more than numbers
    with pytest.raises(OffsetsError, match="do not fit"):
        other.load_concept_state({name: tensor[:-1] for name, tensor in offsets.concept_state().items()})
    other.load_concept_state({})
    assert not list(other.parameters())


def test_copy_after_ejecting_is_independent(tiny_backbone):
    offsets = WeightOffsets(tiny_backbone.unet, OffsetsConfig())
    randomize(offsets)
    with offsets.injected():
        pass
    before, clone = run(tiny_backbone.unet), copy.deepcopy(tiny_backbone.unet)
    with offsets.injected():
        assert torch.equal(run(clone), before)
    assert torch.equal(run(tiny_backbone.unet), before)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_backbone):
    unet = tiny_backbone.unet
    offsets = WeightOffsets(unet, OffsetsConfig())
    randomize(offsets)
    results = []
    with offsets.injected():
        for checkpointing in (False, True):
            if checkpointing:
                unet.enable_gradient_checkpointing()
                unet.train()
            offsets.zero_grad()
            sample, prompt = torch.ones(1, 4, 8, 8), torch.ones(1, 5, 32)
            unet(sample, torch.tensor(3), encoder_hidden_states=prompt).sample.square().mean().backward()
            results.append([p.grad.clone() for p in offsets.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_tuned_weights_swap_and_restore(tiny_backbone):
    unet = tiny_backbone.unet
    before, originals = run(unet), list(unet.parameters())
    tuned = TunedWeights(unet)
    for parameter in tuned.start():
        parameter.data.add_(0.01)
    changed = run(unet)
    assert not torch.equal(changed, before)
    with tuned.base_weights():
        assert torch.equal(run(unet), before)
    assert torch.equal(run(unet), changed)
    difference = tuned.difference()
    tuned.restore()
    assert all(one is other for one, other in zip(unet.parameters(), originals, strict=True))
    again = TunedWeights(unet)
    again.apply(difference)
    torch.testing.assert_close(run(unet), changed)
    again.restore()
    assert torch.equal(run(unet), before)
    name = "conv_in.weight"
    for foreign in ({"nothing": difference[name]}, {name: difference[name][:1]}):
        with pytest.raises(OffsetsError, match="does not fit the model"):
            again.apply(foreign)
    assert torch.equal(run(unet), before)


def test_fused_projections_and_foreign_layers_are_refused(tiny_backbone):
    unet = tiny_backbone.unet
    unet.fuse_qkv_projections()
    with pytest.raises(OffsetsError, match="unfuse"):
        WeightOffsets(unet, OffsetsConfig())
    unet.unfuse_qkv_projections()
    attention = next(module for path, module in unet.named_modules() if path.endswith("attn1"))
    attention.to_q = nn.Sequential(attention.to_q)
    with pytest.raises(OffsetsError, match="plain linear"):
        WeightOffsets(unet, OffsetsConfig())


def test_what_happens_to_the_unet_later_is_noticed(tiny_backbone):
    """Offsets on layers that nothing reads any more would do nothing, and say nothing."""
    unet = tiny_backbone.unet
    offsets = WeightOffsets(unet, OffsetsConfig())
    unet.fuse_qkv_projections()
    for put_on in (offsets.inject, offsets.fuse):
        with pytest.raises(OffsetsError, match="unfuse"):
            put_on()
    unet.unfuse_qkv_projections()
    attention = next(module for path, module in unet.named_modules() if path.endswith("attn1"))
    plain = attention.to_q
    attention.to_q = nn.Sequential(plain)
    with pytest.raises(OffsetsError, match="unload LoRA"):
        offsets.inject()
    attention.to_q = copy.deepcopy(plain)
    with pytest.raises(OffsetsError, match="replaced"):
        offsets.inject()
    attention.to_q = plain
    with offsets.injected():
        pass


def test_the_fingerprint_is_the_same_after_all(tiny_backbone):
    """Ejecting moves parameters to another place in the state dict, where a layer has a bias."""
    before = tiny_backbone.fingerprint
    order = list(tiny_backbone.unet.state_dict())
    offsets = WeightOffsets(tiny_backbone.unet, OffsetsConfig(projections=("to_q", "to_out")))
    with offsets.injected():
        pass
    assert list(tiny_backbone.unet.state_dict()) != order  # or this test shows nothing
    assert replace(tiny_backbone).fingerprint == before  # a new one: this one remembers
