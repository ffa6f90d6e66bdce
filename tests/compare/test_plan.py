"""A plan's cells: which settings win, what each reads, and which are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest

from compare.plans import plan
from small_runs import films, write_rows
from varlora.compare import Plan, chosen
from varlora.compare.code_version import code_version
from varlora.compare.content import path_settings
from varlora.demo.data import model_folder
from varlora.tasks.own_prompts import OwnPrompt

LEVELS = {
    "settings": "settings.lora_alpha",
    "models": "models.llama.lora_alpha",
    "tasks": "tasks.world.lora_alpha",
    "methods": "methods.ivon.settings.lora_alpha",
}


def test_models_times_methods_times_tasks_times_seeds(tmp_path: Path) -> None:
    changes = {"seeds": [0, 1], "tasks.more": {"generated": {"train": 8, "test": 4}}}
    cells = plan(tmp_path, changes).cells()
    assert [(c.seed, c.task, c.method) for c in cells] == [
        (seed, task, method) for seed in (0, 1) for task in ("world", "more") for method in ("adamw", "ivon")
    ]
    assert len({cell.folder for cell in cells}) == 8
    for cell in cells:
        assert cell.config.output_dir == str(cell.folder)
        assert cell.folder.parent == tmp_path / "out" / "llama" / cell.task
        assert cell.folder.name == f"{cell.method}-seed-{cell.seed}-{cell.key}"
        assert cell.code_version == code_version(cell.config.method)
        assert (cell.config.seed, cell.config.method) == (cell.seed, cell.method)
    assert path_settings(cells[0].config)["model_name_or_path"] == model_folder()
    assert cells[0].config.lora_target_modules == "q_proj,v_proj"


@pytest.mark.parametrize("highest", range(4))
def test_what_is_nearer_to_the_cell_wins(tmp_path: Path, highest: int) -> None:
    changes = {path: 2 ** (number + 1) for number, path in enumerate(list(LEVELS.values())[: highest + 1])}
    assert plan(tmp_path, changes).cell("llama", "world", "ivon", 0).config.lora_alpha == 2 ** (highest + 1)


def test_overrides_win_the_last_the_most_and_all_of_when_must_fit(tmp_path: Path) -> None:
    overrides = [
        {"when": {"task": ["world"], "method": "ivon"}, "settings": {"lora_alpha": 1, "lora_r": 7}},
        {"when": {"method": ["adamw", "ivon"], "seed": 1}, "settings": {"lora_alpha": 2}},
        {"when": {"model": "llama", "task": "more"}, "settings": {"lora_alpha": 3}},
    ]
    changes = {
        "seeds": [0, 1],
        "overrides": overrides,
        "tasks.more": {"generated": {"train": 8, "test": 4}},
        "methods.ivon.settings.lora_alpha": 64,
    }
    found = plan(tmp_path, changes)
    alphas = {(c.task, c.method, c.seed): c.config.lora_alpha for c in found.cells()}
    assert alphas == {
        ("world", "adamw", 0): 16,
        ("world", "ivon", 0): 1,
        ("world", "adamw", 1): 2,
        ("world", "ivon", 1): 2,
        **{("more", method, seed): 3 for method in ("adamw", "ivon") for seed in (0, 1)},
    }
    assert {c.config.lora_r for c in found.cells() if c.method == "ivon" and c.task == "world"} == {7}


def test_seeds_share_the_rows_unless_each_draws_its_own(tmp_path: Path) -> None:
    shared = plan(tmp_path, {"seeds": [0, 1]}).cells()
    assert {cell.config.data_seed for cell in shared} == {0}
    assert len({cell.config.train_file for cell in shared}) == 1
    own = plan(tmp_path, {"seeds": [0, 1], "settings.data_seed": "seed"}).cells()
    assert [cell.config.data_seed for cell in own] == [0, 0, 1, 1]
    assert len({cell.config.train_file for cell in own}) == 2


def test_a_task_is_named_by_its_key_or_brings_files(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "mine.jsonl", films(8))
    changes = {
        "tasks": {"sst2": {}, "easy": {"task": "arc_easy"}, "mine": {"train_file": rows, "test_file": rows}},
    }
    hub = {cell.task: cell.config for cell in plan(tmp_path, changes).cells()}
    assert [hub[name].task for name in changes["tasks"]] == ["sst2", "arc_easy", None]
    assert hub["mine"].train_file == rows
    assert {config.task_dir for config in hub.values()} == {None}


def test_data_are_looked_for_in_folders_by_the_tasks_names(tmp_path: Path) -> None:
    for name in ("sst2", "my-arc"):
        (tmp_path / "data" / name).mkdir(parents=True)
    changes = {"tasks": {"sst2": {}, "easy": {"task": "arc_easy", "folder": "my-arc"}}}
    found = plan(tmp_path, changes, data=tmp_path / "data")
    assert [cell.config.task_dir for cell in found.cells()[::2]] == [
        str(tmp_path / "data" / name) for name in ("sst2", "my-arc")
    ]
    with pytest.raises(
        ValueError, match=r"llama / trec6 / adamw / seed 0: there is no folder trec6 in .*; known: my-arc"
    ):
        plan(tmp_path, {"tasks": {"trec6": {}}}, data=tmp_path / "data").cells()


def test_test_sets_of_other_tasks_come_from_the_same_data(tmp_path: Path) -> None:
    for name in ("openbookqa", "arc_easy"):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_rows(tmp_path / "data" / name / "test.jsonl", films(2))
    changes = {"tasks": {"openbookqa": {"shift_tasks": "arc_easy"}}}
    first = plan(tmp_path, changes, data=tmp_path / "data").cells()[0]
    assert first.config.shift_task_dir == str(tmp_path / "data")
    write_rows(tmp_path / "data" / "arc_easy" / "test.jsonl", films(3))
    assert plan(tmp_path, changes, data=tmp_path / "data").cells()[0].identity != first.identity
    (tmp_path / "data" / "other").mkdir()
    again = plan(tmp_path, changes, data=tmp_path / "data").cells()[0]
    write_rows(tmp_path / "data" / "other" / "test.jsonl", films(3))
    assert plan(tmp_path, changes, data=tmp_path / "data").cells()[0].identity == again.identity


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"methods.adamw.settings.ess": 3}, "llama / world / adamw / seed 0: method 'adamw' has no option ess"),
        ({"settings.lora_r": "two"}, "lora_r is 'two'; it must be a whole number"),
        ({"tasks": {"word": {}}}, "unknown task 'word'; .* A task of your own needs train_file"),
        ({"tasks": {"mine": {"train_file": "nowhere.jsonl"}}}, "train_file is 'nowhere.jsonl', and there is no such"),
    ],
)
def test_settings_that_do_not_fit_are_said_of_the_cell(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan(tmp_path, changes).cells()


def test_cells_are_chosen_by_name(tmp_path: Path) -> None:
    cells = plan(tmp_path, {"seeds": [0, 1, 2]}).cells()
    found = chosen(cells, ["method=ivon", "seed=0,2"])
    assert [(cell.method, cell.seed) for cell in found] == [("ivon", 0), ("ivon", 2)]
    assert chosen(cells, []) == cells
    with pytest.raises(ValueError, match="no method 'ivn'; did you mean 'ivon'"):
        chosen(cells, ["method=ivn"])
    with pytest.raises(ValueError, match="must be model=, task=, method= or seed="):
        chosen(cells, ["when=ivon"])
    for text in ("metod=ivon", "methods=ivon"):
        with pytest.raises(ValueError, match=f"'{text}' must be .*, comma-separated; did you mean 'method'?"):
            chosen(cells, [text])
    with pytest.raises(ValueError, match=r"'ivon' must be .*, comma-separated\.$"):
        chosen(cells, ["ivon"])


def test_data_of_cells_that_are_not_chosen_need_not_be_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "data" / "sst2").mkdir(parents=True)
    found = plan(tmp_path, {"tasks": {"sst2": {}, "trec6": {}}}, data=tmp_path / "data")
    caplog.set_level("INFO")
    cells = found.cells(["task=sst2", "method=ivon"])
    assert [(cell.task, cell.method) for cell in cells] == [("sst2", "adamw"), ("sst2", "ivon")]
    assert [record.message.partition(":")[0] for record in caplog.records] == ["left out"]
    for only in ([], ["task=trec6"], ["method=ivon"]):
        with pytest.raises(ValueError, match="there is no folder trec6"):
            found.cells(only)


def test_variants_of_rows_and_curves_are_each_there_once(tmp_path: Path) -> None:
    found: Plan = plan(tmp_path)
    variants = found.methods["ivon"].variants()
    assert [v.key for v in variants] == list(dict.fromkeys(v.key for v in variants))
    # mean (and temperature 0), samples (and temperature 1), temperature 0.5
    assert len(variants) == 3
    assert found.cells()[1].variants == variants


def test_a_plan_words_the_rows_in_words_of_its_own(tmp_path: Path) -> None:
    template = "{text}\n\nIs it good?"
    changes = {
        "tasks.films": {"train_file": write_rows(tmp_path / "films.jsonl", films(4)), "prompt_template": template},
        "settings.prompt_format": "chat",
        "methods.ivon.settings.system_prompt": "Be brief.",
    }
    worded = {(cell.task, cell.method): cell.config.own_prompt for cell in plan(tmp_path, changes).cells()}
    assert worded["films", "ivon"] == OwnPrompt(template=template, format="chat", system="Be brief.")
    assert worded["films", "adamw"] == OwnPrompt(template=template, format="chat")
    assert worded["world", "adamw"] == OwnPrompt(format="chat")
