"""The contract that every method keeps."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_runs import LEARNED, StopAfter, Stopped, config, save_model
from varlora.checkpoint import load_posterior, save_posterior
from varlora.methods import METHODS, AdamW, Ivon, Method, Temperature, with_options
from varlora.methods.method import AnyPosterior
from varlora.posterior import DiagonalGaussian, PointMass
from varlora.prediction import Prediction, predict
from varlora.runs import Setting, load_setting, method_of, predict_split, train


@dataclass(frozen=True)
class Result:
    """A method's training, and what it left behind."""

    setting: Setting
    method: Method
    posterior: AnyPosterior
    frozen_before: dict[str, Tensor]


def frozen(setting: Setting) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in setting.model.named_parameters() if not p.requires_grad}


def trained(folder: Path, model: str, name: str, **options: Any) -> Result:
    settings = config(folder, model, method=name, **options)
    setting = load_setting(settings)
    before = frozen(setting)
    method = method_of(settings)
    result = train(setting, method, checkpoints=folder / "checkpoints", progress=False)
    return Result(setting, method, result.posterior, before)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", params=sorted(METHODS))
def result(request: pytest.FixtureRequest, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Result:
    return trained(tmp_path_factory.mktemp(request.param), model_folder, request.param)


def equal(first: AnyPosterior, second: AnyPosterior) -> bool:
    same = first.mean.keys() == second.mean.keys() and all(
        torch.equal(first.mean[k], second.mean[k]) for k in first.mean
    )
    return same and all(torch.equal(first.variance[k], second.variance[k]) for k in first.variance)


def test_every_method_says_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method().name == name
        assert method().summary


def test_it_learns(result: Result) -> None:
    prediction = predict_split(result.setting, result.posterior, "test", samples=4 if result.method.samples else 0)
    assert isinstance(prediction, Prediction)
    accuracy = (prediction.probs.argmax(1) == prediction.labels).double().mean()
    assert accuracy > 0.9  # chance is 0.5


def test_the_base_weights_are_untouched(result: Result) -> None:
    after = frozen(result.setting)
    assert after.keys() == result.frozen_before.keys()
    assert all(torch.equal(after[name], before) for name, before in result.frozen_before.items())


def test_the_posterior_is_the_kind_that_the_method_promises(result: Result) -> None:
    q = result.posterior
    assert q.meta.method == result.method.name
    assert q.meta.num_examples == 32
    assert q.meta.readout is not None
    assert all("lora_" in key for key in q.mean)
    assert all(torch.isfinite(mean).all() for mean in q.mean.values())
    if result.method.samples:
        assert isinstance(q, DiagonalGaussian)
        assert all(torch.isfinite(v).all() and (v > 0).all() for v in q.variance.values())
    else:
        assert isinstance(q, PointMass)


def test_the_model_stays_at_the_mean(result: Result) -> None:
    live = {n.replace(".default", ""): p for n, p in result.setting.model.named_parameters() if p.requires_grad}
    assert live.keys() == result.posterior.mean.keys()
    assert all(torch.equal(live[key].detach(), mean) for key, mean in result.posterior.mean.items())


def test_the_same_seed_gives_the_same_bits(result: Result, tmp_path: Path) -> None:
    source = result.setting.config.model_name_or_path
    assert equal(result.posterior, trained(tmp_path / "same", source, result.method.name).posterior)
    assert not equal(result.posterior, trained(tmp_path / "other", source, result.method.name, seed=1).posterior)


def test_a_saved_posterior_predicts_the_same(result: Result, tmp_path: Path) -> None:
    loaded = load_posterior(save_posterior(result.posterior, tmp_path / "q"))
    assert equal(loaded, result.posterior)
    samples = 4 if result.method.samples else 0
    first, second = (predict_split(result.setting, q, "test", samples=samples) for q in (result.posterior, loaded))
    assert isinstance(first, Prediction)
    assert isinstance(second, Prediction)
    assert torch.equal(first.log_probs, second.log_probs)


def test_calibration_touches_the_logit_temperature_only(result: Result) -> None:
    q = result.posterior
    validation = predict_split(result.setting, q, "validation", samples=0)
    assert isinstance(validation, Prediction)
    calibrated = result.method.calibrate(q, validation)
    assert equal(calibrated, q)
    assert replace(calibrated.meta, logit_temperature=1.0) == replace(q.meta, logit_temperature=1.0)
    assert (calibrated.meta.logit_temperature != 1.0) == (result.method.name == "temperature")


def test_an_interrupted_training_goes_on_bit_for_bit(result: Result, tmp_path: Path) -> None:
    settings = config(tmp_path, result.setting.config.model_name_or_path, method=result.method.name, save_steps=10)
    setting, checkpoints = load_setting(settings), tmp_path / "checkpoints"
    with pytest.raises(Stopped):
        train(setting, method_of(settings), checkpoints=checkpoints, progress=False, callbacks=[StopAfter(13)])
    resumed = train(
        load_setting(settings),
        method_of(settings),
        checkpoints=checkpoints,
        resume_from=str(checkpoints / "checkpoint-10"),
        progress=False,
    )
    assert equal(resumed.posterior, result.posterior)


def test_a_calibrated_temperature_divides_the_logits(model_folder: str, tmp_path: Path) -> None:
    result = trained(tmp_path, model_folder, "temperature", max_steps=2)
    setting = result.setting
    q = replace(result.posterior, meta=replace(result.posterior.meta, logit_temperature=2.0))
    assert setting.readout is not None
    batches = list(setting.batches(setting.encoded("test")))
    raw = predict(setting.model, result.posterior, batches, 0, readout=setting.readout).log_probs
    halved = predict(setting.model, q, batches, 0, readout=setting.readout).log_probs
    torch.testing.assert_close(halved, (raw / 2).log_softmax(-1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"ess": 1e5}, r"method 'adamw' has no option ess; it has learning_rate, weight_decay"),
        ("temperature", {"draws": 2, "prior": "fixed"}, r"'temperature' has no option draws, prior"),
        ("adamw", {"learning_rate": 0.0}, r"learning_rate=0.0; it must be positive"),
        ("adamw", {"weight_decay": -0.1}, r"weight_decay=-0.1; it must be at least 0"),
        ("ivon", {"learning_rate": -1.0}, r"lr=-1.0; it must be a positive"),
        ("ivon", {"beta2": 1.0}, r"betas=\(0.9, 1.0\); it must be two numbers in \[0, 1\)"),
        ("ivon", {"ess": 0.0}, r"ess=0.0; it must be a positive"),
        ("ivon", {"draws": 0}, r"draws=0; it must be a positive integer"),
        ("ivon", {"prior": "learned"}, r"prior='learned'; it must be 'fixed' or 'adaptive'"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_options(METHODS[name], options)


def test_options_left_open_keep_their_defaults() -> None:
    everything = {f.name: None for f in fields(Ivon)}
    assert with_options(Ivon, everything) == Ivon()
    assert with_options(AdamW, {"ess": None, "learning_rate": 1e-3}) == AdamW(learning_rate=1e-3)


@pytest.mark.parametrize(("part", "message"), [("readout", "completions have none"), ("validation", "validation rows")])
def test_a_temperature_needs_something_to_be_fitted_on(
    model_folder: str, tmp_path: Path, part: str, message: str
) -> None:
    class Seen(Temperature):
        def trainer(self, job: Any) -> Any:
            return super().trainer(replace(job, **{part: None}))

    setting = load_setting(config(tmp_path, model_folder, method="temperature"))
    with pytest.raises(ValueError, match=message):
        train(setting, Seen(), checkpoints=tmp_path / "checkpoints", progress=False)


def test_every_method_is_tried_here() -> None:
    assert LEARNED.keys() == METHODS.keys()
