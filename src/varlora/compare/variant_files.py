"""Where the predictions of a run's variants are, and how they are read.

    <run>/variants/<key>/SPLIT.parquet      predictions for every split but train
    <run>/variants/<key>/variant.json       the variant, its draws, what validation rows chose, seconds
    <run>/variants/validation.json          which validation rows may be chosen on

A variant that is one of the run's own modes of prediction, or the first draws of one, is read from `predictions/`. A
temperature of the logits is fitted when a variant is read. So nothing is kept twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from varlora.compare.variant import Variant
from varlora.draws import number_of_draws
from varlora.files import read_json
from varlora.metrics import fit_temperature
from varlora.ops import prune, temper
from varlora.posterior import Mixture, PointMass, Posterior
from varlora.posterior.kinds import linearisable
from varlora.prediction import Prediction, modes_of
from varlora.runs import RunFolder, read_run
from varlora.runs.selection import FRACTIONS
from varlora.tuned import without_tuning

FOLDER = "variants"
FACTS = "variant.json"
ROWS = "validation.json"


class _Tuning(TypedDict):
    tuned: dict[str, Any] | None


class _MoreFacts(TypedDict, total=False):
    pruned: float
    tuning: _Tuning


class _Facts(_MoreFacts):
    """Content of variant.json, as far as it is read."""

    format: int
    draws: int
    seconds: dict[str, float]


class _Rows(TypedDict):
    """Content of validation.json, as far as it is read."""

    usable: list[int]


FORMAT = 1
"""Kept with a variant; raised when `compare` itself makes other predictions of the same run than before."""
SPLIT = "validation"
"""What is chosen, is chosen on this split."""


def load_variant(run: RunFolder, variant: Variant, split: str) -> Prediction:
    """A variant's predictions for a split.

    Args:
        run: the run.
        variant: one that `ensure_variants` was given.
        split: any but "train".

    Raises:
        ValueError: the variant does not go with the run or has not been predicted with, or there is no such split.
    """
    if variant.logit_temperature == "none":
        return _undivided(run, variant, split)
    divisor = logit_temperature(run, variant)
    prediction = _undivided(run, variant, split)
    return dataclasses.replace(
        prediction,
        log_probs=torch.log_softmax(prediction.log_probs / divisor, dim=-1),
        logit_temperature=prediction.logit_temperature * divisor,
    )


def logit_temperature(run: RunFolder, variant: Variant) -> float:
    """The T that a variant's validation rows ask for, on top of the one that the run has; 1 where none is wanted.

    Raises:
        ValueError: as `load_variant`.
    """
    if variant.logit_temperature == "none":
        return 1.0
    undivided = dataclasses.replace(variant, logit_temperature="none")
    file = _file(run, undivided, SPLIT)
    return _fitted(str(run.path), undivided, file.stat().st_mtime_ns)


def pruned_fraction(run: RunFolder, variant: Variant) -> float:
    """The fraction that a variant prunes; where validation rows choose it, what they have chosen.

    Raises:
        ValueError: nothing has been chosen yet.
    """
    if variant.prune == "validation":
        return float(facts_of(run, made_as(run, variant))["pruned"])
    return float(variant.prune)


def tuned_as(run: RunFolder, variant: Variant) -> Mapping[str, Any] | None:
    """What validation rows have chosen for a variant with `tune`, as `meta.tuned` has it; None: as training left it.

    Raises:
        ValueError: nothing has been chosen yet.
    """
    found: Mapping[str, Any] | None = facts_of(run, made_as(run, variant))["tuning"]["tuned"]
    return found


def seconds(run: RunFolder, variant: Variant, split: str) -> float | None:
    """How long a variant's prediction of a split took; None where it is part of a longer one, or not known.

    Raises:
        ValueError: as `load_variant`.
    """
    variant = _settled(run, variant)
    if is_own(run, variant):
        if draws_of(run, variant) not in (0, own_draws(run)):
            return None
        own: float | None = run.facts["seconds"].get(f"predict/{split}/{variant.plain.mode}")
        return own
    facts = facts_of(run, made_as(run, variant))
    made: float | None = facts["seconds"].get(split) if facts["draws"] == draws_of(run, variant) else None
    return made


def unfit(run: RunFolder, variant: Variant, *, thorough: bool = True) -> str | None:
    """Why a run cannot be predicted with as a variant; None if it can.

    Args:
        run: the run.
        variant: the variant.
        thorough: also prune and temper the posterior, which takes a moment, to see whether it can be.
    """
    q, plain = without_tuning(run.posterior), variant.plain
    if is_completion(run):
        own = is_own(run, plain) and draws_of(run, plain) in (0, own_draws(run)) and not chooses(variant)
        return None if own else "its rows ask for completions, which have no classes: only as training predicted them."
    if plain.mode == "samples" and not plain.tune:
        if isinstance(q, PointMass):
            return f"method {run.config.method!r} gives a point mass, which has no draws. Use mode: mean."
        if draws_of(run, plain) == 0:
            return "the run predicts at its mean (samples: 0). Give the variant's samples."
        if isinstance(q, Mixture) and (why := _unfit_mixture(run, q, plain)) is not None:
            return why
    if chooses(variant) and SPLIT not in run.facts["task"]["rows"]:
        return "there are no validation rows to choose on. Train with validation_file or validation_size."
    if not thorough:
        return None
    try:
        q = derived(run, plain, FRACTIONS[0] if plain.prune == "validation" else float(plain.prune))
        if plain.mode == "linearised":
            linearisable(q)
    except ValueError as error:
        return str(error)
    return None


def _unfit_mixture(run: RunFolder, q: Mixture, variant: Variant) -> str | None:
    asked, own = variant.samples, own_draws(run)
    if all(isinstance(component, PointMass) for component in q.components):
        if asked is not None and asked > own:
            return f"its {own} members are all the draws it has. Give samples up to {own}, or leave it out."
    elif asked is not None and asked != own:
        return f"its draws are dealt out to its components, so that fewer are no part of more. Give samples: {own}."
    return None


def is_completion(run: RunFolder) -> bool:
    """Whether a run's rows ask for free text, and not for one of several classes."""
    return bool(run.facts["task"]["kind"] == "completion")


def own_draws(run: RunFolder) -> int:
    """How many draws the run's own predictions have; 1 where it predicts at its mean."""
    return number_of_draws(run.posterior, run.config.samples)


def draws_of(run: RunFolder, variant: Variant) -> int:
    """How many draws a variant has; 0 where they are not its own to choose."""
    if variant.plain.mode != "samples" or variant.tune:
        return 0
    return variant.samples if variant.samples is not None else own_draws(run) if run.config.samples else 0


def is_own(run: RunFolder, variant: Variant) -> bool:
    """Whether a variant is one of the run's own modes, or the first draws of one."""
    plain = variant.plain
    if plain.prune != 0 or plain.temperature != 1 or plain.tune:
        return False
    modes = modes_of(without_tuning(run.posterior), run.config.samples)
    return plain.mode in modes and (plain.mode != "samples" or draws_of(run, plain) <= own_draws(run))


def made_as(run: RunFolder, variant: Variant) -> Variant:
    """The variant whose predictions are kept for this one; the run's own number of draws has one name."""
    made = variant.made_as
    if made.samples is not None and made.samples == draws_of(run, dataclasses.replace(variant, samples=None)):
        return dataclasses.replace(made, samples=None)
    return made


def variant_folder(run: RunFolder, made: Variant) -> Path:
    """Where the predictions of a variant that `made_as` gave are kept."""
    return run.path / FOLDER / made.key


def splits_of(run: RunFolder) -> list[str]:
    """The splits that are predicted."""
    return [split for split in run.facts["task"]["rows"] if split != "train"]


def is_made(run: RunFolder, made: Variant, draws: int) -> bool:
    """Whether a variant's predictions are kept, with as many draws."""
    if not (variant_folder(run, made) / FACTS).exists():
        return False
    facts = facts_of(run, made)
    return bool(facts["format"] == FORMAT and facts["draws"] >= draws)


def facts_of(run: RunFolder, made: Variant) -> dict[str, Any]:
    """Content of a variant's variant.json.

    Raises:
        ValueError: there is none.
    """
    file = variant_folder(run, made) / FACTS
    if not file.exists():
        raise ValueError(
            f"{run.path} has not been predicted with as {in_words(made)} yet. Run `varlora compare` again."
        )
    return dict(read_json(file, _Facts, instead="Delete the folder it is in, and run `varlora compare` again."))


def own_variant(run: RunFolder) -> Variant:
    """The run's own way to predict: the last of its modes, as training left it."""
    mode = modes_of(without_tuning(run.posterior), run.config.samples)[-1]
    assert mode != "model"
    return Variant(mode=mode)


def _settled(run: RunFolder, variant: Variant) -> Variant:
    """The variant itself, or one of the run's own modes where validation rows chose nothing that changes it."""
    if variant.tune and tuned_as(run, variant) is None:
        return own_variant(run)
    if variant.prune == "validation" and pruned_fraction(run, variant) == 0:
        unpruned = dataclasses.replace(variant, prune=0.0)
        return unpruned if is_own(run, unpruned) else variant
    return variant


def _file(run: RunFolder, variant: Variant, split: str) -> Path:
    """Where a variant's predictions are.

    Raises:
        ValueError: they are not there.
    """
    if (why := unfit(run, variant, thorough=False)) is not None:
        raise ValueError(f"{run.path} cannot be predicted with as {in_words(variant)}: {why}")
    if is_completion(run):
        raise ValueError(f"{run.path} has completions, which no Prediction holds; see the run's metrics.")
    if split not in splits_of(run):
        raise ValueError(f"{run.path} has no predictions for {split!r}; it has {', '.join(splits_of(run))}.")
    variant = _settled(run, variant)
    if is_own(run, variant):
        return run.prediction_file(split, variant.plain.mode)
    made = made_as(run, variant)
    if facts_of(run, made)["draws"] < draws_of(run, variant):
        raise ValueError(
            f"{variant_folder(run, made)} has fewer draws than {in_words(variant)}. Run `varlora compare` again."
        )
    return variant_folder(run, made) / f"{split}.parquet"


def _undivided(run: RunFolder, variant: Variant, split: str) -> Prediction:
    """A variant's predictions as they are kept, its first draws where there are more."""
    prediction = Prediction.load(_file(run, variant, split))
    draws = draws_of(run, variant)
    if draws in (0, prediction.num_draws):
        return prediction
    first = prediction.log_probs[:, :draws].contiguous()
    return dataclasses.replace(prediction, log_probs=first, antithetic=prediction.antithetic and draws > 1)


def derived(run: RunFolder, variant: Variant, fraction: float) -> Posterior:
    """The posterior as training left it, pruned, then tempered."""
    q = without_tuning(run.posterior)
    if fraction > 0:
        q = prune(q, fraction, by=variant.prune_by, scope=variant.prune_scope, seed=run.config.seed)
    return q if variant.temperature == 1 else temper(q, variant.temperature)


def chooses(variant: Variant) -> bool:
    """Whether validation rows choose something."""
    return variant.tune or "validation" in (variant.prune, variant.logit_temperature)


def usable_rows(folder: Path) -> Tensor:
    """Positions of the validation rows that may be chosen on."""
    file = folder / FOLDER / ROWS
    if not file.is_file():
        raise ValueError(f"{file} is missing: which validation rows may be chosen on. Run `varlora compare` again.")
    rows = read_json(file, _Rows, instead="Delete it, and run `varlora compare` again.")["usable"]
    if any(row < 0 for row in rows):
        raise ValueError(f"{file} names a row below 0. Delete it, and run `varlora compare` again.")
    return torch.tensor(rows, dtype=torch.int64)


@lru_cache(maxsize=4096)
def _fitted(folder: str, variant: Variant, stamp: int) -> float:
    """T for the predictions that a variant's file has held since `stamp`."""
    run = read_run(folder)
    rows = usable_rows(run.path)
    validation = _undivided(run, variant, SPLIT)
    whose = f"{folder} predicted with as {in_words(variant)}"
    return fit_temperature(validation.log_probs[rows], validation.labels[rows], of=whose)


def in_words(variant: Variant) -> str:
    """A variant's fields that are not the defaults, as a plan writes them."""
    if variant.tune:
        return "{tune: true}"
    defaults = Variant().to_dict()
    changed = {name: value for name, value in variant.to_dict().items() if value != defaults[name] or name == "mode"}
    return f"{{{', '.join(f'{name}: {value}' for name, value in changed.items())}}}"
