"""`varlora export`: the run's own draws, with its seed, and what a client reads beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cli.workshop import Outcome
from varlora import Export, load_posterior
from varlora.posterior.draws import weight_draws
from varlora.posterior.manifest import ADAPTER_MEAN

Call = Callable[..., Outcome]


@pytest.mark.parametrize(("given", "seed"), [([], 0), (["--seed", 3], 3)])
def test_the_draws_of_a_run(call: Call, run_folder: Path, tmp_path: Path, given: list[object], seed: int) -> None:
    target = tmp_path / "arc"

    done = call("export", run_folder, "--samples", 3, "--output_dir", target, *given)

    assert (done.code, done.err) == (0, "")
    export = Export.load(target)
    assert (export.seed, export.readout and export.readout["answers"]) == (seed, ["negative", "positive"])
    for adapter, weights in zip(export.adapters, weight_draws(load_posterior(run_folder), 3, seed=seed), strict=True):
        assert adapter.name in done.out
        written = safetensors.torch.load_file(target / adapter.name / ADAPTER_MEAN)
        assert all(torch.equal(written[key], weights[key]) for key in weights)
    assert "3 adapters of" in done.out


def test_where_the_base_model_is_and_what_an_adapter_is_called(call: Call, run_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    words = ("export", run_folder, "--samples", 0, "--output_dir", target)

    assert call(*words, "--name", "my model", "--model_name_or_path", "org/base model").code == 0

    export = Export.load(target)
    assert (export.base_model, export.adapters[0].name[:14]) == ("org/base model", "my-model-mean-")
    assert "vllm serve 'org/base model'" in (target / "README.md").read_text()
    asked = call("eval", target)
    assert (asked.code, "is an export, for servers. Give the run's own folder" in asked.err) == (1, True)
    taken = call(*words)
    assert (taken.code, "is not empty" in taken.err) == (1, True)
    assert call(*words, "--overwrite").code == 0
    own = call("export", run_folder, "--samples", 0, "--output_dir", run_folder, "--overwrite")
    assert (own.code, "which is read from" in own.err) == (1, True)


def test_merged(call: Call, run_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "merged"

    done = call("export", run_folder, "--merged", "--output_dir", target)

    assert (done.code, done.err) == (0, "")
    assert "The mean, merged into" in done.out
    assert {"config.json", "model.safetensors", "tokenizer.json", "export.json"} <= {p.name for p in target.iterdir()}
    assert "ollama create" in (target / "README.md").read_text()
    both = call("export", run_folder, "--merged", "--samples", 3, "--output_dir", tmp_path / "no")
    assert (both.code, "--samples is about adapters" in both.err) == (1, True)
