"""Over PEFT's whole option space a reload is exact, or training was refused before its first step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import KasaConfig
from transformers import AutoModelForCausalLM, PreTrainedModel

from models import lora, tiny_llama
from peft_options import BASES, drawn, logits, outcome
from varlora.adapters import refuse_unreloadable
from varlora.posterior import point_mass_of


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, PreTrainedModel]:
    made = {name: build() for name, build in BASES.items()}
    for name, model in made.items():
        model.name_or_path = str(tmp_path_factory.mktemp(name))
        model.config.save_pretrained(model.name_or_path)
    return made


def swept(seeds: range, bases: Mapping[str, PreTrainedModel], folder: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for seed in seeds:
        options = drawn(seed)
        found = outcome(options, bases, folder / str(seed))
        assert found in ("exact", "refused", "not peft's"), f"{found}: {options}"
        counts[found] += 1
    return counts


def test_a_reload_is_exact_or_refused_before_the_first_step(
    bases: Mapping[str, PreTrainedModel], tmp_path: Path
) -> None:
    counts = swept(range(36), bases, tmp_path)
    assert counts["exact"] > 15, counts


@pytest.mark.slow
def test_a_wide_sweep_of_pefts_options(bases: Mapping[str, PreTrainedModel], tmp_path: Path) -> None:
    counts = swept(range(1000, 3000), bases, tmp_path)
    assert counts["exact"] > 1000, counts


def test_a_start_that_changed_the_base_becomes_a_base_of_its_own(tmp_path: Path) -> None:
    """What docs/trainers.md says to do instead."""
    tiny_llama().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    started = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa_niter_2"))
    with pytest.raises(ValueError, match=r"init_lora_weights='pissa_niter_2' has changed the base model's own weights"):
        refuse_unreloadable(started)
    config = started.peft_config["default"]
    config.init_lora_weights, config.base_model_name_or_path = True, str(tmp_path / "residual")
    started.save_pretrained(tmp_path / "start")
    expected = logits(started)
    started.unload().save_pretrained(tmp_path / "residual")

    residual = AutoModelForCausalLM.from_pretrained(tmp_path / "residual")
    model = PeftModel.from_pretrained(residual, tmp_path / "start", is_trainable=True)
    assert torch.equal(logits(model), expected)
    q = point_mass_of(model, method="adamw")
    assert q.meta.base_model == str(tmp_path / "residual")


def test_kasa_changes_the_base_too() -> None:
    model = lora(tiny_llama(), kasa_config=KasaConfig())
    with pytest.raises(ValueError, match="kasa_config has changed the base model's own weights"):
        point_mass_of(model, method="adamw")
