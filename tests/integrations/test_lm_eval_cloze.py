"""Choices scored as texts are the harness's requests, and their scores its log-likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from integrations.harness import asks
from models import tiny_llama
from tiny_tokenizers import byte_bpe
from varlora.readout.readout import ChoiceTexts
from varlora.tasks import TASKS, Collator, encode

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'varlora[lm-eval]'")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.winogrande import preprocess_winogrande

THEIRS = Path(lm_eval.__file__).parent / "tasks"
FILES = {"arc_easy": "arc/arc_easy.yaml", "openbookqa": "openbookqa/openbookqa.yaml"}
NAMES = ("arc_easy", "openbookqa", "winogrande_s")


def requests(name: str, example: Any) -> list[tuple[str, str]]:
    """What the harness asks of a row: context and continuation of each choice."""
    if name == "winogrande_s":
        doc = {"sentence": example["question"], "answer": "1"}
        doc |= {f"option{i}": choice for i, choice in enumerate(example["choices"], start=1)}
        target = preprocess_winogrande.doc_to_target(doc)
        return [(context, f" {target}") for context in preprocess_winogrande.doc_to_choice(doc)]
    asked = yaml.safe_load((THEIRS / FILES[name]).read_text())
    text = {"question_stem": "{{question}}"}.get(asked["doc_to_text"], asked["doc_to_text"])
    assert asked.get("target_delimiter", " ") == " "
    assert asked["doc_to_choice"] == "{{choices.text}}"
    return [(text.replace("{{question}}", example["question"]), f" {choice}") for choice in example["choices"]]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_harness_log_likelihoods(name: str, bos: bool) -> None:
    benchmark: Any = TASKS[name]
    tokenizer, task = byte_bpe(bos=bos), benchmark.example_task("cloze")
    model = tiny_llama(vocab_size=len(tokenizer))
    pairs = requests(name, benchmark.example)
    batch = Collator.of(task, tokenizer)(list(encode(task, "example", tokenizer, None)))

    found = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2).loglikelihood(asks(*pairs), disable_tqdm=True)

    expected = torch.tensor([[value for value, _ in found]])
    scores = ChoiceTexts(answers=task.answers).logits(model, batch).detach()
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)
    by_byte = ChoiceTexts(answers=task.answers, length_normalization="bytes").logits(model, batch).detach()
    texts = [text.removeprefix(" ") for _, text in pairs]
    torch.testing.assert_close(by_byte, expected / torch.tensor([len(text.encode()) for text in texts]))
