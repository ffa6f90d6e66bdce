"""Cached frozen layers are the same model: its logits, its training, its files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from torch import Tensor, nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    MPNetConfig,
    PretrainedConfig,
    RobertaConfig,
)

from small_runs import LEARNED, config, save_model, write_rows
from tiny_runs import uneven_films
from tiny_tokenizers import word_piece
from varlora.adapters import trained_tensors
from varlora.posterior import PredictionConfig
from varlora.prediction.prediction import Prediction
from varlora.readout.frozen_layers import cached_frozen_layers
from varlora.runs.config import RunConfig
from varlora.runs.folder import read_run
from varlora.runs.predict import predict_split
from varlora.runs.run import method_of, run, train
from varlora.runs.setting import load_setting, reload_setting

SIZES: Mapping[str, Any] = {"vocab_size": 64, "num_hidden_layers": 3, "initializer_range": 0.2, "num_labels": 3}
WIDTHS: Mapping[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
DEBERTA: Mapping[str, Any] = {
    "relative_attention": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "conv_kernel_size": 3,
}
CONFIGS: Mapping[str, PretrainedConfig] = {
    "bert": BertConfig(**SIZES, **WIDTHS),
    "roberta": RobertaConfig(**SIZES, **WIDTHS, pad_token_id=0),
    "electra": ElectraConfig(**SIZES, **WIDTHS, embedding_size=8),
    "mpnet": MPNetConfig(**SIZES, **WIDTHS, pad_token_id=0),
    "deberta-v2": DebertaV2Config(**SIZES, **WIDTHS, **DEBERTA),
    "distilbert": DistilBertConfig(
        vocab_size=64, dim=16, hidden_dim=32, n_heads=2, n_layers=3, initializer_range=0.2, num_labels=3
    ),
}
UPPER = r".*layer\.2\..*(query|key|value|query_proj|dense|q_lin|attn\.q|lin1)"
FIRST_FROZEN = r".*layer\.[12]\..*(query|value)"


def adapted(settings: PretrainedConfig, target_modules: str = UPPER) -> PeftModel:
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(settings)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=target_modules, lora_dropout=0.1))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def rows(padding: int = 0, side: str = "right") -> dict[str, Tensor]:
    ids = torch.randint(3, 64, (4, 7), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(7) < torch.tensor([7, 4, 5, 7])[:, None]).long()
    both = [nn.functional.pad(part, (0, padding)) for part in (ids * mask, mask)]
    ids, mask = both if side == "right" else [part.flip(1) for part in both]
    return {"input_ids": ids, "attention_mask": mask}


def lower_parts(model: nn.Module) -> list[nn.Module]:
    """The embeddings and the two lower layers."""
    encoder = next(m for m in model.modules() if hasattr(m, "embeddings"))
    inner = encoder.encoder if hasattr(encoder, "encoder") else encoder.transformer
    return [encoder.embeddings, inner.layer[0], inner.layer[1]]


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_the_whole_model(name: str) -> None:
    model = adapted(CONFIGS[name])
    expected = model(**rows()).logits
    shown = list(range(4)), [3, 0], [1, 2, 0, 3, 1]
    with cached_frozen_layers(model) as layers:
        assert layers == 2
        for order in shown:
            for padding in (0, 3):
                batch = {key: value[order] for key, value in rows(padding).items()}
                torch.testing.assert_close(model(**batch).logits, expected[order], rtol=0, atol=1e-6)
    assert torch.equal(model(**rows()).logits, expected)


def test_a_row_is_computed_once() -> None:
    model = adapted(CONFIGS["bert"])
    computed: list[int] = []
    lower_parts(model)[1].attention.register_forward_pre_hook(lambda _, args: computed.append(len(args[0])))
    with cached_frozen_layers(model):
        model(**{key: value[:2] for key, value in rows().items()})
        model(**rows(padding=2))
        model(**rows())
        assert computed == [2, 2]
        seen = rows()
        model(**seen, token_type_ids=torch.ones_like(seen["input_ids"]))
        assert computed == [2, 2, 4], "other segments are other rows"


@torch.no_grad()
def test_half_precision_is_kept_apart() -> None:
    model = adapted(CONFIGS["bert"])
    plain = model(**rows()).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = model(**rows()).logits
    assert not torch.allclose(half.float(), plain, atol=1e-4)
    with cached_frozen_layers(model):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model(**rows()).logits, half)
        torch.testing.assert_close(model(**rows()).logits, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_that_of_the_model_whose_lower_layers_have_no_dropout(checkpointing: bool) -> None:
    found = {}
    for cached in (False, True):
        model = adapted(CONFIGS["bert"])
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.train()
        assert any(isinstance(m, nn.Dropout) and m.p == 0.1 for m in model.modules())
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        torch.manual_seed(1)
        if not cached:
            for part in lower_parts(model):
                part.eval()
            _steps(model, optimizer)
        else:
            with cached_frozen_layers(model):
                _steps(model, optimizer)
            assert lower_parts(model)[1].training, "modes are given back"
        found[cached] = {key: p.detach() for key, p in trained_tensors(model).items()}
    assert found[True].keys() == found[False].keys()
    for key, weights in found[False].items():
        torch.testing.assert_close(found[True][key], weights, rtol=0, atol=1e-6)


def _steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for order in ([0, 1], [2, 3], [3, 1], [0, 2]):
        batch = {key: value[order] for key, value in rows().items()}
        model(**batch, labels=torch.tensor([0, 2])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("target_modules", ["query,value", r".*layer\.0\.attention.*query"])
def test_adapters_from_the_lowest_layer_on_are_refused(target_modules: str) -> None:
    model = adapted(CONFIGS["bert"], r".*(query|value)" if "," in target_modules else target_modules)
    with pytest.raises(ValueError, match="needs frozen layers below the first that is adapted"):
        with cached_frozen_layers(model):
            pass


def test_trained_embeddings_are_refused() -> None:
    model = adapted(CONFIGS["bert"])
    next(lower_parts(model)[0].parameters()).requires_grad_(True)
    with pytest.raises(ValueError, match="the embeddings or the lowest"):
        with cached_frozen_layers(model):
            pass


def test_padding_on_the_left_is_refused_and_the_model_given_back() -> None:
    model = adapted(CONFIGS["bert"])
    expected = model(**rows()).logits
    with cached_frozen_layers(model):
        model(**rows())
        with pytest.raises(ValueError, match="Set the tokenizer's padding_side to 'right'"):
            model(**rows(side="left"))
    assert torch.equal(model(**rows()).logits, expected)
    assert model(**rows(side="left")).logits.isfinite().all()


def save_upright_encoder(folder: Path) -> str:
    """Three layers without dropout."""
    tokenizer = word_piece()
    torch.manual_seed(0)
    sizes = {**SIZES, **WIDTHS, "vocab_size": len(tokenizer), "num_labels": 2}
    settings = BertConfig(**sizes, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    return save_model(folder, BertModel(settings, add_pooling_layer=False), tokenizer)


def settings_of(folder: Path, model: str, method: str, **options: Any) -> RunConfig:
    folder.mkdir(parents=True)
    train_file = write_rows(folder / "uneven.jsonl", uneven_films(32))
    snapshots = {"snapshots": 2} if method == "swag" else {}
    given = {"max_steps": 4, "train_file": train_file, "lora_target_modules": FIRST_FROZEN, "lora_dropout": 0.1}
    return config(folder, model, method=method, **snapshots, **given, **options)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_upright_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.mark.parametrize("method", sorted(LEARNED.keys() - {"temperature"}))  # whose training is AdamW's
def test_every_method_gives_the_posterior_that_it_gives_without(method: str, encoder: str, tmp_path: Path) -> None:
    settings = settings_of(tmp_path / "whole", encoder, method)
    setting, checkpoints = load_setting(settings), tmp_path / "checkpoints"
    whole = train(setting, method_of(settings), checkpoints=checkpoints, progress=False).posterior
    settings = settings_of(tmp_path / "cached", encoder, method, cache_frozen_layers=True)
    cached = run(settings, progress=False).posterior
    assert cached.point.keys() == whole.point.keys()
    assert any("layer.1." in key for key in whole.point)
    assert not any("layer.0." in key for key in whole.point)
    for first, second in [(cached.point, whole.point), (cached.tensors(), whole.tensors())]:
        assert first.keys() == second.keys()
        for key, tensor in second.items():
            torch.testing.assert_close(first[key], tensor, rtol=1e-4, atol=1e-5, msg=lambda m, k=key: f"{k}: {m}")


def test_the_run_folder_loads_into_the_whole_model(encoder: str, tmp_path: Path) -> None:
    result = run(settings_of(tmp_path / "run", encoder, "ivon", cache_frozen_layers=True), progress=False)
    folder = read_run(result.setting.config.output_dir)
    setting = reload_setting(folder)
    for mode in ("mean", "samples"):
        stored = folder.prediction("test", mode)
        again = predict_split(setting, folder.posterior, "test", PredictionConfig(mode=mode))
        assert isinstance(again, Prediction)
        torch.testing.assert_close(again.log_probs, stored.log_probs, rtol=0, atol=1e-6)
    plain = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=2)
    loaded = PeftModel.from_pretrained(plain, folder.path)
    weights = get_peft_model_state_dict(loaded)
    assert weights.keys() == folder.posterior.point.keys()
    for key, mean in folder.posterior.point.items():
        assert torch.equal(weights[key], mean), key


def test_a_run_is_refused_before_it_trains(encoder: str, tmp_path: Path) -> None:
    settings = config(tmp_path, encoder, method="adamw", lora_target_modules="query", cache_frozen_layers=True)
    with pytest.raises(ValueError, match="Adapt upper layers only"):
        run(settings, progress=False)
