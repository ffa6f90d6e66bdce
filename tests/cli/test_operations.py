"""`varlora prune`, `temper` and `merge`: from any of our folders, to one that can be evaluated."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from cli.workshop import Outcome, Workshop
from varlora import isotropic_prior, load_posterior, merge, prune, save_posterior, temper
from varlora.runs.folder import read_run

Call = Callable[..., Outcome]


def test_a_pruned_run_is_a_run_without_the_old_numbers(call: Call, run_folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "pruned"

    done = call("prune", run_folder, "--fraction", 0.25, "--by", "magnitude", "--output_dir", target)

    assert done.code == 0
    q, expected = load_posterior(target), prune(load_posterior(run_folder), 0.25, by="magnitude")
    assert f"Pruned {expected.meta.history[-1]['entries']} of" in done.out
    assert all(torch.equal(q.mean[key], expected.mean[key]) for key in expected.mean)
    assert read_run(target).config == read_run(run_folder).config
    assert read_run(target).metrics == {}
    assert (target / "tokenizer.json").is_file()
    assert not (target / "predictions").exists()
    assert call("eval", target, "--no_progress", "--resamples", 0).code == 0


def test_pruning_at_random_takes_a_seed_which_nothing_else_does(call: Call, run_folder: Path, tmp_path: Path) -> None:
    source = load_posterior(run_folder)
    for given, seed in (([], 0), (["--seed", 3], 3)):
        target = tmp_path / f"seed-{seed}"
        done = call("prune", run_folder, "--fraction", 0.25, "--by", "random", *given, "--output_dir", target)
        assert done.code == 0
        assert "entries at random." in done.out
        expected = prune(source, 0.25, by="random", seed=seed)
        assert all(torch.equal(load_posterior(target).mean[key], m) for key, m in expected.mean.items())
    refused = call("prune", run_folder, "--fraction", 0.25, "--seed", 3, "--output_dir", tmp_path / "no")
    assert refused.code != 0
    assert "--seed has no effect with --by snr; leave it out, or prune with --by random" in " ".join(
        refused.err.split()
    )


def test_temper_a_bare_posterior(call: Call, run_folder: Path, tmp_path: Path) -> None:
    q = load_posterior(run_folder)
    save_posterior(q, tmp_path / "bare")

    assert call("temper", tmp_path / "bare", "--temperature", 4, "--output_dir", tmp_path / "warm").code == 0
    warm, expected = load_posterior(tmp_path / "warm"), temper(q, 4.0)
    assert all(torch.equal(warm.variance[key], expected.variance[key]) for key in expected.variance)
    assert not (tmp_path / "warm" / "config.yaml").exists()

    assert call("temper", tmp_path / "bare", "--temperature", 0, "--output_dir", tmp_path / "mean").code == 0
    refused = call("temper", tmp_path / "mean", "--temperature", 2, "--output_dir", tmp_path / "no")
    assert (refused.code, "a point mass" in refused.err) == (1, True)


def test_a_trainer_checkpoint_is_read(
    call: Call, workshop: Workshop, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(sys.modules["varlora.runs.run"], "remove_checkpoints", lambda folder: None)
        assert call(*workshop.training(tmp_path / "run")).code == 0
    checkpoint = tmp_path / "run.checkpoints" / "checkpoint-4"

    assert call("temper", checkpoint, "--temperature", 1, "--output_dir", tmp_path / "posterior").code == 0

    found, expected = load_posterior(tmp_path / "posterior"), load_posterior(run_folder)
    assert all(torch.equal(found.variance[key], expected.variance[key]) for key in expected.variance)


def test_merge(call: Call, workshop: Workshop, run_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert call(*workshop.training(other, data_seed=1)).code == 0

    refused = call("merge", run_folder, other, "--output_dir", tmp_path / "learned")
    assert (refused.code, "has no prior precision. Give the one to use" in refused.err) == (1, True)
    done = call("merge", run_folder, other, "--prior_precision", 1.0, "--output_dir", tmp_path / "merged")
    assert done.code == 0, done.err

    q1, q2 = load_posterior(run_folder), load_posterior(other)
    expected, merged = merge([q1, q2], prior=isotropic_prior(q1, 1.0)), load_posterior(tmp_path / "merged")
    assert all(torch.equal(merged.mean[key], expected.mean[key]) for key in expected.mean)
    assert read_run(tmp_path / "merged").facts["derived_from"] == [str(run_folder), str(other)]


def test_merge_counts_no_data_twice(call: Call, run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "copy")
    given = ("merge", run_folder, tmp_path / "copy", "--prior_precision", 1.0, "--output_dir", tmp_path / "merged")
    refused = call(*given)
    assert (refused.code, "hold the same posterior, whose data would count twice" in refused.err) == (1, True)
    assert not (tmp_path / "merged").exists()


def test_merge_refuses_priors_that_each_run_has_learned(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    adaptive = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(adaptive):
        assert (
            call(*workshop.training(folder, data_seed=seed, variance="hessian", prior="adaptive", max_steps=2)).code
            == 0
        )

    refused = call("merge", *adaptive, "--output_dir", tmp_path / "merged")

    assert (refused.code, "an adaptive prior is each run's own" in refused.err) == (1, True)


def test_merge_refuses_a_flat_prior(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    flat = [tmp_path / "first", tmp_path / "second"]
    for seed, folder in enumerate(flat):
        assert call(*workshop.training(folder, data_seed=seed, variance="hessian", max_steps=1)).code == 0

    refused = call("merge", *flat, "--output_dir", tmp_path / "merged")

    assert (refused.code, "weight_decay 0 had a flat prior" in refused.err) == (1, True)


def test_a_name_in_brackets_is_a_name(call: Call, run_folder: Path, tmp_path: Path) -> None:
    """And no colour."""
    done = call("prune", run_folder, "--fraction", 0.1, "--output_dir", tmp_path / "to[red]day")

    assert done.out.count("to[red]day") == 2, done.out
    assert read_run(tmp_path / "to[red]day").posterior.meta.history[-1]["fraction"] == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prune", "RUN", "--fraction", "2", "--output_dir", "new"], "fraction is 2.0"),
        (["prune", "nowhere", "--fraction", ".1", "--output_dir", "new"], "nowhere is not a folder that exists"),
        (["prune", "RUN", "--fraction", ".1", "--output_dir", "RUN"], "which is read from"),
        (["temper", "RUN", "--temperature", "-1", "--output_dir", "new"], "temperature is -1.0"),
        (["merge", "RUN", "--output_dir", "new"], "two or more"),
    ],
)
def test_bad_operations(call: Call, run_folder: Path, words: list[str], message: str) -> None:
    refused = call(*(run_folder if word == "RUN" else word for word in words))

    assert (refused.code, message in refused.err) == (1, True)
