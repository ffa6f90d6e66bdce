"""Predictions at the posterior's mean and by Monte Carlo over coherent draws of its weights.

    p(y | x) ≈ (1/S) Σ_s softmax(f(x; θ_s) / T),   θ_s ~ q

Each draw θ_s is one set of weights, held for the whole pass over the data, so that a draw's own accuracy means
something. Probabilities are averaged, never logits; in log space, in float64.

Source: arXiv 2402.17641 (posterior averaging), arXiv 2411.04421 (S = 10 for LoRA).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypedDict, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn
from typing_extensions import Self

from varlora.io.parquet_files import TableFile, facts_in, rectangle
from varlora.posterior import Posterior
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import held_batches, progress_bar
from varlora.prediction.prediction_setup import nan_logits, prepare
from varlora.prediction.until_sure import MOST, TOLERANCE, can_stop, draws_until_sure
from varlora.readout.readout import Readout

PredictedMode = Literal["model", "mean", "samples", "linearised"]
_FORMAT = "varlora.prediction.v1"
_COLUMNS = {"id": pa.string(), "label": pa.int64(), "log_probs": pa.list_(pa.list_(pa.float64()))}
_ROUNDING = 1e-6


class _Facts(TypedDict):
    """What stands in a table's metadata."""

    format: Literal["varlora.prediction.v1"]
    classes: list[str]
    has_ids: bool
    mode: PredictedMode
    antithetic: bool
    seed: int | None
    logit_temperature: float


class _MoreFacts(_Facts, total=False):
    """What stands there of some."""

    draws_taken: list[int]


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(TableFile):
    """What a model said about N examples, by each of S draws.

    Attributes:
        log_probs: Log-probabilities (N, S, C), float64; -inf for a choice that does not exist.
        labels: Class indices (N,), int64; -100 where unknown.
        classes: The C classes' names, or empty.
        ids: The N examples' names, or empty.
        mode: "model" (the weights as they stood), "mean" (the posterior's point, a Gaussian's mean), "samples" (its
            draws) or "linearised" (draws of the logits of the model linearised at the point).
        antithetic: Whether draws 2k and 2k + 1 mirror each other around the mean.
        seed: Seed of the draws; None where none was drawn.
        logit_temperature: What divided the logits.
        draws_taken: (N,) int64, how many draws a row took where each took as many as it needed (`samples="auto"`): it
            holds them S / draws_taken times. None where all took S.

    Raises:
        ValueError: If the shapes or types do not fit.

    Example:
        >>> log_probs = torch.tensor([[[0.9, 0.1], [0.5, 0.5]]], dtype=torch.float64).log()
        >>> prediction = Prediction(log_probs=log_probs, labels=torch.tensor([0]))
        >>> prediction.probs.round(decimals=6).tolist()
        [[0.7, 0.3]]
    """

    columns = _COLUMNS
    misfit = "is not a saved prediction"

    log_probs: Tensor
    labels: Tensor
    classes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    mode: PredictedMode = "model"
    antithetic: bool = False
    seed: int | None = None
    logit_temperature: float = 1.0
    draws_taken: Tensor | None = None

    def __post_init__(self) -> None:
        if self.log_probs.ndim != 3 or self.log_probs.dtype != torch.float64 or 0 in self.log_probs.shape:
            raise ValueError(
                f"log_probs must be float64 of shape (N, S, C), got {self.log_probs.dtype} "
                f"{tuple(self.log_probs.shape)}"
            )
        rows, _, num_classes = self.log_probs.shape
        if self.labels.shape != (rows,) or self.labels.dtype != torch.int64:
            raise ValueError(
                f"labels must be int64 of shape ({rows},), got {self.labels.dtype} {tuple(self.labels.shape)}"
            )
        if self.classes and len(self.classes) != num_classes:
            raise ValueError(f"{len(self.classes)} class names for {num_classes} classes")
        if self.ids and len(self.ids) != rows:
            raise ValueError(f"{len(self.ids)} ids for {rows} rows")
        if self.draws_taken is not None and (
            self.draws_taken.shape != (rows,)
            or int(self.draws_taken.min()) < 1
            or bool((self.num_draws % self.draws_taken).any())
        ):
            raise ValueError(f"draws_taken must be {rows} numbers by which {self.num_draws} draws are divisible")
        if self.mode not in get_args(PredictedMode):
            raise ValueError(f"mode {self.mode!r}; allowed: {', '.join(get_args(PredictedMode))}")

    @property
    def num_draws(self) -> int:
        """S."""
        return self.log_probs.shape[1]

    @property
    def probs(self) -> Tensor:
        """Probabilities averaged over the draws (N, C), float64."""
        return (torch.logsumexp(self.log_probs, dim=1) - math.log(self.num_draws)).exp()

    def at_temperature(self, temperature: float) -> Self:
        """The same with logits that another T divides, draw by draw: not for the probit form of the linearised model.

        Args:
            temperature: T, in place of the one that there is; positive and finite.

        Example:
            >>> logits = torch.tensor([[[2.0, 0.0]]], dtype=torch.float64)
            >>> prediction = Prediction(log_probs=logits.log_softmax(-1), labels=torch.tensor([0]))
            >>> hot = prediction.at_temperature(2.0)
            >>> hot.logit_temperature, torch.allclose(hot.log_probs, (logits / 2).log_softmax(-1))
            (2.0, True)
        """
        log_probs = divide_logits(self.log_probs, temperature / self.logit_temperature)
        return replace(self, log_probs=log_probs, logit_temperature=temperature)

    def to_table(self) -> pa.Table:
        """One row per example: `id`, `label`, `prediction`, `confidence`, `log_probs` (S lists of C)."""
        confidence, predicted = self.probs.max(dim=1)
        columns = {
            "id": pa.array(self.ids or [str(i) for i in range(len(self.labels))], pa.string()),
            "label": pa.array(self.labels.numpy()),
            "prediction": pa.array(predicted.numpy()),
            "confidence": pa.array(confidence.numpy()),
            "log_probs": pa.array(self.log_probs.tolist(), pa.list_(pa.list_(pa.float64()))),
        }
        facts: dict[str, Any] = {
            "format": _FORMAT,
            "classes": self.classes,
            "has_ids": bool(self.ids),
            "mode": self.mode,
            "antithetic": self.antithetic,
            "seed": self.seed,
            "logit_temperature": self.logit_temperature,
        }
        if self.draws_taken is not None:
            facts["draws_taken"] = self.draws_taken.tolist()
        return pa.table(columns).replace_schema_metadata({"varlora": json.dumps(facts)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Prediction:
        """The prediction that `to_table` wrote.

        Raises:
            ValueError: If the table is not one of ours.
        """
        facts = facts_in(table, _MoreFacts)
        draws, rows = rectangle(table["log_probs"], "log_probs")  # N lists of S lists of C numbers
        classes, values = rectangle(rows, "log_probs")
        if table["label"].null_count or table["id"].null_count:
            raise ValueError("a row without label or id")
        if not all(label < classes for label in table["label"].to_pylist()):
            raise ValueError(f"a label beyond its {classes} classes")
        log_probs = torch.tensor(values.to_numpy().reshape(len(table), draws, classes), dtype=torch.float64)
        if bool(log_probs.isnan().any()) or bool((log_probs > _ROUNDING).any()):
            raise ValueError("log_probs that are NaN or above 0, which no probability's are")
        return cls(
            log_probs=log_probs,
            labels=torch.tensor(table["label"].to_pylist(), dtype=torch.int64),
            classes=tuple(facts["classes"]),
            ids=tuple(table["id"].to_pylist()) if facts["has_ids"] else (),
            mode=facts["mode"],
            antithetic=facts["antithetic"],
            seed=facts["seed"],
            logit_temperature=facts["logit_temperature"],
            draws_taken=torch.tensor(facts["draws_taken"]) if facts.get("draws_taken") else None,
        )


def divide_logits(log_probs: Tensor, temperature: float) -> Tensor:
    """Log-probabilities (..., C) of the logits divided by T; the same where T is 1."""
    return log_probs if temperature == 1 else torch.log_softmax(log_probs / temperature, dim=-1)


def predict(
    model: nn.Module,
    q: Posterior | None,
    batches: Iterable[Mapping[str, Any]],
    samples: int | Literal["auto"] | None = None,
    *,
    readout: Readout,
    antithetic: bool = True,
    seed: int = 0,
    logit_temperature: float | None = None,
    tolerance: float = TOLERANCE,
    progress: bool = False,
) -> Prediction:
    """Predict every example of some batches.

    The model is in eval mode meanwhile; afterwards its weights, each module's mode and the global random state
    are what they were, also after an exception. The batches are read once and held, so a generator will do. A
    posterior that `varlora tune` has tuned is predicted with as it chose (`varlora.prediction.prediction_setup`).

    Args:
        model: The model, on its device.
        q: The posterior whose weights to predict with; None takes the model as it stands, once.
        batches: As `varlora.tasks.Collator` makes them: what the readout reads, `labels` (B,), optionally `id`.
        samples: S, the number of draws; 0 predicts at the posterior's mean. A `PointMass` is drawn once. None: what
            `varlora tune` chose; else 10 where validation rows have shown that draws help, and 0 where they have not
            (`varlora.prediction.prediction_setup.choose_default_config`). "auto": 4, 8 or 16 for each row, until the
            standard error of its averaged probabilities is at most `tolerance` (`varlora.prediction.until_sure`);
            mixtures and dropout masks, which cannot stop, take what None would.
        readout: How the answer is read.
        antithetic: Draw in pairs mean + e, mean - e (an odd last draw stays single): better averaged
            probabilities for the same S, worse mutual information.
        seed: Decides the draws, which come from a generator of their own.
        logit_temperature: T, divides the logits; None takes the posterior's own.
        tolerance: Of "auto".
        progress: Show a progress bar.

    Raises:
        ValueError: If there is nothing to predict, an option is out of range, or a batch has no labels.

    Example:
        >>> from types import SimpleNamespace
        >>> from varlora.posterior import DiagonalGaussian
        >>> from varlora.readout.readout import ClassHead
        >>> class Bias(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.bias = nn.Parameter(torch.zeros(2))
        ...     def forward(self, input_ids):
        ...         return SimpleNamespace(logits=self.bias.expand(len(input_ids), 2))
        >>> q = DiagonalGaussian(mean={"bias": torch.zeros(2)}, precision={"bias": torch.ones(2)})
        >>> batch = {"input_ids": torch.zeros(3, 1, dtype=torch.int64), "labels": torch.tensor([0, 1, 1])}
        >>> prediction = predict(Bias(), q, [batch], samples=4, readout=ClassHead(classes=("a", "b")))
        >>> prediction.log_probs.shape, prediction.probs[0].tolist()
        (torch.Size([3, 4, 2]), [0.5, 0.5])
    """
    if isinstance(samples, str) and samples != "auto":
        raise ValueError(f"samples is {samples!r}; allowed: auto, 0 (the mean), 1, 2, ...")
    until_sure = samples == "auto" and can_stop(q)
    q, samples = prepare(q, MOST if until_sure else None if isinstance(samples, str) else samples)
    mode: PredictedMode = "model" if q is None else "samples" if samples else "mean"
    temperature = logit_temperature
    if temperature is None:
        temperature = q.meta.logit_temperature_of(mode) if q is not None else 1.0
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"the logit temperature must be positive and finite, got {temperature}")
    held = held_batches(batches)
    missing = [i for i, batch in enumerate(held) if "labels" not in batch]
    if missing:
        raise ValueError(f"batch {missing[0]} has no 'labels' (B,); give -100 where the class is unknown")
    if any(batch["labels"].ndim != 1 for batch in held):
        raise ValueError("labels must be class indices (B,); for token labels (B, T) see predict_completions")
    labels = torch.cat([batch["labels"].cpu().long() for batch in held])
    if int(labels.max()) >= readout.num_classes:
        raise ValueError(f"label {int(labels.max())} for a readout of {readout.num_classes} classes")

    def read(batch: Mapping[str, Any]) -> Tensor:
        return divide_logits(torch.log_softmax(readout.logits(model, batch).double().cpu(), dim=-1), temperature)

    taken = None
    what = type(readout).__qualname__
    with progress_bar(len(held), q, samples, shown=progress) as bar:
        if until_sure and q is not None:
            log_probs, taken = draws_until_sure(
                model,
                q,
                held,
                read,
                what=what,
                antithetic=antithetic,
                seed=seed,
                tolerance=tolerance,
                done=bar.update,
            )
        else:
            passes = over_batches(
                model, q, samples, held, read, what=what, antithetic=antithetic, seed=seed, done=bar.update
            )
            log_probs = torch.stack([torch.cat(of_draw) for of_draw in passes], dim=1)
    if bool(log_probs.isnan().any()):
        broken = int(log_probs.isnan().any(-1).any(-1).nonzero()[0])
        raise nan_logits(f"example {broken}")
    names = getattr(readout, "answers", getattr(readout, "classes", ()))
    return Prediction(
        log_probs=log_probs,
        labels=labels,
        classes=tuple(names),
        ids=tuple(str(i) for batch in held for i in batch.get("id", ())),
        mode=mode,
        antithetic=mode == "samples" and q is not None and q.symmetric and antithetic and samples > 1,
        seed=seed if mode == "samples" else None,
        logit_temperature=temperature,
        draws_taken=taken,
    )
