"""Where the predictions of a run's variants are, and how they are read.

    <run>/variants/<key>/SPLIT.parquet      predictions for every split but train
    <run>/variants/<key>/variant.json       the variant, its draws, what validation rows chose, seconds
    <run>/variants/validation.json          which validation rows may be chosen on

A variant that is one of the run's own modes of prediction, or the first draws of one, is read from `predictions/`. A
temperature of the logits is fitted when a variant is read. So nothing is kept twice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor

from varlora.compare.variant import Variant
from varlora.io.files import read_json
from varlora.metrics import fit_temperature
from varlora.posterior import Mixture, PointMass, PredictionConfig, linearisable
from varlora.posterior.draws import number_of_draws
from varlora.posterior.prediction_config import upgrade_tuned
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import apply_config, modes_of, remove_tuning
from varlora.runs.folder import RunFolder, is_run, read_run
from varlora.tasks.task import VALIDATION

FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What `prune: validation` tries, until one may cost more."""
FOLDER = "variants"
FACTS = "variant.json"
_INSTEAD = "Delete the folder it is in, and run `varlora compare` again."
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


FORMAT = 2
"""Kept with a variant; raised when its file or its predictions of the same run become others than before."""
_READ = (1, FORMAT)
"""Format 1 has what was tuned as posterior.json had it up to its format 2."""


def load_variant(run: RunFolder, variant: Variant, split: str) -> Prediction:
    """A variant's predictions for a split.

    Args:
        run: the run.
        variant: one that `ensure_variants` was given.
        split: any but "train".

    Raises:
        ValueError: the variant does not go with the run or has not been predicted with, or there is no such split.
    """
    prediction = _as_kept(run, variant, split)
    if "logit_temperature" in variant.chosen:
        return prediction.at_temperature(logit_temperature(run, variant))
    if variant.config.logit_temperature is not None:
        return prediction.at_temperature(variant.config.logit_temperature)
    return prediction


def logit_temperature(run: RunFolder, variant: Variant) -> float:
    """The T that a variant's validation rows ask for, in place of the one that the run has; 1 where none is wanted.

    It is fitted to predictions that no T has divided. Over one that the same rows have fitted it would be drawn to
    that, and no more to 1 as the T of a run that has none.

    Raises:
        ValueError: as `load_variant`.
    """
    if "logit_temperature" not in variant.chosen:
        return 1.0
    undivided = dataclasses.replace(variant, chosen=variant.chosen - {"logit_temperature"})
    file = _file(run, undivided, VALIDATION)
    return _fitted(str(run.path), undivided, file.stat().st_mtime_ns)


def pruned_fraction(run: RunFolder, variant: Variant) -> float:
    """The fraction that a variant prunes; where validation rows choose it, what they have chosen.

    Raises:
        ValueError: nothing has been chosen yet.
    """
    if "prune" in variant.chosen:
        return float(facts_of(run, stored_as(run, variant))["pruned"])
    return variant.config.prune


def read_tuned(run: RunFolder, variant: Variant) -> PredictionConfig | None:
    """The way to predict that validation rows have chosen for a variant with "tune"; None: as training left it.

    Raises:
        ValueError: nothing has been chosen yet, or what is written is no way to predict.
    """
    stored = stored_as(run, variant)
    facts = facts_of(run, stored)
    if (tuned := facts["tuning"]["tuned"]) is None:
        return None
    try:
        return PredictionConfig.from_dict(upgrade_tuned(tuned) if facts["format"] == 1 else tuned)
    except ValueError as error:
        raise ValueError(f"{variant_folder(run, stored) / FACTS}: {error} {_INSTEAD}") from error


def seconds(run: RunFolder, variant: Variant, split: str) -> float | None:
    """How long a variant's prediction of a split took; None where it is part of a longer one, or not known.

    Raises:
        ValueError: as `load_variant`.
    """
    variant = _resolve(run, variant)
    if is_own(run, variant):
        if draws_of(run, variant) not in (0, own_draws(run)):
            return None
        own: float | None = run.facts["seconds"].get(f"predict/{split}/{variant.canonical.config.mode}")
        return own
    facts = facts_of(run, stored_as(run, variant))
    made: float | None = facts["seconds"].get(split) if facts["draws"] == draws_of(run, variant) else None
    return made


def explain_unfit(run: RunFolder, variant: Variant, *, thorough: bool = True) -> str | None:
    """Why a run cannot be predicted with as a variant; None if it can.

    Args:
        run: the run.
        variant: the variant.
        thorough: also prune and temper the posterior, which takes a moment, to see whether it can be.
    """
    q, plain = remove_tuning(run.posterior), variant.canonical
    config = plain.config
    if run.is_completion:
        divided = variant.chosen or config.logit_temperature is not None
        if not divided and is_own(run, plain) and draws_of(run, plain) in (0, own_draws(run)):
            return None
        return "its rows ask for completions, which have no classes: only as training predicted them."
    if config.mode == "samples" and "tune" not in plain.chosen:
        if isinstance(q, PointMass):
            return f"method {run.config.method!r} gives a point mass, which has no draws. Use mode: mean."
        if draws_of(run, plain) == 0:
            return "the run predicts at its mean (samples: 0). Give the variant's samples."
        if isinstance(q, Mixture) and (why := _explain_unfit_mixture(run, q, config)) is not None:
            return why
    if variant.chosen and VALIDATION not in run.facts["task"]["rows"]:
        return "there are no validation rows to choose on. Train with validation_file or validation_size."
    if not thorough:
        return None
    try:
        fraction = FRACTIONS[0] if "prune" in plain.chosen else config.prune
        q = apply_config(q, dataclasses.replace(config, prune=fraction), seed=run.config.seed)
        if config.mode == "linearised":
            linearisable(q)
    except ValueError as error:
        return str(error)
    return None


def _explain_unfit_mixture(run: RunFolder, q: Mixture, config: PredictionConfig) -> str | None:
    asked, own = config.samples, own_draws(run)
    if all(isinstance(component, PointMass) for component in q.components):
        if asked is not None and asked > own:
            return f"its {own} members are all the draws it has. Give samples up to {own}, or leave it out."
    elif asked is not None and asked != own:
        return f"its draws are dealt out to its components, so that fewer are no part of more. Give samples: {own}."
    return None


def own_draws(run: RunFolder) -> int:
    """How many draws the run's own predictions have; 1 where it predicts at its mean."""
    return number_of_draws(run.posterior, run.config.samples)


def draws_of(run: RunFolder, variant: Variant) -> int:
    """How many draws a variant has; 0 where they are not its own to choose."""
    config = variant.canonical.config
    if config.mode != "samples" or "tune" in variant.chosen:
        return 0
    return config.samples if config.samples is not None else own_draws(run) if run.config.samples else 0


def is_own(run: RunFolder, variant: Variant) -> bool:
    """Whether a variant is one of the run's own modes, or the first draws of one."""
    config = variant.canonical.config
    if variant.chosen & {"prune", "tune"} or config.prune != 0 or config.temperature != 1:
        return False
    modes = modes_of(remove_tuning(run.posterior), run.config.samples)
    return config.mode in modes and (config.mode != "samples" or draws_of(run, variant) <= own_draws(run))


def stored_as(run: RunFolder, variant: Variant) -> Variant:
    """The variant whose predictions are kept for this one; the run's own number of draws has one name."""
    stored = variant.stored_as
    unsaid = dataclasses.replace(stored, config=dataclasses.replace(stored.config, samples=None))
    return unsaid if stored.config.samples == draws_of(run, unsaid) else stored


def variant_folder(run: RunFolder, made: Variant) -> Path:
    """Where the predictions of a variant that `stored_as` gave are kept."""
    return run.path / FOLDER / made.key


def splits_of(run: RunFolder) -> list[str]:
    """The splits that are predicted."""
    return [split for split in run.facts["task"]["rows"] if split != "train"]


def is_stored(run: RunFolder, made: Variant, draws: int) -> bool:
    """Whether a variant's predictions are kept, with as many draws."""
    if not (variant_folder(run, made) / FACTS).exists():
        return False
    facts = facts_of(run, made)
    return bool(facts["format"] in _READ and facts["draws"] >= draws)


def is_complete(run: str | Path, variants: Sequence[Variant]) -> bool:
    """Whether every variant can be read.

    Args:
        run: the run's folder; one that is no finished run has no variants.
        variants: what is wanted.
    """
    return is_run(run) and has_all(read_run(run), variants)


def has_all(run: RunFolder, variants: Sequence[Variant]) -> bool:
    """`is_complete` of a run that has been read."""
    if any(explain_unfit(run, variant, thorough=False) is not None for variant in variants):
        return False
    if any(variant.chosen for variant in variants) and not (run.path / FOLDER / ROWS).is_file():
        return False
    return all(is_own(run, v) or is_stored(run, stored_as(run, v), draws_of(run, v)) for v in variants)


def facts_of(run: RunFolder, made: Variant) -> dict[str, Any]:
    """Content of a variant's variant.json.

    Raises:
        ValueError: there is none.
    """
    file = variant_folder(run, made) / FACTS
    if not file.exists():
        raise ValueError(
            f"{run.path} has not been predicted with as {made.describe()} yet. Run `varlora compare` again."
        )
    return dict(read_json(file, _Facts, instead=_INSTEAD))


def own_variant(run: RunFolder) -> Variant:
    """The run's own way to predict: the last of its modes, as training left it."""
    return Variant(config=PredictionConfig(mode=modes_of(remove_tuning(run.posterior), run.config.samples)[-1]))


def _resolve(run: RunFolder, variant: Variant) -> Variant:
    """The variant itself, or one of the run's own modes where validation rows chose nothing that changes it."""
    if "tune" in variant.chosen and read_tuned(run, variant) is None:
        return own_variant(run)
    if "prune" in variant.chosen and pruned_fraction(run, variant) == 0:
        unpruned = dataclasses.replace(variant, chosen=variant.chosen - {"prune"})
        return unpruned if is_own(run, unpruned) else variant
    return variant


def _file(run: RunFolder, variant: Variant, split: str) -> Path:
    """Where a variant's predictions are; a ValueError where they are not there."""
    if (why := explain_unfit(run, variant, thorough=False)) is not None:
        raise ValueError(f"{run.path} cannot be predicted with as {variant.describe()}: {why}")
    if run.is_completion:
        raise ValueError(f"{run.path} has completions, which no Prediction holds; see the run's metrics.")
    if split not in splits_of(run):
        raise ValueError(f"{run.path} has no predictions for {split!r}; it has {', '.join(splits_of(run))}.")
    variant = _resolve(run, variant)
    if is_own(run, variant):
        return run.prediction_file(split, variant.canonical.config.mode)
    made = stored_as(run, variant)
    if facts_of(run, made)["draws"] < draws_of(run, variant):
        raise ValueError(
            f"{variant_folder(run, made)} has fewer draws than {variant.describe()}. Run `varlora compare` again."
        )
    return variant_folder(run, made) / f"{split}.parquet"


def _as_kept(run: RunFolder, variant: Variant, split: str) -> Prediction:
    """A variant's predictions as they are kept, at the run's own T; its first draws where there are more."""
    prediction = Prediction.load(_file(run, variant, split))
    draws = draws_of(run, variant)
    if draws in (0, prediction.num_draws):
        return prediction
    first = prediction.log_probs[:, :draws].contiguous()
    return dataclasses.replace(prediction, log_probs=first, antithetic=prediction.antithetic and draws > 1)


def read_usable_rows(folder: Path) -> Tensor:
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
    rows = read_usable_rows(run.path)
    validation = _as_kept(run, variant, VALIDATION).at_temperature(1.0)
    whose = f"{folder} predicted with as {variant.describe()}"
    return fit_temperature(validation.log_probs[rows], validation.labels[rows], of=whose).value
