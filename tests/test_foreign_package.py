"""An installed package adds a method, a task and a metric, each in one file; nothing of varlora knows of it."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from small_runs import TARGETS, films, save_model, write_rows
from varlora.cli import main
from varlora.methods import METHODS, AdamW, checked_options, options_of, register_method
from varlora.metrics import METRICS
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.tasks import TASKS

METHOD = """
from dataclasses import dataclass
from typing import ClassVar, Literal

from varlora import option
from varlora.methods import AdamW, Costs, Fit, Job
from varlora.posterior import DiagonalGaussian


@dataclass(frozen=True, kw_only=True)
class Jitter(AdamW):
    \"\"\"AdamW's point with noise on every weight.\"\"\"

    name: ClassVar[str] = "jitter"
    jitter_std: float = option(0.01, "Standard deviation, 5% say.", above=0)
    jitter_where: Literal["all", "none"] = "all"

    def fit(self, job: Job) -> Fit:
        fit = super().fit(job)
        mean = fit.posterior.point
        std = self.jitter_std if self.jitter_where == "all" else 1e-12
        precision = {key: m.new_full(m.shape, std**-2) for key, m in mean.items()}
        return Fit(posterior=DiagonalGaussian(mean=mean, precision=precision, meta=fit.posterior.meta), log=fit.log)

    def costs(self) -> Costs:
        return Costs(adapters=2, predict="S")
"""
TASK = """
from varlora.tasks.named import Benchmark

cinema = Benchmark(
    name="cinema",
    dataset="nobody/cinema",
    splits={"train": "train", "test": "test"},
    files={"train": "train.jsonl", "test": "test.jsonl"},
    record=lambda row, _split: row,
    licence="CC0",
    source="made up",
    label_names=("negative", "positive"),
)
"""
METRIC = """
from varlora.metrics import Metric


def probability(rows):
    return rows.probs.gather(-1, rows.labels.unsqueeze(-1)).squeeze(-1)


right = Metric(
    name="right", function=probability, per_row=True, title="p(right)", better="higher",
    meaning="the probability of the right answer",
)
"""
ENTRY_POINTS = """
[varlora.methods]
jitter = foreign_jitter.method:Jitter

[varlora.tasks]
cinema = foreign_jitter.task:cinema

[varlora.metrics]
right = foreign_jitter.metric:right
"""


def install(folder: Path, name: str = "foreign-jitter", entry_points: str = ENTRY_POINTS) -> None:
    """What pip would leave there."""
    package = folder / "foreign_jitter"
    package.mkdir(parents=True, exist_ok=True)
    for file, text in (("__init__", ""), ("method", METHOD), ("task", TASK), ("metric", METRIC)):
        (package / f"{file}.py").write_text(text)
    facts = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(entry_points)
    importlib.invalidate_caches()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of installed packages; what is imported from it is forgotten afterwards."""
    for registry in (METHODS, TASKS, METRICS):
        monkeypatch.setattr(registry, "_added", {})
    for module in ("foreign_jitter", *(f"foreign_jitter.{name}" for name in ("method", "task", "metric"))):
        monkeypatch.delitem(sys.modules, module, raising=False)
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    return site


@pytest.fixture
def cinema(tmp_path: Path) -> dict[str, str]:
    """Settings of a short run on the package's task."""
    folder = tmp_path / "cinema"
    folder.mkdir()
    write_rows(folder / "train.jsonl", films(32))
    write_rows(folder / "test.jsonl", films(16, offset=3))
    return {
        "model_name_or_path": save_model(tmp_path / "model", layers=1),
        "task": "cinema",
        "task_dir": str(folder),
        "max_steps": "2",
        "samples": "2",
        "lora_target_modules": TARGETS,
    }


def test_it_is_trained_and_compared_with(
    site: Path, cinema: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site)
    words = [f"--{name}={value}" for name, value in cinema.items()]
    target = tmp_path / "run"
    assert (
        main(["train", "--no_progress", *words, "--method=jitter", "--jitter-std=0.5", f"--output_dir={target}"]) == 0
    )
    run = read_run(target)
    assert run.config.method_options == {"jitter_std": 0.5}
    assert (run.posterior.kind, run.facts["task"]["name"]) == ("diagonal_gaussian", "cinema")
    assert {float(p.min()) for p in run.posterior.tensors().values() if p.is_floating_point()} >= {4.0}
    assert 0 < run.metrics["test"]["mean"]["right"] < 1
    assert "**p(right)**: the probability of the right answer." in (target / "README.md").read_text("utf-8")
    recipe = target / "config.yaml"
    assert yaml.safe_load(recipe.read_text())["jitter_std"] == 0.5
    repeated = tmp_path / "again"
    assert main(["train", "--no_progress", "--config", str(recipe), f"--output_dir={repeated}"]) == 0
    assert (repeated / "posterior.safetensors").read_bytes() == (target / "posterior.safetensors").read_bytes()

    plan = {
        "name": "foreign",
        "reference": "Jitter",
        "settings": {name: yaml.safe_load(value) for name, value in cinema.items() if name not in ("task", "task_dir")},
        "models": {"tiny": {}},
        "tasks": {"cinema": {"task_dir": cinema["task_dir"]}},
        "methods": {"jitter": {"settings": {"method": "jitter", "jitter_std": 0.5}, "rows": {"Jitter": {}}}},
    }
    file = tmp_path / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    out = tmp_path / "compared"
    assert main(["compare", str(file), "--no_progress", f"--output_dir={out}"]) == 0, capsys.readouterr().err
    [facts] = out.glob("tiny/cinema/jitter-seed-0-*/run.json")
    assert read_run(facts.parent).config.method_options == {"jitter_std": 0.5}
    assert json.loads(facts.read_text())["task"]["name"] == "cinema"
    assert "p(right)" in (out / "tables.md").read_text("utf-8")


def test_it_is_listed_and_helped_with(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site)
    assert main(["methods"]) == 0
    assert "--jitter_std 0.01" in capsys.readouterr().out
    assert main(["methods", "jitter"]) == 0
    shown = capsys.readouterr().out
    assert "AdamW's point with noise on every weight." in shown
    assert "2 times the adapter" in shown
    assert main(["train", "--method", "jitter", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Standard deviation, 5% say. [default: 0.01]" in shown
    assert "--jitter_where {all,none}" in shown
    assert "--ess" not in shown
    assert main(["tasks", "cinema"]) == 0
    assert "made up" in capsys.readouterr().out


def test_it_is_imported_only_when_it_is_named_or_listed(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site)
    least = {"model_name_or_path": "m", "task": "sst2", "output_dir": "o"}
    RunConfig.from_dict(least)
    assert list(METHODS)[-1] == "jitter"
    assert "cinema" in TASKS
    with pytest.raises(ValueError, match=r"unknown option 'jitter_std'; .* The options of jitter are known where"):
        RunConfig.from_dict({**least, "jitter_std": 1})
    assert main(["train", "--method=jiter"]) == 1
    assert "did you mean 'jitter'" in capsys.readouterr().err
    assert main(["train", "--jitter_std=1"]) == 2
    assert "The options of jitter are known where the method is named." in " ".join(capsys.readouterr().err.split())
    assert "foreign_jitter" not in sys.modules
    with pytest.raises(ValueError, match=r"jitter_std is 0\.0; it must be positive"):
        RunConfig.from_dict({**least, "method": "jitter", "jitter_std": 0})
    assert "foreign_jitter.method" in sys.modules
    with pytest.raises(ValueError, match=r"method 'ivon' has no option jitter_std; .* jitter_std is one of jitter"):
        checked_options("ivon", {"jitter_std": 1})


@pytest.mark.parametrize(
    ("entry_points", "message"),
    [
        (
            "[varlora.methods]\njitter = foreign_jitter.nowhere:Jitter",
            "No module named 'foreign_jitter.nowhere'. Mend or",
        ),
        ("[varlora.methods]\njitter = foreign_jitter.method:Jiter", "cannot be imported"),
        ("[varlora.methods]\njitter = foreign_jitter.method:Job", "is no method; a method is a frozen dataclass"),
        ("[varlora.methods]\nother = foreign_jitter.method:Jitter", "is named 'jitter', not 'other'"),
    ],
)
def test_a_package_that_brings_no_method_is_named(site: Path, entry_points: str, message: str) -> None:
    install(site, entry_points=entry_points)
    name = entry_points.split()[1]
    with pytest.raises(ValueError, match=f"{name!r} of varlora.methods, from the package foreign-jitter .*{message}"):
        options_of(name)


def test_names_that_are_taken(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    install(site, entry_points="[varlora.methods]\nadamw = foreign_jitter.method:Jitter")
    assert METHODS["adamw"] is AdamW
    assert "jitter" not in METHODS
    assert "has 'adamw' of its own; that of the package foreign-jitter is left aside" in caplog.text
    with pytest.raises(ValueError, match="has 'adamw' of its own"):
        register_method(AdamW)


@pytest.mark.parametrize("option", ["seed", "config"])
@pytest.mark.parametrize("words", [["--method=jitter", "--help"], ["--help"]])
def test_an_option_that_every_training_has_is_refused(
    words: list[str], option: str, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site)
    (site / "foreign_jitter" / "method.py").write_text(METHOD.replace("jitter_std", option))
    assert main(["train", *words]) == 1
    said = " ".join(capsys.readouterr().err.split())
    assert f"method 'jitter' has the option {option}, which `varlora train` has, too; rename it." in said


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site)
    install(site, "other-jitter", "[varlora.methods]\njitter = elsewhere:Jitter")
    with pytest.raises(ValueError, match=r"both bring 'jitter' for varlora\.methods; uninstall one"):
        list(METHODS)
