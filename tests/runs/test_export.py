"""A posterior as plain adapters: what PEFT alone makes of them, averaged, is the posterior's prediction."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from varlora import DiagonalGaussian, DropoutMasks, Export, export_adapters, load_posterior, predict
from varlora.posterior import Posterior, PosteriorMeta, PredictionConfig
from varlora.posterior.folder import MANIFEST as POSTERIOR
from varlora.prediction.prediction_setup import remove_tuning
from varlora.readout.readout import readout_from_dict
from varlora.runs.export_folder import ExportedAdapter
from varlora.runs.export_text import export_readme
from varlora.runs.folder import EXPORT, read_run
from varlora.runs.setting import Setting, reload_setting

PROMPTS = 12


@pytest.fixture(scope="module")
def setting(trained: Path) -> Setting:
    run = read_run(trained)
    return reload_setting(run)


@pytest.fixture(scope="module")
def q(trained: Path) -> Posterior:
    return load_posterior(trained)


def batches(setting: Setting) -> list[dict[str, Tensor]]:
    return list(setting.batches(setting.encoded("test").select(range(PROMPTS))))


def by_peft_alone(export: Export, folder: Path, setting: Setting) -> Tensor:
    """Averaged probabilities (N, C): each adapter is loaded by PEFT onto the base model, and asked."""
    readout, average = readout_from_dict(export.readout or {}), torch.zeros(PROMPTS, 2, dtype=torch.float64)
    for adapter in export.adapters:
        base = AutoModelForCausalLM.from_pretrained(export.base_model)
        model = PeftModel.from_pretrained(base, str(folder / adapter.name)).eval()
        with torch.no_grad():
            logits = torch.cat([readout.logits(model, batch) for batch in batches(setting)]).double()
        average += adapter.weight * torch.softmax(logits / export.logit_temperature, dim=-1)
    return average


def predicted(setting: Setting, q: Posterior, samples: int | None, seed: int) -> Tensor:
    assert setting.readout is not None
    return predict(setting.model, q, batches(setting), samples, readout=setting.readout, seed=seed).probs


@pytest.mark.parametrize(
    "tuned",
    [
        None,
        PredictionConfig(temperature=4, samples=3, logit_temperature=1.7, prune=0.2),
        PredictionConfig(mode="mean", logit_temperature=0.6),
    ],
)
def test_the_average_of_the_adapters_is_the_prediction(
    setting: Setting, q: Posterior, tuned: PredictionConfig | None, tmp_path: Path
) -> None:
    meta = PosteriorMeta.from_dict({**remove_tuning(q).meta.to_dict(), "tuned": tuned and tuned.to_dict()})
    assert isinstance(q, DiagonalGaussian)
    q = DiagonalGaussian(mean=q.mean, precision={key: p / 30 for key, p in q.precision.items()}, meta=meta)
    samples = 3 if tuned is None else None

    export = export_adapters(q, tmp_path / "out", samples=samples, seed=5)

    assert len(export.adapters) == (1 if tuned and tuned.mode == "mean" else 3)
    found = by_peft_alone(export, tmp_path / "out", setting)
    assert torch.allclose(found, predicted(setting, q, samples, 5), atol=1e-6)
    if len(export.adapters) > 1:
        assert not torch.allclose(found, predicted(setting, q, 0, 5), atol=1e-3)


def test_names_follow_the_weights(q: Posterior, trained: Path, tmp_path: Path) -> None:
    first = export_adapters(q, tmp_path / "arc", samples=2, source=trained)
    again = export_adapters(q, tmp_path / "other" / "arc", samples=2)
    more = export_adapters(q, tmp_path / "more", samples=4, name="arc")
    others = export_adapters(q, tmp_path / "others", samples=2, seed=1, name="arc")

    names = [adapter.name for adapter in first.adapters]
    assert names == [adapter.name for adapter in again.adapters] == [adapter.name for adapter in more.adapters[:2]]
    assert not set(names) & {adapter.name for adapter in others.adapters}
    assert all(name.startswith(f"arc-draw0{i}-") for i, name in enumerate(names))
    assert Export.load(tmp_path / "arc") == first
    written = {path.name for path in (tmp_path / "arc").iterdir()}
    assert written >= {*names, EXPORT, "README.md", "config.yaml", "run.json", "tokenizer.json"}
    assert POSTERIOR not in written
    page = (tmp_path / "arc" / "README.md").read_text()
    assert "--max-loras 2 --max-cpu-loras 2 --max-lora-rank 8" in page
    assert all(f"{name}=./{name}" in page for name in names)
    page = export_readme(dataclasses.replace(first, rank=12), name="arc")
    assert "--max-cpu-loras 2 --max-lora-rank 16" in page, "vLLM takes certain ranks alone"
    assert "--max-loras-per-batch 2 \\\n  --max-lora-rank 12 " in page


def test_the_mean_is_one_adapter(q: Posterior, tmp_path: Path) -> None:
    export = export_adapters(q, tmp_path / "mean", samples=0)

    assert (export.mode, export.seed, len(export.adapters)) == ("mean", None, 1)
    assert export.adapters[0].name.startswith("mean-mean-")


def test_an_export_is_replaced_and_nothing_else(q: Posterior, tmp_path: Path) -> None:
    target = tmp_path / "out"
    export_adapters(q, target, samples=2)
    with pytest.raises(ValueError, match="is not empty"):
        export_adapters(q, target, samples=3)
    assert len(export_adapters(q, target, samples=3, overwrite=True).adapters) == 3
    assert sum(path.is_dir() for path in target.iterdir()) == 3
    (target / EXPORT).unlink()
    with pytest.raises(ValueError, match=f"holds no {EXPORT}"):
        export_adapters(q, target, overwrite=True)
    with pytest.raises(ValueError, match="is no export"):
        Export.load(target)


def test_what_has_no_draws_of_weights_is_refused(q: Posterior, tmp_path: Path) -> None:
    masks = DropoutMasks(mean=q.point, rate=0.1, meta=remove_tuning(q).meta)
    with pytest.raises(ValueError, match="no draw of the weights"):
        export_adapters(masks, tmp_path / "out", samples=2)
    assert not (tmp_path / "out").exists()
    assert len(export_adapters(masks, tmp_path / "out", samples=0).adapters) == 1

    meta = PosteriorMeta.from_dict({**remove_tuning(q).meta.to_dict(), "linearised": True})
    assert isinstance(q, DiagonalGaussian)
    linearised = DiagonalGaussian(mean=q.mean, precision=q.precision, meta=meta)
    with pytest.raises(ValueError, match="draws are logits and no weights"):
        export_adapters(linearised, tmp_path / "linearised", samples=2)
    plain = DiagonalGaussian(mean={"w": torch.zeros(1)}, precision={"w": torch.ones(1)})
    with pytest.raises(ValueError, match="of a plain module"):
        export_adapters(plain, tmp_path / "plain", samples=2)


def test_what_servers_do_not_load_is_said(q: Posterior, tmp_path: Path) -> None:
    config = {**(q.meta.adapter_config or {}), "modules_to_save": ["score"], "rank_pattern": {"q_proj": 24}}
    meta = PosteriorMeta.from_dict({**remove_tuning(q).meta.to_dict(), "adapter_config": config})
    assert isinstance(q, DiagonalGaussian)
    head = DiagonalGaussian(mean=q.mean, precision=q.precision, meta=meta)

    export = export_adapters(head, tmp_path / "head", samples=2)

    assert (export.rank, export.not_plain) == (24, ("modules_to_save (score)",))
    page = (tmp_path / "head" / "README.md").read_text()
    assert "vLLM and SGLang do not load these adapters" in page
    assert "vllm serve" not in page


@pytest.mark.parametrize(("change", "told"), [({"format_version": 2}, "of format 2"), ({"rank": None}, "damaged")])
def test_a_manifest_that_is_another_is_refused(
    q: Posterior, tmp_path: Path, change: dict[str, object], told: str
) -> None:
    export_adapters(q, tmp_path / "out", samples=1)
    file = tmp_path / "out" / EXPORT
    values = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in values.items() if value is not None or key != "rank"}))
    with pytest.raises(ValueError, match=told):
        Export.load(tmp_path / "out")


def test_a_manifest_may_leave_out_what_has_a_default_and_hold_what_is_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_hand = {"kind": "merged", "base_model": "m", "mode": "mean", "rank": 8, "logit_temperature": 1.5}
    (tmp_path / EXPORT).write_text(json.dumps({**by_hand, "shards": 4, "engine": "later"}))
    export = Export.load(tmp_path)
    assert export == Export(**by_hand, version="unknown")  # type: ignore[arg-type]
    assert "does not know: shards, engine" in caplog.text
    adapter = {"name": "a", "sha256": "0", "weight": 1.0, "device": "later"}
    (tmp_path / EXPORT).write_text(json.dumps({**by_hand, "adapters": [adapter]}))
    assert Export.load(tmp_path).adapters == (ExportedAdapter(name="a", sha256="0", weight=1.0),)
    assert "does not know: adapters[0].device" in caplog.text
    (tmp_path / EXPORT).write_text(json.dumps({"kind": "merged", "base_model": "m", "mode": "mean", "rank": 8}))
    with pytest.raises(ValueError, match=r"damaged \(it lacks 'logit_temperature'.*Export anew"):
        Export.load(tmp_path)
