"""A run on the embedded task, and the task of docs/lm_eval.md on the same rows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from varlora.demo.data import model_folder, write_task
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.runs.run import run
from varlora.runs.setting import reload_setting

SAMPLES = 5
NOISY = {"recipe": "cong2024", "ess": 2000.0, "hess_init": 0.01, "learning_rate": 0.01}
"""IVON whose draws differ visibly after a few steps."""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "lm_eval.md"
# What follows the prompt, of one and of several tokens, likely and not.
PAIRS = [
    ("What will mik want?\nA. lamps\nB. ropes\nAnswer:", " A"),
    ("What will mik want?\nA. lamps\nB. ropes\nAnswer:", " B"),
    ("What will mik", " want?"),
    ("What will mik want?", "\nA. lamps"),
    ("What will", " mik want?\nA."),
]


@dataclass(frozen=True)
class Harness:
    """Where things are."""

    folder: Path

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def tasks(self) -> Path:
        return self.folder / "tasks"


def make_harness(folder: Path) -> Harness:
    """Trains, and writes the task."""
    files = write_task(folder, seed=0, train=64, validation=16, test=24)
    settings = RunConfig(
        method_options=NOISY,
        model_name_or_path=str(model_folder()),
        train_file=str(files["train"]),
        validation_file=str(files["validation"]),
        test_file=str(files["test"]),
        output_dir=str(folder / "run"),
        lora_target_modules="v_proj,down_proj",
        max_steps=15,
        samples=SAMPLES,
        seed=3,
    )
    run(settings, progress=False)
    (folder / "tasks").mkdir()
    (task,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    placed = task.replace("{test: test.jsonl}}", f"{{test: {files['test']}}}, cache_dir: {folder / 'cache'}}}")
    assert placed != task
    (folder / "tasks" / "lettered.yaml").write_text(placed, encoding="utf-8")
    return Harness(folder)


def loaded(folder: Path) -> Any:
    """The run's own model and rows, as `varlora eval` loads them."""
    finished = read_run(folder)
    return reload_setting(finished)


def token_log_probs(model: Any, ids: list[int]) -> Tensor:
    """log p of each next token (T - 1, V), by one plain forward."""
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].double(), dim=-1)


def log_likelihood(model: Any, tokenizer: Any, context: str, continuation: str) -> tuple[float, bool]:
    """A hand-written log p(continuation | context), and whether it is greedy."""
    before, ids = tokenizer(context)["input_ids"], tokenizer(context + continuation)["input_ids"]
    rows = token_log_probs(model, ids)[len(before) - 1 :]
    targets = torch.tensor(ids[len(before) :])
    return float(rows.gather(1, targets[:, None]).sum()), bool((rows.argmax(1) == targets).all())


@contextmanager
def restored(model: Any) -> Iterator[None]:
    """Asserts that the block leaves the model's weights and its modules' modes as they were."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    yield
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert modes == {name: module.training for name, module in model.named_modules()}


def asks(*pairs: tuple[str, str], row: int | None = None) -> list[Any]:
    """The harness's requests for these texts, as the choices of a row, or of none."""
    from lm_eval.api.instance import Instance

    return [
        Instance("loglikelihood", {}, pair, i, metadata=("task", row, 1) if row is not None else (None, None, None))
        for i, pair in enumerate(pairs)
    ]
