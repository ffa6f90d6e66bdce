"""IVON's options for fine-tuning, and the recipes that fill in what the user leaves open.

- "auto", the default: variational Adam with a variance that follows the fit (`varlora.ivon.fit_variance`), λ steered by
  held-out rows; the trainer's learning rate is the only number.
- "cong2024": the recipe of arXiv 2411.04421 (Llama-2-7B), number for number; λ and h0 as for ARC and OpenBookQA:

      task                                   λ      h0
      ARC-Easy, ARC-Challenge, OpenBookQA    1e6    1e-3
      WinoGrande-S, BoolQ                    1e7    3e-4
      WinoGrande-M                           1e8    3e-4

- "cong2025": the same constants with the rule λ = 5000 √N and the adaptive prior of arXiv 2506.14280.

The published constants do not carry over to other models and tasks by themselves; see docs/gotchas.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from varlora.ivon.numbers import number_of
from varlora.ivon.options import ADAM_ONLY, Auto, Update, Variance, check_options
from varlora.ivon.priors import PriorName

Recipe = Literal["auto", "cong2024", "cong2025"]
HeldOutSource = Literal["auto", "validation", "train", "none"]

_CONG2024: Mapping[str, Any] = {
    "lr": 0.03,
    "ess": 1e6,
    "hess_init": 1e-3,
    "betas": (0.9, 0.99999),
    "weight_decay": 0.0,
    "clip_radius": 1e-3,
    "rescale_lr": False,
    "prior": "fixed",
    "update": "newton",
    "variance": "hessian",
    "held_out": "none",
    **ADAM_ONLY,
}
RECIPES: Mapping[Recipe, Mapping[str, Any]] = {
    "auto": {
        "ess": "auto",
        "hess_init": "auto",
        "betas": (0.9, 1.0),
        "weight_decay": 0.0,
        "clip_radius": math.inf,
        "rescale_lr": False,
        "prior": "fixed",
        "update": "adam",
        "variance": "fit",
        "held_out": "auto",
        **ADAM_ONLY,
    },
    "cong2024": _CONG2024,
    "cong2025": {**_CONG2024, "ess": None, "prior": "adaptive"},
}
"""Each recipe's options. "auto" has no learning rate: the trainer's is taken."""
_OF_TRAINERS = ("recipe", "held_out", "draws")
"""What is not the optimizer's."""


@dataclass(frozen=True, kw_only=True)
class IVONConfig:
    """IVON's options for fine-tuning; None means "as the recipe says".

    Attributes:
        recipe: "auto", "cong2024" or "cong2025"; see the module.
        lr: learning rate. Under "auto" it is AdamW's: the mixin takes `TrainingArguments.learning_rate`. Under the
            published recipes .03; with `clip_radius` the largest step of a weight is `lr * clip_radius` (3e-5), the
            size of an AdamW step at that learning rate.
        ess: λ; "auto" is 100 N for the N examples of the training set (`varlora.training.examples`: texts, also where
            TRL packs several into a row; with packing_strategy="wrapped" rows, with a warning). Of the recipe
            "cong2025" 5000 √N. λ = N is Bayes' rule where the loss is a mean over examples. A language model's is a
            mean over tokens: there λ = N gives a row the weight of one token, and Bayes' rule is λ = number of tokens.
            Where the variance follows the fit λ only scales it, by λ_0/λ, and a number is λ_0 itself.
        hess_init: h0; "auto" is N / λ.
        betas: (β1, β2); β2 = 1 keeps h at h0.
        weight_decay: δ of the prior; the trainer's own `weight_decay` plays no part.
        clip_radius: ξ, of the Newton update.
        rescale_lr: multiply lr by (h0 + δ), with the Newton update.
        prior: "fixed" or "adaptive".
        update: "newton" or "adam".
        variance: "fit": one number for all weights, from the learning rates and the training loss; "hessian": 1/(λ (h +
            δ)), to which alone `hess_init`, β2, `weight_decay`, `prior` and the Newton update belong. Where one of
            these is given, None is "hessian" under every recipe.
        adam_beta2: decay of the Adam update's second moment.
        adam_eps: ε of the Adam update.
        held_out: which rows steer λ = "auto" (mixin only): "validation", "train" (a tenth of the training rows, which
            come back after 60 % of the epochs), "auto" (validation rows if there are some), or "none" (it stays at
            100 N).
        draws: Monte-Carlo draws S per micro-batch, each a forward and a backward pass (mixin only).

    Raises:
        ValueError: there is no such recipe, an option is of another type, out of its range or without effect, or
            `held_out` has no effect because λ is a number.

    Example:
        >>> IVONConfig(lr=1e-4).optimizer_kwargs()["update"]
        'adam'
        >>> IVONConfig(recipe="cong2024").optimizer_kwargs()["ess"]
        1000000.0

    Source: arXiv 2411.04421 and 2506.14280; "auto" is our choice (docs/method.md).
    """

    recipe: Recipe = "auto"
    lr: float | None = None
    ess: float | Auto | None = None
    hess_init: float | Auto | None = None
    betas: tuple[float, float] | None = None
    weight_decay: float | None = None
    clip_radius: float | None = None
    rescale_lr: bool | None = None
    prior: PriorName | None = None
    update: Update | None = None
    variance: Variance | None = None
    adam_beta2: float | None = None
    adam_eps: float | None = None
    held_out: HeldOutSource | None = None
    draws: int = 1

    def __post_init__(self) -> None:
        recipe: Any = self.recipe
        draws: Any = self.draws
        if not isinstance(recipe, str) or recipe not in RECIPES:
            raise ValueError(f"recipe is {self.recipe!r}; it must be one of {', '.join(RECIPES)}.")
        if not isinstance(draws, int) or isinstance(draws, bool) or draws < 1:
            raise ValueError(f"draws is {self.draws!r}; it must be a positive integer.")
        sources = get_args(HeldOutSource)
        if self.held_out is not None and self.held_out not in sources:
            raise ValueError(f"held_out is {self.held_out!r}; it must be one of {', '.join(sources)}.")
        ess = self.ess if self.ess is not None else RECIPES[self.recipe]["ess"]
        if self.held_out in ("validation", "train") and ess != "auto":
            raise ValueError(
                f"held_out={self.held_out!r} has no effect: held-out rows steer ess='auto', but ess is "
                f"{'5000 sqrt(N)' if ess is None else ess} (recipe {self.recipe!r}). Leave one of the two out."
            )
        options = {name: value for name, value in self._filled(learning_rate=1.0).items() if name not in _OF_TRAINERS}
        check_options({**options, "debias": True})

    def resolved(self, learning_rate: float | None = None) -> IVONConfig:
        """The same with every option filled in by the recipe; only `ess` stays None where the rule is 5000 √N.

        Args:
            learning_rate: the trainer's, for recipes without their own; a given `lr` goes before it.

        Example:
            >>> IVONConfig(ess=5e4).resolved(learning_rate=1e-4)
            IVONConfig(recipe='auto', lr=0.0001, ess=50000.0, hess_init='auto', ...)
        """
        return replace(self, **self._filled(learning_rate))

    def optimizer_kwargs(self) -> dict[str, Any]:
        """The options that `IVON(params, ...)` takes.

        Raises:
            ValueError: the recipe has no learning rate, and none was given.
        """
        filled = self.resolved()
        if filled.lr is None:
            raise ValueError(
                f"IVONConfig(recipe={self.recipe!r}) has no learning rate of its own. Pass the one that AdamW would "
                "have: IVONConfig(lr=args.learning_rate), with args your TrainingArguments. (VariationalTrainerMixin "
                "takes it from there by itself.)"
            )
        return {f.name: getattr(filled, f.name) for f in fields(filled) if f.name not in _OF_TRAINERS}

    def _filled(self, learning_rate: float | None) -> dict[str, Any]:
        """Every option, by the recipe where it is None."""
        of_recipe = {"lr": learning_rate, **RECIPES[self.recipe]}
        if self._asks_for_hessian():
            of_recipe["variance"] = "hessian"
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value if value is not None else of_recipe.get(name) for name, value in given.items()}

    def _asks_for_hessian(self) -> bool:
        """Whether an option is given that a variance without a Hessian has not."""
        betas: Any = self.betas
        beta2 = betas[-1] if isinstance(betas, (tuple, list)) and betas else betas
        return (
            self.prior is not None
            or self.update == "newton"
            or self.hess_init not in (None, "auto")
            or self.weight_decay not in (None, 0)
            or (betas is not None and number_of(beta2) != 1)
        )
