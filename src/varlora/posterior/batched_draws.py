"""Predictions of batches by every draw: several draws in one forward where that is faster, else one after another.

Where a batch is small, a forward spends its time on reading the weights, and draws as further rows of it cost little:
the draws of a batch go through the model together up to a number of tokens above which a forward's time grows with
them (`TOKENS`, measured by `python -m benchmarks.prediction`). Larger batches are predicted one draw after another, as
all are by a model that does not let draws be rows (`varlora.readout.draws_as_rows`), which is logged once.

The numbers are those of one draw after another up to rounding; that they are is seen once for every model, by two rows
of the first batch under two sets of weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from varlora.adapters import applying, unwrapped_model
from varlora.posterior import DropoutMasks, Posterior
from varlora.posterior.draws import number_of_draws, on_device_of, passes_in_turn, ready_to_predict, weight_draws
from varlora.readout.batch_rows import Batch, is_by_rows, num_rows, repeat_rows, take_rows
from varlora.readout.draws_as_rows import DrawsAsRows, NotAsRowsError
from varlora.readout.packed_choices import num_tokens
from varlora.readout.rounding import agree

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Rows = TypeVar("Rows", Tensor, list[Any])
"""What is read of a batch: a tensor (B, ...) or a list of B."""

TOKENS = {"cpu": 512, "cuda": 4096}
"""Of one forward, by kind of device: draws are taken together up to so many."""
BYTES_OF_DRAWS = 2**30
"""Weights of draws that are held at a time."""
_agree: WeakKeyDictionary[nn.Module, dict[tuple[str, frozenset[str], bool], bool]] = WeakKeyDictionary()
"""Whether draws as rows give the numbers of one draw after another, by model, by what is read, by a draw's keys and by
whether autocast is on."""


def over_batches(
    model: nn.Module,
    q: Posterior | None,
    samples: int,
    batches: Sequence[Batch],
    read: Callable[[Batch], Rows],
    *,
    what: str,
    antithetic: bool,
    seed: int,
    compare: Callable[[Batch], Tensor] | None = None,
    size: Callable[[Batch], int] = num_tokens,
    done: Callable[[int], object] = lambda passes: None,
) -> list[list[Rows]]:
    """What is read of every batch under every draw.

    Args:
        model: the model, on its device.
        q: the posterior; None is the model as it stands.
        samples: S.
        batches: each with its rows along the first dimension of all its tensors and lists.
        read: what the model says of a batch on its device, row by row.
        what: the name of what is read, for which draws as rows are compared with single draws.
        antithetic: draw in mirrored pairs.
        seed: decides the draws.
        compare: what is compared; what is read, unless given. Needed where that is no tensor.
        size: what a batch counts towards `TOKENS`; its tokens, unless given.
        done: is told how many passes over one batch are done.

    Returns:
        For each draw, what was read of each batch.

    Raises:
        ValueError: the model's base is not the one that the posterior was trained on.
    """
    with ready_to_predict(model, q):
        if q is not None and number_of_draws(q, samples) > 1:
            draws = weight_draws(q, samples, antithetic=antithetic, seed=seed)
            together = drawn_as_rows(model, q, draws, batches, read, what=what, compare=compare, size=size, done=done)
            if together is not None:
                return together

        def one_pass() -> list[Rows]:
            found = []
            for batch in batches:
                found.append(read(on_device_of(model, batch)))
                done(1)
            return found

        return list(passes_in_turn(model, q, samples, one_pass, antithetic=antithetic, seed=seed))


def drawn_as_rows(
    model: nn.Module,
    q: Posterior,
    draws: Iterator[Mapping[str, Tensor]],
    batches: Sequence[Batch],
    read: Callable[[Batch], Rows],
    *,
    what: str,
    compare: Callable[[Batch], Tensor] | None = None,
    size: Callable[[Batch], int] = num_tokens,
    done: Callable[[int], object] = lambda passes: None,
) -> list[list[Rows]] | None:
    """What is read of every batch under every draw, draws as rows; None where that is not faster or cannot be.

    Args:
        model: in evaluation mode, without gradients.
        q: whose draws they are: names their tensors.
        draws: weights by checkpoint key.
        batches: as in `over_batches`, and so are the others.
    """
    compared: Callable[[Batch], Any] = compare if compare is not None else read
    by_rows = all("input_ids" in batch and is_by_rows(batch) for batch in batches)
    sizes = [size(batch) for batch in batches] if by_rows else []
    stacked = _worthwhile(model, q, sizes, batches[0], compared, what) if sizes else None
    return None if stacked is None else _together(model, stacked, draws, batches, sizes, read, done)


def averaged_over_batches(
    model: nn.Module,
    q: Posterior | None,
    samples: int,
    batches: Sequence[Batch],
    read: Callable[[Batch, int], list[Result]],
    *,
    what: str,
    antithetic: bool,
    seed: int,
    compare: Callable[[Batch], Tensor],
    size: Callable[[Batch], int] = num_tokens,
    done: Callable[[int], object] = lambda passes: None,
) -> list[Result]:
    """What is read of every row under all draws together.

    Args:
        model: as in `over_batches`, and so are the others.
        read: what the model says of a batch that holds the rows of every draw in turn; told how many draws.

    Returns:
        What was read of each row, of all batches.

    Raises:
        ValueError: the model does not let draws be rows of one forward; or as `over_batches`.
    """
    number = number_of_draws(q, samples)
    if q is not None and number > 1:
        with ready_to_predict(model, q):
            stacked = None if isinstance(q, DropoutMasks) else _compared(model, q, batches[0], compare, what)
            if stacked is None:
                raise ValueError(
                    f"{number} draws cannot be averaged at every token, since they cannot be rows of one forward here "
                    "(DoRA, adapted embeddings, trained norms, dropout masks, a compiled model). Take samples=0, or "
                    "let each draw write and vote: varlora.generate."
                )
            found = []
            with stacked.of(list(weight_draws(q, samples, antithetic=antithetic, seed=seed))):
                for batch in batches:
                    here, rows = on_device_of(model, batch), num_rows(batch)
                    at_once = _at_once(model, -(-number * size(batch) // rows), rows)
                    for first in range(0, rows, at_once):
                        some = take_rows(here, slice(first, first + at_once))
                        found += read(repeat_rows(some, number), number)
                    done(number)
            return found
    passes = over_batches(
        model,
        q,
        samples,
        batches,
        lambda batch: read(batch, 1),
        what=what,
        antithetic=antithetic,
        seed=seed,
        compare=compare,
        done=done,
    )
    return [row for of_batch in passes[0] for row in of_batch]


def _worthwhile(
    model: nn.Module,
    q: Posterior,
    sizes: Sequence[int],
    batch: Batch,
    compared: Callable[[Batch], Tensor],
    what: str,
) -> DrawsAsRows | None:
    """The model's layers to take draws as rows; None where it is not faster or cannot be."""
    if isinstance(q, DropoutMasks):
        return None
    if all(_at_once(model, size, 2) == 1 for size in sizes):
        try:
            if not DrawsAsRows(model, q.point.keys()).shares_lower_layers:
                return None
        except NotAsRowsError:
            return None
    return _compared(model, q, batch, compared, what)


def _compared(
    model: nn.Module, q: Posterior, batch: Batch, compared: Callable[[Batch], Tensor], what: str
) -> DrawsAsRows | None:
    """The model's layers to take draws as rows; None where they cannot, by what they are or by the numbers."""
    memory = _agree.setdefault(unwrapped_model(model), {})
    key = what, frozenset(q.point.keys()), torch.is_autocast_enabled(_kind(model))
    if memory.get(key) is False:
        return None
    try:
        stacked = DrawsAsRows(model, q.point.keys())
        if key not in memory and not _agrees(model, q, stacked, batch, compared):
            raise NotAsRowsError("the numbers are others")
    except NotAsRowsError as reason:
        memory[key] = False
        logger.info("draws are predicted one after another, not as rows of one forward: %s", reason)
        return None
    memory[key] = True
    return stacked


def _agrees(
    model: nn.Module, q: Posterior, stacked: DrawsAsRows, batch: Batch, compared: Callable[[Batch], Tensor]
) -> bool:
    """Whether two rows under two sets of weights, the point and random ones, are as each by itself."""
    few = take_rows(on_device_of(model, batch), slice(0, 2))
    others = torch.Generator().manual_seed(0)  # an untrained adapter's point changes nothing, and so would not tell
    both = [q.point, {key: torch.randn(v.shape, generator=others) / v.shape[-1] ** 0.5 for key, v in q.point.items()}]
    apart = []
    with applying(model, q.point) as apply:
        for weights in both:
            apply(weights)
            apart.append(compared(few))
    try:
        with stacked.of(both):
            together = compared(repeat_rows(few, 2))
    except RuntimeError as error:
        if _is_out_of_memory(error):
            raise
        raise NotAsRowsError(str(error)) from error
    return agree(model, torch.cat(apart), together)


def _together(
    model: nn.Module,
    stacked: DrawsAsRows,
    draws: Iterator[Mapping[str, Tensor]],
    batches: Sequence[Batch],
    sizes: Sequence[int],
    read: Callable[[Batch], Rows],
    done: Callable[[int], object],
) -> list[list[Rows]]:
    """Group by group of as many draws as may be held, every batch under all of them."""
    found: list[list[Rows]] = []
    most: dict[int, int] = {}
    for first in draws:
        held: int = max(1, BYTES_OF_DRAWS // max(1, sum(value.nbytes for value in first.values())))
        group = [first, *islice(draws, held - 1)]
        of_group: list[list[Rows]] = [[] for _ in group]
        with stacked.of(group):
            for number, batch in enumerate(batches):
                here = on_device_of(model, batch)
                at_once = most.get(number, _at_once(model, sizes[number], len(group)))
                parts, most[number] = _by_chunk(stacked, here, len(group), at_once, read, done)
                for of_draw, part in zip(of_group, parts, strict=True):
                    of_draw.append(part)
        found += of_group
    return found


def _by_chunk(
    stacked: DrawsAsRows,
    batch: Batch,
    draws: int,
    at_once: int,
    read: Callable[[Batch], Rows],
    done: Callable[[int], object],
) -> tuple[list[Rows], int]:
    """What is read of a batch under each draw, and how many went through at once: half as many without the memory."""
    found: list[Rows] = []
    while len(found) < draws:
        count = min(at_once, draws - len(found))
        stacked.select(len(found), count)
        try:
            rows = read(repeat_rows(batch, count))
        except RuntimeError as error:
            if count == 1 or not _is_out_of_memory(error):
                raise
            rows = None
        if rows is None:  # outside of the handler, whose traceback holds the tensors
            at_once = count // 2
            logger.info("%d draws at once need more memory than there is; taking %d", count, at_once)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        size = len(rows) // count
        found += [rows[k * size : (k + 1) * size] for k in range(count)]
        done(count)
    return found, at_once


def _at_once(model: nn.Module, size: int, copies: int) -> int:
    """How many copies of a batch to take in one forward, all in as few forwards of the same size as can be.

    Example:
        >>> _at_once(nn.Linear(1, 1), 60, 10)
        5
    """
    most = max(1, TOKENS.get(_kind(model), TOKENS["cpu"]) // size)
    return -(-copies // -(-copies // most))


def _kind(model: nn.Module) -> str:
    """Of the model's device."""
    return next((p.device.type for p in model.parameters()), "cpu")


def _is_out_of_memory(error: RuntimeError) -> bool:
    """On whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    return bool(should_reduce_batch_size(error))
