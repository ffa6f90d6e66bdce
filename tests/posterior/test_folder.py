"""The posterior folder: what is written, that PEFT reads it, and that nothing unsound is ever loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import Qwen3ForCausalLM, Trainer, TrainingArguments

from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3, token_ids
from varlora.adapters import base_model_of, trained_tensors
from varlora.io.folders import FolderExistsError, atomic_folder
from varlora.ivon import IVON
from varlora.ivon.noise import NoiseController
from varlora.ivon.trainer_checkpoint import posterior_from_checkpoint
from varlora.posterior import DiagonalGaussian, PointMass, PosteriorMeta, point_mass_of, posterior_of
from varlora.posterior.folder import (
    CheckpointError,
    load_posterior,
    save_posterior,
    write_posterior_files,
)
from varlora.posterior.ops import prune, temper

ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "posterior.json", "posterior.safetensors"}


def plain(**meta: Any) -> DiagonalGaussian:
    return DiagonalGaussian(
        mean={"b": torch.tensor([0.5, -1.0]), "a": torch.tensor([[1.0], [2.0]])},
        precision={"a": torch.tensor([[4.0], [5.0]]), "b": torch.tensor([1e9, 1e-9])},
        meta=PosteriorMeta(**meta),
    )


def ivon(model: nn.Module, **options: Any) -> IVON:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return IVON(parameters, **{"lr": 0.1, "ess": 1e4, "hess_init": 0.1, "betas": (0.9, 0.9), **options})


def trained(model: nn.Module, optimizer: IVON, steps: int = 2) -> IVON:
    noise = NoiseController(model, optimizer, seed=0)
    model.train()
    for step in range(steps):
        ids = token_ids(seed=step)
        labels = torch.tensor([0, 1]) if hasattr(model.get_base_model(), "classifier") else ids
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    noise.detach()
    model.eval()
    return optimizer


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_same(first: PointMass | DiagonalGaussian, second: PointMass | DiagonalGaussian) -> None:
    assert type(first) is type(second)
    assert first.meta == second.meta
    for name in ("mean", "precision", "prior_mean") if isinstance(first, DiagonalGaussian) else ("mean",):
        tensors, others = getattr(first, name), getattr(second, name)
        assert list(tensors) == list(others)
        assert all(torch.equal(t, others[key]) and t.dtype == others[key].dtype for key, t in tensors.items())


# Round trips -----------------------------------------------------------------------------------------------


def test_an_adapters_posterior_comes_back_as_it_was(llama_lora: PeftModel, tmp_path: Path) -> None:
    q = posterior_of(
        llama_lora,
        trained(llama_lora, ivon(llama_lora, weight_decay=0.1)),
        num_examples=640,
        readout={"kind": "answer_tokens", "token_ids": [3, 4]},
        base_model="tiny",
        base_revision="abc",
    )
    folder = save_posterior(q, tmp_path / "new" / "posterior")
    assert contents(folder).keys() == ADAPTER_FILES
    assert_same(load_posterior(folder), q)

    written = json.loads((folder / "posterior.json").read_text())
    assert (written["format_version"], written["kind"], written["ess_over_num_examples"]) == (
        4,
        "diagonal_gaussian",
        15.625,
    )
    assert written["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert written["num_entries"] == sum(m.numel() for m in q.mean.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_plain_modules_posterior_comes_back_as_it_was(dtype: torch.dtype, tmp_path: Path) -> None:
    q = plain(method="ivon", ess=2.0, diagnostics={"x": [1, 2.5, None, "y", True]})
    q = DiagonalGaussian(
        mean={key: m.to(dtype) for key, m in q.mean.items()},
        precision={key: p.to(dtype) for key, p in q.precision.items()},
        meta=q.meta,
    )
    folder = save_posterior(q, tmp_path / "q")
    assert contents(folder).keys() == {"mean.safetensors", "posterior.json", "posterior.safetensors"}
    assert_same(load_posterior(folder), q)


def test_a_point_mass_has_no_variance_file(llama_lora: PeftModel, tmp_path: Path) -> None:
    q = point_mass_of(llama_lora, method="adamw")
    folder = save_posterior(q, tmp_path / "q")
    assert contents(folder).keys() == ADAPTER_FILES - {"posterior.safetensors"}
    assert_same(load_posterior(folder), q)


def test_pruned_and_tempered_posteriors_come_back_with_their_history(tmp_path: Path) -> None:
    q = temper(prune(plain(method="ivon"), 0.25), 2.0)
    back = load_posterior(save_posterior(q, tmp_path / "q"))
    assert_same(back, q)
    assert [step["op"] for step in back.meta.history] == ["prune", "temper"]
    assert sum(int(torch.isinf(p).sum()) for p in back.precision.values()) == 1  # type: ignore[union-attr]
    mean = temper(q, 0.0)
    assert_same(load_posterior(save_posterior(mean, tmp_path / "mean")), mean)


def test_equal_posteriors_give_equal_bytes(llama_lora: PeftModel, tmp_path: Path) -> None:
    optimizer = ivon(llama_lora)
    first = save_posterior(posterior_of(llama_lora, optimizer), tmp_path / "1")
    second = save_posterior(load_posterior(first), tmp_path / "2")
    assert contents(first) == contents(second)


def test_views_into_one_storage_are_saved(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    q = PointMass(mean={"a": flat[:6].view(2, 3).T, "b": flat[6:]})
    assert_same(load_posterior(save_posterior(q, tmp_path / "q")), q)


# PEFT without varlora --------------------------------------------------------------------------------------

VARIANTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "llama": (tiny_llama, {}),
    "dora": (tiny_llama, {"use_dora": True}),
    "rslora": (tiny_llama, {"use_rslora": True}),
    "embedding": (tiny_llama, {"target_modules": ("q_proj", "embed_tokens")}),
    "head": (tiny_bert_classifier, {"target_modules": ("query",), "task_type": "SEQ_CLS"}),
    "biases": (tiny_bert_classifier, {"target_modules": ("query",), "bias": "lora_only"}),
}


@pytest.mark.parametrize(("base", "options"), VARIANTS.values(), ids=VARIANTS.keys())
def test_peft_loads_and_merges_the_mean(base: Callable[[], Any], options: dict[str, Any], tmp_path: Path) -> None:
    model = lora(base(), **options)
    optimizer = trained(model, ivon(model))
    folder = save_posterior(posterior_of(model, optimizer), tmp_path / "q")
    expected = logits(model)
    assert (expected - logits(base())).abs().max() > 1e-3

    loaded = PeftModel.from_pretrained(base(), folder)
    assert torch.equal(logits(loaded), expected)
    torch.testing.assert_close(logits(loaded.merge_and_unload()), expected, rtol=1e-4, atol=1e-5)


def test_peft_loads_an_adapter_whose_a_was_frozen(tmp_path: Path) -> None:
    model = lora(tiny_llama())
    for name, p in model.named_parameters():
        if "lora_A" in name:
            p.requires_grad_(False)
    folder = save_posterior(posterior_of(model, trained(model, ivon(model))), tmp_path / "q")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), folder)), logits(model))
    assert all(torch.isinf(p).all() for key, p in load_posterior(folder).precision.items() if "lora_A" in key)  # type: ignore[union-attr]


# Saving over something -------------------------------------------------------------------------------------


def test_saving_over_a_folder_needs_overwrite(tmp_path: Path) -> None:
    folder = save_posterior(plain(method="old"), tmp_path / "q")
    with pytest.raises(FolderExistsError, match="--overwrite"):
        save_posterior(plain(method="new"), folder)
    assert load_posterior(folder).meta.method == "old"
    save_posterior(plain(method="new"), folder, overwrite=True)
    assert load_posterior(folder).meta.method == "new"
    assert os.listdir(tmp_path) == ["q"]


def test_a_posterior_that_went_bad_is_not_saved_over_a_good_one(tmp_path: Path) -> None:
    folder = save_posterior(plain(method="old"), tmp_path / "q")
    q = plain(method="new")
    q.precision["a"][0] = math.nan
    with pytest.raises(ValueError, match="precision of a has 1"):
        save_posterior(q, folder, overwrite=True)
    assert load_posterior(folder).meta.method == "old"
    assert os.listdir(tmp_path) == ["q"]


# Unsound folders -------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def rewrite(folder: Path, name: str, data: bytes) -> None:
    """Replaces a file and makes posterior.json agree, as a writer other than varlora might."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "posterior.json").read_text())
    manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    resign(folder, manifest)


def resign(folder: Path, manifest: dict[str, Any]) -> None:
    manifest.pop("sha256", None)
    text = json.dumps(manifest, indent=2, sort_keys=True) + "\n"
    manifest["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "posterior.json").write_text(json.dumps(manifest))


def tensors(path: Path, **changes: torch.Tensor | None) -> bytes:
    changed = {**safetensors.torch.load_file(path), **changes}
    return safetensors.torch.save({key: t for key, t in changed.items() if t is not None})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 4
    path.write_bytes(bytes(data))


def edit(folder: Path, **changes: Any) -> None:
    resign(folder, {**json.loads((folder / "posterior.json").read_text()), **changes})


def swap(folder: Path) -> None:
    mean, precision = contents(folder)["mean.safetensors"], contents(folder)["posterior.safetensors"]
    (folder / "mean.safetensors").write_bytes(precision)
    (folder / "posterior.safetensors").write_bytes(mean)


NAN = torch.tensor([[4.0], [math.nan]])
UNSOUND: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "truncated mean": (lambda f: truncate(f / "mean.safetensors"), "mean.safetensors", "is truncated: .* bytes of"),
    "truncated variance": (lambda f: truncate(f / "posterior.safetensors"), "posterior.safetensors", "is truncated"),
    "empty variance": (lambda f: (f / "posterior.safetensors").write_bytes(b""), "posterior.safetensors", "truncated"),
    "truncated manifest": (lambda f: truncate(f / "posterior.json"), "posterior.json", "is not sound JSON"),
    "flipped mean": (lambda f: flip(f / "mean.safetensors"), "mean.safetensors", "damaged .*SHA-256"),
    "flipped variance": (lambda f: flip(f / "posterior.safetensors"), "posterior.safetensors", "damaged"),
    "flipped manifest": (
        lambda f: (f / "posterior.json").write_text(
            (f / "posterior.json").read_text().replace('"ess": 2.0', '"ess": 3.0')
        ),
        "posterior.json",
        "was changed or damaged after it was written",
    ),
    "missing mean": (lambda f: (f / "mean.safetensors").unlink(), "mean.safetensors", "does not exist"),
    "missing variance": (lambda f: (f / "posterior.safetensors").unlink(), "posterior.safetensors", "does not exist"),
    "missing manifest": (lambda f: (f / "posterior.json").unlink(), "posterior.json", "does not exist. Give a folder"),
    "renamed files": (swap, "mean.safetensors", "damaged|not the file"),
    "NaN in the variance": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=NAN)),
        "posterior.safetensors",
        r"precision of a has 1 value\(s\) of 2 that are NaN",
    ),
    "negative variance": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=-NAN.nan_to_num(1.0))),
        "posterior.safetensors",
        "precision of a has 2 .* not > 0",
    ),
    "infinite precision where the mean is not 0": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=NAN.nan_to_num(math.inf))),
        "posterior.safetensors",
        "infinite value.s. where the mean is not 0",
    ),
    "NaN in the mean": (
        lambda f: rewrite(f, "mean.safetensors", tensors(f / "mean.safetensors", a=NAN)),
        "mean.safetensors",
        "mean of a has 1 NaN",
    ),
    "another shape": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=torch.ones(3))),
        "posterior.safetensors",
        r"precision of a has shape \(3,\), its mean \(2, 1\)",
    ),
    "a missing key": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=None)),
        "posterior.safetensors",
        r"only one of them has \['a'\]",
    ),
    "another dtype": (
        lambda f: rewrite(f, "posterior.safetensors", tensors(f / "posterior.safetensors", a=torch.ones(2, 1).half())),
        "posterior.safetensors",
        "dtype torch.float16; it must be float32 or float64",
    ),
    "no safetensors": (
        lambda f: rewrite(f, "mean.safetensors", b"\x10" + b"\0" * 30),
        "mean.safetensors",
        "is not a sound safetensors file",
    ),
    "a newer format": (lambda f: edit(f, format_version=5), "posterior.json", "format version 5; .* install a newer"),
    "no format": (lambda f: edit(f, format_version=True), "posterior.json", "format version True"),
    "another kind": (lambda f: edit(f, kind="wishart"), "posterior.json", "of kind 'wishart'"),
    "another list of files": (lambda f: edit(f, files={"../x": {}}), "posterior.json", "must list exactly"),
    "unknown meta": (lambda f: edit(f, meta={"colour": "red"}), "posterior.json", "colour"),
    "bad meta": (lambda f: edit(f, meta={"ess": -1.0}), "posterior.json", "meta.ess must be positive"),
    "NaN in JSON": (
        lambda f: (f / "posterior.json").write_text('{"format_version": NaN}'),
        "posterior.json",
        "NaN is not JSON",
    ),
    "JSON list": (lambda f: (f / "posterior.json").write_text("[]"), "posterior.json", "must hold a JSON object"),
}


@pytest.mark.parametrize(("spoil", "name", "message"), UNSOUND.values(), ids=UNSOUND.keys())
def test_an_unsound_folder_is_refused_with_the_files_name(
    spoil: Callable[[Path], Any], name: str, message: str, tmp_path: Path
) -> None:
    folder = save_posterior(plain(ess=2.0), tmp_path / "q")
    spoil(folder)
    before = contents(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_posterior(folder)
    assert str(folder / name) in str(caught.value)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["mean.safetensors", "posterior.safetensors"])
@pytest.mark.parametrize("writer", ["torch.save", "pickle"])
def test_a_pickle_under_another_name_is_refused_and_never_run(name: str, writer: str, tmp_path: Path) -> None:
    folder, harm = save_posterior(plain(), tmp_path / "q"), tmp_path / "harm"
    with open(tmp_path / "pickle", "wb") as file:
        torch.save(Bomb(harm), file) if writer == "torch.save" else pickle.dump(Bomb(harm), file)
    rewrite(folder, name, (tmp_path / "pickle").read_bytes())
    with pytest.raises(CheckpointError, match=rf"{name} is a pickle .* does not open pickles"):
        load_posterior(folder)
    assert not harm.exists()


def test_a_changed_adapter_config_is_noticed(llama_lora: PeftModel, tmp_path: Path) -> None:
    folder = save_posterior(point_mass_of(llama_lora, method="adamw"), tmp_path / "q")
    config = folder / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 8', '"lora_alpha": 9'))
    with pytest.raises(CheckpointError, match=r"adapter_config.json was changed"):
        load_posterior(folder)


def test_a_folder_that_is_no_posterior_is_told_apart(llama_lora: PeftModel, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere is not a folder that exists"):
        load_posterior(tmp_path / "nowhere")
    llama_lora.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="plain adapter without a posterior"):
        load_posterior(tmp_path)
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match="use posterior_from_checkpoint"):
        load_posterior(tmp_path)


def test_another_base_model_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    model = lora(type(tiny_llama()).from_pretrained(tmp_path / "base"))
    folder = save_posterior(point_mass_of(model, method="adamw"), tmp_path / "q")
    assert load_posterior(folder, base_model=base_model_of(model)[0]).meta.base_model == str(tmp_path / "base")
    load_posterior(folder, base_model=f"{tmp_path}/./base/")
    with pytest.raises(CheckpointError, match=r"posterior.json was trained on base model '.*base', not on 'other'"):
        load_posterior(folder, base_model="other")
    unnamed = save_posterior(plain(), tmp_path / "unnamed")
    with caplog.at_level(logging.WARNING):
        load_posterior(unnamed, base_model="other")
    assert "does not say its base model" in caplog.text


# A Trainer's checkpoint ------------------------------------------------------------------------------------


def checkpoint(model: Any, optimizer: torch.optim.Optimizer, folder: Path) -> Path:
    """As Trainer lays it out."""
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")
    return folder


def without_fingerprint(q: DiagonalGaussian) -> DiagonalGaussian:
    """No model was at hand; VariationalCallback writes its fingerprint into the optimizer."""
    return dataclasses.replace(q, meta=dataclasses.replace(q.meta, base_fingerprint=None, base_loading=None))


@pytest.mark.parametrize(("base", "options"), VARIANTS.values(), ids=VARIANTS.keys())
def test_a_checkpoint_gives_the_posterior_that_training_had(
    base: Callable[[], Any], options: dict[str, Any], tmp_path: Path
) -> None:
    model = lora(base(), **options)
    optimizer = trained(model, ivon(model, weight_decay=0.1, prior="adaptive"))
    q = posterior_from_checkpoint(checkpoint(model, optimizer, tmp_path), num_examples=5, readout={"kind": "x"})
    assert_same(q, without_fingerprint(posterior_of(model, optimizer, num_examples=5, readout={"kind": "x"})))


@pytest.mark.parametrize(("steps", "factor"), [(0, 1), (1, 1000)])
def test_a_checkpoint_before_the_first_draw_or_after_a_move_of_lambda_gives_the_same_posterior_too(
    llama_lora: PeftModel, tmp_path: Path, steps: int, factor: int
) -> None:
    optimizer = trained(llama_lora, ivon(llama_lora, prior="adaptive"), steps)
    optimizer.param_groups[0]["ess"] *= factor
    for state in optimizer.state.values():
        state["hessian"][0] = -0.4 * state["prior_precision"] / 1e4  # as it may be: a smaller δ would not carry it
    q = posterior_from_checkpoint(checkpoint(llama_lora, optimizer, tmp_path), num_examples=5)
    assert_same(q, without_fingerprint(posterior_of(llama_lora, optimizer, num_examples=5)))


def test_a_checkpoint_of_a_steered_variance_that_follows_the_fit_gives_the_same_posterior_too(
    llama_lora: PeftModel, tmp_path: Path
) -> None:
    fit = ivon(llama_lora, betas=(0.9, 1.0), hess_init="auto", update="adam", variance="fit")
    optimizer = trained(llama_lora, fit)
    for group in optimizer.param_groups:
        group["ess"] /= 4
    q = posterior_from_checkpoint(checkpoint(llama_lora, optimizer, tmp_path), num_examples=5)
    assert_same(q, without_fingerprint(posterior_of(llama_lora, optimizer, num_examples=5)))
    assert q.meta.prior_precision is None
    [fit] = (q.meta.diagnostics or {})["fit_variance"]
    assert fit["variance"] > 1e-9
    values = torch.cat([variance.flatten() for variance in q.variance.values()]).unique()
    assert values.tolist() == pytest.approx([fit["variance"]])


def test_a_checkpoint_of_the_movement_prior_of_older_versions_is_refused_by_name(
    llama_lora: PeftModel, tmp_path: Path
) -> None:
    optimizer = trained(llama_lora, ivon(llama_lora))
    optimizer.param_groups[0]["prior"] = "movement"
    with pytest.raises(CheckpointError, match="written by an older version of varlora, with prior='movement'"):
        posterior_from_checkpoint(checkpoint(llama_lora, optimizer, tmp_path))


def assert_equal_tensors(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> None:
    assert list(first) == list(second)
    assert all(torch.equal(t, second[key]) for key, t in first.items())


def test_a_real_trainers_checkpoint(llama_lora: PeftModel, tmp_path: Path) -> None:
    optimizer = ivon(llama_lora, lr=0.01)
    noise = NoiseController(llama_lora, optimizer, seed=0)
    rows = [{"input_ids": ids, "labels": ids} for ids in token_ids(rows=4)]
    arguments = TrainingArguments(
        tmp_path,
        max_steps=2,
        save_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
    )
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    Trainer(llama_lora, arguments, train_dataset=rows, optimizers=(optimizer, schedule)).train()
    noise.detach()
    q, expected = posterior_from_checkpoint(tmp_path / "checkpoint-2"), posterior_of(llama_lora, optimizer)
    assert_equal_tensors(q.mean, expected.mean)
    assert_equal_tensors(q.precision, expected.precision)
    assert q.meta.diagnostics is not None
    assert q.meta.diagnostics["steps"] == 2


def test_a_checkpoint_of_a_full_model(tmp_path: Path) -> None:
    model = tiny_llama().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    optimizer = ivon(model)
    NoiseController(model, optimizer).detach()
    q = posterior_from_checkpoint(checkpoint(model, optimizer, tmp_path))
    assert_equal_tensors(q.mean, {"lm_head.weight": model.lm_head.weight})
    assert torch.equal(q.precision["lm_head.weight"], torch.full((64, 16), 1000.0))


def test_half_precision_checkpoints_give_the_float32_master(tmp_path: Path) -> None:
    model = lora(tiny_llama()).to(torch.bfloat16)
    optimizer = ivon(model)
    with pytest.warns(UserWarning, match="half precision"):
        NoiseController(model, optimizer).detach()
    for p in trained_tensors(model).values():
        optimizer.mean(p).mul_(1 + 1e-4)
    q = posterior_from_checkpoint(checkpoint(model, optimizer, tmp_path))
    assert_equal_tensors(q.mean, {key: optimizer.state[p]["mean"] for key, p in trained_tensors(model).items()})


def test_a_checkpoint_becomes_a_folder(llama_lora: PeftModel, tmp_path: Path) -> None:
    source = checkpoint(llama_lora, trained(llama_lora, ivon(llama_lora)), tmp_path / "checkpoint-2")
    folder = save_posterior(posterior_from_checkpoint(source), tmp_path / "q")
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), folder)), logits(llama_lora))


def test_an_adapter_of_another_name_lies_in_its_own_folder(tmp_path: Path) -> None:
    model = get_peft_model(tiny_llama(), LoraConfig(r=4, target_modules=["q_proj"]), adapter_name="mine")
    optimizer = trained(model, ivon(model))
    q = posterior_from_checkpoint(checkpoint(model, optimizer, tmp_path), adapter="mine")
    assert_same(q, without_fingerprint(posterior_of(model, optimizer)))


def test_a_tied_tensor_of_a_checkpoint_is_one(tmp_path: Path) -> None:
    tiny_qwen3().save_pretrained(tmp_path / "base")
    base = Qwen3ForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(70, mean_resizing=False)
    model = lora(base, trainable_token_indices=[1, 66])  # tied: PEFT saves the tokens' rows under two names
    optimizer = ivon(model)
    NoiseController(model, optimizer).detach()
    with torch.no_grad():
        for p in trained_tensors(model).values():
            p.add_(0.1)
    q = posterior_from_checkpoint(checkpoint(model, optimizer, tmp_path))
    assert (
        sum("trainable_tokens" in key for key in safetensors.torch.load_file(tmp_path / "adapter_model.safetensors"))
        == 2
    )
    assert [bool(torch.isinf(p).any()) for key, p in q.precision.items() if "trainable_tokens" in key] == [False]


def test_checkpoints_without_a_variance_are_refused(llama_lora: PeftModel, tmp_path: Path) -> None:
    adamw = torch.optim.AdamW([p for p in llama_lora.parameters() if p.requires_grad])
    checkpoint(llama_lora, adamw, tmp_path)
    with pytest.raises(CheckpointError, match=r"optimizer.pt was written by another optimizer .*betas.*point_mass_of"):
        posterior_from_checkpoint(tmp_path)
    (tmp_path / "optimizer.pt").unlink()
    with pytest.raises(CheckpointError, match=r"optimizer.pt does not exist.*save_only_model=False"):
        posterior_from_checkpoint(tmp_path)


def test_checkpoints_that_cannot_be_read_are_refused(llama_lora: PeftModel, tmp_path: Path) -> None:
    optimizer = trained(llama_lora, ivon(llama_lora))
    checkpoint(llama_lora, optimizer, tmp_path)
    path, harm = tmp_path / "optimizer.pt", tmp_path / "harm"
    truncate(path)
    with pytest.raises(CheckpointError, match=r"optimizer.pt is not an optimizer state that can be read safely"):
        posterior_from_checkpoint(tmp_path)
    torch.save({"state": Bomb(harm), "param_groups": []}, path)
    with pytest.raises(CheckpointError, match="read safely"):
        posterior_from_checkpoint(tmp_path)
    assert not harm.exists()
    torch.save(torch.zeros(1), path)
    with pytest.raises(CheckpointError, match="read safely"):
        posterior_from_checkpoint(tmp_path)
    checkpoint(llama_lora, ivon(llama_lora), tmp_path)  # no NoiseController: no names
    with pytest.raises(CheckpointError, match="does not name its parameters"):
        posterior_from_checkpoint(tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors does not exist"):
        posterior_from_checkpoint(tmp_path)


def test_weights_and_optimizer_of_different_runs_are_refused(llama_lora: PeftModel, tmp_path: Path) -> None:
    optimizer = trained(llama_lora, ivon(llama_lora))
    checkpoint(llama_lora, optimizer, tmp_path)
    lora(tiny_llama(), r=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"lora_A.weight is \(2, 16\) in .* and \(4, 16\) in optimizer.pt"):
        posterior_from_checkpoint(tmp_path)
    lora(tiny_llama(), target_modules=("k_proj",)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"has no .*q_proj.lora_A.weight, which optimizer.pt trained"):
        posterior_from_checkpoint(tmp_path)


def test_a_posterior_can_share_a_folder_that_appears_whole(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "run") as folder:
        (folder / "metrics.json").write_text("{}")
        write_posterior_files(plain(method="ivon"), folder)
    assert load_posterior(tmp_path / "run").meta.method == "ivon"
    assert (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.parametrize("files", [[], {"mean.safetensors": {}, "posterior.safetensors": None}])
def test_a_manifest_of_another_shape_is_refused(tmp_path, files):
    from varlora.posterior import manifest as manifests

    q = DiagonalGaussian(mean={"w": torch.zeros(2)}, precision={"w": torch.ones(2)})
    folder = save_posterior(q, tmp_path / "posterior")
    manifest = json.loads((folder / "posterior.json").read_text())
    del manifest["sha256"]
    manifest["files"] = files
    manifest["sha256"] = manifests.sha256(manifests.to_json(manifest))
    (folder / "posterior.json").write_bytes(manifests.to_json(manifest))
    with pytest.raises(CheckpointError, match=r"posterior\.json must (give size and sha256|list exactly)"):
        load_posterior(folder)


def test_a_header_length_that_looks_like_a_pickle_is_none(tmp_path: Path) -> None:
    """0x80 starts a pickle, and a safetensors file whose header is 128 bytes long (or 384, ...)."""
    for length in range(1, 200):
        q = PointMass(mean={"w" * length: torch.ones(2)})
        data = (save_posterior(q, tmp_path / str(length)) / "mean.safetensors").read_bytes()
        if data[0] == 0x80:
            assert torch.equal(load_posterior(tmp_path / str(length)).mean["w" * length], torch.ones(2))
            return
    pytest.fail("no header of such a length was tried")
