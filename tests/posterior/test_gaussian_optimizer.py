"""An optimizer that satisfies `GaussianOptimizer` does what IVON does: it trains, is saved, predicts and resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainingArguments, default_data_collator

from gaussian_optimizers import Newton
from models import lora, tiny_llama
from varlora import (
    AnswerTokens,
    NoiseController,
    VariationalCallback,
    load_posterior,
    posterior_from_checkpoint,
    posterior_of,
    predict,
    save_posterior,
)
from varlora.adapters import trained_tensors
from varlora.ivon.noise import CounterNoise
from varlora.posterior import DiagonalGaussian
from varlora.posterior.folder import CheckpointError
from varlora.posterior.gaussian_optimizer import AutoOptimizer, missing_members
from varlora.posterior.wrapped import unwrapped
from varlora.report.health import health_of
from varlora.training.adapter_trainer import AdapterTrainer

READOUT = AnswerTokens(token_ids=(3, 7), answers=("A", "B"))
ROWS = [
    {"input_ids": [1, 2, 4 + i % 2, 9 + i // 2], "attention_mask": [1] * 4, "labels": i % 2, "id": i} for i in range(16)
]
N, ESS = len(ROWS), 1000


def trainer_of(folder: Path, callbacks: Any = (), **options: Any) -> AdapterTrainer:
    arguments = TrainingArguments(
        **{
            "output_dir": str(folder),
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 2,
            "max_steps": 24,
            "save_steps": 12,
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "remove_unused_columns": False,
            **options,
        }
    )
    return AdapterTrainer(
        model=lora(tiny_llama(), lora_dropout=0.1),
        args=arguments,
        train_dataset=[{key: row[key] for key in row if key != "id"} for row in ROWS],  # type: ignore[arg-type]
        data_collator=default_data_collator,
        readout=READOUT,
        optimizer_cls_and_kwargs=(Newton, {"lr": 1.0, "num_examples": ESS}),
        callbacks=[VariationalCallback(), *callbacks],
    )


def batches() -> list[dict[str, Any]]:
    return [
        {
            "input_ids": torch.tensor([row["input_ids"] for row in ROWS]),
            "attention_mask": torch.ones(N, 4, dtype=torch.long),
            "labels": torch.tensor([row["labels"] for row in ROWS]),
            "id": [str(row["id"]) for row in ROWS],
        }
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[AdapterTrainer, DiagonalGaussian]:
    trainer = trainer_of(tmp_path_factory.mktemp("newton"))
    trainer.train()
    assert trainer.model is not None
    return trainer, posterior_of(trainer.model, trainer.optimizer, method="newton", num_examples=N)


def test_it_has_what_is_asked_and_nothing_that_is_left_to_the_training() -> None:
    optimizer = Newton([nn.Parameter(torch.ones(1))], lr=0.1, num_examples=3)
    assert missing_members(optimizer) == []
    assert not isinstance(optimizer, AutoOptimizer)


def test_its_noise_is_by_its_own_scale_and_the_products_are_collected_for_it() -> None:
    model = nn.Linear(2, 1, dtype=torch.float64)
    optimizer = Newton(model.parameters(), lr=0.1, num_examples=11)
    noise = NoiseController(model, optimizer, seed=5)
    x = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    output = model(x)
    drawn = CounterNoise(5).draw(dict(model.named_parameters()), step=0, draw=0, rank=0)
    eps = {name: normal / 36**0.5 for name, normal in drawn.items()}
    expected = x @ (model.weight + eps["weight"]).T + model.bias + eps["bias"]
    torch.testing.assert_close(output, expected, rtol=1e-12, atol=0)
    output.sum().backward()
    torch.testing.assert_close(noise.collect()[model.weight], x * eps["weight"], rtol=1e-12, atol=0)
    optimizer.step()
    assert optimizer.step_index == 1
    optimizer.zero_grad()
    assert not torch.equal(model(x), output)


def test_its_posterior_is_what_it_says(trained: tuple[AdapterTrainer, DiagonalGaussian], tmp_path: Path) -> None:
    trainer, q = trained
    assert trainer.model is not None
    tensors, optimizer = trained_tensors(trainer.model), unwrapped(trainer.optimizer)
    assert tensors.keys() == q.mean.keys()
    for key, p in tensors.items():
        assert torch.equal(q.mean[key], p)
        assert torch.equal(q.precision[key], optimizer.precision(p))
        assert q.precision[key].ne(ESS + 25.0).any()  # it was learned
    assert (q.meta.ess, q.meta.num_examples, q.meta.method) == (ESS, N, "newton")
    assert q.meta.prior_precision == dict.fromkeys(q.mean, 25.0)
    assert q.meta.diagnostics == {"steps": 24}
    loaded = load_posterior(save_posterior(q, tmp_path / "q"))
    assert isinstance(loaded, DiagonalGaussian)
    assert all(torch.equal(loaded.precision[key], q.precision[key]) for key in q.mean)
    assert health_of(loaded, samples=4).hessian_moved is None


def test_it_learns_and_predicts_with_its_draws(trained: tuple[AdapterTrainer, DiagonalGaussian]) -> None:
    trainer, q = trained
    assert trainer.model is not None
    found = predict(trainer.model, q, batches(), samples=4, readout=READOUT)
    untrained = predict(lora(tiny_llama()), None, batches(), readout=READOUT)
    assert found.log_probs.shape[:2] == (N, 4)
    assert found.log_probs[:, 0].ne(found.log_probs[:, 1]).any()

    def nll(prediction: Any) -> float:
        return float(-prediction.log_probs.exp().mean(1).log()[torch.arange(N), prediction.labels].mean())

    assert nll(found) < 0.3 < 0.7 < nll(untrained)


def test_a_resumed_training_goes_on_bit_for_bit(
    trained: tuple[AdapterTrainer, DiagonalGaussian], tmp_path: Path
) -> None:
    first = Path(str(trained[0].args.output_dir))
    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=str(first / "checkpoint-12"))
    weights = [load_file(folder / "checkpoint-24" / "adapter_model.safetensors") for folder in (first, tmp_path)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert resumed.model is not None
    q = posterior_of(resumed.model, resumed.optimizer)
    assert all(torch.equal(q.precision[key], p) for key, p in trained[1].precision.items())


def test_its_checkpoints_are_no_ivons(trained: tuple[AdapterTrainer, DiagonalGaussian]) -> None:
    with pytest.raises(CheckpointError, match=r"another optimizer than varlora\.IVON"):
        posterior_from_checkpoint(Path(str(trained[0].args.output_dir)) / "checkpoint-24")


def test_an_optimizer_that_does_not_count_its_steps_is_refused() -> None:
    class Uncounted(Newton):
        step_index = 0  # type: ignore[assignment]

    model = nn.Linear(2, 1)
    optimizer = Uncounted(model.parameters(), lr=0.1, num_examples=3)
    NoiseController(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"Uncounted\.step\(\) ended without counting: its step_index"):
        optimizer.step()


def test_an_optimizer_without_a_posterior_is_told_what_it_lacks() -> None:
    model = nn.Linear(2, 1)
    adamw = torch.optim.AdamW(model.parameters())
    with pytest.raises(TypeError, match=r"got AdamW, which has no noise, step_index, skipped_steps, mean, precision,"):
        NoiseController(model, adamw)
    with pytest.raises(ValueError, match=r"AdamW holds no posterior: it has no noise, "):
        posterior_of(model, adamw)
