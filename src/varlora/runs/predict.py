"""Predictions of a run's rows, in their own order, whatever their batches were."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import datasets

from varlora.posterior import Mode, Posterior, PredictionConfig
from varlora.posterior.draws import number_of_draws
from varlora.prediction.completions import predict_completions
from varlora.prediction.linearised import predict_linearised
from varlora.prediction.prediction import Prediction, predict
from varlora.prediction.prediction_setup import apply_config
from varlora.readout.frozen_layers import MEMORY_GIB, cached_frozen_layers
from varlora.runs.batching import batch_by_length
from varlora.runs.folder import CompletionScores
from varlora.runs.setting import Setting


def predict_split(
    setting: Setting,
    q: Posterior,
    split: str,
    config: PredictionConfig,
    *,
    progress: bool = False,
) -> Prediction | CompletionScores:
    """Predictions for one split, in the order of its rows; the draws' seed is the run's.

    Rows of like length are batched together, which saves padding.

    Args:
        setting: the model and the rows.
        q: the posterior as training left it; what was tuned is left aside.
        split: name of the split.
        config: how to predict; its number of draws is the run's where it has none.
        progress: show a progress bar.
    """
    q = apply_config(q, config, seed=setting.config.seed)
    samples = config.draws(setting.config.samples)
    return predict_encoded(setting, q, setting.encoded(split), config.mode, samples, progress=progress)


def predict_answers(
    setting: Setting, q: Posterior, split: str, config: PredictionConfig, *, progress: bool = False
) -> Prediction:
    """`predict_split` of a task whose rows have answers to choose from."""
    prediction = predict_split(setting, q, split, config, progress=progress)
    assert isinstance(prediction, Prediction)
    return prediction


def predict_encoded(
    setting: Setting,
    q: Posterior | None,
    encoded: datasets.Dataset,
    mode: Mode,
    samples: int | Literal["auto"],
    *,
    logit_temperature: float | None = None,
    shared_noise: bool = False,
    progress: bool = False,
) -> Prediction | CompletionScores:
    """`predict_split` of rows that are encoded, by a posterior to which the way to predict was applied.

    Args:
        setting: the model and its settings.
        q: the posterior; None is the model as it stands.
        encoded: the rows.
        mode: "linearised", or one of the others.
        samples: S; "auto" gives each row as many as it needs, of answers (not of completions).
        logit_temperature: T, divides the logits of classes; None takes the posterior's own.
        shared_noise: as of `predict_linearised`.
        progress: show a progress bar.

    Raises:
        ValueError: completions are to be predicted in a way that only answers can.
    """
    if mode == "linearised":
        check_has_classes(setting)
    seed = setting.config.seed
    batches, back, ids = batch_by_length(setting, encoded)
    repeated = mode == "samples" and (samples == "auto" or number_of_draws(q, samples) > 1)
    known = setting.config.frozen_layers_dir is not None
    with frozen_layers_once(setting) if repeated or known else nullcontext():
        if setting.readout is None:
            if samples == "auto":
                raise ValueError("samples is 'auto', which is for answers; completions take a number.")
            scores, tokens = predict_completions(setting.model, q, batches, samples, seed=seed, progress=progress)
            return CompletionScores(log_likelihoods=scores[back], num_tokens=tokens[back], ids=ids)
        how: dict[str, Any] = {
            "readout": setting.readout,
            "seed": seed,
            "logit_temperature": logit_temperature,
            "progress": progress,
        }
        if mode == "linearised":
            assert q is not None
            prediction = predict_linearised(setting.model, q, batches, shared_noise=shared_noise, **how)
        else:
            prediction = predict(setting.model, q, batches, samples, **how)
    taken = prediction.draws_taken
    return replace(
        prediction,
        log_probs=prediction.log_probs[back],
        labels=prediction.labels[back],
        ids=ids,
        draws_taken=None if taken is None else taken[back],
    )


def check_has_classes(setting: Setting) -> None:
    """Refuses a linearised prediction of completions.

    Raises:
        ValueError: there are no classes.
    """
    if setting.readout is None:
        raise ValueError("linearised predictions are of answers to choose from; completions have no classes.")


def frozen_layers_once(setting: Setting, *, folder: Path | None = None) -> AbstractContextManager[int | None]:
    """Within the block the frozen lower layers are computed once per row, where the settings say so.

    Args:
        setting: the model and the settings.
        folder: where states go that are more than may be in memory; None: the system's temporary folder. Where the
            settings name a folder for all states (`frozen_layers_dir`), they go there.
    """
    config = setting.config
    if not config.cache_frozen_layers:
        return nullcontext()
    memory = MEMORY_GIB if config.frozen_layers_memory is None else config.frozen_layers_memory
    if config.frozen_layers_dir is not None:
        return cached_frozen_layers(setting.model, memory=memory, folder=Path(config.frozen_layers_dir), shared=True)
    return cached_frozen_layers(setting.model, memory=memory, folder=folder)
