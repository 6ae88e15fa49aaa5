from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from e4t.config import PersonalizeConfig, PretrainConfig
from e4t.errors import ConfigError
from e4t.optimizers import (
    MovingAverage,
    Muon,
    has_adamw8bit,
    load_optimizer_tensors,
    new_optimizer,
    optimizer_tensors,
    orthogonal,
)
from e4t.training import rate_at


def test_eight_bits_step_or_are_refused():
    """Which devices have the kernels depends on the library's version; without them, one sentence."""
    pytest.importorskip("bitsandbytes")
    parameter = torch.nn.Parameter(torch.ones(8192))
    groups = [{"params": [parameter], "lr": 1e-2}]
    refused = ""
    try:
        optimizer = new_optimizer("adamw8bit", groups, weight_decay=0.0, device=torch.device("cpu"))
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    except ConfigError as error:
        refused = str(error)
    moved = torch.allclose(parameter, torch.full_like(parameter, 0.99), atol=1e-3)
    assert moved != ("has no 8-bit AdamW for the device 'cpu' here" in refused)


def test_the_state_in_8_bits_is_saved_and_goes_on(tmp_path):
    pytest.importorskip("bitsandbytes")
    parameters = [torch.nn.Parameter(torch.ones(8192)) for _ in range(2)]

    def stepped(optimizer):
        for parameter in parameters:
            parameter.grad = torch.linspace(-1, 1, 8192)
        optimizer.step()
        return [parameter.detach().clone() for parameter in parameters]

    def new():
        try:
            return new_optimizer(
                "adamw8bit", [{"params": parameters, "lr": 1e-2}], weight_decay=0.0, device=torch.device("cpu")
            )
        except ConfigError as error:
            pytest.skip(str(error))

    optimizer = new()
    start = stepped(optimizer)
    save_file(optimizer_tensors(optimizer), tmp_path / "state.safetensors")
    whole = stepped(optimizer)
    for parameter, value in zip(parameters, start, strict=True):
        parameter.data.copy_(value)
    resumed = new()
    load_optimizer_tensors(resumed, load_file(tmp_path / "state.safetensors"))
    assert all(torch.equal(one, other) for one, other in zip(stepped(resumed), whole, strict=True))


def test_adamw_takes_torch_s_steps_in_one_pass():
    def new():
        torch.manual_seed(0)
        return torch.nn.Parameter(torch.randn(64, 64))

    def made(place):
        groups = [{"params": [ours], "lr": 1e-2}]
        return new_optimizer("adamw", groups, weight_decay=0.1, device=torch.device(place))

    ours, plain = new(), new()
    fused = made("cpu")
    assert fused.param_groups[0]["fused"]
    slow = torch.optim.AdamW([plain], lr=1e-2, weight_decay=0.1)
    for seed in range(3):
        (one,), (other,) = stepped(fused, ours, seed=seed), stepped(slow, plain, seed=seed)
    assert torch.allclose(one, other, atol=1e-6)
    assert not made("xpu").param_groups[0]["fused"]  # torch may have no kernel there


@pytest.mark.parametrize("works", [True, False])
def test_eight_bits_are_tried_out_before_they_are_chosen(works, monkeypatch):
    """An older library may be installed and know nothing of a device; of one that is not here, nothing can be tried."""
    library = ModuleType("bitsandbytes")
    library.__spec__ = ModuleSpec("bitsandbytes", None)
    library.optim = SimpleNamespace(AdamW8bit=torch.optim.AdamW if works else _broken)
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    assert has_adamw8bit(torch.device("cpu")) == works
    assert has_adamw8bit(torch.device("cuda:99"))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert not has_adamw8bit(torch.device("cuda:99"))


def _broken(*_args, **_options):
    raise RuntimeError("no kernel")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[8bit\]' in the checkout"):
        new_optimizer("adamw8bit", [], weight_decay=0.0, device=torch.device("cpu"))


def stepped(optimizer, *parameters, seed=0):
    """The parameters after one step on random gradients."""
    torch.manual_seed(seed)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return [parameter.detach().clone() for parameter in parameters]


@pytest.mark.parametrize("shape", [(12, 30), (30, 12), (16, 16)])
def test_orthogonal_matrices_have_no_direction_before_others(shape):
    torch.manual_seed(0)
    left, values, right = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    assert values.max() > 3 * values.min()
    seen = left.T @ orthogonal(left @ torch.diag(values.clamp(min=0.1)) @ right) @ right.T
    assert torch.allclose(seen, torch.diag(seen.diag()), atol=1e-3)  # the same directions
    assert 0.6 < seen.diag().min() < seen.diag().max() < 1.3  # each nearly as far


@pytest.mark.parametrize("shape", [(1, 5), (20, 30), (30, 20), (16, 144)])
def test_orthogonal_matrices_are_the_same_by_products_and_by_eigenvalues(shape, monkeypatch):
    """Also of a matrix with hardly any direction, whose other eigenvalues are rounding, and of none at all."""
    torch.manual_seed(0)
    for matrix in (torch.randn(shape), torch.randn(shape[0], 1) @ torch.randn(1, shape[1]), torch.zeros(shape)):
        both = []
        for quick in (True, False):
            monkeypatch.setattr("e4t.optimizers._has_quick_eigenvalues", lambda gram, quick=quick: quick)
            both.append(orthogonal(matrix))
        assert torch.allclose(*both, atol=1e-3)


def test_gradients_that_are_no_numbers_stay_so():
    matrix = torch.ones(4, 6)
    matrix[0, 0] = torch.nan
    assert orthogonal(matrix).isnan().all()


def test_muon_moves_matrices_evenly_and_all_else_as_adamw_does():
    def new():
        torch.manual_seed(1)
        return [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 3, 2, 2), (8, 12), (20,), (30, 12))]

    before = new()
    kernel, table = before[0], before[-1]
    optimizer = Muon([{"params": before, "lr": 0.1}], weight_decay=0.0, tables=[table])
    first = [parameter.detach().clone() for parameter in before]
    moved = [after - start for after, start in zip(stepped(optimizer, *before), first, strict=True)]
    for one in moved:
        assert float(one.square().mean().sqrt()) == pytest.approx(0.1, rel=0.15)
    assert torch.linalg.svdvals(moved[0].flatten(1)).std() < 0.3 * torch.linalg.svdvals(moved[0].flatten(1)).mean()
    theirs = new()
    adamw = torch.optim.AdamW(theirs, lr=0.1, weight_decay=0.0)
    for ours, other, alike in zip(before, stepped(adamw, *theirs), (False, False, True, True), strict=True):
        assert torch.allclose(ours, other) == alike
    assert kernel.grad is None
    as_matrix = torch.nn.Parameter(first[0].flatten(1))
    (flat,) = stepped(Muon([{"params": [as_matrix], "lr": 0.1}], weight_decay=0.0), as_matrix)
    assert torch.equal(flat, kernel.detach().flatten(1))


def test_the_state_of_muon_is_saved_and_goes_on(tmp_path):
    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((6, 4), (5,))]
    groups = [{"params": parameters, "lr": 0.1}]
    optimizer = new_optimizer("muon", groups, weight_decay=0.1, device=torch.device("cpu"))
    start = stepped(optimizer, *parameters)
    save_file(optimizer_tensors(optimizer), tmp_path / "state.safetensors")
    whole = stepped(optimizer, *parameters, seed=1)
    for parameter, value in zip(parameters, start, strict=True):
        parameter.data.copy_(value)
    resumed = new_optimizer("muon", groups, weight_decay=0.1, device=torch.device("cpu"))
    load_optimizer_tensors(resumed, load_file(tmp_path / "state.safetensors"))
    assert all(map(torch.equal, stepped(resumed, *parameters, seed=1), whole))


def test_the_average_follows_and_forgets_the_start():
    parameter = torch.nn.Parameter(torch.zeros(2))
    average = MovingAverage({"a": parameter}, decay=0.5)
    with torch.no_grad():
        parameter.fill_(1.0)
    average.update(1)  # decay min(0.5, 2 / 11)
    assert average.tensors["a"].tolist() == pytest.approx([9 / 11] * 2)
    average.update(100)
    assert average.tensors["a"].tolist() == pytest.approx([10 / 11] * 2)
    with average.worn():
        assert parameter.tolist() == pytest.approx([10 / 11] * 2)
    assert parameter.tolist() == [1.0, 1.0]


def test_schedules():
    def shares(schedule, **options):
        config = PretrainConfig(steps=10, schedule=schedule, **options)
        return [round(rate_at(step, config), 3) for step in (0, 1, 2, 6, 9)]

    assert shares("constant") == [1.0] * 5
    assert shares("constant", warmup_steps=2, cooldown_steps=2) == [0.5, 1.0, 1.0, 1.0, 0.5]
    assert shares("linear", warmup_steps=2) == [0.5, 1.0, 1.0, 0.5, 0.125]
    assert shares("cosine", warmup_steps=2) == [0.5, 1.0, 1.0, 0.5, 0.038]


def test_the_rate_of_tuning_falls_with_the_square_of_the_step():
    def shares(constant_steps):
        config = PersonalizeConfig(steps=20, constant_steps=constant_steps)
        return [rate_at(step, config) for step in (0, 4, 5, 9, 19)]

    assert shares(None) == [1.0] * 5
    assert shares(5) == pytest.approx([1.0, 1.0, 25 / 36, 1 / 4, 1 / 16])


def test_steps_are_those_of_torchs_muon_at_a_fifth_of_the_size():
    torch.manual_seed(0)
    ours, theirs = (
        torch.nn.Parameter(torch.randn(12, 40, generator=torch.Generator().manual_seed(0))) for _ in range(2)
    )
    optimizers = [
        Muon([{"params": [ours], "lr": 0.1}], weight_decay=0.01, momentum=0.95, size=0.2),
        torch.optim.Muon([theirs], lr=0.1, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
    ]
    start = ours.detach().clone()
    for _ in range(4):
        ours.grad, theirs.grad = (gradient.clone() for gradient in (torch.randn(12, 40),) * 2)
        for optimizer in optimizers:
            optimizer.step()
    moved, expected = (parameter.detach() - start for parameter in (ours, theirs))
    assert (moved - expected).norm() / expected.norm() < 0.02  # theirs is calculated in bfloat16
