"""λ steered on two gloo ranks: the same on both, by rows that neither trains on, and so after a resume."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ranks import on_ranks
from steered_tasks import Classifier, Watched, state_of, trainer_of
from varlora import posterior_of
from varlora.ivon.fit_variance import SMALLEST_STD
from varlora.ivon.withholding import withheld_rows

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo")

STOP = 57  # in the twelfth of 24 epochs of 5 steps


def train(folder: Path, *, resume: bool) -> dict[str, Any]:
    watched = Watched()
    trainer = trainer_of(
        folder,
        model=Classifier(dropout=0.2),
        held_out="train",
        callbacks=[watched],
        num_train_epochs=24,
        learning_rate=3e-2,
        per_device_train_batch_size=32,
        save_strategy="steps",
        save_steps=STOP,
        ddp_backend="gloo",
    )
    if resume:
        torch.rand(17)  # whatever the new process drew meanwhile
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{STOP}") if resume else None)
    return {"state": state_of(trainer), "ratios": watched.ratios, "rows": watched.rows, "measured": watched.measured}


def train_nothing(folder: Path) -> dict[str, Any]:
    model = Classifier()
    before = [p.detach().flatten() for p in model.parameters()]
    trainer = trainer_of(folder, model=model, held_out="train", num_train_epochs=0, ddp_backend="gloo")
    trainer.train()
    trainer.save_model(str(folder / "nothing"))
    q = posterior_of(trainer.model, trainer.optimizer)
    return {"before": torch.cat(before), "mean": flat(q.mean), "precision": flat(q.precision)}


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([t.flatten() for t in tensors.values()])


def run(rank: int, folder: str) -> dict[str, Any]:
    trained = {name: train(Path(folder), resume=name == "resumed") for name in ("whole", "resumed")}
    return trained | {"nothing": train_nothing(Path(folder))}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(run, tmp_path_factory.mktemp("ranks"), str(tmp_path_factory.mktemp("run")))


def test_both_ranks_hold_the_same_lambda_weights_and_record(results: list[dict[str, Any]]) -> None:
    first, second = (result["whole"] for result in results)
    assert first["ratios"] == second["ratios"]
    assert first["ratios"][-1] < 0.9
    assert first["state"] == second["state"]
    assert first["rows"] != second["rows"]


def test_rows_are_withheld_from_both_and_come_back_to_either(results: list[dict[str, Any]]) -> None:
    withheld = set(withheld_rows(320, seed=3))
    both = (result["whole"]["rows"] for result in results)
    epochs = [[*first, *second] for first, second in zip(*both, strict=True)]
    for epoch, rows in enumerate(epochs):
        assert len(rows) == 320
        assert set(rows) == (set(range(320)) - withheld if epoch < 14 else set(range(320)))
    for result in results:
        assert set(result["whole"]["measured"][13]) == withheld, "every rank predicts all of them"


def test_a_resumed_run_goes_on_with_the_same_rows_and_lambda(results: list[dict[str, Any]]) -> None:
    for result in results:
        whole, resumed = result["whole"], result["resumed"]
        left = 32 * (60 - STOP)
        assert resumed["rows"][0] == whole["rows"][11][-left:]
        assert resumed["rows"][1] == whole["rows"][12]
        assert resumed["ratios"] == whole["ratios"][STOP:]
        assert resumed["state"] == whole["state"]


def test_a_training_of_no_step_ends_on_both_ranks_where_it_began(results: list[dict[str, Any]]) -> None:
    first, second = (result["nothing"] for result in results)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["mean"].sort().values, first["before"].sort().values)
    torch.testing.assert_close(first["precision"], torch.full_like(first["precision"], SMALLEST_STD**-2))
