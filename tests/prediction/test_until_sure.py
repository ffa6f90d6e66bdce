"""As many draws for each row as it needs: which stop when, and that what is kept is what they were drawn."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models import lora, tiny_llama
from posterior.test_batched_draws import ANSWERS, batches, gaussian, in_turn
from varlora.metrics import mutual_information, predictive_entropy
from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, PredictionConfig
from varlora.prediction.prediction import Prediction, predict
from varlora.prediction.until_sure import FEWEST, MOST, draws_until_sure, standard_error


def test_a_row_that_stops_keeps_its_first_draws_and_the_others_go_on(tmp_path: Path) -> None:
    model = lora(tiny_llama()).eval()
    q, held = gaussian(model, sd=0.4), batches(size=3)
    every = in_turn(model, q, ANSWERS, held, samples=MOST, seed=4)
    errors = {number: standard_error(every[:, :number]) for number in (4, 8)}
    tolerance = errors[4].median().item()

    found = predict(model, q, held, "auto", readout=ANSWERS, seed=4, tolerance=tolerance)

    expected = torch.where(errors[4] <= tolerance, 4, torch.where(errors[8] <= tolerance, 8, 16))
    assert found.draws_taken is not None
    assert found.draws_taken.tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1, "rows must differ for this to show anything"
    for n, number in enumerate(expected.tolist()):
        own = every[n : n + 1, :number]
        torch.testing.assert_close(found.log_probs[n, :number], own[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.probs[n], own[0].exp().mean(0), atol=1e-6, rtol=1e-5)
        for measure in (mutual_information, predictive_entropy):
            torch.testing.assert_close(measure(found.log_probs[n : n + 1]), measure(own), atol=1e-5, rtol=1e-4)
    found.save(tmp_path / "auto.parquet")
    there = Prediction.load(tmp_path / "auto.parquet")
    assert there.draws_taken is not None
    assert there.draws_taken.tolist() == expected.tolist()


@pytest.mark.parametrize(("tolerance", "number"), [(1.0, FEWEST), (1e-9, MOST)])
def test_all_rows_stop_at_once_or_never(tolerance: float, number: int) -> None:
    model = lora(tiny_llama()).eval()
    q = gaussian(model)
    found = predict(model, q, batches(), "auto", readout=ANSWERS, tolerance=tolerance)
    assert found.draws_taken is not None
    assert found.draws_taken.tolist() == [number] * 7
    assert found.num_draws == number
    torch.testing.assert_close(
        found.log_probs, in_turn(model, q, ANSWERS, batches(), samples=number), atol=1e-5, rtol=1e-5
    )


def test_where_the_mean_was_tuned_nothing_is_drawn() -> None:
    model = lora(tiny_llama()).eval()
    q = gaussian(model)
    tuned = dataclasses.replace(q, meta=dataclasses.replace(q.meta, tuned=PredictionConfig(mode="mean")))
    found = predict(model, tuned, batches(), "auto", readout=ANSWERS)
    assert (found.mode, found.num_draws, found.draws_taken) == ("mean", 1, None)
    assert torch.equal(found.log_probs, predict(model, q, batches(), 0, readout=ANSWERS).log_probs)


class Shifted(nn.Module):
    """Its answer is a logistic of one weight; the first row's does not depend on it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_the_average_is_as_sure_as_it_says() -> None:
    """Of many seeds, the averages are off by less than twice the tolerance, and sure rows take four draws."""
    model = Shifted()
    q = DiagonalGaussian(mean={"weight": torch.tensor([0.5])}, precision={"weight": torch.tensor([4.0])})
    slopes = torch.tensor([0.0, 0.2, 1.0, 2.0])  # of which sixteen draws are enough
    batch = {"input_ids": torch.arange(4)[:, None], "labels": torch.zeros(4, dtype=torch.int64)}

    def read(batch: Mapping[str, Any]) -> Tensor:
        logit = (slopes[batch["input_ids"][:, 0]] * model.weight).double()
        return torch.stack([logit, torch.zeros_like(logit)], 1).log_softmax(-1)

    options: dict[str, Any] = {"what": "logistic", "antithetic": True, "tolerance": 0.02}
    grid = torch.linspace(-6, 6, 2001, dtype=torch.float64)
    density = (-grid.square() / 2).exp()
    exact = (torch.sigmoid(slopes[:, None].double() * (0.5 + 0.5 * grid)) * density).sum(1) / density.sum()
    errors, taken = [], []
    for seed in range(60):
        log_probs, number = draws_until_sure(model, q, [batch], read, seed=seed, **options)
        errors.append(log_probs[..., 0].logsumexp(1).exp() / log_probs.shape[1] - exact)
        taken.append(number.double())
    root = torch.stack(errors).square().mean(0).sqrt()
    assert (root < 2 * 0.02).all()
    assert torch.stack(taken).mean(0)[:2].tolist() == [4, 4]
    assert torch.stack(taken).mean(0)[3] > 4

    most = torch.stack(taken).amax(1)
    seed = int(most.argmax())
    whole = {**batch, "patches": torch.zeros(9)}  # of which it is not known whose they are: all rows go on
    _, together = draws_until_sure(model, q, [whole], read, seed=seed, **options)
    assert together.tolist() == [most[seed]] * 4


def test_what_cannot_stop_takes_its_usual_number() -> None:
    model = lora(tiny_llama(), lora_dropout=0.1).eval()
    q = gaussian(model)
    mixture = Mixture(components=[PointMass(mean=q.mean), PointMass(mean={k: m + 0.1 for k, m in q.mean.items()})])
    for other, number in (
        (mixture, 2),
        (PointMass(mean=q.mean), 1),
        (DropoutMasks(mean=q.mean, rate=0.1), 1),
        (None, 1),
    ):
        found = predict(model, other, batches(), "auto", readout=ANSWERS)
        assert (found.num_draws, found.draws_taken) == (number, None)


def test_nonsense_is_refused() -> None:
    model = lora(tiny_llama()).eval()
    with pytest.raises(ValueError, match="samples is 'many'; allowed: auto"):
        predict(model, gaussian(model), batches(), "many", readout=ANSWERS)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="tolerance is 0"):
        predict(model, gaussian(model), batches(), "auto", readout=ANSWERS, tolerance=0)
    log_probs = torch.zeros(2, 8, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="draws_taken must be 2 numbers by which 8"):
        Prediction(log_probs=log_probs, labels=torch.zeros(2).long(), draws_taken=torch.tensor([4, 5]))
