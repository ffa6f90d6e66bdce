"""BLoB and ScalaBL trained by the Trainer: resume, best checkpoint, and what they leave on the model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import TrainingArguments, default_data_collator, set_seed

from models import lora, tiny_llama
from small_runs import StopAfter, Stopped
from varlora.adapters import trained_tensors
from varlora.methods.blob import Blob
from varlora.methods.mean_field import MeanField
from varlora.methods.mean_field_optimizer import MeanFieldAdamW
from varlora.methods.method import Fit, Job
from varlora.methods.random_factors import release
from varlora.methods.scalabl import Scalabl
from varlora.posterior import DiagonalGaussian, LowRankGaussian, Posterior

# Constants with which a few steps change the standard deviations a good deal.
METHODS: dict[str, MeanField] = {
    "blob": Blob(learning_rate=0.02, kl_learning_rate=1e-3, initial_std_bound=0.2),
    "scalabl": Scalabl(learning_rate=0.02, kl_learning_rate=1e-3, initial_std_bound=0.4),
}
ROWS = Dataset.from_list(
    [
        {"input_ids": ids, "labels": ids, "attention_mask": [1] * 6}
        for ids in torch.arange(96).view(16, 6).remainder(60).tolist()
    ]
)


def job(folder: Path, *, seed: int = 3, callbacks: Any = (), resume: bool = False, **options: Any) -> Job:
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "max_steps": 6,
            "report_to": "none",
            "use_cpu": True,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "seed": seed,
            **options,
        }
    )
    set_seed(seed)
    return Job(
        model=lora(tiny_llama(), lora_dropout=0.1),
        arguments=arguments,
        train=ROWS,
        validation=ROWS,
        collate=default_data_collator,
        readout=None,
        callbacks=callbacks,
        resume=resume,
    )


def equal(first: Posterior, second: Posterior) -> bool:
    pairs = [(first.mean, second.mean), (first.variance, second.variance)]
    return all(a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a) for a, b in pairs)


@pytest.fixture(scope="module", params=sorted(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def trained(name: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, PeftModel, dict[str, Tensor]]:
    this = job(tmp_path_factory.mktemp(name))
    frozen = {n: p.detach().clone() for n, p in this.model.named_parameters() if not p.requires_grad}
    assert isinstance(this.model, PeftModel)
    return METHODS[name].fit(this), this.model, frozen


Trained = tuple[Fit, PeftModel, dict[str, Tensor]]


def test_the_posterior_is_random_in_a_alone(name: str, trained: Trained) -> None:
    q = trained[0].posterior
    assert isinstance(q, DiagonalGaussian if name == "blob" else LowRankGaussian)
    assert len(q.mean) == 8
    for key, variance in q.variance.items():
        assert bool((variance > 0).all()) == ("lora_A" in key)
        assert bool((variance == 0).all()) == ("lora_B" in key)
    assert q.meta.method == name
    assert q.meta.num_examples == len(ROWS)
    assert q.meta.ess is None
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["steps"] == 6
    assert q.meta.diagnostics["kl_cycle"] == int(100 * 16 ** (math.pi / 8) / 4)


def test_the_standard_deviations_were_trained(name: str, trained: Trained, tmp_path: Path) -> None:
    start = METHODS[name].random_factors(job(tmp_path).model, seed=3).std()
    assert len(start) == 4
    for key, before in start.items():
        variance = trained[0].posterior.variance[key]
        after = (variance if name == "blob" else variance.sum(1, keepdim=True)).double().sqrt()
        assert ((after / before) - 1).abs().median() > 0.03


def test_the_model_is_left_at_the_mean_as_any_lora_model(trained: Trained) -> None:
    fit, model, frozen = trained
    live = trained_tensors(model)
    assert live.keys() == fit.posterior.mean.keys()
    assert all(torch.equal(live[key].detach(), mean) for key, mean in fit.posterior.mean.items())
    assert all(torch.equal(model.get_parameter(n), before) for n, before in frozen.items())
    assert not any("sqrt_std" in n for n in model.state_dict())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_same_seed_gives_the_same_bits(name: str, trained: Trained, tmp_path: Path) -> None:
    assert equal(METHODS[name].fit(job(tmp_path / "same")).posterior, trained[0].posterior)
    assert not equal(METHODS[name].fit(job(tmp_path / "other", seed=4)).posterior, trained[0].posterior)


def test_an_interrupted_training_goes_on_bit_for_bit(name: str, trained: Trained, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 2}
    stopped = job(tmp_path, callbacks=[StopAfter(3)], **saving)
    with pytest.raises(Stopped):
        METHODS[name].fit(stopped)
    assert not any("sqrt_std" in n for n in stopped.model.state_dict())
    resumed = METHODS[name].fit(job(tmp_path, resume=True, **saving))
    assert equal(resumed.posterior, trained[0].posterior)


def test_a_model_whose_training_broke_off_can_be_fitted_again(name: str, tmp_path: Path) -> None:
    this = job(tmp_path)
    METHODS[name].trainer(this)  # never trained
    other = METHODS["scalabl" if name == "blob" else "blob"]
    q = other.fit(this).posterior
    assert trained_tensors(this.model).keys() == q.mean.keys()


def test_the_best_checkpoint_brings_its_own_standard_deviations(name: str, tmp_path: Path) -> None:
    options = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    this = job(tmp_path, **options)
    method = METHODS[name]
    trainer = method.trainer(this)
    losses = iter([1.0, 3.0, 2.0])  # so the best is the first
    evaluate = trainer.evaluate
    trainer.evaluate = lambda *a, **k: {**evaluate(*a, **k), "eval_loss": next(losses)}  # type: ignore[method-assign]
    this.run(trainer)
    std = trainer.factors.std()  # type: ignore[attr-defined]
    release(this.model)
    adapters = {step: load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (2, 6)}
    for key, value in std.items():
        saved = {step: a[key.replace("weight", "sqrt_std")].double().square() for step, a in adapters.items()}
        assert torch.equal(value, saved[2])
        assert not torch.equal(value, saved[6])


def test_accumulation_counts_as_one_batch(name: str, tmp_path: Path) -> None:
    q = METHODS[name].fit(job(tmp_path, gradient_accumulation_steps=2, max_steps=2)).posterior
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["kl_cycle"] == int(100 * 16 ** (math.pi / 8) / 8)
    assert q.meta.diagnostics["steps"] == 2


@pytest.mark.parametrize(("given", "used"), [(0, 6), (40, 40)])
def test_the_warm_up_is_six_percent_unless_given(name: str, tmp_path: Path, given: int, used: int) -> None:
    this = job(tmp_path, warmup_steps=given)
    trainer = METHODS[name].trainer(this)
    trainer.create_optimizer_and_scheduler(100)
    assert isinstance(trainer.optimizer, MeanFieldAdamW)
    rates = []
    for _ in range(used + 1):
        rates.append(trainer.optimizer.param_groups[0]["lr"])
        trainer.optimizer.step()
        trainer.lr_scheduler.step()  # type: ignore[union-attr]
    assert rates == pytest.approx([0.02 * t / used for t in range(used + 1)])


@pytest.mark.parametrize("steps", [73, 74])
def test_a_run_that_ends_before_the_kl_counts_is_warned_of(
    name: str, tmp_path: Path, steps: int, caplog: pytest.LogCaptureFixture
) -> None:
    METHODS[name].trainer(job(tmp_path)).create_optimizer_and_scheduler(steps)
    assert ("less than one cycle of the KL's weights (74 steps)" in caplog.text) == (steps < 74)


def test_plain_bayes_has_lambda_n(name: str, tmp_path: Path) -> None:
    method = type(METHODS[name])(kl_reweighting=False)
    q = method.fit(job(tmp_path, max_steps=2)).posterior
    assert q.meta.ess == len(ROWS)
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["kl_cycle"] is None


def test_a_model_split_over_processes_is_refused(name: str, tmp_path: Path) -> None:
    this = job(tmp_path)
    this.arguments.deepspeed = "ds.json"
    with pytest.raises(ValueError, match=rf"method '{name}' needs the whole model in one process per GPU"):
        METHODS[name].fit(this)
    assert not any("sqrt_std" in n for n in this.model.state_dict())
