"""TFB: the rotation leaves the function alone, and the noise is the largest that the anchor set bears."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from models import lora, tiny_bert_classifier, tiny_llama, token_ids
from small_runs import KeepKilled, config, save_model
from varlora.adapters import adapter_config, factor_keys, fixed_tensors, load_into, trained_tensors
from varlora.methods.adamw import AdamW
from varlora.methods.method import Job
from varlora.methods.tfb import LARGEST_SCALE, NoScaleError, Tfb, largest_satisfying, rotate
from varlora.posterior import DiagonalGaussian, PointMass, PosteriorMeta
from varlora.prediction.prediction import predict
from varlora.runs.run import train
from varlora.runs.setting import Setting, load_setting

ORACLE = json.loads((Path(__file__).parents[1] / "data" / "tfb.json").read_text(encoding="utf-8"))["tfb"]
A, B = "q.lora_A.weight", "q.lora_B.weight"


def product(tensors: Any, a: str = A, b: str = B) -> Tensor:
    return tensors[b].double() @ tensors[a].double()


# The rotation ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ORACLE, ids=[f"rank-{len(c['D'])}" for c in ORACLE])
def test_the_rotation_and_its_deviations_agree_with_high_precision_numbers(case: dict[str, Any]) -> None:
    expected = {n: torch.tensor(v, dtype=torch.float64) for n, v in case.items()}
    rotated = rotate({A: expected["A"], B: expected["B"]}, [(A, B)])
    torch.testing.assert_close(rotated.singular_values[A], expected["D"], rtol=1e-9, atol=0)
    torch.testing.assert_close(rotated.mean[A].abs(), expected["abs_A"], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(rotated.mean[B].abs(), expected["abs_B"], rtol=1e-8, atol=1e-11)
    torch.testing.assert_close(product(rotated.mean), expected["product"], rtol=1e-9, atol=1e-12)

    q = rotated.gaussian(case["sigma_q"], PosteriorMeta())
    sd = expected["sd"].float()[:, None].expand_as(q.mean[A])
    torch.testing.assert_close(q.variance[A].sqrt(), sd, rtol=1e-6, atol=0)
    assert not q.variance[B].any()
    # Var (B' A')_oj = Σ_k B'_ok² Var A'_kj, the same in every column j.
    delta_w = (q.mean[B].square() @ q.variance[A].double()).sqrt()
    torch.testing.assert_close(delta_w, expected["delta_w_sd"][:, None].expand_as(delta_w), rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(6, 4, 5), (3, 4, 5)], ids=["tall B", "wide B"])
def test_ranks_without_effect_become_exactly_zero_and_known(shape: tuple[int, int, int]) -> None:
    out, rank, width = shape
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(out, 2, generator=generator), torch.randn(2, rank, generator=generator)
    mean = {A: torch.randn(rank, width, generator=generator), B: left @ right}  # B has rank 2, up to rounding
    rotated = rotate(mean, [(A, B)])
    assert (rotated.singular_values[A] > 0).tolist() == [True, True, False, False]
    assert not rotated.mean[A][2:].any()
    assert not rotated.mean[B][:, 2:].any()
    torch.testing.assert_close(product(rotated.mean), product(mean), rtol=1e-5, atol=1e-6)
    q = rotated.gaussian(0.1, PosteriorMeta())
    assert torch.isinf(q.precision[A][2:]).all()
    assert torch.isfinite(q.precision[A][:2]).all()


def test_an_adapter_that_never_moved_from_zero_is_refused_one_module_of_it_is_not() -> None:
    mean = {A: torch.ones(2, 3), B: torch.zeros(4, 2)}
    with pytest.raises(ValueError, match="every lora_B is 0"):
        rotate(mean, [(A, B)])
    other = {"v.lora_A.weight": torch.ones(1, 3), "v.lora_B.weight": torch.ones(4, 1)}
    rotated = rotate({**mean, **other}, [(A, B), ("v.lora_A.weight", "v.lora_B.weight")])
    assert not rotated.mean[A].any()
    assert torch.isinf(rotated.gaussian(0.1, PosteriorMeta()).precision[A]).all()


@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True, "lora_bias": True}])
def test_a_models_function_stays_as_it_was(options: dict[str, Any]) -> None:
    model, ids = lora(tiny_llama(), **options), token_ids()
    before = model(ids).logits
    trained = trained_tensors(model)
    rotated = rotate(dict(trained), factor_keys(trained, adapter_config(model)))
    load_into(model, {key: t.detach() for key, t in rotated.mean.items()})
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=2e-6)
    assert not torch.equal(model(ids).logits, before)  # it did rotate


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)


def frozen_a() -> PeftModel:
    model = lora(tiny_llama())
    for name, parameter in model.named_parameters():
        if "layers.0.self_attn.q_proj.lora_A" in name:
            parameter.requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lora(tiny_llama(), target_modules=["embed_tokens"]), "lora_embedding_A is none. Leave embeddings"),
        (lambda: get_peft_model(Convolution(), LoraConfig(r=2, target_modules=["conv"])), "conv.lora_A.weight is none"),
        (
            frozen_a,
            r"A and B have to train together, but of .*layers.0.*q_proj.lora_B.weight and its partner only one trains",
        ),
        (lambda: nn.Linear(2, 1), "there is no LoRA adapter that trains"),
    ],
)
def test_other_adapters_are_refused_by_name(make: Callable[[], nn.Module], message: str) -> None:
    model = make()
    with pytest.raises(ValueError, match=message):
        factor_keys(trained_tensors(model), adapter_config(model))
    with pytest.raises(ValueError, match="target_parameters"):
        factor_keys({A: torch.ones(1, 2), B: torch.ones(2, 1)}, {"target_parameters": ["experts.up"]})


# The search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [2e-6, 0.0004, 0.0099, 0.01, 0.0101, 0.019, 0.3, 9.7])
@pytest.mark.parametrize("step", [0.3, 0.01])
def test_the_search_returns_the_largest_that_satisfies(limit: float, step: float) -> None:
    tried: list[float] = []

    def ok(scale: float) -> bool:
        tried.append(scale)
        return scale <= limit

    found = largest_satisfying(ok, relative_step=step)
    assert found in tried
    assert ok(found)
    assert not ok(found * (1 + step))


def test_a_condition_that_always_holds_ends_at_the_largest_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert largest_satisfying(lambda scale: True, largest=3.0) == 3.0
    assert "could grow to 3" in caplog.text


def test_a_condition_that_never_holds_is_an_error() -> None:
    with pytest.raises(NoScaleError, match=r"no sigma_q down to 1e-06 .* Raise the tolerance"):
        largest_satisfying(lambda scale: False)


# The method ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model(tmp_path_factory.mktemp("model"), layers=1)


OPTIONS: dict[str, Any] = {"learning_rate": 0.02, "anchor_examples": 12, "draws": 4}


def setting_of(folder: Path, model: str, **options: Any) -> Setting:
    return load_setting(config(folder, model, method="adamw", learning_rate=0.02, **options))


@dataclass(frozen=True)
class Fitted:
    """A setting, AdamW's posterior, TFB's from the same training, and the folder of AdamW's checkpoints."""

    setting: Setting
    point: Any
    q: Any
    folder: Path


@pytest.fixture(scope="module")
def fitted(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    folder = tmp_path_factory.mktemp("fitted")
    plain = setting_of(folder / "plain", model_folder, save_steps=10)
    checkpoints = folder / "plain" / "c"
    keep = KeepKilled(checkpoints, folder / "killed", [13])
    adamw = AdamW(learning_rate=0.02)
    point = train(plain, adamw, checkpoints=checkpoints, progress=False, callbacks=[keep]).posterior
    shutil.copytree(checkpoints, folder / "tfb")
    setting = setting_of(folder, model_folder)
    before = {n: p.detach().clone() for n, p in setting.model.named_parameters() if not p.requires_grad}
    q = train(setting, Tfb(**OPTIONS), checkpoints=folder / "tfb", resume=True, progress=False).posterior
    assert all(torch.equal(p, before[n]) for n, p in setting.model.named_parameters() if not p.requires_grad)
    return Fitted(setting, point, q, folder)


def test_the_posterior_is_adamws_point_rotated_and_the_model_holds_it(fitted: Fitted) -> None:
    setting, point, q = fitted.setting, fitted.point, fitted.q
    assert isinstance(q, DiagonalGaussian)
    assert q.meta.method == "tfb"
    pairs = factor_keys(trained_tensors(setting.model), adapter_config(setting.model))
    for a, b in pairs:
        torch.testing.assert_close(product(q.mean, a, b), product(point.mean, a, b), rtol=1e-4, atol=1e-6)
        values = torch.linalg.svdvals(point.mean[b].double())
        kept = values > 1e-4 * values[0]
        sd = (q.meta.diagnostics["sigma_q"] / values[kept]).float()[:, None].expand_as(q.mean[a][kept])
        torch.testing.assert_close(q.variance[a][kept].sqrt(), sd, rtol=1e-4, atol=0)
        assert not q.variance[b].any()
    live = trained_tensors(setting.model)
    assert live.keys() | fixed_tensors(setting.model).keys() == q.mean.keys()
    assert all(torch.equal(live[key], q.mean[key]) for key in live)


def test_sigma_q_satisfies_the_condition_on_the_anchor_set_and_the_next_larger_does_not(
    fitted: Fitted,
) -> None:
    setting, point, q = fitted.setting, fitted.point, fitted.q
    assert setting.readout is not None
    # By hand, from the posterior alone: the anchor set of seed 0, AdamW's own answers as labels.
    rows = setting.encoded("train")
    chosen = sorted(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:12].tolist())
    batches = list(setting.batches(rows.select(chosen)))
    own = predict(setting.model, point, batches, 0, readout=setting.readout).probs
    labels = own.argmax(1, keepdim=True)
    nll_at_mean = -own.gather(1, labels).log().mean().item()

    def change(variance_factor: float) -> float:
        scaled = q if variance_factor == 1 else q.scaled(variance_factor, q.meta)
        probs = predict(setting.model, scaled, batches, 4, readout=setting.readout, seed=1).probs
        return abs(-probs.gather(1, labels).log().mean().item() - nll_at_mean) / nll_at_mean

    assert q.meta.diagnostics["nll_at_mean"] == pytest.approx(nll_at_mean, rel=1e-4)
    assert change(1.0) <= 0.003 + 1e-4  # the mean was rotated: equal up to float32
    assert change(1.05**2 * 1.01) > 0.003
    recorded = dict(map(tuple, q.meta.diagnostics["tried"]))
    assert abs(recorded[q.meta.diagnostics["sigma_q"]] / q.meta.diagnostics["nll_at_mean"] - 1) <= 0.003
    assert q.meta.diagnostics["anchor_examples"] == 12


def test_a_larger_tolerance_gives_more_noise(fitted: Fitted, model_folder: str, tmp_path: Path) -> None:
    setting, checkpoints = setting_of(tmp_path, model_folder), tmp_path / "c"
    shutil.copytree(fitted.folder / "plain" / "c", checkpoints)
    wide = train(setting, Tfb(**OPTIONS, tolerance=0.3), checkpoints=checkpoints, resume=True, progress=False).posterior
    assert wide.meta.diagnostics["sigma_q"] > 1.5 * fitted.q.meta.diagnostics["sigma_q"]


def test_an_interrupted_training_ends_in_the_same_bits(fitted: Fitted, model_folder: str, tmp_path: Path) -> None:
    setting, checkpoints = setting_of(tmp_path, model_folder), fitted.folder / "killed" / "13"
    q = train(setting, Tfb(**OPTIONS), checkpoints=checkpoints, resume=True, progress=False).posterior
    assert isinstance(q, DiagonalGaussian)
    for key, mean in fitted.q.mean.items():
        assert torch.equal(q.mean[key], mean)
        assert torch.equal(q.precision[key], fitted.q.precision[key])


def test_nothing_is_trained_before_a_job_that_does_not_fit_is_refused(model_folder: str, tmp_path: Path) -> None:
    class WithoutReadout(Tfb):
        def fit(self, job: Job) -> Any:
            return super().fit(replace(job, readout=None))

    setting = setting_of(tmp_path, model_folder)
    with pytest.raises(ValueError, match="completions have none"):
        train(setting, WithoutReadout(), checkpoints=tmp_path / "c", progress=False)
    for name, parameter in setting.model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="only one trains"):
        train(setting, Tfb(), checkpoints=tmp_path / "c", progress=False)
    assert not list((tmp_path / "c").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, "tolerance is 0.0; it must be positive"),
        ({"tolerance": math.nan}, "tolerance is nan; it must be positive"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"anchor_examples": 1.5}, "anchor_examples is 1.5; it must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tfb(**options)


def test_a_point_mass_and_a_head_in_full_are_kept_exactly() -> None:
    model = lora(tiny_bert_classifier(), target_modules=["query"], modules_to_save=["classifier"])
    trained = trained_tensors(model)
    mean = PointMass(mean=dict(trained)).mean
    rotated = rotate(mean, factor_keys(trained, adapter_config(model)))
    q = rotated.gaussian(0.1, PosteriorMeta())
    head = [key for key in mean if "classifier" in key]
    assert len(head) == 2
    for key in head:
        assert torch.equal(q.mean[key], mean[key])
        assert torch.isinf(q.precision[key]).all()


def test_a_module_too_small_for_float32_has_no_effect() -> None:
    mean = {A: torch.ones(1, 2), B: torch.full((3, 1), 1e-25), A.replace("q", "v"): torch.ones(1, 2)}
    mean[B.replace("q", "v")] = torch.ones(3, 1)
    rotated = rotate(mean, [(A, B), (A.replace("q", "v"), B.replace("q", "v"))])
    assert not rotated.singular_values[A].any()
    q = rotated.gaussian(LARGEST_SCALE, PosteriorMeta())
    assert bool((q.variance[A] == 0).all())
    assert bool((q.variance[A.replace("q", "v")] > 0).all())
