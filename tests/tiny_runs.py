"""More to run on than `small_runs`: an encoder, a chat model, rows of different lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertModel

from models import tiny_llama
from small_runs import WORDS, films, save_model
from tiny_tokenizers import word_level, word_piece

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} \n{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def save_chat_model(folder: Path) -> str:
    """A Llama whose tokenizer has a chat template."""
    tokenizer = word_level(words=(*WORDS, "user", "assistant"))
    tokenizer.chat_template = CHAT_TEMPLATE
    return save_model(folder, tiny_llama(vocab_size=len(tokenizer)), tokenizer)


def save_encoder(folder: Path) -> str:
    """A BERT without a classification head."""
    tokenizer = word_piece()
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return save_model(folder, BertModel(config, add_pooling_layer=False), tokenizer)


def uneven_films(rows: int) -> list[dict[str, Any]]:
    """`films`, some of them longer than others."""
    return [{**row, "text": row["text"] + " film" * (n % 3)} for n, row in enumerate(films(rows))]
