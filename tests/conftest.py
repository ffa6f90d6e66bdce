"""Settings and fixtures of all tests; the models themselves are built in `models.py`."""

from __future__ import annotations

import functools
import gc
import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import accelerate.utils.memory
import datasets.arrow_dataset
import jinja2
import pytest
import torch
from datasets.fingerprint import generate_random_fingerprint
from peft import PeftModel
from transformers import Trainer

from models import lora, tiny_bert_classifier, tiny_llama, tiny_qwen3

if TYPE_CHECKING:
    from trainer_folders import TrainerFolders

torch.set_num_threads(1)
# A data set is pickled at its birth, to know it in a cache that nothing here uses: a tenth of a small training.
datasets.arrow_dataset.generate_fingerprint = lambda dataset: generate_random_fingerprint()
# PEFT's model card is written with every checkpoint, and its template compiled every time.
jinja2.Template = functools.cache(jinja2.Template)
# All parameters are counted at every step, for a number of operations that nothing here reads.
Trainer.floating_point_ops = lambda trainer, inputs: 0


def pytest_collection_finish() -> None:
    """Freezes what imports have made, and keeps the collection at the end of every training to what is young."""
    gc.collect()
    gc.freeze()
    accelerate.utils.memory.gc = SimpleNamespace(collect=lambda: gc.collect(1))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TrainerFolders:
    """What a training in a Trainer has left, saved in every way; to be read only."""
    from trainer_folders import train_folders

    return train_folders(tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def llama_lora() -> PeftModel:
    """A tiny Llama with LoRA on q_proj and v_proj."""
    return lora(tiny_llama(), task_type="CAUSAL_LM")


@pytest.fixture
def qwen3_lora() -> PeftModel:
    """A tiny Qwen3 with LoRA on q_proj and v_proj."""
    return lora(tiny_qwen3(), task_type="CAUSAL_LM")


@pytest.fixture
def bert_lora() -> PeftModel:
    """A tiny BERT classifier with LoRA on queries and values; its head trains too."""
    return lora(tiny_bert_classifier(), target_modules=("query", "value"), task_type="SEQ_CLS")
