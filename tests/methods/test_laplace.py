"""Laplace-LoRA: AdamW's weights, the curvature there, and the prior that the evidence or validation rows choose."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from laplace_problems import READOUT, batches, network, unseen_batch
from small_runs import LEARNED, config, save_model
from varlora.curvature import Curvature, curvature_of, log_marginal_likelihood
from varlora.curvature.layers import linear_tensors
from varlora.methods import AdamW, Laplace
from varlora.methods import laplace as module
from varlora.methods.laplace import GRID, validation_nll
from varlora.posterior import DiagonalGaussian, KroneckerGaussian, Posterior, PosteriorMeta, PredictionConfig
from varlora.posterior.folder import load_posterior, save_posterior
from varlora.prediction import linearised
from varlora.prediction.linearised import predict_linearised
from varlora.prediction.prediction import Prediction
from varlora.runs.predict import predict_split
from varlora.runs.run import train
from varlora.runs.setting import Setting, load_setting

OPTIONS = LEARNED["laplace"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


@dataclasses.dataclass(frozen=True)
class Finished:
    """AdamW's training, whose checkpoints a Laplace posterior is fitted to without training again."""

    model: str
    checkpoints: Path
    posterior: Posterior


@pytest.fixture(scope="module")
def adamw(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("adamw")
    _, posterior = trained(folder, model_folder, AdamW(**OPTIONS))
    return Finished(model_folder, folder / "checkpoints", posterior)


def trained(folder: Path, model: str, method: AdamW, *, resume: bool = False) -> tuple[Setting, Posterior]:
    setting = load_setting(config(folder, model, method="adamw"))
    done = train(setting, method, checkpoints=folder / "checkpoints", resume=resume, progress=False)
    return setting, done.posterior


def fitted(folder: Path, adamw: Finished, method: Laplace) -> tuple[Setting, Posterior]:
    shutil.copytree(adamw.checkpoints, folder / "checkpoints")
    return trained(folder, adamw.model, method, resume=True)


def train_batches(setting: Setting) -> list[dict[str, Any]]:
    rows = setting.encoded("train")
    return [dict(setting.collate([rows[i] for i in range(start, start + 8)])) for start in range(0, len(rows), 8)]


def mean_nll(prediction: Prediction) -> float:
    return float(-prediction.probs.log().gather(1, prediction.labels[:, None]).mean())


@pytest.mark.parametrize("structure", ["kron", "diag"])
def test_it_is_the_curvature_at_adamws_weights_with_the_prior_of_most_evidence(
    structure: str, adamw: Finished, tmp_path: Path
) -> None:
    setting, q = trained(tmp_path, adamw.model, Laplace(**OPTIONS, curvature=structure))  # type: ignore[arg-type]
    point = adamw.posterior
    assert all(torch.equal(q.mean[key], point.mean[key]) for key in point.mean)
    assert q.mean.keys() == point.mean.keys()
    assert isinstance(q, KroneckerGaussian if structure == "kron" else DiagonalGaussian)

    assert setting.readout is not None
    curvature = curvature_of(setting.model, train_batches(setting), readout=setting.readout, structure=structure)  # type: ignore[arg-type]
    assert q.meta.prior_precision is not None
    assert q.meta.prior_precision.keys() == curvature.weights.keys()
    assert len(set(q.meta.prior_precision.values())) == 1
    (delta,) = set(q.meta.prior_precision.values())
    expected = curvature.posterior(q.meta.prior_precision, q.meta)
    for key in q.variance:
        torch.testing.assert_close(q.variance[key], expected.variance[key], rtol=1e-3, atol=0)
        assert float(q.variance[key].max()) <= 1.001 / delta
    evidence = log_marginal_likelihood(curvature, delta)
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["log_marginal_likelihood"] == pytest.approx(evidence, rel=1e-4)
    assert q.meta.diagnostics["log_likelihood"] == pytest.approx(curvature.log_likelihood, rel=1e-4)
    assert all(log_marginal_likelihood(curvature, delta * factor) < evidence for factor in (0.8, 1.25))
    assert q.meta.linearised
    assert q.meta.ess == q.meta.num_examples == len(setting.encoded("train"))


def test_it_predicts_after_a_round_trip_and_leaves_no_hook(adamw: Finished, tmp_path: Path) -> None:
    setting, q = fitted(tmp_path / "run", adamw, Laplace(**OPTIONS))
    before = predict_split(setting, q, "test", PredictionConfig(mode="linearised"))
    save_posterior(q, tmp_path / "saved")
    back = load_posterior(tmp_path / "saved")
    after = predict_split(setting, back, "test", PredictionConfig(mode="linearised"))
    assert isinstance(before, Prediction)
    assert isinstance(after, Prediction)
    assert torch.equal(before.log_probs, after.log_probs)
    assert (before.probs.argmax(1) == before.labels).double().mean() > 0.9
    point = predict_split(setting, q, "test", PredictionConfig(mode="mean"))
    assert isinstance(point, Prediction)
    assert before.probs.max(1).values.mean() < point.probs.max(1).values.mean()  # it is less sure than its mean
    assert not any(m._forward_hooks or "forward" in m.__dict__ for m in setting.model.modules())


# The choice of the prior ---------------------------------------------------------------------------------------


def test_validation_rows_choose_the_prior_with_the_least_nll(
    adamw: Finished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    setting, q = fitted(tmp_path, adamw, Laplace(**OPTIONS, prior_choice="validation"))
    assert q.meta.prior_precision is not None
    (chosen,) = set(q.meta.prior_precision.values())
    assert chosen in GRID
    assert setting.readout is not None
    curvature = curvature_of(setting.model, train_batches(setting), readout=setting.readout)
    rows = setting.encoded("validation")
    held = [setting.collate([rows[i] for i in range(len(rows))])]
    nll = validation_nll(setting.model, curvature, held, readout=setting.readout, seed=setting.config.seed)
    assert nll[chosen] == pytest.approx(min(nll.values()), rel=1e-3)
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["validation_nll"] == pytest.approx(nll[chosen], rel=1e-3)
    assert q.meta.diagnostics["validation_rows"] == len(rows)
    assert (f"{len(rows)} validation rows are few to choose a prior by" in caplog.text) is (len(rows) < 50)


@pytest.mark.parametrize(("structure", "above"), [("kron", 1024), ("kron", 6), ("diag", 1024)])
def test_the_nll_on_the_grid_is_that_of_linearised_predictions(structure: str, above: int) -> None:
    model, batch = network("lora"), unseen_batch("lora")
    curvature = curvature_of(
        model,
        batches("lora"),
        readout=READOUT,
        structure=structure,  # type: ignore[arg-type]
        low_rank=2,
        low_rank_above=above,
    )
    nll = validation_nll(model, curvature, [batch], readout=READOUT, seed=3)
    assert tuple(nll) == GRID
    for delta, value in nll.items():
        q = curvature.posterior(dict.fromkeys(curvature.weights, delta), PosteriorMeta())
        assert value == pytest.approx(
            mean_nll(predict_linearised(model, q, [batch], readout=READOUT, seed=3)), rel=1e-9
        )
    assert len(set(nll.values())) == len(GRID)


def test_the_nll_on_the_grid_does_not_depend_on_batches_nor_on_rows_without_a_label() -> None:
    model, whole = network("lora"), unseen_batch("lora")
    whole["labels"] = torch.tensor([0, -100, -100, 2, 1])
    curvature = curvature_of(model, batches("lora"), readout=READOUT)
    nll = validation_nll(model, curvature, [whole], readout=READOUT, seed=3)
    parts = [{name: t[part] for name, t in whole.items()} for part in (slice(0, 1), slice(1, 3), slice(3, 5))]
    cut = validation_nll(model, curvature, parts, readout=READOUT, seed=3)  # the second has no label at all
    assert cut == pytest.approx(nll, rel=1e-10)

    known = whole["labels"] >= 0
    for delta in GRID[::12]:
        q = curvature.posterior(dict.fromkeys(curvature.weights, delta), PosteriorMeta())
        found = predict_linearised(model, q, [whole], readout=READOUT, seed=3)
        of_known = -found.probs[known].log().gather(1, found.labels[known][:, None]).mean()
        assert nll[delta] == pytest.approx(float(of_known), rel=1e-9)
    whole["labels"] = torch.full((5,), -100)
    with pytest.raises(ValueError, match="no validation row has a label"):
        validation_nll(model, curvature, [whole], readout=READOUT)


def test_one_batchs_covariances_are_held_at_a_time_and_said_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, whole = network("lora"), unseen_batch("lora")
    curvature = curvature_of(model, batches("lora"), readout=READOUT)
    original, made = linearised._of_batch, []

    def watched(*arguments: Any) -> tuple[Tensor, Tensor]:
        assert "the NLL under 2000 prior precisions holds 0.3 MB of a batch's covariances and 0.0 MB" in caplog.text
        assert all(earlier() is None for earlier in made)
        mean, covariances = original(*arguments)
        assert covariances.shape == (2000, 2, 3, 3)  # 8 · 2000 · 2 · 9 bytes
        made.append(weakref.ref(covariances.untyped_storage()))
        return mean, covariances

    monkeypatch.setattr(linearised, "_of_batch", watched)
    parts = [{name: t[part] for name, t in whole.items()} for part in (slice(0, 2), slice(2, 4))]
    with caplog.at_level(logging.INFO, "varlora.methods.laplace"):
        validation_nll(model, curvature, parts, readout=READOUT, grid=[1 + i / 100 for i in range(2000)])
    assert len(made) == 2


def test_a_grid_that_fails_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = network("lora").train(), unseen_batch("lora")
    curvature = curvature_of(model, batches("lora"), readout=READOUT)
    with torch.no_grad():
        model.A.weight.zero_()

    def fails(*_: Any) -> Tensor:
        assert model.A.weight.any()  # the curvature's weights
        raise RuntimeError("no room")

    monkeypatch.setattr(module, "_summed_nll", fails)
    with pytest.raises(RuntimeError, match="no room") as caught:
        validation_nll(model, curvature, [batch], readout=READOUT)
    assert caught.tb is not None  # held here, and with it the frames and what they hold
    assert model.training
    assert not model.A.weight.any()
    assert not any(m._forward_hooks for m in model.modules())


def test_an_end_of_the_grid_is_said(
    adamw: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "GRID", (1e-2, 1e8))
    with caplog.at_level(logging.WARNING):
        fitted(tmp_path, adamw, Laplace(**OPTIONS, prior_choice="validation"))
    assert "at the end of the grid" in caplog.text


def per_tensor(curvature: Curvature, caplog: pytest.LogCaptureFixture) -> dict[str, float]:
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        return module._per_tensor(curvature)


def test_a_prior_for_each_tensor_and_those_that_have_none(caplog: pytest.LogCaptureFixture) -> None:
    whole = curvature_of(network("lora"), batches("lora"), readout=READOUT)
    prior = per_tensor(whole, caplog)
    assert prior["A.weight"] != prior["B.weight"]
    assert not caplog.text

    def changed(weight: Tensor, factor: float) -> Curvature:
        f = whole.factors["B.weight"]
        flat = dataclasses.replace(f, out_values=factor * f.out_values)
        return dataclasses.replace(
            whole, weights={**whole.weights, "B.weight": weight}, factors={**whole.factors, "B.weight": flat}
        )

    zero = changed(torch.zeros_like(whole.weights["B.weight"]), 1.0)
    exact = per_tensor(zero, caplog)
    assert exact == {"A.weight": prior["A.weight"], "B.weight": math.inf}
    assert "all of B.weight is 0" in caplog.text
    q = zero.posterior(exact, PosteriorMeta())
    assert not q.variance["B.weight"].any()
    assert q.variance["A.weight"].all()
    assert math.isfinite(log_marginal_likelihood(zero, exact))

    flat = changed(whole.weights["B.weight"], 0.0)
    shared = per_tensor(flat, caplog)
    assert shared["A.weight"] == prior["A.weight"]
    assert shared["B.weight"] not in (prior["A.weight"], math.inf)
    assert "B.weight has no curvature" in caplog.text


def test_a_diagonal_tensor_that_is_known_exactly_has_no_variance() -> None:
    curvature = curvature_of(network("lora"), batches("lora"), readout=READOUT, structure="diag")
    zero = dataclasses.replace(
        curvature, weights={**curvature.weights, "B.weight": torch.zeros_like(curvature.weights["B.weight"])}
    )
    fixed = {"C.weight": torch.ones(2)}
    q = zero.posterior({"A.weight": 1.0, "B.weight": math.inf}, PosteriorMeta(), fixed=fixed)
    assert not q.variance["B.weight"].any()
    assert not q.variance["C.weight"].any()
    torch.testing.assert_close(q.variance["A.weight"], 1 / (curvature.diagonal["A.weight"] + 1))


# What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "full"}, "curvature is 'full'; it must be one of 'kron', 'diag'"),
        ({"fisher": "empirical"}, "fisher is 'empirical'; it must be one of 'ggn', 'mc'"),
        ({"prior_choice": "cv"}, "prior_choice is 'cv'; it must be one of 'marglik', 'validation'"),
        ({"curvature_rank": 0}, "curvature_rank is 0; it must be at least 1"),
        ({"curvature_rank_above": 1.5}, "curvature_rank_above is 1.5; it must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"per_tensor": True, "prior_choice": "validation"}, "per_tensor needs prior_choice='marglik'"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Laplace(**options)


def test_what_it_cannot_do_is_refused_before_training(model_folder: str, tmp_path: Path) -> None:
    setting = load_setting(config(tmp_path, model_folder, method="adamw"))
    parameters = [t.parameter for t in linear_tensors(setting.model).values()]
    before = [p.detach().clone() for p in parameters]
    without = {"readout": None}, {"validation": None}

    for change, message in zip(without, ("completions have none", "needs labelled validation rows"), strict=True):

        class Changed(Laplace):
            def fit(self, job: Any, change: dict[str, None] = change) -> Any:
                return super().fit(dataclasses.replace(job, **change))

        with pytest.raises(ValueError, match=message):
            train(
                setting,
                Changed(**OPTIONS, prior_choice="validation"),
                checkpoints=tmp_path / "checkpoints",
                progress=False,
            )
    setting.model.base_model.model.model.norm.weight.requires_grad_(True)
    with pytest.raises(ValueError, match="norm"):
        train(setting, Laplace(**OPTIONS), checkpoints=tmp_path / "checkpoints", progress=False)
    assert all(torch.equal(p, was) for p, was in zip(parameters, before, strict=True))
