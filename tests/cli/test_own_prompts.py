"""A prompt of one's own from training to other files' rows, and data whose columns have other names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.workshop import Outcome, Workshop, reviews
from models import tiny_llama
from small_runs import save_model
from tiny_tokenizers import byte_bpe
from varlora import Predictor
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.runs.text_settings import read_texts

Call = Callable[..., Outcome]
CHAT = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"


def table(file: Path, rows: int, first: int = 0) -> Path:
    """Films in a CSV file, whose labels begin alike."""
    lines = ["sentence text,text,mood,page"]
    lines += [f"{row['text']},none,so {row['label']},{n}" for n, row in enumerate(reviews(rows, first=first))]
    file.write_text("\n".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a chat model: a template from a file, a system's turn, columns by their names, answers as texts."""
    from varlora.cli import main

    folder = tmp_path_factory.mktemp("own")
    tokenizer = byte_bpe()
    tokenizer.chat_template = CHAT
    model = save_model(folder / "model", tiny_llama(vocab_size=len(tokenizer), layers=1), tokenizer)
    (folder / "prompt.txt").write_text("Page {page}: {text}\nLabels: {labels}\n", encoding="utf-8")
    words = Workshop(folder).training(
        folder / "run",
        model_name_or_path=model,
        train_file=table(folder / "train.csv", 24),
        test_file=table(folder / "test.csv", 9, 100),
        dataset_columns="text=sentence text,label=mood",
        prompt_template=f"@{folder / 'prompt.txt'}",
        prompt_format="chat",
        system_prompt="be a film",
    )
    assert main(words) == 0
    return folder / "run"


def test_the_folder_holds_the_prompt_and_how_it_is_read(trained: Path) -> None:
    run = read_run(trained)

    assert yaml.safe_load((trained / "config.yaml").read_text())["prompt_template"] == (
        "Page {page}: {text}\nLabels: {labels}"
    )
    assert run.posterior.meta.readout is not None
    assert run.posterior.meta.readout["kind"] == "choice_texts"
    assert run.facts["task"]["not_read"] == {}


def test_it_is_evaluated_and_asked_as_it_was_trained(call: Call, trained: Path, tmp_path: Path) -> None:
    again = call("eval", trained, "--no_progress", "--output_file", tmp_path / "m.json", "--resamples", 0)
    assert (again.code, again.err) == (0, again.err)
    assert json.loads((tmp_path / "m.json").read_text())["metrics"] == json.loads(
        (trained / "metrics.json").read_text()
    )

    asked = trained.parent / "test.csv"
    done = call("predict", trained, "--input_file", asked, "--output_file", tmp_path / "a.jsonl", "--samples", 4)
    assert (done.code, done.err) == (0, done.err)
    answers = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    own = read_run(trained).prediction("test", "samples")
    for n, answer in enumerate(answers):
        assert (answer["sentence text"], answer["text"], answer["page"]) == (
            f"{reviews(9, first=100)[n]['text']}",
            "none",
            str(n),
        )
        assert list(answer["probabilities"].values()) == pytest.approx(own.probs[n].tolist(), rel=1e-5)


def test_files_of_other_columns_and_texts_in_memory(call: Call, trained: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {name: text, "page": "7"} for name in ("text", "sentence text", "words") for text in ["a fine film 3"]
    ]
    for row in rows:
        (tmp_path / f"{next(iter(row))}.jsonl").write_text(json.dumps(row), encoding="utf-8")
    asked = ["predict", trained, "--no_progress", "--output_file"]

    assert call(*asked, tmp_path / "a.jsonl", "--input_file", tmp_path / "text.jsonl").code == 0
    assert call(*asked, tmp_path / "b.jsonl", "--input_file", tmp_path / "sentence text.jsonl").code == 0
    refused = call(*asked, tmp_path / "c.jsonl", "--input_file", tmp_path / "words.jsonl")
    assert (
        refused.code,
        "no column 'sentence text', which dataset_columns names; it has words, page" in refused.err,
    ) == (
        1,
        True,
    )
    named = ["--input_file", tmp_path / "words.jsonl", "--dataset_columns", "text=words"]
    assert call(*asked, tmp_path / "c.jsonl", *named).code == 0

    answers = [json.loads((tmp_path / f"{name}.jsonl").read_text())["probabilities"] for name in "abc"]
    assert answers[0] == answers[1] == answers[2]
    predictor = Predictor.from_pretrained(trained)
    assert dict(predictor({"text": "a fine film 3", "page": 7}).probabilities) == pytest.approx(answers[0], rel=1e-5)
    with pytest.raises(ValueError, match=r"prompt_template has \{page\}; allowed: \{text\}, \{labels\}"):
        predictor({"text": "a fine film 3"})
    with pytest.raises(
        ValueError, match=r"asks for more; give a record as in training.*column that the run's prompt names"
    ):
        predictor("a fine film 3")


def test_files_are_named_where_a_person_writes_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ValueError, match=r"prompt_template is '@none.txt', and there is no file none.txt"):
        read_texts({"prompt_template": "@none.txt"})
    assert read_texts({"prompt_template": r"{text}\nLabel:"}) == {"prompt_template": r"{text}\nLabel:"}
    assert "a backslash and an n, which are no line break" in caplog.text
    given = {"model_name_or_path": "m", "train_file": "t", "output_dir": "o"}
    with pytest.raises(ValueError, match="begins with '@', which names a file where a command line or a plan has it"):
        RunConfig.from_dict({**given, "prompt_template": "@/etc/passwd"})


def test_settings_that_have_no_effect_are_refused_at_once(call: Call, workshop: Workshop, tmp_path: Path) -> None:
    for options, message in (
        ({"system_prompt": "be a film"}, "system_prompt has no effect without prompt_format='chat'"),
        ({"prompt_template": "{text.__class__}"}, "has {text.__class__}; allowed in braces: the name of a field alone"),
        (
            {"prompt_template": "{text}:", "prompt_style": "blob"},
            "words the rows, as prompt_style 'blob' does; leave one out",
        ),
        ({"prompt_template": "{txt}:"}, "prompt_template has {txt}; allowed: {text}, {labels}"),
        ({"dataset_columns": "text=words"}, "no column 'words', which dataset_columns names; it has text, label"),
    ):
        refused = call(*workshop.training(tmp_path / "run", **options))
        assert (refused.code, message in refused.err) == (1, True), refused.err
    refused = call("eval", tmp_path, "--dataset_columns", "text=words")
    assert refused.code == 1


def test_only_what_is_set_changes_the_fingerprint() -> None:
    given = {"model_name_or_path": "m", "train_file": "t", "output_dir": "o"}
    plain = RunConfig.from_dict(given).fingerprint

    assert RunConfig.from_dict({**given, "prompt_format": "plain", "prompt_template": None}).fingerprint == plain
    chat = RunConfig.from_dict({**given, "prompt_format": "chat"}).fingerprint
    assert len({plain, chat, RunConfig.from_dict({**given, "prompt_template": "{text}:"}).fingerprint}) == 3
