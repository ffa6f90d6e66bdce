"""What a posterior's numbers mean and where they come from."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from typing_extensions import Self

from varlora.io.nearest import nearest
from varlora.posterior.prediction_config import Mode, PredictionConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PosteriorMeta:
    """What a posterior's numbers mean and where they come from; everything in it is plain JSON.

    Attributes:
        method: how it was trained: "ivon", "adamw", ...
        num_examples: N, size of the training set.
        ess: λ, effective sample size; None if unknown or not the same for all tensors.
        prior_precision: λ δ of the prior N(m0, 1/(λ δ)), by checkpoint key; m0 is `DiagonalGaussian.prior_mean`, 0
            unless given.
        base_model: name or path of the pre-trained model.
        base_revision: its revision or commit.
        base_fingerprint: what tells its weights from another model's (`varlora.adapters.base_fingerprint`).
        base_loading: how its weights were loaded in training: `dtype`, and `quantization` ("8bit", "4bit") if any.
        adapter_config: content of PEFT's adapter_config.json; None for a plain module.
        readout: how an answer is read from the model's output (`varlora.readout.readout`).
        task: what the rows were and how they were worded, as far as training knew (`varlora.tasks.description`).
        linearised: whether it is a posterior over the model linearised at the mean (Laplace), so that predictions of
            mode "linearised" are its own.
        logit_temperatures: T by mode of prediction ("mean", "samples", "linearised"), which divides the logits; not the
            posterior's temperature τ. Fitted on validation rows, or left by those that steered λ.
        tuned: how `varlora tune` chose to predict with it; its T stands in the place of the mode's above. None: as
            trained.
        history: the operations done since training, oldest first.
        diagnostics: measurements taken at the end of training.

    Raises:
        ValueError: a value cannot be written as JSON, or a number is out of its range.
    """

    method: str = "unknown"
    num_examples: int | None = None
    ess: float | None = None
    prior_precision: Mapping[str, float] | None = None
    base_model: str | None = None
    base_revision: str | None = None
    base_fingerprint: Mapping[str, Any] | None = None
    base_loading: Mapping[str, Any] | None = None
    adapter_config: Mapping[str, Any] | None = None
    readout: Mapping[str, Any] | None = None
    task: Mapping[str, Any] | None = None
    linearised: bool = False
    logit_temperatures: Mapping[str, float] = field(default_factory=dict)
    tuned: PredictionConfig | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    diagnostics: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            if f.name != "tuned":
                object.__setattr__(self, f.name, _plain(getattr(self, f.name), f"meta.{f.name}"))
        for name in ("base_loading", "task"):
            if not isinstance(getattr(self, name), (Mapping, type(None))):
                raise ValueError(f"meta.{name} is {getattr(self, name)!r}; it must map names to values.")
        object.__setattr__(self, "history", tuple(self.history))
        for name, value in (
            ("num_examples", self.num_examples),
            ("ess", self.ess),
            *((f"logit_temperatures[{mode!r}]", value) for mode, value in self.logit_temperatures.items()),
        ):
            kinds = int if name == "num_examples" else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
                raise ValueError(f"meta.{name} must be positive, not {value!r}.")
        if unknown := [mode for mode in self.logit_temperatures if mode not in get_args(Mode)]:
            raise ValueError(f"meta.logit_temperatures has {unknown[0]!r}; {nearest(unknown[0], get_args(Mode))}")
        if self.tuned is not None and not isinstance(self.tuned, PredictionConfig):
            raise ValueError(f"meta.tuned is {self.tuned!r}; it must be a PredictionConfig.")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; fields that are left out are the defaults.

        Raises:
            ValueError: a value does not fit.
            TypeError: a field is unknown.
        """
        tuned = values.get("tuned")
        if tuned is not None:
            try:
                tuned = PredictionConfig.from_dict(tuned)
            except ValueError as error:
                raise ValueError(f"meta.tuned: {error}") from error
        return cls(**{**values, "tuned": tuned})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: every field."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {**values, "tuned": None if self.tuned is None else self.tuned.to_dict()}

    def logit_temperature_of(self, mode: str) -> float:
        """T, which divides the logits of predictions of a mode: as `logit_temperature_in` has it.

        Example:
            >>> PosteriorMeta(logit_temperatures={"mean": 2.0}).logit_temperature_of("samples")
            2.0
        """
        return logit_temperature_in(self.logit_temperatures, mode)

    def with_logit_temperatures(self, temperatures: Mapping[str, float]) -> Self:
        """The same with T of some modes of prediction in the place of theirs."""
        return dataclasses.replace(self, logit_temperatures={**self.logit_temperatures, **temperatures})

    def after(self, operation: Mapping[str, Any]) -> PosteriorMeta:
        """The same with one more operation in its history, and no longer tuned: that held for what it was before."""
        if self.tuned is not None:
            logger.warning(
                "what `varlora tune` chose is left out: it was chosen before %s. Tune the new posterior, if need be",
                operation.get("op", "an operation"),
            )
        return dataclasses.replace(self, tuned=None, history=(*self.history, operation))


def logit_temperature_in(temperatures: Mapping[str, float], mode: str) -> float:
    """T of a mode of prediction among those that are known: its own, else the nearest one's, else 1.

    The linearised read-out averages over the weights as draws do, so that it goes by T of the draws: the point's also
    makes up for the average that it lacks. Draws without T go by the point's.

    Example:
        >>> [logit_temperature_in({"mean": 2.0, "samples": 1.5}, mode) for mode in ("mean", "samples", "linearised")]
        [2.0, 1.5, 1.5]
    """
    nearest_first = (mode, "samples", "mean") if mode == "linearised" else (mode, "mean")
    return next((temperatures[near] for near in nearest_first if near in temperatures), 1.0)


def _plain(value: Any, where: str) -> Any:
    """`value` in JSON's own types, or a ValueError that says where it is not."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, Mapping):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"{where} has the key {bad[0]!r}; JSON keys are strings.")
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    raise ValueError(
        f"{where} is {value!r} ({type(value).__name__}), which JSON cannot hold; give plain finite values."
    )
