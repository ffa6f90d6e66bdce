"""What a run loads, and what it says when model and data do not fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, LlamaConfig

from models import tiny_llama
from small_runs import config as settings
from small_runs import films, save_model, write_rows
from tiny_runs import save_encoder
from tiny_tokenizers import sentencepiece
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead
from varlora.runs.config import RunConfig
from varlora.runs.setting import Setting, load_setting

Make = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A causal model."""
    return save_model(tmp_path_factory.mktemp("llama"), layers=2)


@pytest.fixture
def config(llama: str, tmp_path: Path) -> Make:
    """Settings, some of them changed; `rows` replaces the training rows, of which 4 are for validation."""

    def make(*, rows: list[dict[str, Any]] | None = None, model: str = llama, **others: Any) -> RunConfig:
        if rows is not None:
            file = write_rows(tmp_path / "rows.jsonl", rows)
            others = {"train_file": file, "validation_file": None, "validation_size": 4, "test_file": None, **others}
        return settings(tmp_path, model, **others)

    return make


def test_the_family_goes_by_the_models_architecture(tmp_path: Path, config: Make) -> None:
    causal, encoder = load_setting(config()), load_setting(config(model=save_encoder(tmp_path / "bert")))

    assert (causal.family, type(causal.readout)) == ("causal", AnswerTokens)
    assert (encoder.family, type(encoder.readout)) == ("encoder", ClassHead)
    assert causal.readout is not None
    assert causal.tokenizer.convert_ids_to_tokens(list(causal.readout.token_ids)) == ["negative", "positive"]


def test_the_seed_decides_the_adapter_and_not_the_data(config: Make) -> None:
    first, same, other = (load_setting(config(rows=films(32), seed=seed)) for seed in (0, 0, 1))

    def adapter(setting: Any) -> Any:
        return next(p for name, p in setting.model.named_parameters() if "lora_A" in name)

    assert (adapter(first) == adapter(same)).all()
    assert (adapter(first) != adapter(other)).any()
    assert first.encoded("validation")["id"] == other.encoded("validation")["id"]


def test_fewer_training_rows_keep_the_validation_rows(config: Make) -> None:
    whole, few = (load_setting(config(rows=films(32), max_train_samples=n)) for n in (None, 10))

    assert len(few.task.rows("train")) == 10
    assert set(few.task.rows("train")["id"]) < set(whole.task.rows("train")["id"])
    assert few.task.rows("validation")["id"] == whole.task.rows("validation")["id"]
    assert any("10 of 28 rows" in note for note in few.task.notes)


def test_named_modules_are_adapted(config: Make) -> None:
    setting = load_setting(config(lora_target_modules="up_proj,o_proj"))

    adapted = {
        name.split(".lora_A")[0].rsplit(".", 1)[1] for name, _ in setting.model.named_parameters() if "lora_A" in name
    }
    assert adapted == {"up_proj", "o_proj"}


def adapted_modules(setting: Setting) -> set[str]:
    """Names of the modules with an adapter, without what is around the base model."""
    names = [name for name, _ in setting.model.named_parameters() if "lora_A" in name]
    return {name.split(".lora_A")[0].removeprefix("base_model.model.") for name in names}


@pytest.mark.parametrize("targets", ["q_proj,up_proj", "all-linear", None])
def test_the_uppermost_layers_are_adapted(targets: str | None, config: Make) -> None:
    everywhere = adapted_modules(load_setting(config(lora_target_modules=targets)))
    upper = adapted_modules(load_setting(config(lora_target_modules=targets, lora_layers="top:1")))

    assert upper == {name for name in everywhere if ".layers.1." in name}
    assert upper < everywhere
    assert adapted_modules(load_setting(config(lora_target_modules=targets, lora_layers="top:2"))) == everywhere


def test_the_uppermost_layers_of_an_encoder_are_adapted(tmp_path: Path, config: Make) -> None:
    setting = load_setting(
        config(model=save_encoder(tmp_path / "bert"), lora_layers="top:1", lora_target_modules="all-linear")
    )

    assert adapted_modules(setting) == {
        f"bert.encoder.layer.1.{name}"
        for name in (
            *("attention.self.query", "attention.self.key", "attention.self.value"),
            *("attention.output.dense", "intermediate.dense", "output.dense"),
        )
    }


def test_rows_are_as_long_as_the_context_allows(config: Make) -> None:
    long = [{"text": "fine " * 200, "label": "positive"}, *films(20)]

    setting = load_setting(config(rows=long))
    with pytest.raises(ValueError, match=r"has 204 tokens, more than the 128 allowed.*truncation='left'"):
        [setting.encoded(split) for split in setting.task.splits]
    cut = load_setting(config(rows=long, truncation="left"))
    lengths = [len(ids) for split in ("train", "validation") for ids in cut.encoded(split)["input_ids"]]
    assert max(lengths) == 128


NO_FILES: dict[str, Any] = {"train_file": None, "validation_file": None, "test_file": None}
LETTERS: dict[str, Any] = {"label_answers": "letters"}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no folder": ({"model": "./nowhere"}, "there is no model folder ./nowhere"),
    "unknown task": (
        {"task": "sst3", **NO_FILES},
        "unknown task 'sst3'; did you mean 'sst2'",
    ),
    "nothing to train on": (
        {"task": "mmlu", **NO_FILES},
        "task 'mmlu' has no training rows, only chemistry, physics, computer_science, mathematics. Train on another",
    ),
    "unknown modules": ({"lora_target_modules": "query"}, "query"),
    "more layers than there are": (
        {"lora_layers": "top:3", "lora_target_modules": "all-linear"},
        "'top:3', and the model has 2 layers: top:1 to top:2.",
    ),
    "layers said twice": (
        {"lora_layers": "top:1", "lora_target_modules": r".*layers\.1\..*q_proj"},
        "and lora_target_modules a regular expression, '.*layers\\\\.1\\\\..*q_proj', which says itself which layers",
    ),
    "modules outside the layers": (
        {"lora_layers": "top:1", "lora_target_modules": "q_proj,lm_head"},
        "lora_target_modules names 'lm_head', which the layers of lora_layers lack",
    ),
    "a chat without a template": ({"prompt_format": "chat"}, "has no chat template; use an instruction-tuned model"),
    "a field that is not there": (
        {"prompt_template": "{txt}:"},
        "prompt_template has {txt}; allowed: {text}, {labels}, {id}",
    ),
    "unknown token": (
        {"rows": [{"text": "a film", "label": ("fine", "zzz")[i % 2]} for i in range(20)]},
        "the answer ' zzz' starts with the unknown token",
    ),
    "integers": (
        {"rows": [{"text": "a film", "label": i % 2} for i in range(20)]},
        "the tokenizer knows (label_names_file names the classes in words of yours), answer by letters "
        "(label_answers='letters'), score whole names (prompt_style='cloze'), or read a classification head "
        "(model_class='encoder')",
    ),
    "letters of a passage": (
        {"rows": [{"passage": "a film", "question": "fine", "answer": i % 2 == 0} for i in range(20)], **LETTERS},
        "label_answers is 'letters', which has no effect here: 'jsonl' is answered by no, yes. Leave it out.",
    ),
    "letters of completions": (
        {"rows": [{"prompt": "a film", "completion": " fine"}] * 20, **LETTERS},
        "label_answers is 'letters', which has no effect here: 'jsonl' has completions. Leave it out.",
    ),
    "columns": (
        {"dataset_name": "d", "dataset_columns": "text", **NO_FILES},
        "dataset_columns is 'text'; write 'our_name=its_name'",
    ),
}


@pytest.mark.parametrize(("given", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit_is_named(tmp_path: Path, config: Make, given: dict[str, Any], message: str) -> None:
    if given.get("task") == "mmlu":
        given = given | {"task_dir": mmlu_folder(tmp_path / "mmlu")}
    with pytest.raises(ValueError) as error:  # noqa: PT011  compared below, as plain text
        load_setting(config(**given))
    assert message in str(error.value)


def test_an_adapter_is_no_base_model(tmp_path: Path, config: Make) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/base", "peft_type": "LORA"}')

    with pytest.raises(ValueError, match=r"holds an adapter, .*; its base model is 'some/base', give that"):
        load_setting(config(model=str(folder)))


def mmlu_folder(folder: Path) -> str:
    """A folder of the test sets' files."""
    folder.mkdir()
    for name in ("chemistry", "physics", "computer_science", "mathematics"):
        write_rows(folder / f"{name}.jsonl", [{"question": "a film", "choices": list("wxyz"), "answer": 0}])
    return str(folder)


def test_answers_that_begin_alike_are_scored_as_texts(config: Make, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": f"a film {i}", "label": ("a cat", "a dog", "hen")[i % 3]} for i in range(30)]

    setting = load_setting(config(rows=rows, prompt_template="{text} Label:"))

    assert setting.readout == ChoiceTexts(answers=("a cat", "a dog", "hen"))
    assert setting.task.cloze
    encoded = setting.encoded("train")[0]
    assert encoded["choice_lengths"] == [2, 2, 1]
    assert len({tuple(ids[:-n]) for ids, n in zip(encoded["input_ids"], [2, 2, 1], strict=True)}) == 1  # one prompt
    assert caplog.text.count("So whole answers are scored as texts behind the prompt") == 1
    assert "the answers ' a cat' and ' a dog' both start with the token" in caplog.text
    assert "each row is 3 sequences" in caplog.text


def test_letters_that_share_a_token_are_scored_as_those_that_a_row_offers(tmp_path: Path, config: Make) -> None:
    tokenizer = sentencepiece(split_letters=True)
    model = save_model(tmp_path / "split", tiny_llama(vocab_size=len(tokenizer)), tokenizer)
    rows = [{"question": f"film {i}", "choices": ["cat", "dog", "hen"][: 2 + i % 2], "answer": 0} for i in range(20)]

    setting = load_setting(config(rows=rows, model=model))

    assert isinstance(setting.readout, ChoiceTexts)
    assert [len(row["choice_lengths"]) for row in setting.encoded("train")] == setting.task.rows("train")["num_choices"]


def test_an_encoder_reads_a_template_and_no_chat(tmp_path: Path, config: Make) -> None:
    model = save_encoder(tmp_path / "bert")

    setting = load_setting(config(model=model, prompt_template="fine : {text}"))
    ids = setting.encoded("train")[0]["input_ids"]
    assert setting.tokenizer.convert_ids_to_tokens(ids)[:3] == ["[CLS]", "fine", ":"]
    with pytest.raises(ValueError, match="prompt_format is 'chat', which an encoder has no use for"):
        load_setting(config(model=save_chat_encoder(tmp_path / "chat"), prompt_format="chat"))


def save_chat_encoder(folder: Path) -> str:
    """An encoder whose tokenizer has a chat template."""
    save_encoder(folder)
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }} {% endfor %}")
    return str(folder)


def test_an_encoder_has_no_prompt_style(tmp_path: Path, config: Make) -> None:
    model = save_encoder(tmp_path / "bert")
    rows = [{"question": f"film {i}", "choices": ["cat", "dog"], "answer": i % 2} for i in range(20)]

    assert load_setting(config(rows=rows, model=model)).task.kind == "choice"
    with pytest.raises(ValueError, match="prompt_style is 'blob', which has no effect on an encoder"):
        load_setting(config(rows=rows, model=model, prompt_style="blob"))
    with pytest.raises(ValueError, match="label_answers is 'letters', which has no effect here: an encoder"):
        load_setting(config(rows=rows, model=model, label_answers="letters"))


def test_completions_need_a_causal_model(tmp_path: Path, config: Make) -> None:
    rows = [{"prompt": "a film", "completion": " fine"}] * 20

    with pytest.raises(ValueError, match="asks for completions; it needs a causal language model"):
        load_setting(config(rows=rows, model=save_encoder(tmp_path / "bert")))


def test_an_incomplete_causal_model_is_refused(tmp_path: Path, config: Make) -> None:
    """More layers in its description than in its weights."""
    model = save_model(tmp_path / "llama", layers=2)
    description = AutoConfig.from_pretrained(model)
    assert isinstance(description, LlamaConfig)
    description.num_hidden_layers += 1
    description.save_pretrained(model)

    with pytest.raises(ValueError, match=r"lacks the weights of .*model.layers.2.*; it is no complete model"):
        load_setting(config(model=model))
