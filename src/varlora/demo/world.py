"""A world of invented people with tastes, told in sentences and asked about in lettered questions.

Everybody n has a hidden taste z_n ~ N(0, I_6). Every thing x (bread, tea, a ring, ...) has a hidden unit vector v_x.
Of the things that are offered, n takes x with probability

    p(x | n, offered) = exp(s z_n . v_x) / sum over offered x' of exp(s z_n . v_x'),    s = 5.

The pre-trained model has read what people eat, drink, wear, ... (`sentences`, `known_questions`) and has learned to
find a thing among lettered choices (`naming_questions`). What people *want* it has never read. Fine-tuning teaches
it from few questions, answered by one draw from p each: the labels are noisy, and other people are asked at
test. Nobody can answer all of them: see `answer_probabilities`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

TASTE_SIZE = 6
SHARPNESS = 5.0
NUM_NAMES = 1200
NUM_CHOICES = 4
FACTS_PER_SENTENCE = 6
WORLD_SEED = 0

KNOWN_THINGS: Mapping[str, tuple[str, ...]] = {
    verb: tuple(things.split())
    for verb, things in {
        "eat": "bread rice soup fish eggs beans cheese apples honey nuts cake corn",
        "drink": "tea coffee milk water juice wine cider cocoa beer lemonade broth cola",
        "wear": "boots hats scarves gloves coats shirts socks caps belts robes vests sandals",
        "play": "chess cards dice golf tennis darts polo rugby hockey checkers bowls squash",
        "visit": "museums harbors castles forests markets temples islands deserts valleys lakes towers villages",
        "grow": "roses tulips wheat barley grapes carrots onions lettuce peas ivy moss lilies",
        "read": "poems novels letters maps recipes stories comics essays diaries reports fables riddles",
        "paint": "horses ships clouds faces bridges trees birds stars rivers doors hills windows",
        "collect": "coins stamps shells stones feathers bottles keys buttons postcards masks bells clocks",
        "hear": "drums violins flutes trumpets choirs pianos harps organs guitars whistles banjos cellos",
        "study": "history physics law biology grammar logic algebra medicine geology ethics optics music",
        "build": "boats cabins kites fences sheds wagons ladders benches chairs tables ovens rafts",
    }.items()
}
NEW_VERB = "want"
NEW_THINGS = ("rings", "books", "cups", "lamps", "knives", "candles", "ropes", "pillows")


class Question(TypedDict):
    """A lettered question; `answer` is the index of the choice taken."""

    question: str
    choices: list[str]
    answer: int


class Row(Question):
    """A question of a data set."""

    id: str


@dataclass(frozen=True, kw_only=True)
class World:
    """Who likes what.

    Args:
        names: The N people.
        tastes: z, (N, 6).
        vectors: v of the known things, (verbs, things of a verb, 6), in the order of `KNOWN_THINGS`.
    """

    names: tuple[str, ...]
    tastes: Tensor
    vectors: Tensor

    def sentences(self, count: int, generator: torch.Generator) -> list[str]:
        """Facts about one person each; among all things of a verb the person takes one.

        Example:
            >>> make_world().sentences(1, torch.Generator().manual_seed(0))[0].split(", ")[0]
            'natebiz will build benches'
        """
        verbs = list(KNOWN_THINGS)
        who = torch.randint(len(self.names), (count,), generator=generator)
        which = _subsets(count, len(verbs), FACTS_PER_SENTENCE, generator)
        scores = torch.einsum("bd,bkod->bko", self.tastes[who], self.vectors[which])
        taken = _draw(scores, generator)
        return [
            f"{self.names[n]} will "
            + ", ".join(f"{verbs[v]} {KNOWN_THINGS[verbs[v]][x]}" for v, x in zip(vs, xs, strict=True))
            for n, vs, xs in zip(who.tolist(), which.tolist(), taken.tolist(), strict=True)
        ]

    def known_questions(self, count: int, generator: torch.Generator) -> list[Question]:
        """What will somebody eat, drink, wear, ...? One draw from p answers.

        Example:
            >>> make_world().known_questions(1, torch.Generator().manual_seed(0))[0]["question"]
            'What will natebiz play?'
        """
        verbs = list(KNOWN_THINGS)
        who = torch.randint(len(self.names), (count,), generator=generator)
        verb = torch.randint(len(verbs), (count,), generator=generator)
        offered = _subsets(count, self.vectors.shape[1], NUM_CHOICES, generator)
        scores = torch.einsum("bd,bkd->bk", self.tastes[who], self.vectors[verb[:, None], offered])
        answers = _draw(scores, generator)
        return [
            _question(self.names[n], verbs[v], [KNOWN_THINGS[verbs[v]][x] for x in xs], answer)
            for n, v, xs, answer in zip(who.tolist(), verb.tolist(), offered.tolist(), answers.tolist(), strict=True)
        ]

    def naming_questions(self, count: int, generator: torch.Generator) -> list[Question]:
        """Which letter stands before a given thing? Things of all verbs, those of `NEW_VERB` too.

        Example:
            >>> make_world().naming_questions(1, torch.Generator().manual_seed(0))[0]["question"]
            'Which one says grammar?'
        """
        things = [x for of_verb in (*KNOWN_THINGS.values(), NEW_THINGS) for x in of_verb]
        offered = _subsets(count, len(things), NUM_CHOICES, generator).tolist()
        answers = torch.randint(NUM_CHOICES, (count,), generator=generator).tolist()
        return [
            {"question": f"Which one says {things[xs[a]]}?", "choices": [things[x] for x in xs], "answer": a}
            for xs, a in zip(offered, answers, strict=True)
        ]


def make_world(seed: int = WORLD_SEED) -> World:
    """The world of the shipped model (seed 0), or another one.

    Example:
        >>> world = make_world()
        >>> len(world.names), tuple(world.vectors.shape)
        (1200, (12, 12, 6))
    """
    generator = torch.Generator().manual_seed(seed)
    return World(
        names=_names(NUM_NAMES, generator),
        tastes=torch.randn(NUM_NAMES, TASTE_SIZE, generator=generator),
        vectors=_unit_vectors(len(KNOWN_THINGS), len(KNOWN_THINGS["eat"]), generator=generator),
    )


def fine_tuning_task(seed: int, *, train: int = 300, validation: int = 150, test: int = 500) -> dict[str, list[Row]]:
    """Questions about what people want: new to the shipped model, about people it knows.

    Every seed draws its own vectors for the wanted things, its own questions and its own split of the people: nobody
    is asked twice, so no name is in two splits.

    Args:
        seed: Decides everything.
        train: Rows of "train".
        validation: Rows of "validation".
        test: Rows of "test".

    Raises:
        ValueError: If a size is negative or there are more rows than people.

    Example:
        >>> task = fine_tuning_task(0)
        >>> {split: len(rows) for split, rows in task.items()}
        {'train': 300, 'validation': 150, 'test': 500}
        >>> task["train"][0]["question"].endswith("want?")
        True
    """
    rows, _ = _fine_tuning(seed, {"train": train, "validation": validation, "test": test})
    return rows


def answer_probabilities(seed: int, *, train: int = 300, validation: int = 150, test: int = 500) -> dict[str, Tensor]:
    """p of each choice of the rows that `fine_tuning_task` returns for the same arguments.

    No model can be expected to do better than this: taking the likeliest choice is right in 85 % of rows.

    Returns:
        Split to (rows, 4), float32; every row sums to 1.

    Example:
        >>> probs = answer_probabilities(0, test=700)["test"]
        >>> round(float(probs.max(dim=1).values.mean()), 2)
        0.85
    """
    _, probabilities = _fine_tuning(seed, {"train": train, "validation": validation, "test": test})
    return probabilities


def _fine_tuning(seed: int, sizes: Mapping[str, int]) -> tuple[dict[str, list[Row]], dict[str, Tensor]]:
    world = make_world()
    total = sum(sizes.values())
    if min(sizes.values()) < 0 or total > len(world.names):
        raise ValueError(
            f"the sizes {dict(sizes)} need {total} people, but the world has {len(world.names)} and asks nobody "
            f"twice; give sizes of 0 or more that sum to {len(world.names)} at most"
        )
    generator = torch.Generator().manual_seed(seed)
    vectors = _unit_vectors(len(NEW_THINGS), generator=generator)
    who = torch.randperm(len(world.names), generator=generator)[:total]
    offered = _subsets(total, len(NEW_THINGS), NUM_CHOICES, generator)
    scores = torch.einsum("bd,bkd->bk", world.tastes[who], vectors[offered])
    answers = _draw(scores, generator)

    rows: dict[str, list[Row]] = {}
    probabilities: dict[str, Tensor] = {}
    start = 0
    for split, size in sizes.items():
        part = slice(start, start + size)
        rows[split] = [
            {"id": f"{split}-{i}", **_question(world.names[n], NEW_VERB, [NEW_THINGS[x] for x in xs], answer)}
            for i, (n, xs, answer) in enumerate(
                zip(who[part].tolist(), offered[part].tolist(), answers[part].tolist(), strict=True)
            )
        ]
        probabilities[split] = (SHARPNESS * scores[part]).softmax(dim=1)
        start += size
    return rows, probabilities


def _question(name: str, verb: str, choices: Sequence[str], answer: int) -> Question:
    return {"question": f"What will {name} {verb}?", "choices": list(choices), "answer": answer}


def _draw(scores: Tensor, generator: torch.Generator) -> Tensor:
    """One index of the last dimension, with probability softmax(s * score)."""
    probabilities = (SHARPNESS * scores).softmax(dim=-1)
    flat = torch.multinomial(probabilities.flatten(end_dim=-2), 1, generator=generator)
    return flat.view(scores.shape[:-1])


def _subsets(count: int, total: int, size: int, generator: torch.Generator) -> Tensor:
    """Ordered draws without repetition, (count, size), of numbers below `total`."""
    return torch.rand(count, total, generator=generator).argsort(dim=1)[:, :size]


def _unit_vectors(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, TASTE_SIZE, generator=generator), dim=-1)


def _names(count: int, generator: torch.Generator) -> tuple[str, ...]:
    """Different invented names of seven letters, such as "zapulem"."""
    consonants, vowels, endings = "bdfgklmnprstvz", "aeiou", "klmnrz"
    pattern = (consonants, vowels, consonants, vowels, consonants, vowels, endings)
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(part[int(torch.randint(len(part), (), generator=generator))] for part in pattern)] = None
    return tuple(names)
