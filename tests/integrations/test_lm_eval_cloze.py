"""Choices scored as texts are the harness's requests, and their scores its log-likelihoods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from integrations.harness import asks
from models import tiny_llama
from small_runs import config, save_model, write_rows
from tiny_tokenizers import byte_bpe
from varlora.readout.readout import ChoiceTexts
from varlora.runs.folder import read_run
from varlora.runs.run import run
from varlora.tasks import TASKS, Collator, encode

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; pip install 'varlora[lm-eval]'")

import lm_eval
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks.winogrande import preprocess_winogrande

from varlora.integrations.lm_eval import PosteriorLM

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


def test_a_posteriors_probabilities_are_the_harness(tmp_path: Path) -> None:
    """Each draw divides one unit among a row's choices, as in `Prediction.probs`."""
    asked = [
        {
            "id": f"q{i}",
            "question": f"a {word} film",
            "choices": ["a fine cat", "dull", "negative film"],
            "answer": i % 3,
        }
        for i, word in enumerate(("fine", "dull", "cat", "dog", "cow", "hen") * 2)
    ]
    file = write_rows(tmp_path / "rows.jsonl", asked)
    noisy = {"recipe": "cong2024", "ess": 500.0, "hess_init": 0.01, "learning_rate": 0.01, "max_steps": 5}
    data = {"train_file": file, "validation_file": file, "test_file": file}
    run(config(tmp_path, save_model(tmp_path / "model"), prompt_style="cloze", **noisy, **data), progress=False)
    prediction = read_run(tmp_path / "run").prediction("test", "samples")
    assert float(prediction.log_probs.std(dim=1).max()) > 0.1, "the draws should differ"

    lm = PosteriorLM(str(tmp_path / "run"), batch_size=8)
    for n in range(2):
        pairs = [(f"Question: {asked[n]['question']}\nAnswer:", f" {choice}") for choice in asked[n]["choices"]]
        values = torch.tensor([value for value, _ in lm.loglikelihood(asks(*pairs, row=n))], dtype=torch.float64)
        torch.testing.assert_close(values.softmax(0), prediction.probs[n], atol=1e-5, rtol=0)
