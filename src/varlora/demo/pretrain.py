"""Pre-train the demo's Llama on the world, in about 8 minutes on one core.

    python -m varlora.demo.pretrain --output_dir model

Three stages. First the model learns to find a thing among lettered choices: that takes a circuit of three steps (what
is asked, which choice is it, which letter stands before it), which does not form by itself in reasonable time. Asked
for "yes" or "no" right after each choice, beside the letter at the end, it forms within a hundred steps.
Then come facts about people, then questions about them. The loss is on the things in sentences, and on letters
and marks of questions.

With the defaults the losses end at 0.29 (letters), 0.24 (marks) and 0.81 (things); the likeliest thing is right in 85 %
of questions, so the letters' loss cannot reach 0. The weights shipped in `model/` are this script's, seed 0.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, get_wsd_schedule

from varlora.demo.tokenizer import build_tokenizer
from varlora.demo.world import NUM_CHOICES, Question, World, make_world
from varlora.tasks.prompts import LETTERS, choice_prompt

logger = logging.getLogger(__name__)

LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
DECAY_FRACTION = 0.4
INITIAL_SD = 0.08
INITIAL_EMBEDDING_SD = 0.02


@dataclass(frozen=True, kw_only=True)
class Stage:
    """So many steps, each on so many texts of each kind."""

    steps: int
    sentences: int
    naming_questions: int
    known_questions: int


STAGES = (
    Stage(steps=200, sentences=0, naming_questions=128, known_questions=0),
    Stage(steps=800, sentences=48, naming_questions=16, known_questions=0),
    Stage(steps=3000, sentences=40, naming_questions=16, known_questions=80),
)


def build_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """A small Llama with tied embeddings, initialised from a seed.

    Linear layers start at sd 0.08, about 1 / sqrt(width): from Llama's usual 0.02 attention stays uniform too long.

    Example:
        >>> model = build_model(build_tokenizer(make_world()), seed=0)
        >>> sum(parameter.numel() for parameter in model.parameters())
        669696
    """
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=tokenizer.model_max_length,
        initializer_range=INITIAL_EMBEDDING_SD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        for module in model.model.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=INITIAL_SD)
    return model


def sentence_loss(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, sentences: Sequence[str]) -> Tensor:
    """Mean loss of the things that are told; names and verbs are free. Scalar."""
    ids = _token_ids(tokenizer, sentences)
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    # "name will verb thing , verb thing , ..."
    return cross_entropy(model.lm_head(hidden[:, 2::3]).flatten(end_dim=1), ids[:, 3::3].flatten())


def question_losses(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, questions: Sequence[Question]
) -> tuple[Tensor, Tensor]:
    """Mean loss of the letter after "Answer:", and of "yes" or "no" after each choice. Two scalars."""
    ids = _token_ids(tokenizer, [choice_prompt(question["question"], question["choices"]) for question in questions])
    answers = torch.tensor([question["answer"] for question in questions])
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS[:NUM_CHOICES])))
    no_yes = torch.tensor(tokenizer.convert_tokens_to_ids(["no", "yes"]))
    marks = no_yes[one_hot(answers, NUM_CHOICES)]

    hidden = model.model(input_ids=ids).last_hidden_state
    # "... ? A . thing B . thing C . thing D . thing Answer :"
    after_choices = model.lm_head(hidden[:, -3 - 3 * (NUM_CHOICES - 1) : -2 : 3])
    return (
        cross_entropy(model.lm_head(hidden[:, -1]), letters[answers]),
        cross_entropy(after_choices.flatten(end_dim=1), marks.flatten()),
    )


def pretrain(world: World, stages: Sequence[Stage] = STAGES, *, seed: int = 0) -> LlamaForCausalLM:
    """Pre-train from a seed with AdamW: warm-up, constant rate, cosine decay.

    Args:
        world: What to tell and ask.
        stages: Gone through in order.
        seed: Decides the initial weights and every text.

    Returns:
        The model, in eval mode.
    """
    tokenizer = build_tokenizer(world)
    model = build_model(tokenizer, seed)
    model.train()
    generator = torch.Generator().manual_seed(seed)
    plan = [stage for stage in stages for _ in range(stage.steps)]
    total = len(plan)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = get_wsd_schedule(
        optimizer, num_warmup_steps=WARMUP_STEPS, num_decay_steps=int(DECAY_FRACTION * total), num_training_steps=total
    )
    for step, stage in enumerate(plan, start=1):
        naming = world.naming_questions(stage.naming_questions, generator)
        known = world.known_questions(stage.known_questions, generator)
        losses = dict(zip(("letter", "mark"), question_losses(model, tokenizer, naming + known), strict=True))
        if stage.sentences:
            losses["thing"] = sentence_loss(model, tokenizer, world.sentences(stage.sentences, generator))
        torch.autograd.backward(torch.stack(list(losses.values())).sum())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            logger.info("step %d of %d: %s", step, total, {part: round(v.item(), 3) for part, v in losses.items()})
    model.train(False)
    return model


def _token_ids(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> Tensor:
    return torch.tensor(tokenizer(list(texts))["input_ids"])


def main() -> None:
    """Write the model and its tokenizer to a folder."""
    parser = argparse.ArgumentParser(description="Pre-train the demo's Llama.")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    world = make_world()
    pretrain(world, seed=arguments.seed).save_pretrained(arguments.output_dir)
    build_tokenizer(world).save_pretrained(arguments.output_dir)


if __name__ == "__main__":
    main()
