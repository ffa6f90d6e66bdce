"""Reading a plan: what it gives, and what is said of every mistake."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from compare.plans import plan, variant_of, written
from small_runs import films, write_rows
from varlora.compare import read_plan
from varlora.compare.plan_file import KNOWN
from varlora.runs.config import SETTINGS, RunConfig


def test_a_plan_is_read_as_it_is_written(tmp_path: Path) -> None:
    found = plan(tmp_path, {"data": "rows", "note": "what it repeats", "overrides": [_OVERRIDE]})
    assert (found.name, found.reference, found.seeds) == ("tiny", "AdamW", (0,))
    assert found.labels == ("AdamW", "IVON, mean", "IVON, 2 samples")
    assert found.methods["ivon"].rows["IVON, mean"] == variant_of(mode="mean")
    assert [v.config.temperature for v in found.methods["ivon"].curves[0].variants()] == [0, 0.5, 1]
    assert found.settings["learning_rate"] == 1e-3
    assert (found.data, found.note) == (Path("rows"), "what it repeats")
    assert found.overrides[0].when == {"task": ("world",), "seed": (0, 1)}


def test_a_resolved_plan_reads_back_as_the_same(tmp_path: Path) -> None:
    changes = {
        "overrides": [_OVERRIDE],
        "data": "rows",
        "code_versions": ["0123456789"],
        "metrics": ["aurc", "nll", "confident_errors", "aurc"],
        "methods.ivon.curves": [{"over": "prune", "values": [0, 0.5], "by": "variance", "scope": "tensor"}],
        "methods.adamw.rows.T": {"mode": "mean", "logit_temperature": "validation"},
        "methods.ivon.rows.tuned": {"tune": True},
    }
    found = plan(tmp_path, changes)
    file = tmp_path / "resolved.yaml"
    file.write_text(yaml.safe_dump(found.to_dict()), encoding="utf-8")
    assert read_plan(file) == found
    assert found.metrics == ("aurc", "confident_errors")  # NLL is in every table
    assert found.methods["ivon"].curves[0].variant.config.prune_by == "variance"


def test_the_folder_goes_by_the_name_unless_it_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, {"small": {"seeds": [0]}})
    assert read_plan(file).output_dir == Path("runs/tiny")
    assert read_plan(file, small=True).output_dir == Path("runs/tiny-small")
    assert read_plan(file, small=True, output_dir="here").output_dir == Path("here")
    assert read_plan(written(tmp_path, {"output_dir": "there"})).output_dir == Path("there")


_OVERRIDE = {"when": {"task": "world", "seed": [0, 1]}, "settings": {"max_steps": 3}}


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"method": {}}, "has 'method', which is unknown; did you mean 'methods'"),
    "nothing to compare": ({"methods": None}, "lacks methods"),
    "empty": ({"models": {}}, "models is empty"),
    "no metric": ({"metrics": ["aurcs"]}, "metrics has 'aurcs', by which rows are not compared; did you mean 'aurc'"),
    "neither better nor worse": ({"metrics": ["predictive_entropy"]}, "'predictive_entropy', by which rows are not"),
    "no reference": ({"reference": "AdamV"}, "reference is 'AdamV', which is no row; did you mean 'AdamW'"),
    "duplicate label": (
        {"methods.ivon.rows.AdamW": {"mode": "mean"}},
        "'AdamW' is there twice, in methods.adamw and methods.ivon",
    ),
    "unknown setting": ({"settings.lora_rank": 3}, "settings has 'lora_rank', .* did you mean 'lora_r'"),
    "of a model": ({"models.llama.dtyp": "float32"}, r"models\.llama has 'dtyp', .* 'dtype'"),
    "of a task": ({"tasks.world.generate": {}}, r"tasks\.world has 'generate', .* 'generated'"),
    "of a method": ({"methods.ivon.settings.esss": 1}, r"methods\.ivon\.settings has 'esss', .* 'ess'"),
    "of a method's keys": ({"methods.ivon.row": {}}, r"methods\.ivon has 'row', .* 'rows'"),
    "no model": ({"models.llama": {}}, r"models\.llama lacks model_name_or_path"),
    "a seed among settings": ({"settings.seed": 3}, "settings has seed; a plan says it once, at the top: seeds"),
    "a folder among settings": ({"models.llama.output_dir": "x"}, r"models\.llama has output_dir"),
    "seeds": ({"seeds": [0, 0]}, "a seed is there twice"),
    "no seeds": ({"seeds": []}, "at least one"),
    "a seed that is none": ({"seeds": [True]}, "list of whole numbers"),
    "a name that is no folder's": ({"models.a/b": {}}, "'a/b' will be a folder's name"),
    "variant": ({"methods.ivon.rows.x": {"tau": 1}}, r"methods\.ivon\.rows\['x'\] has 'tau'"),
    "variant's value": ({"methods.ivon.rows.x": {"mode": "meen"}}, r"rows\['x'\]: mode is 'meen'; did you mean 'mean'"),
    "nothing shown": ({"methods.adamw.rows": {}}, r"methods\.adamw has neither rows nor curves"),
    "curve over nothing": ({"methods.ivon.curves": [{"values": [1]}]}, r"curves\[0\]: over is None; .* temperature"),
    "curve without values": ({"methods.ivon.curves": [{"over": "prune"}]}, "values is None; it must be a list"),
    "curve's value": (
        {"methods.ivon.curves": [{"over": "prune", "values": [2]}]},
        r"curves\[0\]: prune is 2; it must be a fraction",
    ),
    "one field of a curve by two names": (
        {"methods.ivon.curves": [{"over": "prune", "values": [0], "by": "snr", "prune_by": "variance"}]},
        r"curves\[0\] has by and prune_by, which are one field",
    ),
    "curve's field": (
        {"methods.ivon.curves": [{"over": "prune", "values": [0], "prune": 1}]},
        r"prune beside `over: prune`",
    ),
    "curve over what is tuned": (
        {"methods.ivon.curves": [{"over": "temperature", "values": [1], "tune": True}]},
        r"curves\[0\] varies temperature, but with tune: true validation rows choose",
    ),
    "tuned and more": (
        {"methods.ivon.rows.x": {"tune": True, "prune": "validation"}},
        r"rows\['x'\]: prune beside tune: true",
    ),
    "override of nothing": ({"overrides": [{"when": {}, "settings": {"lora_r": 1}}]}, "must have `when`"),
    "override that changes nothing": ({"overrides": [{"when": {"seed": 0}}]}, "must have `when` .* and `settings`"),
    "override by what": (
        {"overrides": [{"when": {"tasks": "world"}, "settings": {"lora_r": 1}}]},
        r"overrides\[0\]\.when has 'tasks'; did you mean 'task'",
    ),
    "override of whom": (
        {"overrides": [{"when": {"task": "word"}, "settings": {"lora_r": 1}}]},
        "the plan has no task 'word'; did you mean 'world'",
    ),
    "override's seed": ({"overrides": [{"when": {"seed": "a"}, "settings": {"lora_r": 1}}]}, "seed is 'a'"),
    "override's setting": (
        {"overrides": [{"when": {"seed": 0}, "settings": {"lora_s": 1}}]},
        r"overrides\[0\]\.settings has 'lora_s'",
    ),
    "generated": ({"tasks.world.generated.train": 0}, r"tasks\.world\.generated: train is 0"),
    "generated's key": ({"tasks.world.generated.tests": 3}, r"generated has 'tests', .* 'test'"),
    "a list for a mapping": ({"models": ["llama"]}, "models is .* must be a mapping"),
    "a mapping for a list": ({"overrides": {"a": 1}}, "overrides is .* must be a list"),
    "small takes out what is not there": ({"small": {"methods": {"ivn": None}}}, "small.methods: ivn is null"),
    "small is read in any case": ({"small": {"reference": "B"}}, "with --small: reference is 'B', which is no row"),
}


def test_other_seeds_in_place_of_the_files(tmp_path: Path) -> None:
    file = written(tmp_path, {"small": {"seeds": [7]}})
    assert [read_plan(file, small=small, seeds=[2, 3]).seeds for small in (False, True)] == [(2, 3), (2, 3)]
    with pytest.raises(ValueError, match=r"seeds is \[2, 2\]; a seed is there twice"):
        read_plan(file, seeds=[2, 2])


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_what_is_allowed(tmp_path: Path, mistake: str) -> None:
    changes, said = MISTAKES[mistake]
    with pytest.raises(ValueError, match=said) as caught:
        plan(tmp_path, changes)
    assert "plan.yaml" in str(caught.value)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    file.write_text(file.read_text() + "\nseeds: [1]\n")
    with pytest.raises(ValueError, match="the key 'seeds' is there twice"):
        read_plan(file)


def test_small_is_merged_over_the_plan(tmp_path: Path) -> None:
    small = {
        "seeds": [7],
        "settings": {"max_steps": 2, "lora_r": None},
        "models": {"replace": True, "other": {"model_name_or_path": "embedded"}},
        "tasks": {"more": {"generated": {"train": 4}}},
        "methods": {"ivon": {"rows": {"IVON, mean": None}}},
    }
    overrides = [{"when": {"model": "llama"}, "settings": {"max_steps": 9}}]  # of a model that the small plan lacks
    found = plan(tmp_path, {"small": small, "overrides": overrides}, small=True)
    assert (found.name, found.seeds) == ("tiny-small", (7,))
    assert (found.settings["max_steps"], "lora_r" in found.settings) == (2, False)
    assert (list(found.models), list(found.tasks)) == (["other"], ["world", "more"])
    assert found.labels == ("AdamW", "IVON, 2 samples")
    assert {cell.config.max_steps for cell in found.cells()} == {2}
    whole = plan(tmp_path, {"small": small, "overrides": overrides})
    assert (whole.name, list(whole.models), whole.settings["lora_r"]) == ("tiny", ["llama"], 2)


def test_small_must_be_there_to_be_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no section `small`"):
        plan(tmp_path, small=True)


def test_a_plan_extends_a_file_beside_it(tmp_path: Path) -> None:
    file = written(tmp_path, {"small": {"seeds": [7]}})
    whole = yaml.safe_load(file.read_text(encoding="utf-8"))
    base = {key: whole[key] for key in ("models", "tasks", "small")}
    base["settings"] = {**whole["settings"], "learning_rate": 1.0, "lora_r": 3}
    own = {key: value for key, value in whole.items() if key not in base}
    own |= {"extends": "base/shared.yaml", "settings": {"learning_rate": whole["settings"]["learning_rate"]}}
    extending = tmp_path / "extending.yaml"
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "shared.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
    extending.write_text(yaml.safe_dump(own), encoding="utf-8")
    expected = read_plan(file)
    expected = dataclasses.replace(expected, settings={**expected.settings, "lora_r": 3})
    assert read_plan(extending) == expected
    assert read_plan(extending, small=True).seeds == (7,)
    assert "extends" not in expected.to_dict()  # a comparison's folder needs no other file


@pytest.mark.parametrize(
    ("base", "extends", "message"),
    [
        ("name: a", "other.yaml", "there is no configuration file .*other.yaml"),
        ("name: a", "[base.yaml]", "extends is .*must be text"),
        ("sets: {}", "base.yaml", "base.yaml, which .*plan.yaml extends, has 'sets', which is unknown"),
        ("extends: plan.yaml", "base.yaml", "base.yaml, which .*plan.yaml extends, has 'extends', which is unknown"),
    ],
)
def test_a_mistake_in_what_a_plan_extends_is_named(tmp_path: Path, base: str, extends: str, message: str) -> None:
    (tmp_path / "base.yaml").write_text(base, encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(f"extends: {extends}", encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_every_setting_of_a_run_may_stand_in_a_plan(tmp_path: Path) -> None:
    defaults = {f.name: f.default for f in dataclasses.fields(RunConfig) if f.default is not None}
    settings = {name: defaults[name] for name in SETTINGS if name in defaults and name not in ("seed", "output_dir")}
    assert plan(tmp_path, {"settings": settings}).settings == settings


def test_the_plan_in_the_docs_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "test"):
        write_rows(tmp_path / f"{name}.jsonl", films(4))
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    text = re.search(r"^```yaml\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert text is not None
    file = tmp_path / "plan.yaml"
    file.write_text(text[1], encoding="utf-8")
    whole, small = read_plan(file), read_plan(file, small=True)
    assert (len(whole.cells()), len(small.cells())) == (24, 8)


@pytest.mark.parametrize("key", KNOWN)
def test_every_key_is_in_the_docs(key: str) -> None:
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    assert f"`{key}`" in page.read_text(encoding="utf-8")


def test_a_list_in_the_place_of_a_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"reference is \['AdamW'\], which is no row"):
        plan(tmp_path, {"reference": ["AdamW"]})
    with pytest.raises(ValueError, match=r"the plan has no task \['world'\]"):
        plan(tmp_path, {"overrides": [{"when": {"task": [["world"]]}, "settings": {"max_steps": 3}}]})
