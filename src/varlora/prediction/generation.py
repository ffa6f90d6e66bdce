"""Texts that a causal LM writes after its prompts: at the posterior's point, and under coherent draws of its weights.

Decoding is greedy, so that texts differ between draws only because the weights do: what they disagree about is what
the posterior is unsure of. Each draw is one set of weights, held for the whole pass over the prompts.

    answer(x) = the answer that most draws give,   agreement(x) = the share of the S draws that give it

Source: arXiv 2203.11171 (the vote), arXiv 2402.17641 (draws of the weights).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from varlora.io.parquet_files import TableFile, facts_in, rectangle
from varlora.metrics import AnswerRows, evaluate_rows, majority
from varlora.posterior import Posterior
from varlora.posterior.batched_draws import over_batches
from varlora.posterior.draws import held_batches, progress_bar
from varlora.prediction.prediction import PredictedMode
from varlora.prediction.prediction_setup import nan_logits, prepare
from varlora.prediction.text_utility import Utility, token_f1
from varlora.tasks.final_answers import FINAL_ANSWERS, FinalAnswer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from varlora.prediction.decoding import OneText

_FORMAT = "varlora.generations.v1"
_COLUMNS = {
    "id": pa.string(),
    "reference": pa.string(),
    "texts": pa.list_(pa.string()),
    "num_tokens": pa.list_(pa.int64()),
    "log_likelihoods": pa.list_(pa.float64()),
    "finished": pa.list_(pa.bool_()),
}


class _Facts(TypedDict):
    """What stands in a table's metadata."""

    format: Literal["varlora.generations.v1"]
    has_ids: bool
    final_answer: FinalAnswer
    max_new_tokens: int
    mode: PredictedMode
    antithetic: bool
    seed: int | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Generations(TableFile):
    """What a model wrote after N prompts, by each of S draws.

    Attributes:
        texts: N rows of S texts, without their ends and special tokens.
        num_tokens: (N, S) int64, tokens of each text, its end included.
        log_likelihoods: (N, S) float64, nats, log-probability of each text under its own draw, its end included.
        finished: (N, S) bool, whether the text came to its end within `max_new_tokens`.
        ids: The N prompts' names, or empty.
        references: The N right answers, as `final_answer` reads them; or empty.
        final_answer: How the answer is read from a text.
        max_new_tokens: Most tokens of a text.
        mode: "model" (the weights as they stood), "mean" (the posterior's point) or "samples" (its draws).
        antithetic: Whether draws 2k and 2k + 1 mirror each other around the mean.
        seed: Seed of the draws; None where none was drawn.

    Raises:
        ValueError: If the shapes or types do not fit.

    Example:
        >>> ones = torch.ones(1, 3, dtype=torch.int64)
        >>> found = Generations(texts=(("so 4", "it is 5", "#### 4"),), num_tokens=ones, finished=ones.bool(),
        ...                     log_likelihoods=-ones.double(), references=("4",), final_answer="number",
        ...                     max_new_tokens=8, mode="samples")
        >>> found.majority, found.agreement, found.metrics()["exact_match"]
        (('4',), tensor([0.6667], dtype=torch.float64), 1.0)
    """

    columns = _COLUMNS
    misfit = "holds no generations"

    texts: tuple[tuple[str, ...], ...]
    num_tokens: Tensor
    log_likelihoods: Tensor
    finished: Tensor
    ids: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    final_answer: FinalAnswer = "text"
    max_new_tokens: int
    mode: PredictedMode = "model"
    antithetic: bool = False
    seed: int | None = None

    def __post_init__(self) -> None:
        rows = len(self.texts)
        shape = (rows, len(self.texts[0]) if rows else 0)
        if 0 in shape or any(len(row) != shape[1] for row in self.texts):
            raise ValueError("texts must be N rows of S texts each, N and S at least 1.")
        for name, dtype in (("num_tokens", torch.int64), ("log_likelihoods", torch.float64), ("finished", torch.bool)):
            value: Tensor = getattr(self, name)
            if value.shape != shape or value.dtype != dtype:
                raise ValueError(f"{name} must be {dtype} of shape {shape}, got {value.dtype} {tuple(value.shape)}")
        for name in ("ids", "references"):
            if len(getattr(self, name)) not in (0, rows):
                raise ValueError(f"{len(getattr(self, name))} {name} for {rows} rows")
        if self.final_answer not in FINAL_ANSWERS:
            raise ValueError(f"final_answer {self.final_answer!r}; allowed: {', '.join(FINAL_ANSWERS)}")
        if self.mode not in get_args(PredictedMode):
            raise ValueError(f"mode {self.mode!r}; allowed: {', '.join(get_args(PredictedMode))}")

    @property
    def num_draws(self) -> int:
        """S."""
        return len(self.texts[0])

    @cached_property
    def answers(self) -> tuple[tuple[str | None, ...], ...]:
        """The final answer of each text (N, S); None where it has none."""
        read = FINAL_ANSWERS[self.final_answer]
        return tuple(tuple(read(text) for text in row) for row in self.texts)

    @property
    def majority(self) -> tuple[str | None, ...]:
        """The answer that most draws give (N)."""
        return majority(self.answers)[0]

    @property
    def agreement(self) -> Tensor:
        """The share of the draws that give it (N,), float64; 1 or 0 with a single draw, which says nothing."""
        return majority(self.answers)[1]

    def minimum_bayes_risk(self, utility: Utility = token_f1) -> tuple[str, ...]:
        """Of each prompt's texts the one that is best on average, where any of the others may be the right one (N).

            y(x) = argmax_{y in texts} (1/S) Σ_s u(y, y_s)

        Args:
            utility: u(candidate, reference), the larger the better: any measure of a text by another.

        Source: arXiv 2108.04718 (minimum Bayes risk with sampled texts); the first of those that are equally good.
        """
        best = []
        for row in self.texts:
            scores = [sum(utility(text, other) for other in row) for text in row]
            best.append(row[scores.index(max(scores))])
        return tuple(best)

    @property
    def log_likelihood_per_token(self) -> Tensor:
        """(N,) float64, nats, averaged over the draws."""
        return (self.log_likelihoods / self.num_tokens).mean(1)

    def metrics(self) -> dict[str, float]:
        """Right or wrong, and what agreement and likelihood say about it: the metrics of kind "final_answers".

        Raises:
            ValueError: If the right answers are not known.
        """
        if not self.references:
            raise ValueError("the texts cannot be judged without `references`, the right answers.")
        rows = AnswerRows(
            self.answers,
            self.references,
            log_likelihood=self.log_likelihood_per_token,
            finished=self.finished,
            num_tokens=self.num_tokens,
        )
        return evaluate_rows(rows)

    def to_table(self) -> pa.Table:
        """One row per prompt: `id`, `reference`, `answer`, `agreement`, and lists of S: `texts`, `answers`, ..."""
        rows = len(self.texts)
        columns = {
            "id": pa.array(self.ids or [str(i) for i in range(rows)], pa.string()),
            "reference": pa.array(self.references or [None] * rows, pa.string()),
            "answer": pa.array(self.majority, pa.string()),
            "agreement": pa.array(self.agreement.numpy()),
            "texts": pa.array(self.texts, pa.list_(pa.string())),
            "answers": pa.array(self.answers, pa.list_(pa.string())),
            "num_tokens": pa.array(self.num_tokens.tolist(), pa.list_(pa.int64())),
            "log_likelihoods": pa.array(self.log_likelihoods.tolist(), pa.list_(pa.float64())),
            "finished": pa.array(self.finished.tolist(), pa.list_(pa.bool_())),
        }
        facts = {
            "format": _FORMAT,
            "has_ids": bool(self.ids),
            "final_answer": self.final_answer,
            "max_new_tokens": self.max_new_tokens,
            "mode": self.mode,
            "antithetic": self.antithetic,
            "seed": self.seed,
        }
        return pa.table(columns).replace_schema_metadata({"varlora": json.dumps(facts)})

    @classmethod
    def from_table(cls, table: pa.Table) -> Generations:
        """The generations that `to_table` wrote.

        Raises:
            ValueError: If the table is not one of ours.
        """
        facts = facts_in(table, _Facts)
        references = table["reference"].to_pylist()
        if table["id"].null_count or table["reference"].null_count not in (0, len(table)):
            raise ValueError("a row without id or reference")
        for name in ("texts", "num_tokens", "log_likelihoods", "finished"):
            _, held = rectangle(table[name], name)
            if name == "log_likelihoods" and pc.any(pc.is_nan(held)).as_py():
                raise ValueError("log_likelihoods that are NaN")
        return cls(
            texts=tuple(tuple(row) for row in table["texts"].to_pylist()),
            num_tokens=torch.tensor(table["num_tokens"].to_pylist(), dtype=torch.int64),
            log_likelihoods=torch.tensor(table["log_likelihoods"].to_pylist(), dtype=torch.float64),
            finished=torch.tensor(table["finished"].to_pylist(), dtype=torch.bool),
            ids=tuple(table["id"].to_pylist()) if facts["has_ids"] else (),
            references=tuple(references) if references[0] is not None else (),
            **{name: facts[name] for name in ("final_answer", "max_new_tokens", "mode", "antithetic", "seed")},
        )


def generate(
    model: nn.Module,
    q: Posterior | None,
    batches: Iterable[Mapping[str, Any]],
    samples: int | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    final_answer: FinalAnswer = "text",
    antithetic: bool = True,
    seed: int = 0,
    progress: bool = False,
) -> Generations:
    """Write on after every prompt, greedily, once for each draw of the weights.

    The model is in eval mode meanwhile; afterwards its weights, each module's mode and the global random state are
    what they were, also after an exception. A text ends at the tokenizer's end-of-text token or at one that the
    model's generation configuration names. Nothing else of that configuration is followed: no sampling, no penalty
    and no beam changes which text the weights find likeliest token by token.

    Args:
        model: A causal LM, wrapped or not, on its device.
        q: The posterior whose weights to write with; None takes the model as it stands, once.
        batches: `input_ids` and `attention_mask` (B, T) of prompts, padded on the left, as `encode_prompts` and
            `Collator` of `varlora.tasks` make them; optionally `id`.
        samples: S, the number of draws; 0 writes at the posterior's mean. None: as of `predict`.
        tokenizer: The model's; makes text of the tokens, and has the end-of-text token.
        max_new_tokens: Most tokens of a text.
        final_answer: How the answer is read from a text: "number" or "text".
        antithetic: Draw in mirrored pairs.
        seed: Decides the draws, which come from a generator of their own.
        progress: Show a progress bar.

    Raises:
        ValueError: If there is no prompt, a batch is not padded on the left, a text would not fit into the model's
            context, the model cannot generate or gives NaN, or an option is out of range.
    """
    from varlora.prediction.decoding import Greedy  # stored texts are read without transformers

    q, samples = prepare(q, samples)
    mode: PredictedMode = "model" if q is None else "samples" if samples else "mean"
    held = held_batches(batches)
    decode = Greedy(model, tokenizer, max_new_tokens)
    decode.check(held)

    def read(batch: Mapping[str, Any]) -> list[OneText]:
        return decode(batch).rows()

    with progress_bar(len(held), q, samples, shown=progress) as bar:
        passes: list[list[list[OneText]]] = over_batches(
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
    written = [[text for of_batch in of_draw for text in of_batch] for of_draw in passes]
    log_likelihoods = _by_row(written, "log_likelihood", torch.float64)
    if bool(log_likelihoods.isnan().any()):
        broken = int(log_likelihoods.isnan().any(1).nonzero()[0])
        raise nan_logits(f"prompt {broken}")
    return Generations(
        texts=tuple(zip(*[[text.text for text in of_draw] for of_draw in written], strict=True)),
        num_tokens=_by_row(written, "num_tokens", torch.int64),
        log_likelihoods=log_likelihoods,
        finished=_by_row(written, "finished", torch.bool),
        ids=tuple(str(i) for batch in held for i in batch.get("id", ())),
        final_answer=final_answer,
        max_new_tokens=max_new_tokens,
        mode=mode,
        antithetic=mode == "samples" and q is not None and q.symmetric and antithetic and samples > 1,
        seed=seed if mode == "samples" else None,
    )


def _by_row(written: Sequence[Sequence[OneText]], name: str, dtype: torch.dtype) -> Tensor:
    """A fact of the texts of S draws (N, S)."""
    return torch.tensor([[getattr(text, name) for text in of_draw] for of_draw in written], dtype=dtype).T.contiguous()
