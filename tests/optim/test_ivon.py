"""IVON against its literal reference, ivon-opt's numbers, and its own promises."""

import copy
import io
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from varlora import IVON, NoiseController
from varlora.noise import ReplayedNoise
from varlora.optim.ivon import PRIOR_STD_MIN, adaptive_prior
from varlora.optim.reference import ReferenceState, reference_step

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "ivon_trajectories.json").read_text())
ADAPTIVE = json.loads((Path(__file__).parent.parent / "data" / "adaptive_prior.json").read_text())


class Problem(nn.Module):
    """0.5 x'Hx + c'x + 0.3 sum sin x over x = [W, b]: what the oracle's trajectories minimise."""

    def __init__(self, case, dtype):
        super().__init__()
        x0 = torch.tensor(case["x0"], dtype=dtype)
        self.W, self.b = nn.Parameter(x0[:12].view(3, 4).clone()), nn.Parameter(x0[12:].clone())
        self.H, self.c = torch.tensor(case["H"], dtype=dtype), torch.tensor(case["c"], dtype=dtype)

    def forward(self):
        x = torch.cat([self.W.flatten(), self.b])
        return 0.5 * x @ self.H @ x + self.c @ x + 0.3 * x.sin().sum()


def options(config):
    return {
        "lr": config["lr"],
        "ess": config["ess"],
        "hess_init": config["hess_init"],
        "betas": (config["beta1"], config["beta2"]),
        "weight_decay": config["weight_decay"],
        "clip_radius": float(config["clip_radius"]),
        "rescale_lr": config["rescale_lr"],
    }


def flat_state(optimizer, key):
    return torch.cat([optimizer.state[p][key].flatten() for g in optimizer.param_groups for p in g["params"]])


@pytest.mark.parametrize("case", ORACLE["cases"], ids=["rescaled", "recipe", "three draws"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_trajectories_are_those_of_ivon_opt(case, dtype, tolerance):
    model = Problem(case, dtype)
    optimizer = IVON(model.parameters(), **options(case["config"]))
    eps = torch.tensor(case["eps"], dtype=dtype)  # (steps, draws, 17)
    draws = eps.flatten(0, 1)
    NoiseController(model, optimizer, ReplayedNoise({"W": list(draws[:, :12]), "b": list(draws[:, 12:])}))
    for expected in case["trajectory"]:
        for _ in range(case["config"]["draws"]):
            (model() / case["config"]["draws"]).backward()
        optimizer.step()
        optimizer.zero_grad()
        for key in ("momentum", "hessian"):
            torch.testing.assert_close(
                flat_state(optimizer, key), torch.tensor(expected[key], dtype=dtype), rtol=tolerance, atol=tolerance
            )
        mean = torch.cat([model.W.flatten(), model.b]).detach()
        torch.testing.assert_close(mean, torch.tensor(expected["mean"], dtype=dtype), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", ORACLE["cases"], ids=["rescaled", "recipe", "three draws"])
def test_equals_the_literal_reference(case):
    config = case["config"]
    model = Problem(case, torch.float64)
    optimizer = IVON(model.parameters(), **options(config))
    eps = torch.tensor(case["eps"], dtype=torch.float64)
    draws = eps.flatten(0, 1)
    NoiseController(model, optimizer, ReplayedNoise({"W": list(draws[:, :12]), "b": list(draws[:, 12:])}))

    x0 = torch.tensor(case["x0"], dtype=torch.float64)
    state = ReferenceState(
        mean=x0,
        momentum=torch.zeros_like(x0),
        hessian=torch.full_like(x0, config["hess_init"]),
        delta=config["weight_decay"],
    )

    def gradient(x):
        return model.H @ x + model.c + 0.3 * x.cos()

    for step_noise in eps:
        state = reference_step(
            state,
            gradient,
            list(step_noise),
            lr=config["lr"],
            ess=config["ess"],
            beta1=config["beta1"],
            beta2=config["beta2"],
            clip_radius=float(config["clip_radius"]),
            learning_rate_scale=config["hess_init"] + config["weight_decay"] if config["rescale_lr"] else 1.0,
        )
        for _ in step_noise:
            (model() / len(step_noise)).backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = torch.cat([model.W.flatten(), model.b]).detach()
        torch.testing.assert_close(mean, state.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flat_state(optimizer, "hessian"), state.hessian, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(flat_state(optimizer, "momentum"), state.momentum, rtol=1e-12, atol=1e-12)


def linear(optimizer_options=None, dtype=torch.float32, seed=0):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2, dtype=dtype)
    optimizer = IVON(
        model.parameters(),
        **{"lr": 0.1, "ess": 100.0, "hess_init": 0.5, "betas": (0.9, 0.9)} | (optimizer_options or {}),
    )
    return model, optimizer, NoiseController(model, optimizer, seed=seed)


def train_step(model, optimizer, x=None):
    x = torch.ones(4, 3, dtype=model.weight.dtype) if x is None else x
    loss = (model(x) - 1).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"lr": 0.0}, "lr=0.0"),
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": math.nan}, "lr=nan"),
        ({"ess": 0.0}, "ess=0.0"),
        ({"ess": -3}, "ess=-3"),
        ({"ess": "many"}, "ess='many'"),
        ({"hess_init": 0.0}, "hess_init=0.0"),
        ({"betas": (0.9, 1.0)}, "betas="),
        ({"betas": 0.9}, "betas=0.9"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"clip_radius": 0.0}, "clip_radius=0.0"),
        ({"prior": "learned"}, "prior='learned'"),
    ],
)
def test_an_option_out_of_range_is_named(given, named):
    with pytest.raises(ValueError, match=named):
        linear(given)


def test_step_without_noise_says_how_to_draw_it():
    model = nn.Linear(2, 1)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"NoiseController\(model, optimizer\)"):
        optimizer.step()


def test_step_after_a_forward_in_evaluation_mode_is_refused():
    model, optimizer, _ = linear()
    model.eval()(torch.ones(1, 3)).sum().backward()
    with pytest.raises(RuntimeError, match=r"model\.train\(\)"):
        optimizer.step()


def test_ess_left_open_is_an_error_that_names_it():
    model, optimizer, _ = linear({"ess": None})
    with pytest.raises(ValueError, match="ess is None"):
        model(torch.ones(1, 3))
    optimizer.param_groups[0]["ess"] = 10.0
    train_step(model, optimizer)


def test_groups_keep_their_own_options():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = IVON(
        [
            {"params": [model.weight], "ess": 4.0, "weight_decay": 0.5},
            {"params": [model.bias], "lr": 0.2, "hess_init": 2.0},
            {"params": []},
        ],
        lr=0.1,
        ess=100.0,
        hess_init=0.5,
    )
    NoiseController(model, optimizer)
    assert torch.allclose(optimizer.precision(model.weight), torch.tensor(4.0 * (0.5 + 0.5)))
    assert torch.allclose(optimizer.precision(model.bias), torch.tensor(100.0 * 2.0))
    assert optimizer.prior_precision(model.weight) == 2.0
    train_step(model, optimizer)
    assert optimizer.state[model.bias]["step"] == 1


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_poisoned_step_changes_nothing_and_is_counted(poison, caplog):
    model, optimizer, _ = linear()
    train_step(model, optimizer)
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(optimizer.state_dict()["state"])
    train_step(model, optimizer, x=torch.full((4, 3), poison))
    assert optimizer.skipped_steps == 1
    assert "skipped step 2" in caplog.text
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])
    for index, values in optimizer.state_dict()["state"].items():
        for key, value in values.items():
            assert torch.equal(value, state[index][key])
    train_step(model, optimizer)
    assert optimizer.step_index == 3
    assert optimizer.state[model.weight]["step"] == 2
    assert torch.isfinite(model.weight).all()


def test_parameters_without_a_gradient_are_left_alone():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    model = Experts()
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0, weight_decay=0.1)
    NoiseController(model, optimizer)
    before = model.unused.weight.detach().clone()
    model(torch.ones(3, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(model.unused.weight, before)
    assert optimizer.state[model.unused.weight]["step"] == 0
    assert optimizer.state[model.used.weight]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.filterwarnings("ignore::varlora.noise.NoiseWarning")
def test_a_saved_state_resumes_bit_for_bit(dtype):
    model, optimizer, _ = linear(dtype=dtype)
    for _ in range(3):
        train_step(model, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    weights = copy.deepcopy(model.state_dict())
    for _ in range(3):
        train_step(model, optimizer)

    file.seek(0)
    again, resumed, _ = linear(dtype=dtype)
    again.load_state_dict(weights)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        train_step(again, resumed)
    assert torch.equal(again.weight, model.weight)
    for key in ("momentum", "hessian"):
        assert torch.equal(resumed.state[again.weight][key], optimizer.state[model.weight][key])
    assert resumed.step_index == optimizer.step_index == 6


@pytest.mark.filterwarnings("ignore::varlora.noise.NoiseWarning")
def test_half_precision_parameters_follow_a_float32_master():
    """A bf16 weight near 1 has a spacing of 2^-8: steps of 3e-5 would never move it."""
    model, optimizer, _ = linear({"lr": 1.0, "clip_radius": 3e-5}, dtype=torch.bfloat16)
    with torch.no_grad():
        model.weight.fill_(2.0)
    for _ in range(600):
        train_step(model, optimizer)
    master = optimizer.state[model.weight]["mean"]
    assert master.dtype == optimizer.state[model.weight]["hessian"].dtype == torch.float32
    torch.testing.assert_close(master, torch.full_like(master, 2.0 - 600 * 3e-5), rtol=0, atol=1e-4)
    assert (model.weight < 2.0).all()


def test_another_optimizers_state_is_refused():
    model, optimizer, _ = linear()
    with pytest.raises(ValueError, match="no IVON state"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


@pytest.mark.parametrize("case", ADAPTIVE)
def test_adaptive_prior_is_the_closed_form(case):
    m, h = (torch.tensor(case[k], dtype=torch.float64) for k in ("m", "h"))
    delta = torch.tensor(case["delta0"], dtype=torch.float64)
    torch.testing.assert_close(adaptive_prior(m, h, case["lam"], delta).item(), case["closed_form"], rtol=1e-9, atol=0)
    if case["fixed_point"] < 1:  # the third case takes 1e5 iterations
        for _ in range(3000):
            delta = adaptive_prior(m, h, case["lam"], delta)
        torch.testing.assert_close(delta.item(), case["fixed_point"], rtol=1e-9, atol=0)


def test_adaptive_prior_converges_and_drops_the_decay():
    """lr ~ 0 holds m still, β2 ~ 1 holds h still: δ must then reach the minimiser of the KL."""
    torch.manual_seed(0)
    model = nn.Linear(20, 5, bias=False, dtype=torch.float64)
    optimizer = IVON(
        model.parameters(),
        lr=1e-300,
        ess=1e4,
        hess_init=1e-3,
        betas=(0.9, 1 - 1e-15),
        weight_decay=1.0,
        prior="adaptive",
    )
    NoiseController(model, optimizer)
    for _ in range(400):
        model(torch.ones(2, 20, dtype=torch.float64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    m, h, delta = (
        model.weight.detach(),
        optimizer.state[model.weight]["hessian"],
        optimizer.state[model.weight]["delta"],
    )
    # the root of δ λ mean(m²) + mean(δ / (h + δ)) = 1 (METHOD: the KL's stationary point)
    assert (delta * 1e4 * m.square().mean() + (delta / (h + delta)).mean()).item() == pytest.approx(1, abs=1e-9)
    assert optimizer.prior_precision(model.weight) == pytest.approx(1e4 * delta.item())


def test_adaptive_prior_of_a_zero_tensor_neither_grows_without_bound_nor_kills_the_variance():
    """LoRA's B starts at zero; an uncapped δ would grow by h0 a step and take the variance to nothing."""
    model = nn.Linear(20, 5, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = IVON(model.parameters(), lr=1e-12, ess=1e5, hess_init=1e-3, betas=(0.9, 0.99999), prior="adaptive")
    NoiseController(model, optimizer)
    for _ in range(500):
        (0 * model(torch.ones(2, 20)).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
    smallest_variance = 1 / (1e5 * 1e-3 + 1 / PRIOR_STD_MIN**2)
    assert (1 / optimizer.precision(model.weight)).min().item() >= smallest_variance * 0.99


def test_a_falling_prior_keeps_the_precision_positive():
    model, optimizer, _ = linear({"prior": "adaptive", "weight_decay": 10.0, "betas": (0.9, 0.5), "hess_init": 1e-4})
    for _ in range(60):
        loss = -(model(torch.ones(4, 3)) ** 2).mean()  # negative curvature drives h below zero
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for p in model.parameters():
            assert (optimizer.precision(p) > 0).all()
    assert optimizer.skipped_steps == 0


def test_learns_the_posterior_of_a_linear_gaussian_model():
    """loss = ½ Σ a_j w_j² has Hessian a: with λ = ess the posterior variance is 1 / (λ (a + δ))."""
    a = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    optimizer = IVON(model.parameters(), lr=0.05, ess=30.0, hess_init=1.0, betas=(0.9, 0.995), weight_decay=0.1)
    NoiseController(model, optimizer, seed=3)
    hessians = []
    for step in range(6000):
        w = model(torch.eye(3, dtype=torch.float64)).squeeze()
        (0.5 * (a * (w - 1) ** 2).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 2000:
            hessians.append(optimizer.state[model.weight]["hessian"].clone())
    hessian = torch.stack(hessians).mean(0).squeeze()
    torch.testing.assert_close(hessian, a, rtol=0.08, atol=0)
    torch.testing.assert_close(model.weight.detach().squeeze(), a / (a + 0.1), rtol=0.1, atol=0)
