"""The demo's world, its task, its tokenizer and its pre-trained model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from varlora.demo.data import model_folder, write_task
from varlora.demo.pretrain import STAGES, Stage, build_model, pretrain
from varlora.demo.tokenizer import build_tokenizer
from varlora.demo.world import (
    FACTS_PER_SENTENCE,
    KNOWN_THINGS,
    NEW_THINGS,
    Question,
    answer_probabilities,
    fine_tuning_task,
    make_world,
)
from varlora.tasks import answer_tokens, load_jsonl
from varlora.tasks.prompts import choice_prompt

LETTERS = ("A", "B", "C", "D")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(model_folder())


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder()).eval()


def prompts(questions: Sequence[Question]) -> list[str]:
    return [choice_prompt(question["question"], question["choices"]) for question in questions]


def names_asked(rows: Sequence[Question]) -> list[str]:
    return [row["question"].split()[2] for row in rows]


@torch.inference_mode()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]) -> float:
    """How often the likeliest of ALL tokens after the prompt is the letter of the answer."""
    batch = tokenizer(prompts(questions), return_tensors="pt")
    predicted = model(input_ids=batch["input_ids"], logits_to_keep=1).logits[:, -1].argmax(dim=1)
    letters = torch.tensor(tokenizer.convert_tokens_to_ids(list(LETTERS)))
    return float((predicted == letters[[question["answer"] for question in questions]]).float().mean())


class TestWorld:
    def test_every_word_is_one_of_a_kind(self) -> None:
        world = make_world()
        things = [thing for of_verb in (*KNOWN_THINGS.values(), NEW_THINGS) for thing in of_verb]
        words = [*KNOWN_THINGS, *things, *world.names]
        assert len(set(words)) == len(words)
        assert {len(of_verb) for of_verb in KNOWN_THINGS.values()} == {world.vectors.shape[1]}

    def test_the_same_seed_tells_the_same(self) -> None:
        def told(seed: int) -> list[object]:
            generator = torch.Generator().manual_seed(seed)
            world = make_world()
            return [
                *world.sentences(5, generator),
                *world.known_questions(5, generator),
                *world.naming_questions(5, generator),
            ]

        assert told(1) == told(1)
        assert told(1) != told(2)

    def test_a_sentence_tells_different_facts_about_one_person(self) -> None:
        world = make_world()
        for sentence in world.sentences(50, torch.Generator().manual_seed(0)):
            name, facts = sentence.split(" will ")
            verbs = [fact.split()[0] for fact in facts.split(", ")]
            assert name in world.names
            assert len(set(verbs)) == FACTS_PER_SENTENCE
            assert all(fact.split()[1] in KNOWN_THINGS[fact.split()[0]] for fact in facts.split(", "))

    def test_people_answer_by_their_taste(self) -> None:
        """The thing taken of 4 is the likeliest as often as the probabilities say, which is 85 % of the time."""
        world = make_world()
        questions = world.known_questions(4000, torch.Generator().manual_seed(0))
        hits = []
        for question in questions:
            _, _, name, verb = question["question"].rstrip("?").split()
            taste = world.tastes[world.names.index(name)]
            things = [KNOWN_THINGS[verb].index(choice) for choice in question["choices"]]
            vectors = world.vectors[list(KNOWN_THINGS).index(verb), things]
            hits.append(int((vectors @ taste).argmax()) == question["answer"])
        assert sum(hits) / len(hits) == pytest.approx(0.845, abs=0.02)

    def test_naming_questions_are_answered_by_the_thing_named(self) -> None:
        for question in make_world().naming_questions(50, torch.Generator().manual_seed(0)):
            assert question["question"] == f"Which one says {question['choices'][question['answer']]}?"
            assert len(set(question["choices"])) == 4


class TestFineTuningTask:
    def test_a_seed_decides_everything(self) -> None:
        assert fine_tuning_task(3) == fine_tuning_task(3)
        assert fine_tuning_task(3) != fine_tuning_task(4)

    def test_nobody_is_asked_twice(self) -> None:
        asked = [name for rows in fine_tuning_task(0).values() for name in names_asked(rows)]
        assert len(asked) == 300 + 150 + 500
        assert len(set(asked)) == len(asked)
        assert set(asked) <= set(make_world().names)

    def test_only_new_things_are_offered(self) -> None:
        for row in fine_tuning_task(0)["train"]:
            assert row["question"].endswith(" want?")
            assert len(set(row["choices"])) == 4
            assert set(row["choices"]) <= set(NEW_THINGS)

    def test_no_letter_is_favoured(self) -> None:
        answers = [row["answer"] for row in fine_tuning_task(0, train=1200, validation=0, test=0)["train"]]
        for letter in range(4):
            assert answers.count(letter) / 1200 == pytest.approx(0.25, abs=0.04)

    @pytest.mark.parametrize("seed", range(5))
    def test_answers_follow_their_probabilities(self, seed: int) -> None:
        answers = torch.tensor([row["answer"] for row in fine_tuning_task(seed)["test"]])
        probs = answer_probabilities(seed)["test"]
        confidence, likeliest = probs.max(dim=1)
        assert torch.allclose(probs.sum(dim=1), torch.ones(500))
        assert 0.80 < float(confidence.mean()) < 0.90
        assert float((likeliest == answers).float().mean()) == pytest.approx(float(confidence.mean()), abs=0.05)

    @pytest.mark.parametrize("sizes", [(-1, 5, 5), (1000, 150, 500)])
    def test_impossible_sizes_are_refused(self, sizes: tuple[int, int, int]) -> None:
        train, validation, test = sizes
        with pytest.raises(ValueError, match="has 1200 and asks nobody twice"):
            fine_tuning_task(0, train=train, validation=validation, test=test)

    def test_files_hold_the_task(self, tmp_path: Path) -> None:
        files = write_task(tmp_path / "task", seed=2)
        for split, rows in fine_tuning_task(2).items():
            assert [json.loads(line) for line in files[split].read_text(encoding="utf-8").splitlines()] == rows

    def test_files_load_as_multiple_choice(self, tmp_path: Path) -> None:
        task = load_jsonl(write_task(tmp_path, seed=0))
        row, loaded = fine_tuning_task(0)["test"][7], task.rows("test")[7]
        assert task.kind == "choice"
        assert task.answers == LETTERS
        assert loaded["prompt"] == choice_prompt(row["question"], row["choices"])
        assert loaded["label"] == row["answer"]


class TestTokenizer:
    def test_the_shipped_one_is_built_from_the_world(self, tokenizer: PreTrainedTokenizerBase) -> None:
        built = build_tokenizer(make_world())
        assert tokenizer.get_vocab() == built.get_vocab()
        assert tokenizer.padding_side == "left"
        assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token) == ("<pad>", "<eos>", None)

    def test_every_word_is_known(self, tokenizer: PreTrainedTokenizerBase) -> None:
        world, generator = make_world(), torch.Generator().manual_seed(0)
        texts = world.sentences(20, generator)
        texts += prompts(world.known_questions(20, generator) + world.naming_questions(20, generator))
        texts += prompts(fine_tuning_task(0)["test"])
        assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])

    def test_a_letter_follows_the_prompt_as_one_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        asked = prompts(fine_tuning_task(0)["test"])[:20]
        tokens = answer_tokens(tokenizer, asked, [f" {letter}" for letter in LETTERS])
        assert list(tokens) == tokenizer.convert_tokens_to_ids(list(LETTERS))
        for prompt in asked:
            assert tokenizer(prompt + " B")["input_ids"] == [*tokenizer(prompt)["input_ids"], tokens[1]]


class TestModel:
    def test_it_is_small_and_in_float32(self, model: PreTrainedModel) -> None:
        assert model.config.model_type == "llama"
        assert model.dtype == torch.float32
        assert (model_folder() / "model.safetensors").stat().st_size < 5e6

    def test_it_knows_what_people_like(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Chance is .25, and .845 is the best possible."""
        questions = make_world().known_questions(1000, torch.Generator().manual_seed(10**6))
        assert accuracy(model, tokenizer, questions) > 0.78

    def test_it_finds_a_thing_among_letters(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        questions = make_world().naming_questions(300, torch.Generator().manual_seed(10**6))
        assert accuracy(model, tokenizer, questions) > 0.98

    @pytest.mark.parametrize("seed", range(3))
    def test_it_does_not_know_what_people_want(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> None:
        assert accuracy(model, tokenizer, fine_tuning_task(seed)["test"]) < 0.35

    def test_left_padding_changes_nothing(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        prompt = prompts(fine_tuning_task(0)["test"])[0]
        alone = tokenizer(prompt, return_tensors="pt")
        padded = tokenizer(prompt, return_tensors="pt", padding="max_length", max_length=30)
        with torch.inference_mode():
            expected, got = (
                model(**{key: batch[key] for key in ("input_ids", "attention_mask")}).logits[:, -1]
                for batch in (alone, padded)
            )
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


class TestPretraining:
    def test_the_same_seed_gives_the_same_weights(self) -> None:
        stages = (Stage(steps=2, sentences=4, naming_questions=2, known_questions=2),)
        first, second, other = (pretrain(make_world(), stages, seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert not torch.equal(first["model.norm.weight"], other["model.norm.weight"])

    def test_the_shipped_shapes_are_those_of_the_script(self, model: PreTrainedModel) -> None:
        built = build_model(build_tokenizer(make_world()), seed=0)
        assert {n: p.shape for n, p in built.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}

    def test_lettered_choices_come_first(self) -> None:
        assert STAGES[0].sentences == STAGES[0].known_questions == 0
