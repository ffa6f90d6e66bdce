"""Prompts, and a posterior over a small Llama whose draws write different texts after them."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel

from tiny_tokenizers import word_level
from varlora.adapters import trained_tensors
from varlora.posterior import DiagonalGaussian
from varlora.tasks import Collator

TOKENIZER = word_level()
ROWS = [{"id": str(i), "input_ids": ids} for i, ids in enumerate([[5, 6, 7], [8], [9, 10, 11, 12], [6, 6]])]
OPTIONS: dict[str, Any] = {"tokenizer": TOKENIZER, "max_new_tokens": 6}


def posterior(model: PeftModel, std: float = 0.3) -> DiagonalGaussian:
    mean = {key: p.detach().clone() for key, p in trained_tensors(model).items()}
    return DiagonalGaussian(mean=mean, precision={key: torch.full_like(m, std**-2) for key, m in mean.items()})


def batches(size: int = 2) -> list[dict[str, Any]]:
    collate = Collator(pad_token_id=0, ids=True)
    return [collate(ROWS[i : i + size]) for i in range(0, len(ROWS), size)]
