"""Tasks: what is asked, what may be answered, and the labelled rows."""

from __future__ import annotations

from collections.abc import Mapping

from varlora.tasks.arc import arc_challenge, arc_easy
from varlora.tasks.clinc150 import clinc150
from varlora.tasks.encode import Collator, context_length, encode
from varlora.tasks.hub import load_hub
from varlora.tasks.jsonl import load_jsonl
from varlora.tasks.more import load_more
from varlora.tasks.named import TaskLoader
from varlora.tasks.openbookqa import openbookqa
from varlora.tasks.splitting import cut_validation, keep_num_choices, limit_split, limit_train, note_overlap
from varlora.tasks.sst2 import sst2
from varlora.tasks.task import OUT_OF_SCOPE, Task
from varlora.tasks.tokens import answer_tokens
from varlora.tasks.trec6 import trec6
from varlora.tasks.winogrande import winogrande_s

TASKS: Mapping[str, TaskLoader] = {
    "arc_easy": arc_easy,
    "arc_challenge": arc_challenge,
    "openbookqa": openbookqa,
    "winogrande_s": winogrande_s,
    "sst2": sst2,
    "trec6": trec6,
    "clinc150": clinc150,
}

__all__ = [
    "OUT_OF_SCOPE",
    "TASKS",
    "Collator",
    "Task",
    "TaskLoader",
    "answer_tokens",
    "context_length",
    "cut_validation",
    "encode",
    "keep_num_choices",
    "limit_split",
    "limit_train",
    "load_hub",
    "load_jsonl",
    "load_more",
    "note_overlap",
]
