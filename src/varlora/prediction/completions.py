"""How likely a causal LM finds given completions: at the posterior's mean and under its draws."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlora.posterior import Posterior
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import held_batches, progress_bar
from varlora.prediction.prediction_setup import prepare
from varlora.readout.answer_logits import decoder_inputs, forward_parameters, widened


def completion_log_likelihood(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Log-likelihood of each row's completion under a causal LM.

    Args:
        model: The model, wrapped or not.
        batch: `input_ids`, `attention_mask` and `labels` (B, T); a label is the token, or -100 where it is
            not part of the completion.

    Returns:
        The sum over the completion's tokens of log p (B,), float32 or wider, and their number (B,) int64.

    Source: the chain rule, log p(y | x) = sum_t log p(y_t | x, y_<t).
    """
    labels: Tensor = batch["labels"]
    counted = labels[:, 1:] != -100
    first = int(counted.any(0).int().argmax()) if counted.any() else 0
    inputs = decoder_inputs(model, batch)
    if "logits_to_keep" in forward_parameters(model):
        inputs["logits_to_keep"] = labels.shape[1] - first
    logits: Tensor = model(**inputs).logits
    logits = widened(logits[:, logits.shape[1] - (labels.shape[1] - first) : -1])
    counted, targets = counted[:, first:], labels[:, 1 + first :]
    losses = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)
    return -losses.sum(1), counted.sum(1)


def predict_completions(
    model: nn.Module,
    q: Posterior | None,
    batches: Iterable[Mapping[str, Any]],
    samples: int | None = None,
    *,
    antithetic: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> tuple[Tensor, Tensor]:
    """Log-likelihood of given completions under each draw; the options are those of `predict`.

    Args:
        model: A causal LM.
        q: The posterior, or None for the model as it stands.
        batches: `input_ids`, `attention_mask`, `labels` (B, T) with -100 on the prompt.
        samples: S; 0 is the mean. None: what `varlora tune` chose, or 10.
        antithetic: Draw in mirrored pairs.
        seed: Decides the draws.
        progress: Show a progress bar.

    Returns:
        Log-likelihoods (N, S) float64, and the completions' numbers of tokens (N,) int64. Under the posterior
        a completion's log-likelihood is logsumexp over S minus log S.
    """
    q, samples = prepare(q, samples)
    held = held_batches(batches)

    def read(batch: Mapping[str, Any]) -> Tensor:
        return completion_log_likelihood(model, batch)[0].double().cpu()

    with progress_bar(len(held), q, samples, shown=progress) as bar:
        passes = over_batches(
            model, q, samples, held, read, what="completions", antithetic=antithetic, seed=seed, done=bar.update
        )
    counts = torch.cat([(batch["labels"][:, 1:] != -100).sum(1).cpu() for batch in held])
    return torch.stack([torch.cat(of_draw) for of_draw in passes], dim=1), counts
