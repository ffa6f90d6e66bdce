"""Datasets of the hub's kind, from folders on disk."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from varlora.tasks import TASKS, load_hub
from varlora.tasks import named as named_module

FEATURES = datasets.Features(
    {"sentence": datasets.Value("string"), "label": datasets.ClassLabel(names=["negative", "positive"])}
)


@pytest.fixture
def saved(tmp_path: Path) -> str:
    rows = {"sentence": [f"film {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    data = datasets.Dataset.from_dict(rows, features=FEATURES)
    datasets.DatasetDict({"train": data, "dev": data.select(range(4))}).save_to_disk(str(tmp_path / "films"))
    return str(tmp_path / "films")


def test_columns_and_splits_are_mapped_and_class_names_taken_over(saved: str) -> None:
    task = load_hub(saved, columns={"text": "sentence"}, splits={"train": "train", "test": "dev"}, name="films")

    assert task.answers == ("negative", "positive")
    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 18, "test": 4, "validation": 2}
    assert task.rows("test")[1]["text"] == "film 1"


def test_a_folder_of_json_lines_is_a_dataset_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    rows = [{"question": f"q{i}", "choices": ["a", "b"], "answer": i % 2} for i in range(10)]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    assert len(load_hub(str(tmp_path)).rows("train")) == 9


def test_questions_in_a_published_prompt_style(tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "choices": ["a", "b"], "answer": i % 2} for i in range(10)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "d"))

    prompts = load_hub(str(tmp_path / "d"), prompt_style="laplace-lora").rows("train")["prompt"]

    assert all(prompt.endswith(" Choices: A. A. B. B. Answer:") for prompt in prompts)


def test_a_bad_row_is_named_by_dataset_split_and_row(tmp_path: Path) -> None:
    data = datasets.Dataset.from_dict({"text": ["a", "b", ""], "label": ["x", "y", "x"]})
    data.save_to_disk(str(tmp_path / "d"))

    with pytest.raises(ValueError, match=r"d:train, row 3, field 'text': got ''"):
        load_hub(str(tmp_path / "d"))


def test_absent_splits_and_columns_are_named_with_those_there(saved: str) -> None:
    with pytest.raises(ValueError, match="no split 'test'; it has train, dev"):
        load_hub(saved, splits={"test": "test"})
    with pytest.raises(ValueError, match=r"no column \['txt'\]; it has sentence, label"):
        load_hub(saved, columns={"text": "txt"})
    with pytest.raises(ValueError, match=r"cannot be loaded: .*check the name"):
        load_hub("nobody/nothing")


@pytest.fixture
def hidden(tmp_path: Path) -> str:
    """As GLUE: the test split's labels are all -1."""
    rows = datasets.Dataset.from_dict(
        {"sentence": [f"film {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}, features=FEATURES
    )
    other = datasets.Dataset.from_dict({"sentence": ["a", "b"], "label": [1, 0]}, features=FEATURES)
    test = datasets.Dataset.from_dict({"sentence": ["c", "d"], "label": [-1, -1]}, features=FEATURES)
    splits = {"train": rows, "validation": other, "test": test}
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "glue"))
    return str(tmp_path / "glue")


def test_a_split_without_labels_is_left_out_or_another_takes_its_place(hidden: str) -> None:
    columns = {"text": "sentence"}
    message = (
        r"glue:test, row 1, field 'label': got -1; .*dataset_splits .*test=none leaves it out, and test=validation"
    )
    with pytest.raises(ValueError, match=message):
        load_hub(hidden, columns=columns)

    def sizes(**splits: str | None) -> dict[str, int]:
        task = load_hub(hidden, columns=columns, splits=splits)
        return {split: len(rows) for split, rows in task.splits.items()}

    assert sizes(test=None) == {"train": 20, "validation": 2}
    assert sizes(test="validation") == {"train": 18, "validation": 2, "test": 2}, "its rows are taken; others are cut"
    assert load_hub(hidden, columns=columns, splits={"test": "validation"}).rows("test")["text"] == ["a", "b"]
    task = load_hub(hidden, columns=columns, splits={"test": None, "ood": "test"}, ood_splits=["ood"])
    assert task.rows("ood")["label"] == [-1, -1]


def test_class_names_from_a_file(hidden: str, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("bad\ngood\n", encoding="utf-8")
    options = {"columns": {"text": "sentence"}, "splits": {"test": None}}

    assert load_hub(hidden, label_names=tmp_path / "names.txt", **options).answers == ("bad", "good")


# Rows as the hub has them, what each benchmark makes of them.
LETTERED = {"text": ["one", "two", "three"], "label": ["1", "2", "3"]}
HUB = {
    "arc_easy": ({"id": "m1", "question": "q", "choices": LETTERED, "answerKey": "2"}, 1),
    "arc_challenge": ({"id": "m1", "question": "q", "choices": LETTERED, "answerKey": "1"}, 0),
    "openbookqa": ({"id": "m1", "question_stem": "q", "choices": LETTERED, "answerKey": "3"}, 2),
    "winogrande_s": ({"sentence": "_ ran", "option1": "Ann", "option2": "Bo", "answer": "2"}, 1),
    "sst2": ({"text": "fine", "label": 1, "label_text": "positive"}, 1),
}


@pytest.mark.parametrize("name", HUB)
def test_hub_rows_of_a_benchmark(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, label = HUB[name]
    rows = [{**row, "id": f"m{i}"} if "id" in row else row for i in range(10)]
    data = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(
        named_module, "read_dataset", lambda *_, **__: dict.fromkeys(("train", "validation", "test"), data)
    )

    task = TASKS[name]()

    assert set(task.rows("test")["label"]) == {label}
    assert task.licence
    assert "the hub" in (task.source or "")


def test_trec_classes_are_matched_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = datasets.ClassLabel(names=["ABBR", "ENTY", "DESC", "HUM", "LOC", "NUM"])
    features = datasets.Features({"text": datasets.Value("string"), "coarse_label": coarse})
    rows = {"text": [f"what is {i}?" for i in range(12)], "coarse_label": [0, 1, 2, 3, 4, 5] * 2}
    data = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(named_module, "read_dataset", lambda *_, **__: {"train": data, "test": data})

    task = TASKS["trec6"](validation_size=2)

    assert [task.answers[i] for i in task.rows("test")["label"][:6]] == [
        *("abbreviation", "entity", "description", "human", "location", "numeric")
    ]


def test_clinc_keeps_requests_out_of_scope_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "intent": datasets.ClassLabel(names=["alarm", "oos", "balance"])}
    )
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "intent": [0, 1, 2]}, features=features)
    monkeypatch.setattr(
        named_module, "read_dataset", lambda *_, **__: dict.fromkeys(("train", "validation", "test"), data)
    )

    task = TASKS["clinc150"]()

    assert task.answers == ("alarm", "balance")
    assert list(task.rows("test")["label"]) == [0, 1]
    assert list(task.rows("ood")["label"]) == [-1]


def test_a_benchmark_from_a_local_folder(tmp_path: Path) -> None:
    rows = [{"question": f"_ ran {i}", "choices": ["Ann", "Bo"], "answer": i % 2} for i in range(20)]
    for file in ("train.jsonl", "dev_a.jsonl"):
        (tmp_path / file).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    task = TASKS["winogrande_s"](tmp_path, validation_size=5, seed=1)

    assert {split: len(rows) for split, rows in task.splits.items()} == {"train": 15, "test": 20, "validation": 5}
    assert "validation: 5 rows cut from the 20 of train, seed 1" in task.notes
    (tmp_path / "dev_a.jsonl").unlink()
    with pytest.raises(ValueError, match=r"the folder .* lacks dev_a.jsonl"):
        TASKS["winogrande_s"](tmp_path)
    with pytest.raises(ValueError, match="there is no folder"):
        TASKS["winogrande_s"](tmp_path / "nowhere")
