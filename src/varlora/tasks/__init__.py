"""Tasks: what is asked, what may be answered, and the labelled rows."""

from __future__ import annotations

from collections.abc import Mapping

from varlora.registry.registry import Registry
from varlora.tasks.arc import arc_challenge, arc_easy
from varlora.tasks.boolq import boolq
from varlora.tasks.clinc150 import clinc150
from varlora.tasks.collator import Collator
from varlora.tasks.encode import context_length, encode, encode_prompts
from varlora.tasks.final_answers import FINAL_ANSWERS, FinalAnswer, final_number
from varlora.tasks.gsm8k import gsm8k
from varlora.tasks.hub import load_hub
from varlora.tasks.jsonl import load_jsonl
from varlora.tasks.mmlu import mmlu, mmlu_chemistry, mmlu_computer_science, mmlu_mathematics, mmlu_physics
from varlora.tasks.more import load_more
from varlora.tasks.named import TaskLoader
from varlora.tasks.openbookqa import openbookqa
from varlora.tasks.overlap import count_overlap, note_overlap
from varlora.tasks.own_prompts import OwnPrompt
from varlora.tasks.prompt_styles import PROMPT_STYLES, PromptStyle
from varlora.tasks.shift import add_shift_tasks
from varlora.tasks.splitting import cut_validation, keep_num_choices, limit_split
from varlora.tasks.sst2 import sst2
from varlora.tasks.task import OUT_OF_SCOPE, Task
from varlora.tasks.tokens import answer_tokens
from varlora.tasks.trec6 import trec6
from varlora.tasks.winogrande import winogrande_m, winogrande_s


def register_task(name: str, loader: TaskLoader) -> None:
    """Adds a named task, for as long as the program runs; an installed package brings one by an entry point instead.

    Args:
        name: as `--task` gives it.
        loader: loads it; `varlora tasks` shows more of a `varlora.tasks.named.Benchmark`.

    Raises:
        ValueError: varlora has one of that name, or the loader cannot be called.

    Example:
        >>> register_task("sst2", sst2)
        Traceback (most recent call last):
        ValueError: varlora.tasks has 'sst2' of its own; choose another name.
    """
    TASKS.register(name, loader)


def _check_task(name: str, loader: TaskLoader) -> None:
    if not callable(loader):
        raise ValueError(f"the task {name!r} is {loader!r}; it must be a function as `varlora.tasks.TaskLoader`.")


_OWN: Mapping[str, TaskLoader] = {
    "arc_easy": arc_easy,
    "arc_challenge": arc_challenge,
    "openbookqa": openbookqa,
    "winogrande_s": winogrande_s,
    "winogrande_m": winogrande_m,
    "boolq": boolq,
    "mmlu": mmlu,
    "mmlu_chemistry": mmlu_chemistry,
    "mmlu_physics": mmlu_physics,
    "mmlu_computer_science": mmlu_computer_science,
    "mmlu_mathematics": mmlu_mathematics,
    "sst2": sst2,
    "trec6": trec6,
    "clinc150": clinc150,
    "gsm8k": gsm8k,
}
TASKS: Registry[TaskLoader] = Registry("varlora.tasks", _OWN, _check_task)
"""The named tasks: varlora's own, those of installed packages, and those that a program has registered."""

__all__ = [
    "FINAL_ANSWERS",
    "OUT_OF_SCOPE",
    "PROMPT_STYLES",
    "TASKS",
    "Collator",
    "FinalAnswer",
    "OwnPrompt",
    "PromptStyle",
    "Task",
    "TaskLoader",
    "add_shift_tasks",
    "answer_tokens",
    "context_length",
    "count_overlap",
    "cut_validation",
    "encode",
    "encode_prompts",
    "final_number",
    "keep_num_choices",
    "limit_split",
    "load_hub",
    "load_jsonl",
    "load_more",
    "note_overlap",
    "register_task",
]
