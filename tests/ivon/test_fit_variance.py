"""The variance that follows the fit: its law, which losses it sees with which weight, and what does not go with it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer

from steered_tasks import Classifier, Rows, arguments, group_of, trainer_of
from varlora import IVON, IVONConfig, NoiseController, VariationalCallback, VariationalTrainerMixin, posterior_of
from varlora.ivon import fit_variance
from varlora.ivon.fit_variance import (
    LARGEST_LOSS,
    LOSS_DECAY,
    LOSS_EXPONENT,
    SMALLEST_STD,
    VARIANCE_PER_RATE,
    mean_loss,
)

OPTIONS: dict[str, Any] = {"ess": 1e3, "betas": (0.9, 1.0), "update": "adam", "variance": "fit"}
NUMBERS = ("lr_sum", "loss_sum", "loss_weight", "ess_start")


def made(*groups: dict[str, Any], model: nn.Module | None = None, **options: Any) -> tuple[nn.Module, IVON, Any]:
    model = model if model is not None else nn.Linear(3, 2)
    optimizer = IVON(groups or model.parameters(), **{"lr": 0.1, **OPTIONS, **options})
    return model, optimizer, NoiseController(model, optimizer, seed=0)


def step(model: nn.Module, optimizer: IVON, noise: NoiseController, *losses: float) -> None:
    """One step of micro-batches that have these losses, which teach nothing."""
    for loss in losses:
        total = model(torch.ones(1, 3)).sum() * 0 + loss
        noise.observe_loss(total)
        (total / len(losses)).backward()
    optimizer.step()
    optimizer.zero_grad()


def numbers(optimizer: IVON) -> list[dict[str, float]]:
    return [{name: group[name] for name in NUMBERS if name in group} for group in optimizer.param_groups]


def of_all_entries(tensor: Tensor) -> float:
    [value] = tensor.unique().tolist()
    return float(value)


# The law ------------------------------------------------------------------------------------------------------


def test_it_is_the_law_step_by_step() -> None:
    model, optimizer, noise = made()
    p = next(model.parameters())
    assert optimizer.noise_scale(p) == pytest.approx(SMALLEST_STD), "before the first loss"
    rates, losses, decay = (0.3, 0.2, 0.1), (2.0, 1.0, 0.25), LOSS_DECAY
    for i, (lr, loss) in enumerate(zip(rates, losses, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = lr  # as a schedule does
        step(model, optimizer, noise, loss)
        weights = [decay ** (i - j) for j in range(1, i + 1)]
        mean = sum(w * seen for w, seen in zip(weights, losses, strict=False)) / sum(weights)
        expected = VARIANCE_PER_RATE * sum(rates[:i]) * math.exp(-LOSS_EXPONENT * mean)
        for p in model.parameters():
            assert of_all_entries(optimizer.precision(p)) == pytest.approx(1 / expected, rel=1e-6)
            assert optimizer.noise_scale(p) == pytest.approx(expected**0.5, rel=1e-6)


def test_a_large_loss_leaves_the_least_noise_and_a_negative_one_counts_as_zero() -> None:
    model, optimizer, noise = made()
    step(model, optimizer, noise, 1e4)
    assert fit_variance.fit_variance(optimizer.param_groups[0]) == SMALLEST_STD**2
    model, optimizer, noise = made()
    step(model, optimizer, noise, -3.0)
    assert fit_variance.fit_variance(optimizer.param_groups[0]) == VARIANCE_PER_RATE * 0.1


def test_one_loss_out_of_all_bounds_stops_the_noise_for_tens_of_steps() -> None:
    group = {"lr": 0.1, **fit_variance.NOT_BEGUN}
    for _ in range(60):
        fit_variance.follow_fit(group, 0.5)
    before = mean_loss(group)
    fit_variance.follow_fit(group, 1e4)
    times, nats = LARGEST_LOSS
    assert before is not None
    weight = (1 - LOSS_DECAY) / group["loss_weight"]
    assert mean_loss(group) == pytest.approx(before + weight * (times * before + nats - before))
    for _ in range(40):
        fit_variance.follow_fit(group, 0.5)
    late = mean_loss(group)
    assert late is not None
    assert math.exp(-LOSS_EXPONENT * (late - before)) > 0.7, "most of the noise is back"


def test_losses_that_a_run_may_have_count_as_they_are() -> None:
    group = {"lr": 0.1, **fit_variance.NOT_BEGUN}
    losses = [math.log(128_000), 0.01, 9.9, 0.0, 10.0, 0.02]
    for loss in losses:
        fit_variance.follow_fit(group, loss)
    weights = [LOSS_DECAY ** (len(losses) - 1 - i) for i in range(len(losses))]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert mean_loss(group) == pytest.approx(expected)


def test_each_group_has_its_own_rate_and_all_have_the_loss() -> None:
    model = nn.Linear(3, 2)
    model, optimizer, noise = made({"params": [model.weight], "lr": 0.2}, {"params": [model.bias]}, model=model)
    step(model, optimizer, noise, 0.5)
    step(model, optimizer, noise, 0.5)
    wide, narrow = (1 / of_all_entries(optimizer.precision(p)) for p in (model.weight, model.bias))
    assert wide / narrow == pytest.approx(2, rel=1e-6)
    told = optimizer.diagnostics(dict(model.named_parameters()))
    assert [fit["lr_sum"] for fit in told["fit_variance"]] == [pytest.approx(0.4), pytest.approx(0.2)]
    assert [fit["mean_loss"] for fit in told["fit_variance"]] == [pytest.approx(0.5)] * 2
    assert told["fit_variance"][0]["variance"] == pytest.approx(wide, rel=1e-6)
    assert "hessian_moved" not in told


def test_what_steers_lambda_scales_it() -> None:
    model, optimizer, noise = made()
    step(model, optimizer, noise, 0.5)
    p = next(model.parameters())
    before = optimizer.precision(p)
    optimizer.param_groups[0]["ess"] /= 4
    torch.testing.assert_close(optimizer.precision(p), before / 4)


def test_at_the_same_noise_it_is_the_training_of_a_kept_hessian(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_variance, "VARIANCE_PER_RATE", 0.0)
    monkeypatch.setattr(fit_variance, "SMALLEST_STD", 0.1)
    results = []
    for options in ({}, {"variance": "hessian", "ess": 100.0, "hess_init": 1.0}):
        torch.manual_seed(0)
        model, optimizer, noise = made(**options)
        for i in range(5):
            loss = (model(torch.randn(8, 3, generator=torch.Generator().manual_seed(i))) - 1).square().mean()
            noise.observe_loss(loss)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((torch.cat([p.detach().flatten() for p in model.parameters()]), posterior_of(model, optimizer)))
    (first, fitted), (second, kept) = results
    torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)
    assert all(torch.equal(fitted.precision[key], kept.precision[key]) for key in kept.precision)
    assert fitted.meta.prior_precision is None
    assert not fitted.prior_mean


def test_the_state_is_adams() -> None:
    model, optimizer, noise = made(model=nn.Linear(3, 2).bfloat16().float())
    step(model, optimizer, noise, 0.5)
    assert set(optimizer.state[next(model.parameters())]) == {"step", "momentum", "second_moment"}


# Which losses it sees -------------------------------------------------------------------------------------------


def test_micro_batches_count_with_their_share() -> None:
    model, optimizer, noise = made()
    step(model, optimizer, noise, 1.0, 3.0)
    assert optimizer.param_groups[0]["loss_sum"] == pytest.approx(0.05 * 2.0)
    x = torch.ones(1, 3)
    for loss, share in ((1.0, 0.25), (3.0, 0.75)):  # as by the number of tokens
        total = (model(x).sum() * 0 + loss) * share
        noise.observe_loss(total)
        total.backward()
    assert noise.mean_loss() == pytest.approx(0.25 + 2.25)


def test_a_loss_that_is_not_finite_is_left_out_and_a_skipped_step_counts_for_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, optimizer, noise = made()
    step(model, optimizer, noise, 0.5)
    before = numbers(optimizer)[0]
    step(model, optimizer, noise, math.nan)  # its gradient is finite
    assert numbers(optimizer)[0] == {**before, "lr_sum": pytest.approx(0.2)}
    after = numbers(optimizer)[0]
    loss = model(torch.ones(1, 3)).sum() * math.inf
    noise.observe_loss(loss)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert "IVON skipped step 3" in caplog.text
    assert numbers(optimizer)[0] == after
    step(model, optimizer, noise, 0.5)
    assert numbers(optimizer)[0]["loss_weight"] > after["loss_weight"]


def test_a_scaled_loss_counts_as_it_was() -> None:
    model, optimizer = nn.Linear(3, 2), None
    optimizer = IVON(model.parameters(), lr=0.1, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    noise = NoiseController(model, optimizer, scaler=scaler)
    loss = model(torch.ones(1, 3)).sum() * 0 + 2.0
    noise.observe_loss(loss)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    assert optimizer.param_groups[0]["loss_sum"] == pytest.approx(0.05 * 2.0)


class Returning(nn.Module):
    """A model that returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"loss": self.linear(x).sum() * 0 + 2.0, "logits": self.linear(x)}


def test_a_loss_that_the_model_returns_is_seen_where_it_is_trained_on() -> None:
    model, optimizer, noise = made(model=Returning())
    x = torch.ones(1, 3)
    for _ in range(2):
        (model(x)["loss"] / 2).backward()
    assert noise.mean_loss() == 2.0
    optimizer.step()
    optimizer.zero_grad()
    model(x)  # a forward whose loss is not trained on
    out = model(x)
    own = out["logits"].sum() * 0 + 5.0
    noise.observe_loss(own)
    (own + out["loss"]).backward()
    assert noise.mean_loss() == 5.0, "what is shown goes before what is returned"
    optimizer.zero_grad()
    model.eval()(x)["loss"].backward()  # at the mean
    assert noise.mean_loss() is None


def test_losses_that_are_shown_and_that_are_returned_count_in_one_step() -> None:
    model, _, noise = made(model=Returning())
    x = torch.ones(1, 3)
    own = model(x)["logits"].sum() * 0 + 6.0
    returned = model(x)["loss"]
    noise.observe_loss(own)
    (own / 2).backward()
    (returned / 2).backward()
    assert noise.mean_loss() == (6.0 + 2.0) / 2
    out = model(x)
    twice = out["loss"] * 3
    noise.observe_loss(twice)
    (twice / 2).backward()  # goes through the model's own loss, too
    assert noise.mean_loss() == (6.0 + 2.0 + 6.0) / 2


class ReturningLogProbs(nn.Module):
    """A model that returns the log-probability of each answer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"log_probs": self.linear(x).log_softmax(-1)[:, 0]}


def test_log_probabilities_that_the_model_returns_are_seen_by_the_weights_that_they_are_trained_on_with() -> None:
    model, _, noise = made(model=ReturningLogProbs())
    log_probs = model(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))["log_probs"]
    loss = -log_probs[:3].sum() / 3
    (loss / 2).backward()
    assert noise.mean_loss() == pytest.approx(loss.item() / 2, rel=1e-6)


def test_a_step_without_a_loss_is_refused() -> None:
    model, optimizer, noise = made()
    before = [p.detach().clone() for p in model.parameters()]
    loss = model(torch.ones(1, 3)).sum()
    loss.backward()
    with pytest.raises(ValueError, match=r"no loss was seen in this step.*Call observe_loss\(loss\)"):
        optimizer.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    for given in (2.0, loss.detach(), torch.ones(2, requires_grad=True)):
        with pytest.raises(ValueError, match=r"Pass the loss itself, before loss\.backward\(\)"):
            noise.observe_loss(given)


def test_a_number_for_lambda_says_that_the_noise_does_not_follow_it(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"ess=30000\.0 has no effect on the noise of variance='fit'"):
        trainer_of(tmp_path, ess=3e4)
    with warnings.catch_warnings(record=True) as said:
        trainer_of(tmp_path, ess="auto", held_out="none")
    assert not [one for one in said if "no effect on the noise" in str(one.message)]


# In trainers ----------------------------------------------------------------------------------------------------


class OwnLoss(Trainer):
    """A trainer that makes its loss from the logits."""

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        labels = inputs.pop("labels")
        return nn.functional.cross_entropy(model(**inputs).logits, labels)


class VariationalOwnLoss(VariationalTrainerMixin, OwnLoss):
    """The same with IVON."""


def unmodified(folder: Path, kind: type[Trainer] = Trainer, **options: Any) -> Trainer:
    return kind(
        model=Classifier(),
        args=arguments(folder, learning_rate=3e-3, **options),
        train_dataset=Rows(320, flipped=0.2),
        optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=3e-3, ess=3e4).optimizer_kwargs()),
        callbacks=[VariationalCallback()],
    )


def mixed_in(folder: Path, **options: Any) -> Trainer:
    return trainer_of(folder, ess=3e4, **options)


@pytest.mark.parametrize("make", [unmodified, mixed_in])
def test_a_trainers_accumulated_loss_is_that_of_the_whole_batch(
    tmp_path: Path, make: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model takes no num_items_in_batch, so that the trainer divides by itself: once."""
    monkeypatch.setattr(fit_variance, "VARIANCE_PER_RATE", 0.0)  # the noise goes by the micro-batch
    found = []
    for rows, micro_batches in ((16, 1), (8, 2)):
        options = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": micro_batches}
        trainer = make(tmp_path, max_steps=3, **options)
        trainer.train()
        found.append({name: group_of(trainer)[name] for name in NUMBERS})
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert found[0]["lr_sum"] == pytest.approx(3 * 3e-3)
    assert 0.4 < found[0]["loss_sum"] / found[0]["loss_weight"] < 1.0


def test_a_loss_that_the_trainer_makes_is_seen_by_the_mixin_and_missed_by_the_callback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no loss was seen in this step.*VariationalTrainerMixin"):
        unmodified(tmp_path, OwnLoss, max_steps=2).train()
    found = []
    for draws in (1, 3):
        trainer = VariationalOwnLoss(
            model=Classifier(),
            args=arguments(tmp_path, max_steps=1),
            train_dataset=Rows(320),
            variational=IVONConfig(ess=3e4, draws=draws),
        )
        trainer.train()
        found.append(mean_loss(group_of(trainer)))
    assert found[0] == pytest.approx(math.log(2), abs=0.2)
    assert found[1] == pytest.approx(found[0], rel=1e-3), "three draws with next to no noise"


# States ---------------------------------------------------------------------------------------------------------


def test_a_state_brings_everything_back() -> None:
    model, optimizer, noise = made()
    for loss in (2.0, 1.0, 0.7):
        step(model, optimizer, noise, loss)
    optimizer.param_groups[0]["ess"] /= 2
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    _, other, _ = made(lr=5.0, ess=7.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert numbers(other) == numbers(optimizer)
    p, q = (o.param_groups[0]["params"][0] for o in (optimizer, other))
    assert torch.equal(other.precision(q), optimizer.precision(p))


def test_a_state_of_the_other_variance_goes_on_with_its_own_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, noise = made(variance="hessian", hess_init=0.1)
    step(model, optimizer, noise, 1.0)
    _, fresh, _ = made()
    fresh.load_state_dict(optimizer.state_dict())
    assert "variance='hessian' and this optimizer 'fit'" in caplog.text
    assert fresh.param_groups[0]["variance"] == "hessian"


def test_a_state_of_an_older_version_is_taken_over_or_refused_by_name(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, noise = made(variance="hessian", hess_init=0.1)
    step(model, optimizer, noise, 1.0)
    state = optimizer.state_dict()
    del state["param_groups"][0]["variance"]
    state["param_groups"][0]["prior_width"] = "auto"
    _, fresh, _ = made(variance="hessian", hess_init=0.1)
    fresh.load_state_dict(state)
    assert not caplog.text
    state["param_groups"][0]["prior"] = "movement"
    with pytest.raises(ValueError, match=r"written by an older version .* replaced by variance='fit'.* Start afresh"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"update": "newton"}, "update='newton'; it must be 'adam'"),
        ({"weight_decay": 0.1}, r"weight_decay=0\.1; it must be 0"),
        ({"betas": (0.9, 0.999)}, r"betas=\(0\.9, 0\.999\); it must be \(β1, 1\)"),
        ({"hess_init": 0.01}, r"hess_init=0\.01; it must be left at 'auto'"),
        ({"prior": "adaptive"}, "prior='adaptive'; it must be left at 'fixed'"),
    ],
)
def test_what_belongs_to_the_hessian_is_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} with variance='fit', which keeps no Hessian and has no prior"):
        IVON([nn.Parameter(torch.zeros(1))], lr=0.1, **{**OPTIONS, **options})
