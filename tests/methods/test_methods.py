"""The contract that every method keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainerCallback

from small_runs import (
    LEARNED,
    STEPS,
    KeepKilled,
    StopAfter,
    Stopped,
    config,
    herds,
    save_model,
    write_rows,
)
from tiny_runs import save_encoder
from varlora.ivon.config import IVONConfig
from varlora.methods import METHODS, AdamW, Ivon, Method, Temperature, checked_options, options_of, with_temperatures
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    Mode,
    NotAWeightSampleError,
    PointMass,
    PointMassError,
    Posterior,
    PredictionConfig,
)
from varlora.posterior.folder import load_posterior, save_posterior
from varlora.posterior.ops import prune, temper
from varlora.prediction.prediction import Prediction, predict
from varlora.prediction.prediction_setup import modes_of
from varlora.runs.predict import predict_split
from varlora.runs.run import method_of, train
from varlora.runs.setting import Setting, load_setting

KIND: Mapping[str, type] = {
    "adamw": PointMass,
    "blob": DiagonalGaussian,
    "ema": PointMass,
    "ensemble": Mixture,
    "ivon": DiagonalGaussian,
    "laplace": KroneckerGaussian,
    "mc_dropout": DropoutMasks,
    "scalabl": LowRankGaussian,
    "swag": LowRankGaussian,
    "temperature": PointMass,
    "tfb": DiagonalGaussian,
}
NO_NOISE_IN_TRAINING = ("adamw", "ema", "ensemble", "swag")
"""Methods whose steps depend on the rows of a batch alone, not on how it is cut into micro-batches.

Others of which that holds (laplace, temperature, tfb) train by AdamW's steps and begin when they are done.
"""


@dataclass(frozen=True)
class Result:
    """A method's training, and what it left behind."""

    setting: Setting
    method: Method
    posterior: Posterior
    log: list[dict[str, Any]]
    frozen_before: dict[str, Tensor]
    folder: Path
    passes: int


EARLY, KILLED = 3, 13
"""Steps of the trainings of `watched` whose weights are kept, and at which they might have been killed."""


@dataclass(frozen=True)
class Watched:
    """A method's training, its weights on the way, and the checkpoints that a kill would have left."""

    result: Result
    early: Mapping[str, Tensor]
    killed: Path


class EarlyWeights(TrainerCallback):
    """What trains, as it is after step `EARLY`."""

    def __init__(self) -> None:
        self.weights: dict[str, Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == EARLY:
            self.weights = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def frozen(setting: Setting) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in setting.model.named_parameters() if not p.requires_grad}


FURTHER: Mapping[str, Mapping[str, Any]] = {
    "blob": {"lora_target_modules": "all-linear"},  # its costs are those of many weights
    "laplace": {"lora_target_modules": "all-linear", "max_steps": 25},  # or its draws know nothing
}
"""Where a method needs more than the others."""


def trained(folder: Path, model: str, name: str, callbacks: Sequence[TrainerCallback] = (), **options: Any) -> Result:
    settings = config(folder, model, method=name, **{**FURTHER.get(name, {}), **options})
    setting = load_setting(settings)
    before = frozen(setting)
    method = method_of(settings)
    passes = 0

    def count(model: torch.nn.Module, given: object) -> None:
        nonlocal passes
        passes += model.training and torch.is_grad_enabled()

    hook = setting.model.register_forward_pre_hook(count)
    result = train(setting, method, checkpoints=folder / "checkpoints", progress=False, callbacks=callbacks)
    hook.remove()
    return Result(setting, method, result.posterior, result.log, before, folder, passes)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    save_model(folder / "two layers", layers=2)
    return save_model(folder / "one layer")


def model_for(name: str, model_folder: str) -> str:
    """The model that learns from the method: of Laplace's, draws for the linearised one predict with two layers."""
    return str(Path(model_folder).with_name("two layers")) if name == "laplace" else model_folder


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module", params=sorted(LEARNED))
def watched(request: pytest.FixtureRequest, model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    name, folder, early = request.param, tmp_path_factory.mktemp(request.param), EarlyWeights()
    killed = KILLED + (STEPS if name == "ensemble" else 0)  # in its second member
    keep = KeepKilled(folder / "checkpoints", folder / "killed", [killed])
    result = trained(folder, model_for(name, model_folder), name, [early, keep], save_steps=6)
    return Watched(result, early.weights, folder / "killed" / str(killed))


@pytest.fixture(scope="module")
def result(watched: Watched) -> Result:
    return watched.result


def equal(first: Posterior, second: Posterior) -> bool:
    """Whether two posteriors are the same bit for bit."""
    pairs = [(first.point, second.point), (first.tensors(), second.tensors())]
    return first.kind == second.kind and all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs
    )


def predicted(setting: Setting, q: Posterior, split: str = "test", mode: Mode = "mean") -> Prediction:
    samples = None if mode == "mean" else 4
    prediction = predict_split(setting, q, split, PredictionConfig(mode=mode, samples=samples))
    assert isinstance(prediction, Prediction)
    return prediction


def test_every_method_says_what_it_is() -> None:
    for name, method in METHODS.items():
        assert method().name == name
        assert issubclass(method, options_of(name))
        assert [f.name for f in fields(method)] == [f.name for f in fields(options_of(name))]


def test_it_learns_at_the_point_and_in_every_other_mode(result: Result) -> None:
    for mode in modes_of(result.posterior):
        prediction = predicted(result.setting, result.posterior, mode=mode)
        accuracy = (prediction.probs.argmax(1) == prediction.labels).double().mean()
        own = mode in ("mean", modes_of(result.posterior)[-1])  # the linearised model's posterior is not the model's
        assert accuracy > (0.9 if own else 0.5), mode  # chance is 0.5
        assert prediction.mode == mode
        assert (prediction.num_draws > 1) == (mode != "mean")


def test_it_costs_what_it_says(result: Result) -> None:
    costs = result.method.costs()
    weights = sum(mean.numel() for mean in result.posterior.point.values())
    assert result.passes == (result.setting.config.max_steps or 0) * costs.passes
    saved = max(result.folder.glob("checkpoints/**/optimizer.pt"))
    states = [value for entry in torch.load(saved)["state"].values() for value in entry.values()]
    kept = sum(value.numel() for value in states if isinstance(value, Tensor) and value.numel() > 1)
    assert kept / weights == pytest.approx(costs.states, rel=0.03)
    if costs.adapters is not None:
        stored = sum(tensor.numel() for tensor in result.posterior.tensors().values())
        assert stored == pytest.approx((costs.adapters - 1) * weights, rel=1e-3, abs=1)  # a dropout rate is one number


def test_the_base_weights_are_untouched(result: Result) -> None:
    after = frozen(result.setting)
    assert after.keys() == result.frozen_before.keys()
    assert all(torch.equal(after[name], before) for name, before in result.frozen_before.items())


def test_the_posterior_is_the_kind_that_the_method_promises(result: Result) -> None:
    q = result.posterior
    assert q.meta.method == result.method.name
    assert q.meta.num_examples == 32
    assert q.meta.readout is not None
    assert all("lora_" in key for key in q.point)
    assert all(torch.isfinite(m).all() for m in q.point.values())
    assert type(q) is KIND[result.method.name]


def test_the_variance_is_finite_and_somewhere_positive(result: Result) -> None:
    q = result.posterior
    if isinstance(q, DropoutMasks):
        with pytest.raises(NotAWeightSampleError):
            _ = q.variance
        return
    assert all(torch.isfinite(v).all() and (v >= 0).all() for v in q.variance.values())
    assert any((v > 0).any() for v in q.variance.values()) == (not isinstance(q, PointMass))


def test_pruning_works_or_says_why_not(result: Result) -> None:
    q = result.posterior
    if isinstance(q, (PointMass, Mixture, DropoutMasks)):
        with pytest.raises((PointMassError, NotAWeightSampleError)):
            prune(q, 0.2)
        pruned = prune(q, 0.2, by="magnitude")
    else:
        pruned = prune(q, 0.2)
        entries = pruned.meta.history[-1]["entries"]
        assert entries > 0
        zero = sum(int(((v == 0) & (pruned.mean[key] == 0)).sum()) for key, v in pruned.variance.items())
        before = sum(int(((v == 0) & (q.mean[key] == 0)).sum()) for key, v in q.variance.items())
        assert zero == max(entries, before)
        draw = pruned.sample(torch.Generator().manual_seed(0))
        assert sum(int((tensor == 0).sum()) for tensor in draw.values()) >= entries
    assert pruned.kind == q.kind
    assert predicted(result.setting, pruned, mode=modes_of(pruned)[-1]).probs.isfinite().all()


def test_tempering_scales_the_variance_or_says_why_not(result: Result) -> None:
    q = result.posterior
    if isinstance(q, (PointMass, Mixture, DropoutMasks)):
        with pytest.raises((PointMassError, NotAWeightSampleError)):
            temper(q, 2.0)
        return
    warmer = temper(q, 2.0)
    assert warmer.kind == q.kind
    for key, v in q.variance.items():
        torch.testing.assert_close(warmer.variance[key], 2 * v)
    cold = temper(q, 0.0)
    assert isinstance(cold, PointMass)
    assert all(torch.equal(cold.mean[key], m) for key, m in q.point.items())


def test_the_model_is_left_at_the_point(result: Result) -> None:
    live = {n.replace(".default", ""): p for n, p in result.setting.model.named_parameters() if p.requires_grad}
    assert live.keys() == result.posterior.point.keys()
    assert all(torch.equal(live[key].detach(), mean) for key, mean in result.posterior.point.items())


def test_another_seed_gives_other_weights(watched: Watched, tmp_path: Path) -> None:
    """That the same seed gives the same bits is a part of `test_an_interrupted_training_goes_on_bit_for_bit`."""
    setting, other = load_setting(replace(watched.result.setting.config, seed=1)), EarlyWeights()
    stop = [other, StopAfter(EARLY)]
    with pytest.raises(Stopped):
        train(setting, watched.result.method, checkpoints=tmp_path, progress=False, callbacks=stop)
    assert other.weights.keys() == watched.early.keys()
    assert not any(torch.equal(other.weights[name], p) for name, p in watched.early.items())


def test_a_saved_posterior_predicts_the_same(result: Result, tmp_path: Path) -> None:
    loaded = load_posterior(save_posterior(result.posterior, tmp_path / "q"))
    assert equal(loaded, result.posterior)
    for mode in modes_of(result.posterior):
        first, second = (predicted(result.setting, q, mode=mode) for q in (result.posterior, loaded))
        assert torch.equal(first.log_probs, second.log_probs)


def repeated(prediction: Prediction, times: int) -> Prediction:
    """The same rows several times: enough of them for a temperature, which few leave at 1."""
    log_probs, labels = prediction.log_probs.repeat(times, 1, 1), prediction.labels.repeat(times)
    return replace(prediction, log_probs=log_probs, labels=labels, ids=())


def test_temperature_scaling_goes_on_top(result: Result) -> None:
    setting, q = result.setting, result.posterior
    plain = replace(q, meta=replace(q.meta, logit_temperatures={}))
    raw = {mode: predicted(setting, plain, "validation", mode) for mode in modes_of(q)}
    scaled = with_temperatures(plain, {mode: repeated(prediction, 16) for mode, prediction in raw.items()})
    assert equal(scaled, q)
    assert any(temperature != 1.0 for temperature in scaled.meta.logit_temperatures.values())
    for mode, prediction in raw.items():
        after = predicted(setting, scaled, "validation", mode)
        assert after.logit_temperature == scaled.meta.logit_temperature_of(mode)
        torch.testing.assert_close(
            after.log_probs, (prediction.log_probs / after.logit_temperature).log_softmax(-1), rtol=1e-9, atol=1e-9
        )


@pytest.mark.parametrize("name", ["adamw", "ensemble", "laplace", "mc_dropout", "temperature", "tfb"])
def test_early_stopping_keeps_the_best_checkpoint(name: str, model_folder: str, tmp_path: Path) -> None:
    """Of the methods that AdamW trains; the others have tests of their own."""
    wrong = [{**row, "label": "negative" if row["label"] == "positive" else "positive"} for row in herds(8)]
    validation = write_rows(tmp_path / "wrong.jsonl", wrong)  # the more is learned, the worse
    options = {"early_stopping": True, "eval_steps": 3, "max_steps": 9, "validation_file": validation}
    stopped = trained(tmp_path, model_folder, name, **options)
    folder = tmp_path / "checkpoints" / ("member-0" if name == "ensemble" else "")
    log = [entry for entry in stopped.log if entry.get("member", 0) == 0]
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    best = min(losses, key=losses.__getitem__)
    assert list(losses) == [3, 6, 9]
    assert best < 9, "this test needs a best step before the last"
    kept = load_file(folder / f"checkpoint-{best}" / "adapter_model.safetensors")
    point = stopped.posterior.point
    assert kept.keys() == point.keys()
    if name == "tfb":  # another way to write the same product
        kept, point = ({k: t[k.replace("_A", "_B")] @ t[k] for k in t if "lora_A" in k} for t in (kept, dict(point)))
    for key, tensor in kept.items():
        torch.testing.assert_close(point[key], tensor)


@pytest.mark.parametrize("name", sorted(LEARNED))
def test_it_learns_a_classification_head_too(name: str, encoder_folder: str, tmp_path: Path) -> None:
    result = trained(tmp_path / name, encoder_folder, name, max_steps=60, lora_target_modules="query,value")
    assert any("classifier" in key for key in result.posterior.point)
    for mode in modes_of(result.posterior):
        prediction = predicted(result.setting, result.posterior, mode=mode)
        if mode in ("mean", modes_of(result.posterior)[-1]):  # the linearised model's posterior is not the model's
            assert (prediction.probs.argmax(1) == prediction.labels).double().mean() > 0.9, mode


@pytest.mark.parametrize("name", NO_NOISE_IN_TRAINING)
def test_micro_batches_make_the_same_steps_as_the_whole_batch(name: str, model_folder: str, tmp_path: Path) -> None:
    """To rounding; what adds noise in training takes a new draw for each (tests of the noise, of BLoB)."""
    options = {"lora_dropout": 0.0, "max_steps": 4, **({"snapshots": 2} if name == "swag" else {})}
    whole = trained(tmp_path / "whole", model_folder, name, per_device_train_batch_size=8, **options).posterior
    cut = trained(
        tmp_path / "cut",
        model_folder,
        name,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        **options,
    ).posterior
    key = next(key for key in whole.point if "lora_B" in key)
    torch.testing.assert_close(cut.point[key], whole.point[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["adamw", "blob", "ivon", "laplace", "scalabl", "swag", "tfb"])
def test_a_bfloat16_base_has_an_adapter_in_float32(name: str, model_folder: str, tmp_path: Path) -> None:
    """Of the methods that compute with the weights; the others train as AdamW does."""
    result = trained(tmp_path, model_for(name, model_folder), name, dtype="bfloat16")
    assert all(before.dtype == torch.bfloat16 for before in result.frozen_before.values() if before.ndim > 1)
    assert all(m.dtype == torch.float32 for m in result.posterior.point.values())
    for mode in modes_of(result.posterior):
        prediction = predicted(result.setting, result.posterior, mode=mode)
        own = mode in ("mean", modes_of(result.posterior)[-1])
        assert (prediction.probs.argmax(1) == prediction.labels).double().mean() > (0.9 if own else 0.5), mode


def test_an_interrupted_training_goes_on_bit_for_bit(watched: Watched) -> None:
    result, steps = watched.result, list[int]()

    class Steps(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            steps.append(state.global_step)

    setting, options = load_setting(result.setting.config), {"progress": False, "callbacks": [Steps()]}
    resumed = train(setting, result.method, checkpoints=watched.killed, resume=True, **options)  # type: ignore[arg-type]
    assert steps == list(range(KILLED, (setting.config.max_steps or 0) + 1))
    assert equal(resumed.posterior, result.posterior)


def test_a_calibrated_temperature_divides_the_logits(model_folder: str, tmp_path: Path) -> None:
    result = trained(tmp_path, model_folder, "temperature", max_steps=2)
    setting = result.setting
    q = replace(result.posterior, meta=replace(result.posterior.meta, logit_temperatures={"mean": 2.0}))
    assert setting.readout is not None
    batches = list(setting.batches(setting.encoded("test")))
    raw = predict(setting.model, q, batches, 0, readout=setting.readout, logit_temperature=1.0).log_probs
    halved = predict(setting.model, q, batches, 0, readout=setting.readout).log_probs
    torch.testing.assert_close(halved, (raw / 2).log_softmax(-1))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adamw", {"ess": 1e5}, r"method 'adamw' has no option ess; it has label_smoothing, learning_rate"),
        ("temperature", {"draws": 2, "prior": "fixed"}, r"'temperature' has no option draws, prior"),
        ("adamw", {"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ("adamw", {"weight_decay": -0.1}, "weight_decay is -0.1; it must be at least 0"),
        ("ivon", {"learning_rate": -1.0}, "learning_rate is -1.0; it must be positive"),
        ("ivon", {"beta1": 1.0}, r"beta1 is 1.0; it must be in \[0, 1\)"),
        ("ivon", {"ess": 0.0}, "ess is 0.0; it must be positive"),
        ("ivon", {"recipe": "cong2026"}, "recipe is 'cong2026'; it must be one of 'auto', 'cong2024', 'cong2025'"),
        ("ivon", {"clip_radius": 1e-3}, r"clip_radius=0.001, which has no effect with update='adam'"),
        ("ivon", {"draws": 0}, "draws is 0; it must be at least 1"),
        ("ivon", {"prior": "movement"}, "prior is 'movement', of an older version: .* replaced by variance='fit'"),
        ("ivon", {"prior_width": 3.0}, "prior_width is 3.0, of an older version: .* replaced by variance='fit'"),
        ("ivon", {"prior": "learned"}, "prior is 'learned'; it must be one of 'fixed', 'adaptive'"),
    ],
)
def test_options_that_do_not_fit_are_refused_at_once(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        checked_options(name, options)


def test_options_left_open_keep_their_defaults() -> None:
    everything = {f.name: None for f in fields(Ivon)}
    assert checked_options("ivon", everything) == {}
    assert checked_options("adamw", {"ess": None, "learning_rate": 1e-3}) == {"learning_rate": 1e-3}


def test_ivons_learning_rate_is_adamws_or_the_recipes() -> None:
    assert Ivon().config.lr == AdamW().learning_rate
    assert Ivon(learning_rate=1e-3).config.lr == 1e-3
    published = Ivon(recipe="cong2024", beta1=0.5).config
    assert (published.lr, published.betas) == (0.03, (0.5, 0.99999))
    assert published == replace(IVONConfig(recipe="cong2024").resolved(), betas=(0.5, 0.99999))


@pytest.mark.parametrize("recipe", ["cong2024", "cong2025"])
def test_the_published_recipes_of_ivon_learn_too(recipe: str, model_folder: str, tmp_path: Path) -> None:
    result = trained(tmp_path, model_folder, "ivon", recipe=recipe, learning_rate=20.0, ess=1e5, max_steps=60)
    for mode in modes_of(result.posterior):
        prediction = predicted(result.setting, result.posterior, mode=mode)
        assert (prediction.probs.argmax(1) == prediction.labels).double().mean() > 0.9, mode


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
    assert LEARNED.keys() == METHODS.keys() - {"zero_shot"}  # which has tests of its own
