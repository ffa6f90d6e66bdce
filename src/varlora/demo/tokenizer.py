"""The demo model's tokenizer: one token a word, letter or mark."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from varlora.demo.world import KNOWN_THINGS, NEW_THINGS, NEW_VERB, World
from varlora.tasks.prompts import LETTERS

SPECIAL_TOKENS = ("<pad>", "<unk>", "<eos>")
FRAME = (*LETTERS[:5], ".", ",", "?", ":", "What", "Which", "will", "one", "says", "Answer", "yes", "no")


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """Words of the prompt, verbs, things, names: in this order. White space separates and is dropped.

    Example:
        >>> from varlora.demo.world import make_world
        >>> tokenizer = build_tokenizer(make_world())
        >>> tokenizer.tokenize("A. rings\\nAnswer: A")
        ['A', '.', 'rings', 'Answer', ':', 'A']
    """
    things = [x for of_verb in (*KNOWN_THINGS.values(), NEW_THINGS) for x in of_verb]
    words = [*SPECIAL_TOKENS, *FRAME, *KNOWN_THINGS, NEW_VERB, *things, *world.names]
    words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=words_only,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        padding_side="left",
        model_max_length=128,
        clean_up_tokenization_spaces=False,
    )
