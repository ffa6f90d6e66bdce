"""What N counts: rows, or the texts that are packed into them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from torch.utils.data import DataLoader, IterableDataset

from models import lora, tiny_llama
from tiny_tokenizers import word_level
from varlora.training.examples import count_examples

TEXTS = ["a fine film", "a dull film film film", "Label:", "a film", "a fine dull film"] * 4


def packed(folder: Path, strategy: str) -> dict[str, Any]:
    """What is counted when TRL packs `TEXTS` into rows of 16 tokens."""
    trl = pytest.importorskip("trl")
    options = {"packing": True, "packing_strategy": strategy, "max_length": 16, "report_to": "none", "use_cpu": True}
    trainer = trl.SFTTrainer(
        model=lora(tiny_llama(vocab_size=len(word_level()))),
        args=trl.SFTConfig(str(folder), bf16=False, **options),
        train_dataset=Dataset.from_dict({"text": TEXTS}),
        processing_class=word_level(),
    )
    assert len(trainer.train_dataset) < len(TEXTS) / 2
    return {**count_examples(trainer.get_train_dataloader(), packing=True), "packs": len(trainer.train_dataset)}


@pytest.mark.filterwarnings("ignore")
def test_packed_texts_are_counted_by_texts_where_the_trainer_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = packed(tmp_path, "bfd")
    assert (found["examples"], found["mean_over"]) == (len(TEXTS), "tokens")
    assert found["rows"] == found["packs"]
    assert "packed into" not in caplog.text

    wrapped = packed(tmp_path, "wrapped")
    assert wrapped["examples"] == wrapped["packs"]
    assert f"texts are packed into {wrapped['packs']} rows, and N counts these" in caplog.text


@pytest.mark.parametrize(
    ("columns", "mean_over"),
    [
        ({"input_ids": [[1, 2]] * 3, "labels": [0, 1, 1]}, "examples"),
        ({"input_ids": [[1, 2]] * 3, "labels": [[1, 2]] * 3}, "tokens"),
        ({"input_ids": [[1, 2]] * 3}, "tokens"),
        ({"pixels": [0.5] * 3}, None),
    ],
)
def test_what_the_loss_averages_over_is_read_off_the_columns(columns: dict[str, Any], mean_over: str | None) -> None:
    found = count_examples(DataLoader(Dataset.from_dict(columns)))

    assert (found["examples"], found.get("mean_over")) == (3, mean_over)


def test_named_classes_are_one_label_an_example() -> None:
    features = Features({"labels": ClassLabel(names=["no", "yes"]), "text": Value("string")})
    rows = Dataset.from_dict({"labels": [0, 1], "text": ["a", "b"]}, features=features)

    assert count_examples(DataLoader(rows)) == {"examples": 2, "mean_over": "examples"}


def test_a_stream_has_no_count() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        """Rows without an end."""

        def __iter__(self) -> Iterator[int]:
            return itertools.count()

    for loader in (DataLoader(Stream()), None):
        with pytest.raises(ValueError, match=r"no length. Pass VariationalCallback\(num_examples"):
            count_examples(loader)
