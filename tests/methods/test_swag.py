"""SWAG: exact moments of evenly spaced snapshots, which checkpoints hold, and a covariance that theory knows."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from small_runs import KeepKilled, config, save_model
from varlora.adapters import applied, fixed_tensors, trained_tensors
from varlora.methods.method import Fit, Job
from varlora.methods.snapshots import Snapshots
from varlora.methods.swag import Swag, annealed, snapshot_steps, swag_gaussian
from varlora.posterior.low_rank import LowRankGaussian
from varlora.runs.run import train
from varlora.runs.setting import Setting, load_setting

# The Gaussian ----------------------------------------------------------------------------------------------


class SnapshotSGD(Snapshots, torch.optim.SGD):
    """SGD, whose stationary distribution is known."""


def test_the_covariance_of_sgd_on_a_quadratic_is_the_stationary_one() -> None:
    """For gradients H w + s ξ, w ← w − η (H w + s ξ) has covariance η² s² (I − (I − η H)²)⁻¹ once it has settled.

    Along an eigenvector with curvature a this is η² s² / (1 − (1 − η a)²). An entry of the parameters is one of 20
    independent descents.
    """
    rate, noise, apart, count, descents = 0.3, 0.7, 8, 3000, 20
    hessian = torch.tensor([[2.0, 0.8], [0.8, 1.5]], dtype=torch.float64)
    first, second = (torch.nn.Parameter(torch.zeros(descents, dtype=torch.float64)) for _ in range(2))
    optimizer = SnapshotSGD([first, second], lr=rate)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(count // descents * apart, 2, descents, generator=generator, dtype=torch.float64)
    for step, xi in enumerate(noise * draws, start=1):
        first.grad, second.grad = hessian @ torch.stack([first.detach(), second.detach()]) + xi
        optimizer.step()
        if step % apart == 0:
            optimizer.take_snapshot()
    q = swag_gaussian({"w1": optimizer.state[first]["snapshots"], "w2": optimizer.state[second]["snapshots"]})

    eye = torch.eye(2, dtype=torch.float64)
    kept = eye - rate * hessian
    expected = (rate * noise) ** 2 * torch.linalg.inv(eye - kept @ kept)
    values, vectors = torch.linalg.eigh(hessian)
    by_eigenvalue = (rate * noise) ** 2 / (1 - (1 - rate * values).square())
    torch.testing.assert_close(vectors.T @ expected @ vectors, torch.diag(by_eigenvalue))

    # Standard error of a sample covariance, snapshots being all but independent: their correlation is .73⁸ = .08.
    error = ((torch.outer(expected.diagonal(), expected.diagonal()) + expected.square()) * 1.1 / count).sqrt()
    deviations = torch.stack([q.deviations["w1"], q.deviations["w2"]]).double()
    low_rank = 2 * torch.einsum("isd, jsd -> ij", deviations, deviations) / descents
    diagonal = 2 * torch.stack([q.diagonal["w1"], q.diagonal["w2"]]).double().mean(1)
    assert ((low_rank - expected).abs() < 4 * error).all()
    assert ((diagonal - expected.diagonal()).abs() < 4 * error.diagonal()).all()
    assert expected[0, 1].abs() > 10 * error[0, 1]  # so the sign and size of the covariance were tested, too
    assert (torch.stack([q.mean["w1"], q.mean["w2"]]).mean(1).abs() < 4 * (expected.diagonal() / count).sqrt()).all()


def test_the_moments_are_those_of_the_formulas() -> None:
    w = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q = swag_gaussian({"w": w.float()}, {"fixed": torch.full((2,), 7.0)})
    mean = w.sum(0) / 5
    variance = (w.square().sum(0) / 5 - mean.square()).clamp(min=1e-30)
    torch.testing.assert_close(q.mean["w"].double(), mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(q.diagonal["w"].double(), variance / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(q.deviations["w"].double(), (w - mean) / math.sqrt(2 * 4), rtol=1e-5, atol=1e-7)
    assert q.shared
    assert torch.equal(q.mean["fixed"], torch.full((2,), 7.0))
    assert not q.variance["fixed"].any()
    # Half the (population) variance and half the sample variance.
    torch.testing.assert_close(q.variance["w"].double(), variance * (1 + 5 / 4) / 2, rtol=1e-5, atol=0)


def test_a_variance_far_below_the_weights_rounding_error_squared_is_found() -> None:
    moved = 2.0**-20 * torch.tensor([[1.0], [-1.0], [3.0], [-3.0]])  # exact in float32 around 1
    snapshots = 1.0 + moved
    q = swag_gaussian({"w": snapshots})
    torch.testing.assert_close(2 * q.diagonal["w"], moved.square().mean(0), rtol=1e-6, atol=0)
    naive = snapshots.square().mean(0) - snapshots.mean(0).square()
    assert ((naive - moved.square().mean(0)).abs() > 0.5 * moved.square().mean(0)).all()  # what is avoided
    neighbours = 1.0 + 2.0**-23 * torch.tensor([[0.0], [1.0]])  # between them float32 has no mean
    assert 2 * swag_gaussian({"w": neighbours}).diagonal["w"].item() == 2.0**-48


def test_an_entry_that_stands_still_has_the_smallest_variance() -> None:
    q = swag_gaussian({"w": torch.ones(3, 1)})
    assert q.diagonal["w"].item() == pytest.approx(0.5e-30)
    assert not q.deviations["w"].any()


@pytest.mark.parametrize(
    "snapshots", [{"w": torch.ones(1, 2)}, {"w": torch.ones(2, 2), "v": torch.ones(3, 2)}, {"w": torch.ones(0, 2)}]
)
def test_fewer_than_two_snapshots_or_unequal_numbers_are_refused(snapshots: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="two or more snapshots of every tensor, and as many of each"):
        swag_gaussian(snapshots)


# The schedule ----------------------------------------------------------------------------------------------


def test_snapshots_are_evenly_spaced_and_end_with_training() -> None:
    assert snapshot_steps(100, 0.5, 5) == [60, 70, 80, 90, 100]
    assert snapshot_steps(7, 0.0, 7) == [1, 2, 3, 4, 5, 6, 7]
    for max_steps in range(10, 60):
        steps = snapshot_steps(max_steps, 0.3, 5)
        gaps = {b - a for a, b in itertools.pairwise(steps)}
        assert steps[-1] == max_steps
        assert min(steps) > int(0.3 * max_steps)
        assert max(gaps) - min(gaps) <= 1
    with pytest.raises(ValueError, match=r"10 snapshots do not fit into the last 6 of 12 steps. .*\(swag_start\)"):
        snapshot_steps(12, 0.5, 10)


def test_the_learning_rate_keeps_the_warm_up_and_falls_to_the_constant() -> None:
    def linear(step: int) -> float:
        return step / 4 if step < 4 else (12 - step) / 8

    rate = annealed(linear, steps=12, warmup=4, floor=0.2)
    assert [rate(step) for step in range(6)] == pytest.approx([0, 0.25, 0.5, 0.75, 1.0, 0.9])
    assert [rate(step) for step in (8, 11, 12, 13, 1000)] == pytest.approx([0.6, 0.3, 0.2, 0.2, 0.2])


# The method ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


SWAG = Swag(learning_rate=0.02, snapshots=4, swag_learning_rate=0.01)


class Path25(TrainerCallback):
    """The weights and the learning rate after every step."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, Tensor]] = {}
        self.rates: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trained = trained_tensors(kwargs["model"])
        self.weights[state.global_step] = {key: p.detach().clone() for key, p in trained.items()}


def setting_of(folder: Path, model: str, **options: Any) -> Setting:
    return load_setting(config(folder, model, method="adamw", **{"learning_rate": 0.02, "max_steps": 25, **options}))


def fit(
    folder: Path, model: str, swag: Swag = SWAG, callbacks: Sequence[TrainerCallback] = (), **options: Any
) -> tuple[Setting, LowRankGaussian]:
    resume = bool(options.pop("resume", False))
    setting = setting_of(folder, model, **options)
    q = train(setting, swag, checkpoints=folder / "c", progress=False, callbacks=callbacks, resume=resume).posterior
    assert isinstance(q, LowRankGaussian)
    return setting, q


SAVING: dict[str, Any] = {"save_steps": 6, "warmup_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fitted")


@pytest.fixture(scope="module")
def fitted(model_folder: str, folder: Path) -> tuple[Setting, LowRankGaussian, Path25]:
    path = Path25()
    keep = KeepKilled(folder / "c", folder / "killed", [13, 19])
    setting, q = fit(folder, model_folder, callbacks=[path, keep], **SAVING)
    return setting, q, path


def of_path(path: Mapping[int, Mapping[str, Tensor]], steps: Sequence[int]) -> LowRankGaussian:
    keys = path[steps[0]]
    return swag_gaussian({key: torch.stack([path[step][key] for step in steps]) for key in keys})


def equal(first: LowRankGaussian, second: LowRankGaussian) -> bool:
    return all(
        torch.equal(getattr(first, name)[key], getattr(second, name)[key])
        for name in ("mean", "diagonal", "deviations")
        for key in first.mean
    )


def test_the_posterior_is_that_of_the_weights_at_the_snapshots_steps(
    fitted: tuple[Setting, LowRankGaussian, Path25],
) -> None:
    setting, q, path = fitted
    steps = [15, 18, 21, 25]  # of 25, the last 13 in quarters
    assert q.meta.diagnostics == {"snapshot_steps": steps, "swag_learning_rate": 0.01}
    assert q.meta.method == "swag"
    assert q.meta.num_examples == 32
    assert not fixed_tensors(setting.model)
    assert equal(q, of_path(path.weights, steps))
    assert all(torch.equal(p, q.mean[key]) for key, p in trained_tensors(setting.model).items())
    assert not all(torch.equal(path.weights[25][key], q.mean[key]) for key in q.mean)


def test_the_learning_rates_of_a_run(fitted: tuple[Setting, LowRankGaussian, Path25]) -> None:
    rates = fitted[2].rates
    assert rates[:3] == pytest.approx([0.0, 0.01, 0.02])  # two steps of warm-up
    assert rates[7] == pytest.approx(0.015)  # half-way between 2 and 12
    assert rates[12:] == pytest.approx([0.01] * 13)


@pytest.mark.parametrize("stop", [13, 19])
def test_an_interrupted_training_ends_in_the_same_bits(
    fitted: tuple[Setting, LowRankGaussian, Path25], folder: Path, model_folder: str, tmp_path: Path, stop: int
) -> None:
    shutil.copytree(folder / "killed" / str(stop), tmp_path / "c")
    saved = torch.load(tmp_path / "c" / f"checkpoint-{stop // 6 * 6}" / "optimizer.pt", weights_only=True)
    held = [len(state["snapshots"]) for state in saved["state"].values() if "snapshots" in state]
    assert set(held) == ({2} if stop == 19 else set())  # the last checkpoint holds no snapshot, then two
    _, resumed = fit(tmp_path, model_folder, resume=True, **SAVING)
    assert equal(resumed, fitted[1])


def test_accumulated_micro_batches_give_the_same_posterior(model_folder: str, tmp_path: Path) -> None:
    same: dict[str, Any] = {"lora_dropout": 0.0, "max_steps": 12}
    whole = fit(tmp_path / "whole", model_folder, per_device_train_batch_size=4, **same)[1]
    options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts = fit(tmp_path / "parts", model_folder, **same, **options)[1]
    assert parts.meta.diagnostics == whole.meta.diagnostics
    for key, variance in whole.variance.items():
        torch.testing.assert_close(parts.mean[key], whole.mean[key], rtol=1e-3, atol=1e-3)
        assert (parts.variance[key].sum() / variance.sum()).item() == pytest.approx(1, rel=1e-2)


class Losses(TrainerCallback):
    """The validation losses, and the checkpoint that had the lowest."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        self.by_step[state.global_step] = metrics["eval_loss"]


class Overfits(Swag):
    """SWAG whose later weights are spoilt, so that the best checkpoint is an early one."""

    def trainer(self, job: Job) -> Any:
        return super().trainer(replace(job, callbacks=[*job.callbacks, Spoil(20)]))


class Spoil(TrainerCallback):
    def __init__(self, after: int) -> None:
        self.after = after

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.after:
            with torch.no_grad():
                for p in trained_tensors(kwargs["model"]).values():
                    p.mul_(-30.0)


def test_early_stopping_evaluates_at_means_of_snapshots_and_keeps_the_best_checkpoints(
    model_folder: str, tmp_path: Path
) -> None:
    losses, path = Losses(), Path25()
    swag = Overfits(learning_rate=0.02, snapshots=4, swag_learning_rate=0.01)
    setting, q = fit(tmp_path, model_folder, swag=swag, callbacks=[losses, path], early_stopping=True, eval_steps=3)
    assert list(losses.by_step) == [18, 21, 24, 25]  # from the second snapshot on
    assert min(losses.by_step, key=losses.by_step.__getitem__) == 18
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["snapshot_steps"] == [15, 18]
    assert equal(q, of_path(path.weights, [15, 18]))
    assert all(torch.equal(p, q.mean[key]) for key, p in trained_tensors(setting.model).items())
    # What was evaluated is the mean.
    readout = setting.readout
    assert readout is not None
    with applied(setting.model, q.mean), torch.no_grad():
        batches = list(setting.batches(setting.encoded("validation")))
        total = sum(
            torch.nn.functional.cross_entropy(readout.logits(setting.model, batch), batch["labels"], reduction="sum")
            for batch in batches
        )
    assert losses.by_step[18] == pytest.approx(float(total) / 16, rel=1e-4)


def test_more_snapshots_than_steps_are_refused_before_training(model_folder: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="20 snapshots do not fit into the last 13 of 25 steps"):
        fit(tmp_path, model_folder, swag=Swag(snapshots=20))
    assert not list((tmp_path / "c").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": "sgd"}, "is not PyTorch's AdamW; swag needs 'adamw_torch'"),
        ({"load_best_model_at_end": True, "save_only_model": True}, "save_only_model=False"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "is no function of the step"),
    ],
)
def test_arguments_that_do_not_go_with_it_are_refused(
    model_folder: str, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    class Changed(Swag):
        def fit(self, job: Job) -> Fit:
            for name, value in change.items():
                setattr(job.arguments, name, value)
            return super().fit(job)

    with pytest.raises(ValueError, match=message):
        fit(tmp_path, model_folder, swag=Changed())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"snapshots": 1}, "snapshots is 1; it must be at least 2"),
        ({"swag_start": 1.0}, r"swag_start is 1.0; it must be in \[0, 1\)"),
        ({"swag_learning_rate": 0.0}, "swag_learning_rate is 0.0; it must be positive"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Swag(**options)
