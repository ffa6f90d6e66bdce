"""Settings and fixtures of all tests; the models themselves are built in `models.py`.

What takes seconds to import is imported by the processes that run tests, not by the one that deals them out.
"""

from __future__ import annotations

import functools
import gc
import os
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

if TYPE_CHECKING:
    from peft import PeftModel

    from trainer_folders import TrainerFolders

TOGETHER = ("tests/integrations", "tests/predictor", "tests/serve")
"""Folders whose files share what takes seconds to make: one process runs all of them."""


def pytest_configure(config: pytest.Config) -> None:
    """Leaves out what trainings do for nothing that is tested."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return
    gc.disable()  # until all is imported
    import datasets.arrow_dataset
    import jinja2
    import torch
    from datasets.fingerprint import generate_random_fingerprint
    from transformers import Trainer

    torch.set_num_threads(1)
    # What is written must be on the disk before a power cut, which no test has; a small training waits a tenth for it.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    # A data set is pickled at its birth, to know it in a cache that nothing here uses: a tenth of a small training.
    datasets.arrow_dataset.generate_fingerprint = lambda dataset: generate_random_fingerprint()
    # PEFT's model card is written with every checkpoint, and its template compiled every time.
    jinja2.Template = functools.cache(jinja2.Template)  # type: ignore[misc]
    # All parameters are counted at every step, for a number of operations that nothing here reads.
    Trainer.floating_point_ops = lambda trainer, inputs: 0


def pytest_collection_finish() -> None:
    """Freezes what imports have made, and keeps the collection after every training and cell to what is young."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    gc.enable()
    for name in ("accelerate.utils.memory", "varlora.compare.worker"):
        if name in sys.modules:
            sys.modules[name].gc = SimpleNamespace(collect=lambda: gc.collect(1))  # type: ignore[attr-defined]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Deals out files, or folders where these share more."""
    from xdist.scheduler import LoadFileScheduling

    class BySharing(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            return next((folder for folder in TOGETHER if file.startswith(f"{folder}/")), file)

    return BySharing(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> TrainerFolders:
    """What a training in a Trainer has left, saved in every way; to be read only."""
    from trainer_folders import train_folders

    return train_folders(tmp_path_factory.mktemp("trainer"))


@pytest.fixture
def llama_lora() -> PeftModel:
    """A tiny Llama with LoRA on q_proj and v_proj."""
    from models import lora, tiny_llama

    return lora(tiny_llama(), task_type="CAUSAL_LM")


@pytest.fixture
def qwen3_lora() -> PeftModel:
    """A tiny Qwen3 with LoRA on q_proj and v_proj."""
    from models import lora, tiny_qwen3

    return lora(tiny_qwen3(), task_type="CAUSAL_LM")


@pytest.fixture
def bert_lora() -> PeftModel:
    """A tiny BERT classifier with LoRA on queries and values; its head trains too."""
    from models import lora, tiny_bert_classifier

    return lora(tiny_bert_classifier(), target_modules=("query", "value"), task_type="SEQ_CLS")
