"""One text for each prompt under the averaged probabilities of all draws, and how sure each of its tokens is.

    p(y_t | x, y_<t) = (1/S) Σ_s p(y_t | x, y_<t; θ_s),   y_t = argmax_v p(v | x, y_<t)
    H_t = H[p(· | x, y_<t)],   I_t = H_t − (1/S) Σ_s H[p(· | x, y_<t; θ_s)]

The draws are rows of one call of transformers' `generate`, each with its own keys and values; before a token is chosen,
their probabilities are averaged, so that all of them go on behind the same text. H_t is high where the next token is
open, I_t (the mutual information between token and weights) where the draws disagree about it.

Source: arXiv 2002.07650 (ensembles of sequences: token-level averages and mutual information).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from varlora.posterior import Posterior
from varlora.posterior.batched_draws import averaged_over_batches
from varlora.posterior.draws import held_batches, number_of_draws, progress_bar
from varlora.prediction.decoding import AverageOverDraws, Greedy, OneText
from varlora.prediction.prediction_setup import nan_logits, prepare


@dataclass(frozen=True, kw_only=True)
class AveragedText:
    """A text that all draws write together.

    Attributes:
        text: Without its end and special tokens.
        finished: Whether it came to its end within `max_new_tokens`.
        log_likelihood: Nats, under the averaged probabilities, its end included.
        entropies: H_t (T,) float64, nats, of each of its T tokens, its end included.
        mutual_information: I_t (T,) float64, nats; 0 with one draw.
        id: The prompt's name, or empty.
    """

    text: str
    finished: bool
    log_likelihood: float
    entropies: Tensor
    mutual_information: Tensor
    id: str = ""


def generate_averaged(
    model: nn.Module,
    q: Posterior | None,
    batches: Iterable[Mapping[str, Any]],
    samples: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    antithetic: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> list[AveragedText]:
    """Write on after every prompt, greedily under the probabilities that the draws of the weights average.

    Args:
        model: As for `generate`, and so are the others.
        q: The posterior.
        batches: `input_ids` and `attention_mask` (B, T) of prompts, padded on the left; optionally `id`.
        samples: S, all of which are held at once; 0 writes at the posterior's mean. None: as of `predict`.
        tokenizer: The model's.
        max_new_tokens: Most tokens of a text.
        antithetic: Draw in mirrored pairs.
        seed: Decides the draws.
        progress: Show a progress bar.

    Raises:
        ValueError: As `generate`; or the model does not let draws be rows of one forward.
    """
    q, samples = prepare(q, samples)
    held = held_batches(batches)
    decode = Greedy(model, tokenizer, max_new_tokens)
    decode.check(held)

    def read(batch: Mapping[str, Any], draws: int) -> list[tuple[OneText, Tensor, Tensor]]:
        average = AverageOverDraws(draws)
        written = decode(batch, average).rows()
        entropies, information = (
            torch.stack(steps, 1).cpu() for steps in (average.entropies, average.mutual_information)
        )
        return [
            (text, entropies[row, : text.num_tokens], information[row, : text.num_tokens])
            for row, text in enumerate(written[: len(written) // draws])
        ]

    with progress_bar(len(held), q, samples, shown=progress) as bar:
        found = averaged_over_batches(
            model,
            q,
            samples,
            held,
            read,
            what="texts",
            antithetic=antithetic,
            seed=seed,
            compare=decode.next_logits,
            size=decode.size,
            done=bar.update,
        )
    if broken := [i for i, (text, *_) in enumerate(found) if text.log_likelihood != text.log_likelihood]:
        raise nan_logits(f"prompt {broken[0]}")
    ids = [str(i) for batch in held for i in batch.get("id", ())] or [""] * len(found)
    return [
        AveragedText(
            text=text.text,
            finished=text.finished,
            log_likelihood=text.log_likelihood,
            entropies=entropies,
            mutual_information=mutual_information if number_of_draws(q, samples) > 1 else torch.zeros_like(entropies),
            id=name,
        )
        for name, (text, entropies, mutual_information) in zip(ids, found, strict=True)
    ]
