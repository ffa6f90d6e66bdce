"""How a benchmark finds its files and configurations, and what it says of itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from varlora.tasks import PROMPT_STYLES, TASKS
from varlora.tasks.named import Benchmark

TOY = Benchmark(
    name="toy",
    dataset="nobody/toy",
    config="easy",
    splits={"train": "train", "test": "test", "hard": "test"},
    configs={"hard": "difficult"},
    files={"train": "train.jsonl", "test": ("dev.jsonl", "test.jsonl"), "hard": "hard.jsonl"},
    optional=("hard",),
    record=lambda row, _split: {"text": row["text"], "label": row["label"]},
    label_names=("no", "yes"),
    licence="CC0",
    source="a toy",
)


def write(file: Path, *texts: str) -> None:
    rows = [{"text": text, "label": ("no", "yes")[i % 2]} for i, text in enumerate(texts)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_one_of_several_files_is_a_split_and_noted(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *(f"train {i}" for i in range(10)))
    with pytest.raises(ValueError, match=r"lacks dev\.jsonl or test\.jsonl"):
        TOY(tmp_path)
    write(tmp_path / "test.jsonl", "a test")

    task = TOY(tmp_path, validation_size=2)

    assert [row["text"] for row in task.rows("test")] == ["a test"]
    assert task.notes[0] == "test: read from test.jsonl"
    write(tmp_path / "dev.jsonl", "another")
    with pytest.raises(ValueError, match=r"holds dev\.jsonl and test\.jsonl, and each could be the split 'test'"):
        TOY(tmp_path)


def configurations(folder: Path, **rows: dict[str, list[str]]) -> str:
    """A folder with a data set of several configurations, as on the hub."""
    listed = []
    for config, splits in rows.items():
        listed.append(f"- config_name: {config}\n  data_files:\n")
        for split, texts in splits.items():
            (folder / config).mkdir(parents=True, exist_ok=True)
            write(folder / config / f"{split}.jsonl", *texts)
            listed.append(f"  - split: {split}\n    path: {config}/{split}.jsonl\n")
    (folder / "README.md").write_text(f"---\nconfigs:\n{''.join(listed)}---\n", encoding="utf-8")
    return str(folder)


def test_a_split_may_have_a_configuration_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    easy = {"train": [f"easy {i}" for i in range(10)], "test": ["easy test"]}
    folder = configurations(tmp_path / "toy", easy=easy, difficult={"test": ["a hard one", "another"]})

    task = dataclasses.replace(TOY, dataset=folder)(validation_size=2)

    assert [row["text"] for row in task.rows("test")] == ["easy test"]
    assert [row["text"] for row in task.rows("hard")] == ["a hard one", "another"]
    with pytest.raises(ValueError, match=r"no split 'trial'; it has train, test"):
        dataclasses.replace(TOY, dataset=folder, splits={"test": "trial"})()


def test_the_prompt_style_reaches_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", "a", "b")
    write(tmp_path / "test.jsonl", "c")

    with pytest.raises(ValueError, match="prompt_style is 'blob', which words questions"):
        TOY(tmp_path, prompt_style="blob")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_asks(name: str) -> None:
    task: Any = TASKS[name]

    assert isinstance(task, Benchmark)
    assert task.name == name
    assert task.licence
    assert task.source
    assert task.example is not None
    styles = PROMPT_STYLES if "question" in task.example else ["varlora"]
    examples = {style: task.example_task(style) for style in styles}
    for example in examples.values():
        prompt = example.rows("example")[0]["prompt"]
        assert all(
            str(value) in prompt for key, value in task.example.items() if key in ("passage", "question", "text")
        )
        assert not prompt[-1:].isspace()
        assert len(example.continuations) != 1
    assert len({example.rows("example")[0]["prompt"] for example in examples.values()}) == len(styles)


def test_without_an_example_there_is_no_prompt() -> None:
    assert TOY.example_task() is None
