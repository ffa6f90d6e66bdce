"""The run folder: an ordinary PEFT adapter, its posterior, and everything needed to believe and repeat the run.

adapter_config.json, adapter_model.safetensors      the mean; loads with plain PEFT
posterior.json, posterior.safetensors               the posterior (`varlora.posterior.folder`)
config.yaml                                         the resolved settings
metrics.json                                        {split: {mode: {metric: value}}}
predictions/SPLIT.MODE.parquet                      every prediction
generations/SPLIT.MODE.parquet                      every text, of a task with final answers
run.json                                            times, what was done with the data, versions
log.jsonl                                           the trainer's log
README.md                                           the model card
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from varlora.io.files import json_text, read_json, read_json_lines
from varlora.io.parquet_files import TableFile, rectangle
from varlora.io.yaml_files import load_yaml
from varlora.metrics import CompletionRows, evaluate_rows
from varlora.posterior import Posterior
from varlora.posterior.folder import load_posterior, write_posterior_files
from varlora.posterior.manifest import MANIFEST, library_version
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import modes_of
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, readout_from_dict
from varlora.report import Health
from varlora.report.model_card import model_card
from varlora.runs.config import RunConfig
from varlora.runs.health import run_health
from varlora.tasks.task import VALIDATION

CONFIG = "config.yaml"
EXPORT = "export.json"
"""In a folder that was exported for servers: a run's settings and facts, and no posterior of its own."""
METRICS = "metrics.json"
FACTS = "run.json"
LOG = "log.jsonl"
PREDICTIONS = "predictions"
GENERATIONS = "generations"
TOKENIZER_FILES = (
    "tokenizer",
    "special_tokens_map",
    "added_tokens",
    "chat_template",
    "vocab",
    "merges",
    "spiece",
    "sentencepiece",
)
_DECIDE_PREDICTIONS = ("dtype", "quantization", "max_length", "truncation")
"""Settings that may be others now than in training, and of which predictions are others, too."""
_SCORES = {"id": pa.string(), "num_tokens": pa.int64(), "log_likelihoods": pa.list_(pa.float64())}
Metrics = dict[str, dict[str, dict[str, float | None]]]
"""Content of metrics.json: split, mode, metric."""


class _MoreOfTask(TypedDict, total=False):
    shape: Literal["label", "choice", "yes_no", "completion", "messages"] | None
    final_answer: Literal["number", "text"] | None
    notes: list[str]
    source: str | None
    licence: str | None
    overlap: dict[str, dict[str, int]]
    not_read: dict[str, list[str]]
    deciding_nothing: list[int]


class TaskFacts(_MoreOfTask):
    """What run.json says of the task, as far as it is read."""

    name: str
    kind: Literal["choice", "label", "completion"]
    answers: list[str]
    rows: dict[str, int]


class _MoreFacts(TypedDict, total=False):
    peak_memory_bytes: int | None
    resumed: bool
    derived_from: list[str]


class Facts(_MoreFacts):
    """Content of run.json, as far as it is read."""

    fingerprint: str
    task: TaskFacts
    seconds: dict[str, float | None]
    versions: dict[str, str]


LIBRARIES = ("varlora", "torch", "transformers", "peft", "accelerate", "datasets")


@dataclass(frozen=True, kw_only=True)
class CompletionScores(TableFile):
    """Log-likelihoods of given completions under each draw.

    Attributes:
        log_likelihoods: (N, S) float64, nats, summed over a completion's tokens.
        num_tokens: (N,) int64.
        ids: the rows' names.
    """

    columns = _SCORES
    misfit = "holds no scores of completions"

    log_likelihoods: Tensor
    num_tokens: Tensor
    ids: tuple[str, ...]

    def metrics(self) -> dict[str, float]:
        """The metrics of kind "completions", of the average over draws of a completion's probability."""
        return evaluate_rows(CompletionRows(self.log_likelihoods, self.num_tokens))

    def to_table(self) -> pa.Table:
        """One row per example: `id`, `num_tokens`, `log_likelihoods` (S values)."""
        columns = {
            "id": list(self.ids),
            "num_tokens": self.num_tokens.tolist(),
            "log_likelihoods": self.log_likelihoods.tolist(),
        }
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table) -> CompletionScores:
        """The scores that `to_table` wrote.

        Raises:
            ValueError: the table is not one of ours.
        """
        _, held = rectangle(table["log_likelihoods"], "log_likelihoods")
        if pc.any(pc.is_nan(held)).as_py():
            raise ValueError("log_likelihoods that are NaN")
        if table["id"].null_count or table["num_tokens"].null_count:
            raise ValueError("a row without id or number of tokens")
        return cls(
            log_likelihoods=torch.tensor(table["log_likelihoods"].to_pylist(), dtype=torch.float64),
            num_tokens=torch.tensor(table["num_tokens"].to_pylist(), dtype=torch.int64),
            ids=tuple(table["id"].to_pylist()),
        )


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A finished run, read back.

    Attributes:
        path: the folder.
        config: its settings.
        posterior: its posterior.
        metrics: content of metrics.json, null where a number was not finite; empty for a posterior that was
            derived from a run's and not measured.
        facts: content of run.json.
    """

    path: Path
    config: RunConfig
    posterior: Posterior
    metrics: Mapping[str, Any]
    facts: Mapping[str, Any]

    @property
    def is_completion(self) -> bool:
        """Whether its rows ask for free text, and not for one of several classes."""
        return bool(self.facts["task"]["kind"] == "completion")

    @property
    def train_seconds(self) -> float | None:
        """How long the whole training took; None of one that was resumed, of which only the last part is known."""
        return None if self.facts.get("resumed") else self.facts["seconds"].get("train")

    @property
    def readout(self) -> AnswerTokens | ChoiceTexts | ClassHead | None:
        """How its model's answer is read; None for completions."""
        held = self.posterior.meta.readout
        return readout_from_dict(held) if held is not None else None

    @property
    def of_other_defaults(self) -> bool:
        """Whether a version trained it in which its settings meant something else: defaults have changed since."""
        return bool(self.facts["fingerprint"] != self.config.fingerprint)

    def stored_prediction(self, split: str, mode: str) -> Prediction | None:
        """`prediction`; None where there is none of that split and mode, or it would be another as `config` is now."""
        file = self.path / PREDICTIONS / f"{split}.{mode}.parquet"
        if not file.is_file():
            return None
        trained = read_config(self.path)
        if any(getattr(trained, name) != getattr(self.config, name) for name in _DECIDE_PREDICTIONS):
            return None
        return Prediction.load(file)

    def prediction(self, split: str, mode: str) -> Prediction:
        """A stored prediction.

        Raises:
            ValueError: there is none of that split and mode; the message names those there are.
        """
        return Prediction.load(self.prediction_file(split, mode))

    def prediction_file(self, split: str, mode: str) -> Path:
        """Where a stored prediction is.

        Raises:
            ValueError: there is none of that split and mode; the message names those there are.
        """
        file = self.path / PREDICTIONS / f"{split}.{mode}.parquet"
        if not file.is_file():
            there = sorted(p.name.removesuffix(".parquet") for p in (self.path / PREDICTIONS).glob("*.parquet"))
            raise ValueError(f"{self.path} has no predictions {split}.{mode}; it has {', '.join(there) or 'none'}.")
        return file

    def generations(self, split: str, mode: str) -> Generations:
        """Stored texts.

        Raises:
            ValueError: there are none of that split and mode.
        """
        file = self.path / GENERATIONS / f"{split}.{mode}.parquet"
        if not file.is_file():
            raise ValueError(f"{self.path} has no texts {split}.{mode}; only completions with a final answer have.")
        return Generations.load(file)

    def health(self) -> Health:
        """How its posterior does, from this folder alone: no model is loaded.

        Raises:
            ValueError: a file of predictions is damaged, or not of the same rows as another.
        """
        load = CompletionScores.load if self.facts["task"]["kind"] == "completion" else Prediction.load
        modes = modes_of(self.posterior)
        files = {mode: self.path / PREDICTIONS / f"{VALIDATION}.{mode}.parquet" for mode in {modes[0], modes[-1]}}
        stored: dict[str, Prediction | CompletionScores] = {
            mode: load(file) for mode, file in files.items() if file.is_file()
        }
        try:
            none = self.facts["task"].get("deciding_nothing", ())
            return run_health(self.posterior, stored, self.config.samples, self.log(), deciding_nothing=none)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error

    def log(self) -> list[dict[str, Any]]:
        """The trainer's log, one entry per logged step; empty where none was kept.

        Raises:
            ValueError: a line of it is damaged.
        """
        file = self.path / LOG
        return read_json_lines(file, dict[str, Any]) if file.exists() else []


def read_run(folder: str | Path) -> RunFolder:
    """Reads a run folder.

    Raises:
        ValueError: it is no run folder, or a file in it is missing or damaged.
    """
    path = Path(folder)
    check_run(path)
    return RunFolder(
        path=path,
        config=read_config(path),
        posterior=load_posterior(path),
        metrics=read_json(path / METRICS, Metrics) if (path / METRICS).exists() else {},
        facts=read_json(path / FACTS, Facts),
    )


def check_run(path: Path) -> None:
    """Refuses what is no whole run folder; no file is opened.

    Raises:
        ValueError: a file is missing without which there is none.
    """
    absent = [name for name in (CONFIG, FACTS, MANIFEST) if not (path / name).is_file()]
    if absent == [MANIFEST] and (path / EXPORT).is_file():
        raise ValueError(
            f"{path} is an export, for servers. Give the run's own folder, or ask the export itself: "
            f'Predictor.from_pretrained("{path}").'
        )
    if absent == [MANIFEST]:
        raise ValueError(
            f"{path} has a run's {CONFIG} and {FACTS} and lacks its posterior, {MANIFEST}: it is not whole. Copy the "
            "folder again from its source, or train anew."
        )
    if absent:
        raise ValueError(
            f"{path} is not a run folder: it lacks {', '.join(absent)}. Give the output_dir of a finished "
            "`varlora train`."
        )


def read_config(folder: Path) -> RunConfig:
    """A run's settings.

    Raises:
        ValueError: the file is missing or damaged, or holds what are no settings; the message names it.
    """
    settings = load_yaml(folder / CONFIG)
    try:
        return RunConfig.of_finished(settings)
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG}: {error}") from error


def is_run(folder: str | Path) -> bool:
    """Whether a folder holds a run's settings and facts, and not a posterior alone."""
    return all((Path(folder) / name).is_file() for name in (CONFIG, FACTS))


def write_derived(folder: Path, posterior: Posterior, *, sources: Sequence[Path], name: str) -> None:
    """Writes a posterior that was made from others, with what makes a run of it if the first of them was one.

    The tokenizer, the settings and the facts are the first source's; metrics and predictions are not taken over,
    since they are not this posterior's.

    Args:
        folder: an existing folder (one from `varlora.io.folders.atomic_folder`).
        posterior: what was made.
        sources: the folders it was made from.
        name: the name of the folder in the end.
    """
    write_posterior_files(posterior, folder)
    first = sources[0]
    for file in sorted(first.iterdir()):
        if file.is_file() and file.name.startswith(TOKENIZER_FILES):
            shutil.copyfile(file, folder / file.name)
    facts: dict[str, Any] = {}
    if is_run(first):
        shutil.copyfile(first / CONFIG, folder / CONFIG)
        facts = {**read_json(first / FACTS, Facts), "derived_from": [str(source) for source in sources]}
        write_json(folder / FACTS, facts)
    card = model_card(
        name=name,
        kind=posterior.kind,
        meta=posterior.meta.to_dict(),
        metrics={},
        task=facts.get("task"),
        versions=versions(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers."""
    return {name: library_version(name) for name in LIBRARIES}


def write_json(file: Path, value: Any) -> None:
    file.write_text(json_text(value), encoding="utf-8")
