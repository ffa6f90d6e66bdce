"""Predictions of the model linearised at the posterior's point: the Gaussian over weights becomes one over logits.

    f(x; θ) ≈ f(x; m) + J (θ − m),  θ ~ N(m, Σ)    so    f ~ N(f(x; m), J Σ Jᵀ),   J = ∂f/∂θ at m

The Laplace posterior is one of this linear model, not of the network itself. Then, for T the logits' temperature,

    "mc"      p = (1/S) Σ_s softmax(f_s / T), with S draws of the logits
    "probit"  p = softmax( f_m / T / sqrt(1 + π/8 · diag(J Σ Jᵀ) / T²) )

Every example's logits are drawn by themselves: a draw is no set of weights. The probit form sees the variances of the
logits one by one, and is not invariant to a shift of all logits of an example, which the softmax is: where logits are
far from 0 (a causal LM's answer tokens), each is shrunk towards 0 by its own factor. The default does not have this.

Source: Immer et al. 2021, arXiv 2008.08400 (linearised predictive); MacKay 1992 (probit); Yang et al. 2023, arXiv
2308.13111 (for LoRA).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress_bars

from varlora.adapters import applied, check_base
from varlora.curvature.layers import Recorder, jacobian_bytes, linear_tensors, recorded
from varlora.posterior import Posterior, linearisable
from varlora.posterior.draws import held_batches, on_device_of
from varlora.prediction.prediction import Prediction, divide_logits
from varlora.prediction.prediction_setup import apply_tuning
from varlora.readout.batch_rows import num_rows
from varlora.readout.readout import Readout

logger = logging.getLogger(__name__)

Form = Literal["mc", "probit"]

DRAWS = 100
"""Draws of the logits unless told otherwise; they cost nothing."""


def predict_linearised(
    model: nn.Module,
    q: Posterior,
    batches: Iterable[Mapping[str, Any]],
    samples: int = DRAWS,
    *,
    readout: Readout,
    form: Form = "mc",
    seed: int = 0,
    shared_noise: bool = False,
    logit_temperature: float | None = None,
    progress: bool = False,
) -> Prediction:
    """Predict every example of some batches with the linearised model.

    Takes one forward and C backward passes a batch (more where a batch's Jacobian does not fit into a GiB), and no more
    for more draws. The model is left as `predict` leaves it, and a tuned posterior is predicted with as tuned.

    Args:
        model: the model, on its device; what varies in it are weights of linear layers.
        q: a `DiagonalGaussian`, `KroneckerGaussian`, or another `LinearisableGaussian`.
        batches: as for `predict`.
        samples: S, the number of draws of the logits, for "mc".
        readout: how the answer is read.
        form: "mc" or "probit"; the second gives one "draw" and is not invariant to a shift of the logits.
        seed: decides the draws, which come from a generator of their own.
        shared_noise: whether all rows take the same standard normal numbers, so that a row's draws do not depend on
            which rows it is asked with; else each row has its own.
        logit_temperature: T, divides the logits; None takes the posterior's own.
        progress: show a progress bar.

    Raises:
        NotLinearisableError: `q` is another kind of posterior.
        ValueError: an option is out of range, a batch has no labels, or the logits are not numbers.

    Example:
        >>> from types import SimpleNamespace
        >>> from varlora.posterior import DiagonalGaussian
        >>> from varlora.readout.readout import ClassHead
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(1, 2, bias=False)
        ...     def forward(self, input_ids):
        ...         return SimpleNamespace(logits=self.layer(input_ids))
        >>> q = DiagonalGaussian(mean={"layer.weight": torch.tensor([[1.0], [0.0]])},
        ...                      precision={"layer.weight": torch.ones(2, 1)})
        >>> batch = {"input_ids": torch.tensor([[1.0], [9.0]]), "labels": torch.tensor([0, 0])}
        >>> found = predict_linearised(Classifier(), q, [batch], readout=ClassHead(classes=("a", "b")), form="probit")
        >>> found.probs[:, 0].round(decimals=2).tolist()    # without a variance: 0.73 and 0.9999
        [0.7, 0.83]
    """
    if form not in get_args(Form):
        raise ValueError(f"form {form!r}; allowed: {', '.join(get_args(Form))}")
    if form == "mc" and (samples < 1 or samples != int(samples)):
        raise ValueError(f"samples is {samples}; allowed: 1, 2, ...")
    if q.meta.tuned is not None and q.meta.tuned.canonical.mode == "mean":
        raise ValueError(
            "`varlora tune` chose this posterior's mean (temperature 0), which has no variance to push through the "
            "linearised model. Predict with varlora.predict, or linearise varlora.remove_tuning(q)."
        )
    q = apply_tuning(q)
    temperature = logit_temperature if logit_temperature is not None else q.meta.logit_temperature_of("linearised")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"the logit temperature must be positive and finite, got {temperature}")
    held = held_batches(batches)
    labels = _labels(held, readout)
    mean, covariances = linearised_logits(model, [q], held, readout=readout, progress=progress)
    if form == "probit":
        log_probs = probit_log_probs(mean / temperature, covariances[0] / temperature**2)
    else:
        rows = 1 if shared_noise else len(mean)
        noise = torch.randn(
            rows, samples, mean.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64
        )
        log_probs = divide_logits(drawn_log_probs(mean, covariances[0], noise), temperature)
    return Prediction(
        log_probs=log_probs,
        labels=labels,
        classes=tuple(getattr(readout, "answers", getattr(readout, "classes", ()))),
        ids=tuple(str(i) for batch in held for i in batch.get("id", ())),
        mode="linearised",
        seed=seed if form == "mc" else None,
        logit_temperature=temperature,
    )


def linearised_logits(
    model: nn.Module,
    posteriors: Sequence[Posterior],
    batches: Sequence[Mapping[str, Any]],
    *,
    readout: Readout,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the logits, under posteriors with the same point: one pass for all of them.

    Args:
        model: the model, on its device.
        posteriors: Q of them, such as for different priors.
        batches: what the readout reads.
        readout: how the answer is read.
        progress: show a progress bar.

    Returns:
        f (N, C) and J Σ Jᵀ (Q, N, C, C), float64, on the CPU. A choice that does not exist has mean -inf, variance 0.

    Raises:
        NotLinearisableError: one is not a Gaussian with tensors independent of each other.
        ValueError: the tensors do not fit the model, or the logits or covariances are not numbers.
    """
    gaussians = [linearisable(q) for q in posteriors]
    q = gaussians[0]
    check_base(model, q.point.keys(), q.meta.base_fingerprint, q.meta.base_model)
    found = linearised_batches(
        model,
        q.point,
        [key for key, v in q.variance.items() if bool((v > 0).any())],
        lambda key, jacobian: torch.stack([gaussian.quadratic_form(key, jacobian) for gaussian in gaussians]),
        len(gaussians),
        batches,
        readout=readout,
        progress=progress,
    )
    means, covariances = zip(*found, strict=True)
    return torch.cat(means), torch.cat(covariances, dim=1)


def linearised_batches(
    model: nn.Module,
    point: Mapping[str, Tensor],
    varying: Sequence[str],
    forms: Callable[[str, Tensor], Tensor],
    number: int,
    batches: Sequence[Mapping[str, Any]],
    *,
    readout: Readout,
    progress: bool = False,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Mean and covariance of the logits under Q Gaussians with the same point, batch by batch.

    Meanwhile the model holds the point and is in eval mode; it is put back at the end, or when the generator is closed.

    Args:
        model: the model, on its device.
        point: the weights to linearise at, by checkpoint key.
        varying: keys of the tensors with a variance.
        forms: from a key and J (B, C, *shape) to J Σ Jᵀ (Q, B, C, C) of that tensor alone.
        number: Q.
        batches: what the readout reads.
        readout: how the answer is read.
        progress: show a progress bar.

    Yields:
        f (B, C) and J Σ Jᵀ (Q, B, C, C), float64, on the CPU. A choice that does not exist has mean -inf, variance 0.

    Raises:
        ValueError: the tensors do not fit the model, or the logits or covariances are not numbers.
    """
    tensors = linear_tensors(model, varying) if varying else {}
    if tensors:
        rows = max(map(num_rows, batches))
        needed = jacobian_bytes(tensors, rows, readout.num_classes)
        logger.info("the linearised prediction holds up to %.1f MB of a batch's Jacobian", needed / 1e6)
    before = 0
    with torch.random.fork_rng(devices=[]), applied(model, point), recorded(model, tensors) as recorder:
        for batch in progress_bars.tqdm(batches, desc="linearise", unit="batch", disable=not progress):
            mean, covariance = _of_batch(recorder, readout, on_device_of(model, batch), forms, number)
            broken = torch.log_softmax(mean, 1).isnan().any(1) | ~torch.isfinite(covariance).all(-1).all(-1).all(0)
            if bool(broken.any()):
                raise ValueError(
                    "the linearised logits are NaN or infinite, first for example "
                    f"{before + int(broken.nonzero()[0])}; the model's weights or the posterior's scale are broken"
                )
            before += len(mean)
            yield mean, covariance
            del mean, covariance  # before the next ones are made


def drawn_log_probs(mean: Tensor, covariance: Tensor, noise: Tensor) -> Tensor:
    """Log-probabilities (N, S, C) of logits N(mean, covariance), by the covariance's symmetric root.

    Args:
        mean: (N, C); -inf for a choice that does not exist.
        covariance: (N, C, C), positive semidefinite up to rounding.
        noise: (N, S, C), or (1, S, C) for all rows, standard normal.
    """
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()[:, None, :] @ vectors.mT
    return torch.log_softmax(mean[:, None, :] + noise @ root, dim=-1)


def probit_log_probs(mean: Tensor, covariance: Tensor) -> Tensor:
    """Log-probabilities (N, 1, C) by MacKay's approximation of the average.

    Args:
        mean: (N, C); -inf for a choice that does not exist.
        covariance: (N, C, C).
    """
    variance = covariance.diagonal(dim1=1, dim2=2)
    return torch.log_softmax(mean / (1 + math.pi / 8 * variance).sqrt(), dim=-1)[:, None]


def _of_batch(
    recorder: Recorder,
    readout: Readout,
    batch: Mapping[str, Any],
    forms: Callable[[str, Tensor], Tensor],
    number: int,
) -> tuple[Tensor, Tensor]:
    """f (B, C) and J Σ Jᵀ (Q, B, C, C) of one batch."""
    logits = recorder.logits(readout, batch)
    rows, classes = logits.shape
    covariance = torch.zeros(number, rows, classes, classes, dtype=torch.float64)
    for key, jacobian in recorder.jacobians(logits) if recorder.tensors else ():
        covariance += forms(key, jacobian).cpu()
    return logits.detach().cpu().double(), (covariance + covariance.mT) / 2


def _labels(held: Sequence[Mapping[str, Any]], readout: Readout) -> Tensor:
    for i, batch in enumerate(held):
        if "labels" not in batch or batch["labels"].ndim != 1:
            raise ValueError(f"batch {i} needs 'labels' (B,), class indices; give -100 where the class is unknown")
    labels = torch.cat([batch["labels"].cpu().long() for batch in held])
    if int(labels.max()) >= readout.num_classes:
        raise ValueError(f"label {int(labels.max())} for a readout of {readout.num_classes} classes")
    return labels
