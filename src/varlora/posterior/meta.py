"""What a posterior's numbers mean and where they come from."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

logger = logging.getLogger(__name__)

_TUNED: Mapping[str, tuple[type, ...]] = {
    "temperature": (int, float),
    "samples": (int,),
    "mode": (str,),
    "logit_temperature": (int, float),
}
"""What `tuned` says, besides "pruned"."""


@dataclass(frozen=True, kw_only=True)
class PosteriorMeta:
    """What a posterior's numbers mean and where they come from; everything in it is plain JSON.

    Attributes:
        method: how it was trained: "ivon", "adamw", ...
        num_examples: N, size of the training set.
        ess: λ, effective sample size; None if unknown or not the same for all tensors.
        prior_precision: λ δ of the prior N(m0, 1/(λ δ)), by checkpoint key; m0 is 0 but for IVON's `prior="movement"`
            (`DiagonalGaussian.prior_mean`).
        base_model: name or path of the pre-trained model.
        base_revision: its revision or commit.
        base_fingerprint: what tells its weights from another model's (`varlora.adapters.base_fingerprint`).
        adapter_config: content of PEFT's adapter_config.json; None for a plain module.
        readout: how an answer is read from the model's output (`varlora.readout`).
        linearised: whether it is a posterior over the model linearised at the mean (Laplace), so that predictions of
            mode "linearised" are its own.
        logit_temperature: divides the logits of predictions at the point; not the posterior's temperature τ.
        logit_temperature_by_mode: the same for other modes of prediction ("samples", "linearised").
        tuned: what `varlora tune` chose to predict with: "temperature" (τ), "samples", "mode", "logit_temperature" (of
            that mode, in the place of the one above) and perhaps "pruned" ("fraction", "by"). None: as trained.
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
    adapter_config: Mapping[str, Any] | None = None
    readout: Mapping[str, Any] | None = None
    linearised: bool = False
    logit_temperature: float = 1.0
    logit_temperature_by_mode: Mapping[str, float] | None = None
    tuned: Mapping[str, Any] | None = None
    history: tuple[Mapping[str, Any], ...] = ()
    diagnostics: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            object.__setattr__(self, f.name, _plain(getattr(self, f.name), f"meta.{f.name}"))
        object.__setattr__(self, "history", tuple(self.history))
        for name, value in (
            ("num_examples", self.num_examples),
            ("ess", self.ess),
            ("logit_temperature", self.logit_temperature),
            *((f"logit_temperature_by_mode[{m!r}]", t) for m, t in (self.logit_temperature_by_mode or {}).items()),
        ):
            kinds = int if name == "num_examples" else (int, float)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or not value > 0):
                raise ValueError(f"meta.{name} must be positive, not {value!r}.")
        if self.tuned is not None:
            _check_tuned(self.tuned)

    def logit_temperature_of(self, mode: str) -> float:
        """What divides the logits of predictions of a mode.

        Example:
            >>> meta = PosteriorMeta(logit_temperature=2.0, logit_temperature_by_mode={"samples": 1.5})
            >>> meta.logit_temperature_of("samples"), meta.logit_temperature_of("mean")
            (1.5, 2.0)
        """
        return (self.logit_temperature_by_mode or {}).get(mode, self.logit_temperature)

    def after(self, operation: Mapping[str, Any]) -> PosteriorMeta:
        """The same with one more operation in its history, and no longer tuned: that held for what it was before."""
        if self.tuned is not None:
            logger.warning(
                "what `varlora tune` chose is left out: it was chosen before %s. Tune the new posterior, if need be",
                operation.get("op", "an operation"),
            )
        return dataclasses.replace(self, tuned=None, history=(*self.history, operation))


def _check_tuned(tuned: Mapping[str, Any]) -> None:
    """Refuses what `varlora.tuned` could not apply."""
    kinds_fit = all(
        isinstance(tuned.get(name), kinds) and not isinstance(tuned[name], bool) for name, kinds in _TUNED.items()
    )
    pruned = tuned.get("pruned", {"fraction": 0.0, "by": "snr"})
    if (
        not kinds_fit
        or tuned.keys() - {*_TUNED, "pruned"}
        or not (tuned["temperature"] >= 0 and tuned["samples"] >= 0 and tuned["logit_temperature"] > 0)
        or not isinstance(pruned, Mapping)
        or pruned.keys() != {"fraction", "by"}
    ):
        raise ValueError(
            f"meta.tuned is {dict(tuned)!r}; it must give {', '.join(_TUNED)} and may give 'pruned' (fraction, by). "
            "Write it with `varlora tune`."
        )


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
