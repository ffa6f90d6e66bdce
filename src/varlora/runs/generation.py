"""Texts that a run writes after its task's prompts, where the task says which final answer is right."""

from __future__ import annotations

from dataclasses import replace

import datasets

from varlora.posterior import Posterior, PredictionConfig
from varlora.prediction.generation import Generations, generate
from varlora.prediction.prediction_setup import apply_config
from varlora.runs.batching import batch_by_length
from varlora.runs.setting import Setting
from varlora.tasks import context_length, encode_prompts


def check_generation(setting: Setting) -> None:
    """Refuses texts that could not be written or judged at evaluation; called before hours of training.

    Raises:
        ValueError: a completion has no final answer, or a text would not fit behind its prompt.
    """
    if setting.task.final_answer is None:
        return
    for split in setting.task.splits:
        if split != "train":
            _references(setting, split)
            encode_split_prompts(setting, split)


def generate_split(
    setting: Setting,
    q: Posterior,
    split: str,
    config: PredictionConfig,
    *,
    judged: bool = True,
    progress: bool = False,
) -> Generations:
    """Texts for one split, in the order of its rows; the draws are those of `predict_split`.

    Args:
        setting: the model and the rows.
        q: the posterior as training left it; what was tuned is left aside.
        split: name of the split.
        config: how to predict; its number of draws is the run's where it has none.
        judged: whether the rows have right answers.
        progress: show a progress bar.

    Raises:
        ValueError: a prompt or a right answer does not fit (see `check_generation`).
    """
    q = apply_config(q, config, seed=setting.config.seed)
    samples = config.draws(setting.config.samples)
    generations = generate_encoded(setting, q, encode_split_prompts(setting, split), samples, progress=progress)
    return replace(generations, references=_references(setting, split)) if judged else generations


def generate_encoded(
    setting: Setting, q: Posterior | None, encoded: datasets.Dataset, samples: int, *, progress: bool = False
) -> Generations:
    """Texts behind prompts that are encoded, by a posterior to which the way to predict was applied.

    Args:
        setting: the model and its settings.
        q: the posterior; None is the model as it stands.
        encoded: the prompts (`encode_split_prompts`).
        samples: S.
        progress: show a progress bar.
    """
    batches, back, ids = batch_by_length(setting, encoded)
    generations = generate(
        setting.model,
        q,
        batches,
        samples,
        tokenizer=setting.tokenizer,
        max_new_tokens=setting.config.max_new_tokens,
        final_answer=setting.task.final_answer or "text",
        seed=setting.config.seed,
        progress=progress,
    )
    return replace(
        generations,
        texts=tuple(generations.texts[row] for row in back.tolist()),
        num_tokens=generations.num_tokens[back],
        log_likelihoods=generations.log_likelihoods[back],
        finished=generations.finished[back],
        ids=ids,
    )


def encode_split_prompts(setting: Setting, split: str) -> datasets.Dataset:
    """The token ids of a split's prompts, behind which a text of `max_new_tokens` fits."""
    config, context = setting.config, context_length(setting.model.config)
    limit = config.max_length
    if context is not None:
        room = context - config.max_new_tokens
        if room < 1:
            raise ValueError(
                f"max_new_tokens is {config.max_new_tokens}, and the model's context has room for {context} tokens, "
                "the prompt included; lower max_new_tokens, or write no texts: final_answer 'none'."
            )
        limit = room if limit is None else min(limit, room)
    return encode_prompts(setting.task, split, setting.tokenizer, limit, truncation=config.truncation)


def _references(setting: Setting, split: str) -> tuple[str, ...]:
    return setting.task.right_answers(split, special_tokens=setting.tokenizer.all_special_tokens)
