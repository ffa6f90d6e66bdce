"""Runs that were trained one by one, as the plan that they would have been."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compare.plans import variant_of
from varlora.compare.run_folders import plan_of_runs
from varlora.posterior import DiagonalGaussian, PointMass, Posterior
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder

Add = Callable[..., str]
POSTERIORS: dict[str, Posterior] = {
    "adamw": PointMass(mean={"w": torch.ones(1)}),
    "ivon": DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.ones(1)}),
}


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch) -> Add:
    """Puts a run where `read_run` finds it; returns its folder."""
    runs: dict[str, RunFolder] = {}
    monkeypatch.setattr("varlora.compare.run_folders.read_run", lambda folder: runs[str(folder)])

    def added(
        folder: str,
        method: str,
        *,
        task: str = "arc",
        model: str = "models/tiny",
        fingerprint: str = "",
        **settings: Any,
    ) -> str:
        config = RunConfig.from_dict(
            {"model_name_or_path": model, "train_file": "t", "output_dir": folder, "method": method, **settings}
        )
        task_facts = {"name": task, "kind": "choice", "answers": ["A", "B"]}
        facts = {"task": task_facts, "fingerprint": fingerprint or config.fingerprint}
        q = POSTERIORS[method]
        runs[folder] = RunFolder(path=Path(folder), config=config, posterior=q, metrics={}, facts=facts)
        return folder

    return added


def test_every_mode_of_every_method_is_a_row(add: Add) -> None:
    folders = [add("a", "ivon", seed=0), add("b", "adamw", seed=0), add("c", "ivon", seed=1, data_seed=1)]
    plan, cells = plan_of_runs(folders)
    assert plan.labels == ("ivon, mean", "ivon, samples", "adamw, mean")
    assert (plan.name, plan.reference, plan.seeds) == ("arc", "adamw, mean", (0, 1))
    assert plan.methods["ivon"].rows["ivon, samples"] == variant_of(mode="samples")
    assert [(cell.method, cell.seed, str(cell.folder), cell.model, cell.task) for cell in cells] == [
        ("ivon", 0, "a", "tiny", "arc"),
        ("adamw", 0, "b", "tiny", "arc"),
        ("ivon", 1, "c", "tiny", "arc"),
    ]
    assert [variant.config.mode for variant in cells[0].variants] == ["mean", "samples"]


def test_the_reference_is_a_row(add: Add) -> None:
    assert plan_of_runs([add("a", "ivon")])[0].reference == "ivon, mean"
    assert plan_of_runs([add("a", "ivon")], reference="ivon, samples")[0].reference == "ivon, samples"
    with pytest.raises(ValueError, match=r"no row .ivon, sample. to compare with.*ivon, samples"):
        plan_of_runs([add("a", "ivon")], reference="ivon, sample")


def test_models_have_short_names_unless_they_are_the_same(add: Add) -> None:
    one, other = add("a", "ivon", model="here/tiny"), add("b", "ivon", model="there/tiny")
    assert list(plan_of_runs([one, other])[0].models) == ["here/tiny", "there/tiny"]
    third = add("c", "ivon", model="there/small")
    assert list(plan_of_runs([one, third])[0].models) == ["tiny", "small"]
    files = [add(name, "ivon", gguf_file=f"{name}.gguf") for name in ("q4", "q8")]
    assert [cell.model for cell in plan_of_runs(files)[1]] == ["q4.gguf", "q8.gguf"]


def test_the_settings_are_those_that_were_given(add: Add) -> None:
    plan, _ = plan_of_runs([add("a", "adamw", lora_r=3, seed=5, weight_decay=1)])
    assert plan.methods["adamw"].settings == {
        "model_name_or_path": "models/tiny",
        "train_file": "t",
        "method": "adamw",
        "lora_r": 3,
        "weight_decay": 1.0,
    }


def test_whether_a_temperature_is_fitted_counts_and_not_whether_that_was_said(add: Add) -> None:
    said = [add("a", "adamw", seed=0, temperature_scaling=False), add("b", "ivon", seed=0, temperature_scaling=True)]
    assert len(plan_of_runs([*said, add("c", "adamw", seed=1), add("d", "ivon", seed=1)])[1]) == 4
    with pytest.raises(ValueError, match="temperature_scaling is True and False"):
        plan_of_runs([said[1], add("e", "ivon", seed=1, temperature_scaling=False)])


def test_seeds_that_differ_in_more_are_refused(add: Add) -> None:
    folders = [add("a", "ivon", seed=0), add("b", "ivon", seed=1, lora_r=3)]
    with pytest.raises(ValueError, match="are both ivon, but differ in more than their seed: lora_r is 8 and 3"):
        plan_of_runs(folders)
    with pytest.raises(ValueError, match="differ in more than their seed: ess is None and 5"):
        plan_of_runs([folders[0], add("c", "ivon", seed=1, ess=5)])


def test_runs_by_other_defaults_are_not_mixed(add: Add) -> None:
    before = add("b", "ivon", seed=1, fingerprint="of before")
    with pytest.raises(
        ValueError, match="are both ivon, but b was trained by a version of varlora whose defaults were"
    ):
        plan_of_runs([add("a", "ivon", seed=0), before])
    _, cells = plan_of_runs([add("c", "adamw"), before])
    assert cells[1].identity == "of before"


def test_runs_that_would_have_one_name_are_refused(add: Add) -> None:
    with pytest.raises(ValueError, match="a and b are both ivon with seed 0"):
        plan_of_runs([add("a", "ivon"), add("b", "ivon")])


def test_two_tasks_are_refused(add: Add) -> None:
    with pytest.raises(ValueError, match="a was trained on 'arc' and b on 'obqa'"):
        plan_of_runs([add("a", "ivon"), add("b", "adamw", task="obqa")])
