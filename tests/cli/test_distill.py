"""`varlora distill`: what is shown, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cli.workshop import Outcome, Workshop, reviews, write_rows

Call = Callable[..., Outcome]


def test_a_distilled_run(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "validation.jsonl", reviews(24, first=200))
    noisy = {"held_out": "none", "hess_init": 1e-2, "ess": 1e4, "variance": "hessian"}
    assert call(*workshop.training(tmp_path / "run", validation_file=rows, **noisy)).code == 0
    words = ["distill", tmp_path / "run", "--samples", 2, "--num_train_epochs", 1, "--learning_rates", 1e-9]
    target = ["--output_dir", tmp_path / "out", "--no_progress"]

    refused = call(*words, *target)
    assert (refused.code, "No gain" in refused.err) == (1, True)
    assert all(word in refused.out for word in ("24 rows", "mean + T", "average", "distilled", "KL"))
    assert not (tmp_path / "out").exists()

    done = call(*words, *target, "--keep_without_gain")
    assert (done.code, done.err) == (0, "")
    assert "varlora eval" in done.out
    assert call("eval", tmp_path / "out", "--no_progress", "--resamples", 0).code == 0
    taken = call(*words, *target, "--keep_without_gain")
    assert (taken.code, "is not empty" in taken.err) == (1, True)


def test_too_few_validation_rows_tell_nothing(call: Call, run_folder: Path, tmp_path: Path) -> None:
    done = call("distill", run_folder, "--samples", 2, "--output_dir", tmp_path / "out", "--no_progress")
    assert (done.code, "it needs 20" in done.err) == (1, True)
