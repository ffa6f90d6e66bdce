"""How likely a causal LM finds given completions: at the posterior's mean and under its draws.

Completions of one batch that follow the same prompt are choices of it: the prompt is computed once for all of them
(`varlora.readout.packed_choices`).
"""

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
from varlora.readout.choice_log_likelihoods import choice_log_likelihoods


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
        samples: S; 0 is the mean. None: as of `predict`.
        antithetic: Draw in mirrored pairs.
        seed: Decides the draws.
        progress: Show a progress bar.

    Returns:
        Log-likelihoods (N, S) float64, and the completions' numbers of tokens (N,) int64. Under the posterior
        a completion's log-likelihood is logsumexp over S minus log S.
    """
    q, samples = prepare(q, samples)
    held = held_batches(batches)
    orders, by_prompt = zip(*map(_by_prompt, held), strict=True)

    def read(batch: Mapping[str, Any]) -> Tensor:
        if "choice_mask" in batch:
            return choice_log_likelihoods(model, batch).double().cpu()
        return completion_log_likelihood(model, batch)[0].double().cpu()

    with progress_bar(len(held), q, samples, shown=progress) as bar:
        passes = over_batches(
            model, q, samples, by_prompt, read, what="completions", antithetic=antithetic, seed=seed, done=bar.update
        )
    counts = torch.cat([(batch["labels"][:, 1:] != -100).sum(1).cpu() for batch in held])
    values = [
        torch.cat(
            [found if order is None else found.flatten()[order] for found, order in zip(of_draw, orders, strict=True)]
        )
        for of_draw in passes
    ]
    return torch.stack(values, dim=1), counts


def _by_prompt(batch: Mapping[str, Any]) -> tuple[Tensor | None, Mapping[str, Any]]:
    """A batch whose completions are the choices of their prompts, and where among them each is; else as it is.

    As it is where no two completions have one prompt, or a completion is empty or not the end of its row.
    """
    ids, real = batch["input_ids"], batch["attention_mask"] != 0
    counts, lengths = real.sum(1), (batch["labels"] != -100).sum(1)
    ahead = real.flip(1).cumsum(1).flip(1)  # of each token, how many there are from it on
    texts = real & (ahead <= lengths[:, None])
    if not torch.equal(texts, batch["labels"] != -100) or bool(((lengths == 0) | (lengths >= counts)).any()):
        return None, batch
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, tokens in enumerate(ids):
        rows.setdefault(tuple(tokens[real[row] & ~texts[row]].tolist()), []).append(row)
    if len(rows) == len(ids):
        return None, batch
    most = max(map(len, rows.values()))
    places = torch.tensor([[*of_prompt, *[-1] * (most - len(of_prompt))] for of_prompt in rows.values()])
    exists = places >= 0
    order = torch.empty(len(ids), dtype=torch.int64)
    order[places[exists]] = exists.flatten().nonzero()[:, 0]
    choices = {"input_ids": ids[places], "attention_mask": batch["attention_mask"][places], "choice_mask": exists}
    return order, {**choices, "choice_lengths": lengths[places]}
