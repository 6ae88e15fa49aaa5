from __future__ import annotations

import pytest
import torch

from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError, TrainingError
from e4t.objective import E4TObjective
from e4t.training import draw_timesteps, generator_at, train
from test_objective import make_batch


def run(model, scaler=None, **settings):
    objective = E4TObjective(model, PretrainConfig(regularisation=0.01, **settings))
    batch = make_batch(model)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    with model.offsets.injected():
        return list(train(objective, lambda index: batch, optimizer, scaler=scaler))


def test_it_learns_one_batch(tiny_model):
    steps = run(tiny_model, steps=12)
    assert [step.number for step in steps] == list(range(1, 13))
    assert steps[-1].loss < steps[0].loss
    assert steps[0].loss == pytest.approx(steps[0].diffusion + steps[0].regularizer, rel=1e-5)


def test_accumulation_of_equal_batches_is_one_batch(make_backbone, make_model):
    losses = [
        [step.loss for step in run(make_model(make_backbone()), steps=3, accumulation=accumulation)]
        for accumulation in (1, 2)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_bf16_autocast_keeps_what_is_trained_in_float32(tiny_model):
    steps = run(tiny_model, steps=2, mixed_precision="bf16")
    assert all(torch.isfinite(torch.tensor(step.loss)) for step in steps)
    assert all(p.dtype == torch.float32 for p in tiny_model.parameters())


def test_bf16_is_float32_where_it_would_be_emulated(tiny_model, monkeypatch):
    seen = []
    forward = type(tiny_model.encoder).forward

    def noting(*arguments, **named):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(*arguments, **named)

    monkeypatch.setattr(type(tiny_model.encoder), "forward", noting)
    for fast in (True, False):
        monkeypatch.setattr("e4t.training.has_fast_bfloat16", lambda device, fast=fast: fast)
        run(tiny_model, steps=1, mixed_precision="bf16")
    assert (seen[0], seen[-1]) == (True, False)


def test_a_step_that_overflows_in_fp16_is_done_again(tiny_model):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)
    before = [parameter.detach().clone() for parameter in tiny_model.parameters()]
    asked, steps = [], []
    config = PersonalizeConfig(regularisation=0.01, steps=2, mixed_precision="fp16")
    objective = E4TObjective(tiny_model, config)
    batch = make_batch(tiny_model)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-3)
    with tiny_model.offsets.injected():
        for step in train(objective, lambda index: asked.append(index) or batch, optimizer, scaler=scaler):
            steps.append(step.number)
            assert {int(state["step"]) for state in optimizer.state.values()} == {step.number}
            assert any(not torch.equal(*pair) for pair in zip(before, tiny_model.parameters(), strict=True))
    assert (steps, sorted(set(asked))) == ([1, 2], [0, 1])
    assert asked.count(0) > 1
    assert scaler.get_scale() < 2.0**30


def test_gradients_that_are_no_numbers_in_fp16_stop_at_last_and_leave_the_scale(tiny_model):
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    before = [parameter.detach().clone() for parameter in tiny_model.parameters()]
    for parameter in tiny_model.parameters():
        parameter.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match="the gradients of step 1 are no numbers"):
        run(tiny_model, steps=1, mixed_precision="fp16", scaler=scaler)
    assert scaler.get_scale() == 1.0
    assert all(torch.equal(*pair) for pair in zip(before, tiny_model.parameters(), strict=True))


def test_warmup_and_clipping(tiny_model):
    before = [p.detach().clone() for p in tiny_model.parameters()]
    run(tiny_model, steps=1, warmup_steps=10**9, max_grad_norm=1.0)
    for one, other in zip(before, tiny_model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_generators():
    def draw(*arguments):
        return torch.rand(3, generator=generator_at(*arguments)).tolist()

    assert draw(0, 1) == draw(0, 1)
    assert len({tuple(draw(*a)) for a in [(0, 0), (0, 1), (1, 0), (1, 1), (0, -1)]}) == 5


def test_timesteps():
    drawn = draw_timesteps(1000, 10, 20, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == set(range(10, 20))
    spread = draw_timesteps(10, 0, 1000, torch.Generator().manual_seed(0), stratified=True)
    assert (spread // 100).tolist() == list(range(10))


def test_half_precision_weights_need_mixed_precision(make_backbone, make_model):
    backbone = make_backbone()
    for module in backbone.modules():
        module.bfloat16()
    model = make_model(backbone)
    with pytest.raises(ConfigError, match="mixed_precision"):
        run(model, steps=1)
    assert len(run(model, steps=1, mixed_precision="bf16")) == 1
