"""docs/elsewhere.md: its snippets, run with stand-ins that make their trainers as the packages named there do."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from small_runs import save_model
from varlora import IVON, IVONConfig, VariationalCallback, load_posterior, posterior_from_checkpoint

PAGE = Path(__file__).resolve().parent.parent / "docs" / "elsewhere.md"
IDS = torch.arange(96).view(16, 6) % 10
ROWS = [{"input_ids": ids, "labels": ids, "attention_mask": torch.ones(6, dtype=torch.int64)} for ids in IDS]


def snippet(section: str) -> str:
    found = re.search(rf"^## {section}\n.*?^```py\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert found is not None
    return found[1]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_model(tmp_path / "my-model", layers=1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    def installed(name: str, **content: Any) -> ModuleType:
        for depth in range(1, name.count(".") + 1):
            parent = ".".join(name.split(".")[:depth])
            if parent not in sys.modules:
                monkeypatch.setitem(sys.modules, parent, ModuleType(parent))
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        parent, _, last = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], last, module, raising=False)
        return module

    return installed


def adapted(name: str = "my-model", **options: Any) -> nn.Module:
    config = LoraConfig(task_type="CAUSAL_LM", **{"r": 2, "target_modules": ["q_proj", "v_proj"], **options})
    return get_peft_model(AutoModelForCausalLM.from_pretrained(name), config)


class FastLanguageModel:
    """Loads by transformers, and adapts by PEFT."""

    @staticmethod
    def from_pretrained(name: str, *, max_seq_length: int, load_in_4bit: bool) -> tuple[nn.Module, Any]:
        return AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)

    @staticmethod
    def get_peft_model(model: Any, *, random_state: int, **options: Any) -> nn.Module:
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))


def test_unsloth(here: Path, install: Callable[..., ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    trl = pytest.importorskip("trl")
    monkeypatch.setattr(trl, "SFTConfig", partial(trl.SFTConfig, bf16=False, use_cpu=True, report_to="none"))
    install("unsloth", FastLanguageModel=FastLanguageModel)
    rows = Dataset.from_list(
        [{"prompt": "a fine", "completion": " film"}, {"prompt": "a dull", "completion": " cat"}] * 4
    )
    exec(snippet("Unsloth"), {"train_dataset": rows})

    assert load_posterior(here / "unsloth-posterior").kind == "diagonal_gaussian"


def test_kernels_that_read_a_and_b_past_their_layers_are_refused(here: Path) -> None:
    """As Unsloth's do at dropout 0: attention takes the factors of q_proj, and does not call it."""
    model = adapted(lora_dropout=0.0)
    attention = model.get_base_model().model.layers[0].self_attn
    proj = attention.q_proj

    class Fused(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = proj.lora_A["default"].weight, proj.lora_B["default"].weight
            return proj.base_layer(x) + x @ a.T @ b.T * proj.scaling["default"]

    model.get_base_model().held = proj
    attention.q_proj = Fused()
    trainer = Trainer(
        model=model,
        args=TrainingArguments("fused", max_steps=2, report_to="none", use_cpu=True),
        train_dataset=ROWS,
        optimizer_cls_and_kwargs=(IVON, IVONConfig(lr=1e-3).optimizer_kwargs()),
        callbacks=[VariationalCallback(held_out="none")],
    )
    with pytest.raises(RuntimeError, match=r"got a gradient that did not pass through their noise: .*lora_B"):
        trainer.train()


class CustomSeq2SeqTrainer(Seq2SeqTrainer):
    """Asks for an optimizer of its own first, which is None unless the configuration names one."""

    def __init__(self, finetuning_args: Any, processor: Any, **options: Any) -> None:
        super().__init__(**options)
        self.finetuning_args = finetuning_args

    def create_optimizer(self) -> Any:
        if self.optimizer is None:
            self.optimizer = None
        return super().create_optimizer()


def test_llama_factory(here: Path, install: Callable[..., ModuleType]) -> None:
    def run_exp() -> None:
        trainer = workflow.CustomSeq2SeqTrainer(
            model=adapted(),
            args=Seq2SeqTrainingArguments("factory", max_steps=2, learning_rate=1e-4, report_to="none", use_cpu=True),
            finetuning_args=None,
            processor=None,
            data_collator=default_data_collator,
            callbacks=[],
            train_dataset=ROWS,
        )
        trainer.train()
        trainer.save_model()

    install("llamafactory.train.sft.workflow", CustomSeq2SeqTrainer=CustomSeq2SeqTrainer)
    install("llamafactory.train.tuner", run_exp=run_exp)
    workflow = sys.modules["llamafactory.train.sft.workflow"]
    exec(snippet("LLaMA-Factory"), {"__name__": "train"})

    assert load_posterior(here / "factory").meta.num_examples == len(ROWS)
    assert json.loads((here / "factory" / "adapter_config.json").read_text())["r"] == 2


def test_axolotl(here: Path, install: Callable[..., ModuleType]) -> None:
    install("axolotl.integrations.base", BasePlugin=type("BasePlugin", (), {}))
    names: dict[str, Any] = {"__name__": "my_module"}
    exec(snippet("axolotl"), names)
    arguments = TrainingArguments(
        "axolotl", max_steps=2, save_steps=2, learning_rate=1e-4, report_to="none", use_cpu=True
    )
    trainer = Trainer(model=adapted(), args=arguments, train_dataset=ROWS)
    for callback in names["VariationalPlugin"]().add_callbacks_post_trainer(None, trainer):
        trainer.add_callback(callback)
    trainer.train()

    assert posterior_from_checkpoint(here / "axolotl" / "checkpoint-2").kind == "diagonal_gaussian"


def test_4_bit_weights(here: Path) -> None:
    pytest.importorskip("bitsandbytes")
    names: dict[str, Any] = {"train_dataset": ROWS, "collate": default_data_collator}
    exec(snippet("4-bit weights"), names)

    frozen = {p.dtype for p in names["model"].parameters() if not p.requires_grad}
    assert torch.uint8 in frozen
    assert names["q"].meta.method == "ivon"
    assert all(bool(v.isfinite().all()) for v in names["q"].variance.values())
