"""Small tokenizers of the usual families, built on the spot."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "Question: which one barks? A. cat B. dog C. cow D. hen Answer: A",
    "a fine film Labels: negative, positive Label: positive",
    "a dull film Label: negative",
    "Answer: B Answer: C Answer: D Answer: yes Answer: no E",
] * 4


def word_level(*, words: Sequence[str] = (), bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """Words between spaces; "[UNK]" for the others."""
    known = dict.fromkeys([*(word for line in CORPUS for word in line.split()), *words])
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "<s>", "</s>", "[UNK]", *known])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _fast(tokenizer, bos=bos, eos=eos)


def byte_bpe(*, bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 3's, Qwen's and GPT-2's: bytes, the space belonging to the word after it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["[PAD]", "<s>", "</s>", "[UNK]"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return _fast(tokenizer, bos=bos, eos=eos)


def sentencepiece(*, bos: bool = True, eos: bool = False, split_letters: bool = False) -> PreTrainedTokenizerFast:
    """As Llama 2's: "▁" for a space, one put before the text; `split_letters` knows "▁" and "A", never "▁A"."""
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    corpus = CORPUS if not split_letters else [line.replace(" ", " - ") for line in CORPUS if "film" in line]
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=["[PAD]", "<s>", "</s>", "[UNK]"],
            initial_alphabet=["▁", *"ABCDEabcdefghijklmnopqrstuvwxyz.:?,-"],
            show_progress=False,
        ),
    )
    return _fast(tokenizer, bos=bos, eos=eos)


def word_piece() -> PreTrainedTokenizerFast:
    """As BERT's: [CLS] text [SEP]."""
    words = dict.fromkeys(word for line in CORPUS for word in pre_tokenized(line))
    names = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *words]
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


def pre_tokenized(line: str) -> list[str]:
    """A line as BERT cuts it before looking words up."""
    return [word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(line)]


def _fast(tokenizer: Tokenizer, *, bos: bool, eos: bool) -> PreTrainedTokenizerFast:
    template = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    if bos or eos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", bos_token="<s>", eos_token="</s>", unk_token="[UNK]"
    )
