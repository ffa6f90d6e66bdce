"""IVON against its literal reference, ivon-opt's numbers, torch's AdamW, and its own promises."""

import copy
import io
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from varlora import IVON, IVONConfig, NoiseController
from varlora.ivon.noise import ReplayedNoise
from varlora.ivon.reference import ReferenceState, reference_adam_step, reference_step
from varlora.ivon.skipped import all_finite

ORACLE = json.loads((Path(__file__).parent.parent / "data" / "ivon_trajectories.json").read_text())


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


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize("beta2", [0.99, 1.0])
@pytest.mark.parametrize("case", ORACLE["cases"][1:], ids=["one draw", "three draws"])
def test_variational_adam_equals_the_literal_reference(case, beta2, decay):
    x0 = torch.tensor(case["x0"], dtype=torch.float64)
    model, settings = Problem(case, torch.float64), {"lr": 0.02, "ess": 500.0}
    optimizer = IVON(
        model.parameters(),
        **settings,
        hess_init=0.2,
        betas=(0.8, beta2),
        weight_decay=decay,
        update="adam",
        adam_beta2=0.95,
        adam_eps=1e-3,
    )
    eps = torch.tensor(case["eps"], dtype=torch.float64)
    draws = eps.flatten(0, 1)
    NoiseController(model, optimizer, ReplayedNoise({"W": list(draws[:, :12]), "b": list(draws[:, 12:])}))
    zero = torch.zeros_like(x0)
    state = ReferenceState(mean=x0, momentum=zero, second_moment=zero, hessian=torch.full_like(x0, 0.2), delta=decay)

    def gradient(x):
        return model.H @ x + model.c + 0.3 * x.cos()

    for step_noise in eps:
        state = reference_adam_step(
            state, gradient, list(step_noise), **settings, beta1=0.8, beta2=beta2, adam_beta2=0.95, eps=1e-3
        )
        for _ in step_noise:  # accumulated micro-batches
            (model() / len(step_noise)).backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = torch.cat([model.W.flatten(), model.b]).detach()
        torch.testing.assert_close(mean, state.mean, rtol=1e-12, atol=1e-12)
        for key in ("hessian", "momentum", "second_moment"):
            torch.testing.assert_close(flat_state(optimizer, key), getattr(state, key), rtol=1e-12, atol=1e-12)
    assert torch.equal(flat_state(optimizer, "hessian"), torch.full_like(x0, 0.2)) == (beta2 == 1.0)


def test_the_recipe_of_2024_makes_the_steps_of_ivon_opt():
    """By name; the oracle's λ is 1e4, which the recipe takes from the task."""
    case = ORACLE["cases"][1]
    model = Problem(case, torch.float64)
    optimizer = IVON(model.parameters(), **IVONConfig(recipe="cong2024", ess=1e4).optimizer_kwargs())
    draws = torch.tensor(case["eps"], dtype=torch.float64).flatten(0, 1)
    NoiseController(model, optimizer, ReplayedNoise({"W": list(draws[:, :12]), "b": list(draws[:, 12:])}))
    for expected in case["trajectory"]:
        model().backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = torch.cat([model.W.flatten(), model.b]).detach()
        torch.testing.assert_close(mean, torch.tensor(expected["mean"], dtype=torch.float64), rtol=1e-9, atol=1e-9)
        hessian = torch.tensor(expected["hessian"], dtype=torch.float64)
        torch.testing.assert_close(flat_state(optimizer, "hessian"), hessian, rtol=1e-9, atol=1e-9)


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


@pytest.mark.parametrize("open_option", [{"ess": None}, {"ess": "auto"}, {"hess_init": "auto"}])
def test_an_option_left_open_is_an_error_that_names_it(open_option):
    [(name, value)] = open_option.items()
    model, optimizer, _ = linear(open_option)
    with pytest.raises(ValueError, match=f"{name} is {value!r}: the .* was never set"):
        model(torch.ones(1, 3))
    optimizer.param_groups[0][name] = 10.0
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


ADAM = {"update": "adam", "lr": 0.01, "prior": "adaptive", "betas": (0.9, 0.99)}


@pytest.mark.parametrize("given", [{}, ADAM], ids=["newton", "adam"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.filterwarnings("ignore::varlora.ivon.noise.NoiseWarning")
def test_a_saved_state_resumes_bit_for_bit(dtype, given):
    """With a λ that changes after every step."""

    def steps(model, optimizer):
        for _ in range(3):
            train_step(model, optimizer)
            optimizer.param_groups[0]["ess"] *= 1.7

    model, optimizer, _ = linear(given, dtype=dtype)
    steps(model, optimizer)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    weights = copy.deepcopy(model.state_dict())
    steps(model, optimizer)

    file.seek(0)
    again, resumed, _ = linear(given, dtype=dtype)
    again.load_state_dict(weights)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.param_groups[0]["ess"] == pytest.approx(100.0 * 1.7**3)
    steps(again, resumed)
    assert torch.equal(again.weight, model.weight)
    assert resumed.state[again.weight].keys() == optimizer.state[model.weight].keys()
    for key, value in optimizer.state[model.weight].items():
        assert value.dtype == (torch.float64 if dtype == torch.float64 and key != "step" else torch.float32)
        assert torch.equal(resumed.state[again.weight][key], value)
    assert resumed.step_index == optimizer.step_index == 6


@pytest.mark.parametrize("given", [{"weight_decay": 0.3}, ADAM], ids=["fixed", "adaptive"])
def test_nothing_remembers_a_former_ess(given):
    """λ scales the data's part of the precision; an adaptive prior N(0, s²) stays, a fixed one is N(0, 1/(λ δ))."""
    model, optimizer, noise = linear(given)
    train_step(model, optimizer)
    p = model.weight
    h, before = optimizer.state[p]["hessian"].clone(), optimizer.prior_precision(p)
    assert optimizer.param_groups[0]["ess"] == 100.0
    optimizer.param_groups[0]["ess"] = 300.0
    expected = 300.0 * h + (before if given is ADAM else 300.0 * 0.3)
    torch.testing.assert_close(optimizer.precision(p), expected)
    torch.testing.assert_close(optimizer.noise_scale(p), expected.rsqrt())

    # the step uses the new one, too: noise and Price's factor
    likes = dict(model.named_parameters())
    drawn = noise.source.draw(likes, step=1, draw=0, rank=0)["weight"] * expected.rsqrt()
    model(torch.ones(1, 3)).sum().backward()  # the gradient is 1
    optimizer.step()
    beta2, delta = optimizer.param_groups[0]["betas"][1], (before / 300.0 if given is ADAM else 0.3)
    f = expected * drawn
    new = beta2 * h + (1 - beta2) * f + 0.5 * (1 - beta2) ** 2 * (h - f) ** 2 / (h + delta)
    torch.testing.assert_close(optimizer.state[p]["hessian"], new)


@pytest.mark.parametrize("lr", [1e-3, 0.3])
def test_variational_adam_is_torchs_adamw_on_the_same_gradients(lr):
    """Bit for bit, with the noise that small; and with noise, on the gradients at the sampled weights."""
    model, optimizer, _ = linear({**ADAM, "lr": lr, "betas": (0.85, 0.99), "adam_beta2": 0.97, "adam_eps": 1e-6})
    twins = [nn.Parameter(p.detach().clone()) for p in model.parameters()]
    adamw = torch.optim.AdamW(twins, lr=lr, betas=(0.85, 0.97), eps=1e-6, weight_decay=0.0, fused=True)
    for step in range(50):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        (model(x) - 1).square().mean().backward()
        for twin, p in zip(twins, model.parameters(), strict=True):
            twin.grad = p.grad.clone()
        optimizer.step()
        adamw.step()
        optimizer.zero_grad()
        for twin, p in zip(twins, model.parameters(), strict=True):
            assert torch.equal(twin, p)
    assert not torch.equal(optimizer.state[model.weight]["hessian"], torch.full((2, 3), 0.5))


def test_a_beta2_of_one_keeps_the_hessian_to_the_bit():
    for update in ("newton", "adam"):
        model, optimizer, _ = linear({"update": update, "betas": (0.9, 1.0), "prior": "adaptive", "lr": 1e-2})
        start, weight = torch.full((2, 3), 0.5), model.weight.detach().clone()
        for _ in range(20):
            train_step(model, optimizer)
        assert torch.equal(optimizer.state[model.weight]["hessian"], start)
        assert not torch.equal(model.weight, weight)


@pytest.mark.filterwarnings("ignore::varlora.ivon.noise.NoiseWarning")
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
    with pytest.raises(ValueError, match="no IVON state of this version"):
        optimizer.load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())


def test_learns_the_posterior_of_a_linear_gaussian_model():
    """loss = ½ Σ a_j w_j² has Hessian a: with λ = ess the posterior variance is 1 / (λ (a + δ)); 50 at once."""
    a = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
    model = nn.Linear(3, 50, bias=False, dtype=torch.float64)

    optimizer = IVON(model.parameters(), lr=0.05, ess=30.0, hess_init=1.0, betas=(0.9, 0.995), weight_decay=0.1)
    NoiseController(model, optimizer, seed=3)
    hessians = []
    for step in range(1000):
        w = model(torch.eye(3, dtype=torch.float64)).T
        (0.5 * (a * (w - 1) ** 2).sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step > 600:
            hessians.append(optimizer.state[model.weight]["hessian"].clone())
    hessian = torch.stack(hessians).mean((0, 1))
    torch.testing.assert_close(hessian, a, rtol=0.08, atol=0)
    torch.testing.assert_close(model.weight.detach().mean(0), a / (a + 0.1), rtol=0.1, atol=0)


@pytest.mark.parametrize("recipe", ["auto", "cong2025"])
def test_how_many_parameters_are_updated_together_changes_no_bit(recipe, monkeypatch):
    def trained(block):
        monkeypatch.setattr("varlora.ivon.optimizer.CPU_BLOCK", block)
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))
        optimizer = IVON(model.parameters(), **IVONConfig(recipe=recipe, lr=0.01, ess=1e3).optimizer_kwargs())
        noise = NoiseController(model, optimizer, seed=3)
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(6, 5)).square().mean()
            noise.observe_loss(loss)
            loss.backward()
            optimizer.step()
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(trained(1), trained(2**20))


def test_products_are_computed_where_a_hessian_is_learned_alone():
    for recipe, read in (("auto", False), ("cong2025", True)):
        model = nn.Linear(3, 1)
        optimizer = IVON(model.parameters(), **IVONConfig(recipe=recipe, lr=0.01, ess=1e3).optimizer_kwargs())
        noise = NoiseController(model, optimizer, seed=0)
        model(torch.ones(2, 3)).sum().backward()
        collected = noise.collect()
        assert optimizer.reads_products == read
        assert set(collected) == set(model.parameters())
        assert all((product is not None) == read for product in collected.values())


def test_numbers_whose_squares_overflow_are_finite():
    assert all_finite([torch.full((3,), 1e25), torch.zeros(0)])
    for value in (math.inf, math.nan):
        assert not all_finite([torch.full((3,), 1e25), torch.tensor([1.0, value])])
