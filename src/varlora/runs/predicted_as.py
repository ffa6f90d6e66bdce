"""How rows were predicted, by which a decision on some tells whether it is for others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from varlora.prediction.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class PredictedAs:
    """How the rows of a decision were predicted, and so must be those that it is for.

    Attributes:
        mode: as of `Prediction`.
        draws: S.
        logit_temperature: T.
        classes: their names, or empty.
    """

    mode: str
    draws: int
    logit_temperature: float
    classes: tuple[str, ...] = ()

    @classmethod
    def of(cls, prediction: Prediction) -> PredictedAs:
        """How a prediction was made."""
        return cls(
            mode=prediction.mode,
            draws=prediction.num_draws,
            logit_temperature=prediction.logit_temperature,
            classes=prediction.classes,
        )

    def __str__(self) -> str:
        how = "the mean" if self.mode == "mean" else f"{self.mode}, {self.draws} draw(s)"
        return f"{how}, logits divided by {self.logit_temperature:g}"

    def check(self, made: PredictedAs) -> None:
        """Refuses rows that were predicted otherwise (`made`) than those of a decision.

        Raises:
            ValueError: it is not.
        """
        if made.classes != self.classes:
            raise ValueError(
                f"the decision is for the classes {_named(self.classes)}, and these rows have {_named(made.classes)}. "
                "Decide with a decision of the same run."
            )
        if made != self:
            raise ValueError(
                f"the decision was chosen on rows predicted by {self}, and these were by {made}: its thresholds are of "
                "other probabilities. Predict as it was chosen, or choose anew (`varlora decide`)."
            )

    def refuse_until_sure(self) -> NoReturn:
        """Refuses rows of which each takes as many draws as it needs.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            f"the decision was chosen on rows predicted by {self}, and samples is 'auto' here: each row takes as many "
            "draws as it needs, and the thresholds are of one number of them. Predict with "
            f"samples={0 if self.mode == 'mean' else self.draws}."
        )


def _named(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "") if classes else "(no names)"
