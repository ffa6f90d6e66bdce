"""Laplace-LoRA: AdamW, then a Gaussian at the weights it found, as wide as the loss is flat there.

    q = N(θ_MAP, (H + δ I)⁻¹)

with the curvature H of the summed loss over the adapter (`varlora.curvature`) and a prior precision δ that maximises
the evidence (`varlora.curvature.evidence`) or minimises the NLL of the linearised predictions for validation rows. The
posterior is one of the linearised model, so it is predicted with by mode "linearised"; draws of the weights in the
network itself are another, usually worse, use of it.

Source: Yang et al. 2023, arXiv 2308.13111.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from varlora.adapters import fixed_tensors, saved_tensors
from varlora.curvature import Curvature, best_prior_precision, curvature_of, log_marginal_likelihood
from varlora.curvature.layers import linear_tensors
from varlora.io.data_sets import in_order, order_by_length
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import LaplaceOptions
from varlora.metrics import mean_log_probs
from varlora.metrics.selection import FEW_ROWS
from varlora.posterior import model_meta
from varlora.posterior.draws import held_batches
from varlora.prediction.linearised import drawn_log_probs, linearised_batches
from varlora.readout.readout import Readout

logger = logging.getLogger(__name__)

GRID: Sequence[float] = tuple(10 ** (i / 4) for i in range(-8, 29))
"""Prior precisions tried on validation rows: four a decade from 0.01 to 1e7."""
_GRID_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Laplace(LaplaceOptions, AdamW):
    """AdamW, then Laplace's approximation over the adapter."""

    def fit(self, job: Job) -> Fit:
        """Trains, then takes one pass over the training rows for the curvature.

        Raises:
            ValueError: the task has no classes, a trained tensor is not one of a linear layer, or the prior is to be
                chosen on validation rows and there are none.
            NoBestPriorError: training has left all weights, or all curvature, at 0.
        """
        readout = job.readout
        if readout is None:
            raise ValueError("method 'laplace' needs the logits of classes; completions have none. Use 'ivon'.")
        if self.prior_choice == "validation" and job.validation is None:
            raise ValueError(
                "prior_choice='validation' needs labelled validation rows that are not test rows, too; give some, or "
                "use 'marglik'."
            )
        linear_tensors(job.model)  # refuses what it cannot handle before training
        log = job.run(self.trainer(job))
        rows = job.train
        if self.fisher == "ggn" and len(rows) > 1:  # labels are drawn in the rows' own order
            rows = in_order(rows, order_by_length(rows))
        curvature = curvature_of(
            job.model,
            job.batches(rows),
            readout=readout,
            structure=self.curvature,
            fisher=self.fisher,
            seed=int(job.arguments.seed),
            low_rank=self.curvature_rank,
            low_rank_above=self.curvature_rank_above,
            progress=job.progress,
        )
        prior, tried = self._prior(job, curvature, readout)
        saved = saved_tensors(job.model)
        meta = dataclasses.replace(
            model_meta(job.model, saved.tensors()),
            **record(job, self.name),
            ess=float(curvature.num_examples),
            prior_precision={key: delta for key, delta in prior.items() if math.isfinite(delta)},
            linearised=True,
            diagnostics={
                "log_likelihood": curvature.log_likelihood,
                "log_marginal_likelihood": log_marginal_likelihood(curvature, prior),
                "known_exactly": [key for key, delta in prior.items() if math.isinf(delta)],
                **tried,
            },
        )
        return Fit(posterior=curvature.posterior(prior, meta, fixed=saved.fixed), log=log)

    def _prior(self, job: Job, curvature: Curvature, readout: Readout) -> tuple[dict[str, float], dict[str, Any]]:
        """The prior precision by key, and what to record of the choice."""
        if self.prior_choice == "validation":
            assert job.validation is not None
            nll = validation_nll(
                job.model,
                curvature,
                held_batches(job.batches(job.validation)),
                readout=readout,
                grid=GRID,
                seed=int(job.arguments.seed),
                progress=job.progress,
            )
            best = min(nll, key=lambda delta: nll[delta])
            rows = sum(label >= 0 for label in job.validation["labels"])
            logger.info("the prior precision %g has the lowest NLL over %d validation rows", best, rows)
            if rows < FEW_ROWS:
                logger.warning(
                    "%d validation rows are few to choose a prior by: their lowest NLL may be luck. Give at least %d, "
                    "or use prior_choice='marglik', which needs none",
                    rows,
                    FEW_ROWS,
                )
            if best in (GRID[0], GRID[-1]):
                logger.warning("the best prior precision on validation rows is at the end of the grid: %g", best)
            return dict.fromkeys(curvature.weights, best), {"validation_nll": nll[best], "validation_rows": rows}
        if not self.per_tensor:
            return dict.fromkeys(curvature.weights, best_prior_precision(curvature)), {}
        return _per_tensor(curvature), {}


def validation_nll(
    model: nn.Module,
    curvature: Curvature,
    batches: Sequence[Mapping[str, Any]],
    *,
    readout: Readout,
    grid: Sequence[float] = GRID,
    seed: int = 0,
    progress: bool = False,
) -> dict[float, float]:
    """Mean NLL of the linearised predictions under each prior precision, one pass for all.

    The draws are those of `predict_linearised` with the same seed, and the same for all priors. The covariances of one
    batch are held at a time; that memory is logged (level INFO) before the pass.

    Args:
        model: the model, on its device.
        curvature: at the model's weights.
        batches: what the readout reads, with `labels`; a row with a label < 0 is left out.
        readout: how the answer is read.
        grid: prior precisions, one for all tensors.
        seed: decides the draws of the logits.
        progress: show a progress bar.

    Returns:
        NLL by prior precision.

    Raises:
        ValueError: a prior precision is not > 0, no row has a label, or the logits are not numbers.
    """
    labels = [batch["labels"].cpu().long() for batch in batches]
    sizes, classes = [len(y) for y in labels], readout.num_classes
    rows = sum(int((y >= 0).sum()) for y in labels)
    if not rows:
        raise ValueError("no validation row has a label, so there is no NLL to choose a prior by.")
    logger.info(
        "the NLL under %d prior precisions holds %.1f MB of a batch's covariances and %.1f MB of draws",
        len(grid),
        8 * len(grid) * max(sizes) * classes**2 / 1e6,
        8 * sum(sizes) * _GRID_DRAWS * classes / 1e6,
    )
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(sum(sizes), _GRID_DRAWS, classes, generator=generator, dtype=torch.float64)
    logits_of_batches = linearised_batches(
        model,
        {**fixed_tensors(model), **curvature.weights},
        list(curvature.weights),
        lambda key, jacobian: curvature.quadratic_forms(key, jacobian, grid),
        len(grid),
        batches,
        readout=readout,
        progress=progress,
    )
    with closing(logits_of_batches):  # map keeps no batch's covariances while the next are made
        sums = list(map(_summed_nll, labels, torch.split(noise, sizes), logits_of_batches))
    return dict(zip(grid, (torch.stack(sums).sum(0) / rows).tolist(), strict=True))


def _summed_nll(labels: Tensor, noise: Tensor, logits: tuple[Tensor, Tensor]) -> Tensor:
    """Σ over a batch's labelled rows (Q,), of logits with mean (B, C) and covariances (Q, B, C, C)."""
    known = labels >= 0
    mean, noise, answers = logits[0][known], noise[known], labels[known][:, None]
    log_probs = [mean_log_probs(drawn_log_probs(mean, covariance[known], noise)) for covariance in logits[1]]
    return torch.stack([-p.gather(1, answers).sum() for p in log_probs])


def _per_tensor(curvature: Curvature) -> dict[str, float]:
    """Each tensor's best prior precision. A tensor of zeros is known exactly (its best is infinite), and one without
    curvature (best: 0, a flat prior) takes the best of all tensors together; both are said.
    """
    prior = {}
    for key, h in curvature.eigenvalues.items():
        if not bool((curvature.weights[key] != 0).any()):
            prior[key] = math.inf
            logger.warning("all of %s is 0, so its best prior precision is infinite: it is known exactly", key)
        elif not bool((h > 0).any()):
            prior[key] = best_prior_precision(curvature)
            logger.warning("%s has no curvature; it takes the best prior of all tensors, %g", key, prior[key])
        else:
            prior[key] = best_prior_precision(curvature, key)
    return prior
