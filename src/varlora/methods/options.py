"""The options of varlora's own methods, and what each method costs: all that the command line asks, without torch.

A method's class, in the file of the method's name, is its options' class with `fit`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

from varlora.curvature.kinds import Fisher, Structure
from varlora.ivon.config import RECIPES, HeldOutSource, IVONConfig, Recipe
from varlora.ivon.options import Auto, Update, Variance
from varlora.ivon.priors import PriorName
from varlora.registry.option_fields import check_options, option

PriorChoice = Literal["marglik", "validation"]


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a method takes; AdamW is 1, 2, 1, "1".

    Attributes:
        passes: forward and backward passes over a training row, each time it is seen.
        states: numbers that the optimizer keeps of each trained weight, beside the weight and its gradient.
        adapters: numbers of each trained weight in the posterior's folder, the mean being one; None: it goes by the
            shapes of the matrices.
        predict: forward passes to predict a row, S for the draws.
        besides: what is passed over once more, in words; "" nothing.
    """

    passes: float = 1.0
    states: float = 2.0
    adapters: float | None = 1.0
    predict: str = "1"
    besides: str = ""


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """A method's fields are its options; each is checked by its type and its bounds.

    A subclass's first line says what the method gives, for `varlora methods`.

    Raises:
        ValueError: an option is of another type or out of its bounds.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_options(self)

    def costs(self) -> Costs:
        """What the method takes with these options."""
        return Costs()

    @property
    def scales_temperature(self) -> bool:
        """Whether a run that does not say fits the logits' temperature on its labelled validation rows."""
        return False

    def new_defaults(self) -> dict[str, Any]:
        """Options that are not given and mean another value than they meant in an earlier version, with that value.

        A run's fingerprint holds them, so that runs of both versions are not taken for the same.
        """
        return {}


@dataclass(frozen=True, kw_only=True)
class AdamWOptions(MethodOptions):
    """One point by AdamW (MLE; MAP with weight decay)."""

    name: ClassVar[str] = "adamw"
    learning_rate: float = option(5e-5, "Learning rate.", above=0)
    weight_decay: float = option(0.0, "Decoupled decay; 0 is maximum likelihood, more a MAP estimate.", at_least=0)
    label_smoothing: float = option(
        0.0, "Share of each label that is spread over a row's choices (arXiv 1512.00567).", at_least=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class ZeroShotOptions(MethodOptions):
    """The base model as it is, without training."""

    name: ClassVar[str] = "zero_shot"

    def costs(self) -> Costs:
        """Nothing trains."""
        return Costs(passes=0.0, states=0.0)


@dataclass(frozen=True, kw_only=True)
class IvonOptions(MethodOptions):
    """A diagonal Gaussian by the variational optimizer IVON."""

    name: ClassVar[str] = "ivon"
    recipe: Recipe = option(
        IVONConfig.recipe,
        "The other options' defaults: 'auto' needs nothing but AdamW's learning rate; the others are published.",
    )
    learning_rate: float | None = option(None, "Learning rate; AdamW's under 'auto', .03 otherwise.", above=0)
    update: Update | None = option(None, "The mean moves by IVON's own step, or by AdamW's.")
    ess: float | Auto | None = option(
        None,
        "Effective sample size lambda; 'auto' is 100 N. A number sets a variance from the Hessian; one that follows "
        "the fit is scaled by how rows move 'auto'.",
        above=0,
    )
    hess_init: float | Auto | None = option(None, "Initial Hessian h0; 'auto' is N / lambda.", above=0)
    beta1: float | None = option(None, "Decay of the momentum.", at_least=0, below=1)
    beta2: float | None = option(None, "Decay of the Hessian; 1 keeps it at h0.", at_least=0, at_most=1)
    weight_decay: float | None = option(None, "delta of the prior N(0, 1/(lambda delta)).", at_least=0)
    clip_radius: float | None = option(None, "Bound on the preconditioned step, with the Newton update.", above=0)
    prior: PriorName | None = option(None, "One fixed prior around zero, or one learned per tensor.")
    variance: Variance | None = option(
        None,
        "'fit': one number for all weights, from the learning rates and the training loss; 'hessian': 1/(lambda (h + "
        "delta)), which is meant where hess_init, beta2, weight_decay or prior is given.",
    )
    held_out: HeldOutSource | None = option(
        None, "Rows that steer lambda: validation rows, or training rows that are withheld for a while."
    )
    draws: int = option(IVONConfig.draws, "Monte-Carlo draws per micro-batch in training.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.config  # it checks what goes together

    @property
    def config(self) -> IVONConfig:
        """The optimizer's options, filled in by the recipe."""
        beta1, beta2 = RECIPES[self.recipe]["betas"]
        return IVONConfig(
            recipe=self.recipe,
            lr=self.learning_rate,
            update=self.update,
            ess=self.ess,
            hess_init=self.hess_init,
            betas=(self.beta1 if self.beta1 is not None else beta1, self.beta2 if self.beta2 is not None else beta2),
            weight_decay=self.weight_decay,
            clip_radius=self.clip_radius,
            prior=self.prior,
            variance=self.variance,
            held_out=self.held_out,
            draws=self.draws,
        ).resolved(learning_rate=AdamWOptions.learning_rate)

    @property
    def scales_temperature(self) -> bool:
        """Where validation rows may decide λ they decide T, too, which is the rest of the same question."""
        config = self.config
        return config.ess == "auto" and config.held_out in ("auto", "validation")

    def costs(self) -> Costs:
        """A draw is a pass; a variance that follows the fit needs Adam's two numbers, a Hessian one more."""
        config = self.config
        states = 2.0 + (config.update == "adam" and config.variance == "hessian")
        return Costs(passes=self.draws, states=states, adapters=2.0, predict="S")

    def new_defaults(self) -> dict[str, Any]:
        """A variance that follows the fit, where the recipe 'auto' once had a movement prior."""
        variance = self.config.variance
        return {"variance": variance} if variance == "fit" else {}


@dataclass(frozen=True, kw_only=True)
class LaplaceOptions(AdamWOptions):
    """AdamW, then a Gaussian by the curvature there (Laplace-LoRA)."""

    name: ClassVar[str] = "laplace"
    curvature: Structure = option("kron", "A Kronecker product for each tensor, or a diagonal.")
    fisher: Fisher = option(
        "ggn", "'ggn' is exact, with a backward pass for each class; 'mc' takes one, with labels drawn from the model."
    )
    prior_choice: PriorChoice = option(
        "marglik", "Prior precision by the marginal likelihood, or by the NLL of validation rows."
    )
    per_tensor: bool = option(False, "A prior precision for each tensor, or one for all; with 'marglik' only.")
    curvature_rank: int = option(10, "Eigenpairs kept of a large Kronecker factor.", at_least=1)
    curvature_rank_above: int = option(1024, "Dimensions above which a Kronecker factor is large.", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per_tensor and self.prior_choice == "validation":
            raise ValueError(
                "per_tensor needs prior_choice='marglik': validation rows choose one prior for all tensors."
            )

    def costs(self) -> Costs:
        """A diagonal is as large as the mean."""
        backward = "C backward passes" if self.fisher == "ggn" else "a backward pass"
        return Costs(
            adapters=2.0 if self.curvature == "diag" else None,
            predict="1, and C backward",
            besides=f"the training rows once, with {backward}",
        )


@dataclass(frozen=True, kw_only=True)
class MeanFieldOptions(MethodOptions):
    """A Gaussian lora_A by backpropagation."""

    learning_rate: float = option(1e-4, "Learning rate.", above=0)
    kl_learning_rate: float = option(0.01, "Learning rate of the KL's gradient descent, on the same schedule.", above=0)
    kl_reweighting: bool = option(True, "Weight the KL by BLoB's cycle, or by 1/N in every step, all by AdamW.")
    prior_std: float = option(0.2, "Standard deviation of the prior.", above=0)
    initial_std_bound: float = option(0.05, "Bound of the square root of the initial deviations.", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        published = next(f.default for f in fields(self) if f.name == "kl_learning_rate")
        if not self.kl_reweighting and self.kl_learning_rate != published:
            raise ValueError(
                f"kl_learning_rate is {self.kl_learning_rate!r}, which has no effect with kl_reweighting=False, where "
                "KL/N is part of AdamW's loss; leave it out."
            )


@dataclass(frozen=True, kw_only=True)
class BlobOptions(MeanFieldOptions):
    """A diagonal Gaussian over lora_A by backpropagation (BLoB)."""

    name: ClassVar[str] = "blob"

    def costs(self) -> Costs:
        """A's deviations train, too, and A is half of the adapter."""
        return Costs(states=3.0, adapters=2.0, predict="S")


@dataclass(frozen=True, kw_only=True)
class ScalablOptions(MeanFieldOptions):
    """A Gaussian over r numbers per LoRA module (ScalaBL)."""

    name: ClassVar[str] = "scalabl"

    def costs(self) -> Costs:
        """The r deviations of a module are next to nothing in training; stored, each is as large as A."""
        return Costs(adapters=None, predict="S")


@dataclass(frozen=True, kw_only=True)
class SwagOptions(AdamWOptions):
    """A Gaussian through snapshots of AdamW's path (SWAG)."""

    name: ClassVar[str] = "swag"
    snapshots: int = option(10, "Snapshots K of the adapter; one each epoch if K epochs follow swag_start.", at_least=2)
    swag_start: float = option(0.5, "Share of the steps before the first snapshot.", at_least=0, below=1)
    swag_learning_rate: float | None = option(
        None, "Constant learning rate of the snapshots; half of learning_rate otherwise. Larger: wider.", above=0
    )

    def costs(self) -> Costs:
        """Every snapshot is a copy of the adapter."""
        return Costs(states=2.0 + self.snapshots, adapters=2.0 + self.snapshots, predict="S")


@dataclass(frozen=True, kw_only=True)
class TfbOptions(AdamWOptions):
    """AdamW, then the largest noise its predictions bear, without training (TFB)."""

    name: ClassVar[str] = "tfb"
    tolerance: float = option(0.003, "Relative change of the anchor set's NLL that is borne.", above=0)
    anchor_examples: int = option(500, "Size of the anchor set, drawn from the training rows.", at_least=1)
    draws: int = option(10, "Draws of the weights for each scale tried.", at_least=1)

    def costs(self) -> Costs:
        """The search for the scale is passes over the anchor set."""
        besides = f"{self.anchor_examples} rows {self.draws} times for each scale tried"
        return Costs(adapters=2.0, predict="S", besides=besides)


@dataclass(frozen=True, kw_only=True)
class EmaOptions(AdamWOptions):
    """One point: an exponential moving average of AdamW's path."""

    name: ClassVar[str] = "ema"
    ema_decay: float = option(0.99, "Share of the average that a step keeps.", at_least=0, below=1)

    def costs(self) -> Costs:
        """The average."""
        return Costs(states=3.0)


@dataclass(frozen=True, kw_only=True)
class EnsembleOptions(AdamWOptions):
    """Several points by AdamW, each from its own seed (a deep ensemble of adapters)."""

    name: ClassVar[str] = "ensemble"
    members: int = option(5, "Number of adapters; 3 to 10 are usual.", at_least=2)

    def costs(self) -> Costs:
        """As many trainings, one after another."""
        return Costs(passes=self.members, adapters=self.members, predict=str(self.members))


@dataclass(frozen=True, kw_only=True)
class McDropoutOptions(AdamWOptions):
    """AdamW with LoRA dropout that stays on when predicting."""

    name: ClassVar[str] = "mc_dropout"

    def costs(self) -> Costs:
        """The masks cost nothing."""
        return Costs(predict="S")


@dataclass(frozen=True, kw_only=True)
class TemperatureOptions(AdamWOptions):
    """AdamW with one temperature on the logits, fitted on validation rows."""

    name: ClassVar[str] = "temperature"

    def costs(self) -> Costs:
        """The fit of the temperature."""
        return Costs(besides="the validation rows once")
