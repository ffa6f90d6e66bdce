"""A predictor whose model is elsewhere: K adapters of an export on an OpenAI-compatible server, averaged here.

    row ──► token ids ──► POST /completions for each adapter ──► log-probabilities of the answers ──► (N, K, C)

Rows are worded, tokenized and cut here, as in training, and sent as token ids.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from typing_extensions import Self

from varlora.posterior import PredictionConfig
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.predictor.client import Backend
from varlora.predictor.predictor import Predictor
from varlora.predictor.reader import SPLIT, RowReader
from varlora.predictor.served_adapters import ServedAdapters, logprobs_of
from varlora.readout.readout import AnswerTokens, ChoiceTexts, ClassHead, readout_from_dict
from varlora.runs.config import RunConfig
from varlora.runs.decision import Decision
from varlora.runs.export_folder import Export, read_export
from varlora.runs.folder import RunFolder
from varlora.runs.setting import LoadedModel, scored_as
from varlora.tasks import encode
from varlora.tasks.encode import encode_prompts
from varlora.tasks.rows import Records


class RemotePredictor(Predictor):
    """A `Predictor` that asks a server; made by `Predictor.from_pretrained(folder, backend=...)`.

    Attributes:
        export: the manifest.
    """

    def __init__(
        self, *, run: RunFolder, export: Export, settings: RunConfig, backend: Backend, decision: Decision | None = None
    ) -> None:
        self.run, self.export, self._settings = run, export, settings
        self.config = PredictionConfig(
            mode=export.mode, samples=len(export.adapters) if export.mode == "samples" else None
        )
        self.reader = RowReader(run=run, config=settings)
        self._mode, self._logit_temperature = export.mode, export.logit_temperature
        self._samples = len(export.adapters)
        self.tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(run.path))
        self.readout = readout_from_dict(export.readout) if export.readout is not None else None
        if isinstance(self.readout, ClassHead):
            raise ValueError(
                f"{run.path} is of an encoder with a class head, whose adapters no OpenAI-compatible server loads; its "
                "run's own folder answers by itself, or behind `varlora serve`."
            )
        self._served = ServedAdapters(
            backend,
            [adapter.name for adapter in export.adapters],
            self.tokenizer,
            batch_size=settings.per_device_eval_batch_size,
        )
        self.decision = decision
        if decision is not None:
            self._check(decision)

    @classmethod
    def connect(
        cls,
        folder: str | Path,
        backend: str | Backend,
        *,
        settings: Mapping[str, Any],
        decision: Decision | str | None = None,
    ) -> Self:
        """Reads an export's folder, and finds its adapters on a server.

        Args:
            folder: what `varlora export` wrote.
            backend: the server.
            settings: in place of the run's own, by name; those that are None stay.
            decision: as of `Predictor.from_pretrained`; a text stands for the export's own.

        Raises:
            ValueError: the folder is no export of a run, the server cannot be asked, or lacks one of the adapters.
        """
        run, export = read_export(folder)
        given = {name: value for name, value in settings.items() if value is not None}
        config = dataclasses.replace(run.config, **given)
        backend = Backend(url=backend) if isinstance(backend, str) else backend
        if isinstance(decision, str):
            decision = None if export.decision is None else Decision.from_dict(export.decision)
        return cls(run=run, export=export, settings=config, backend=backend, decision=decision)

    @property
    def num_draws(self) -> int:
        """How many adapters are averaged."""
        return len(self.export.adapters)

    @property
    def device(self) -> torch.device:
        """Where the numbers are; the model is the server's."""
        return torch.device("cpu")

    def to(self, device: str | torch.device) -> Self:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise self._elsewhere()

    @property
    def loaded(self) -> LoadedModel:
        """Refused.

        Raises:
            ValueError: always.
        """
        raise self._elsewhere()

    def check(self, records: Records) -> None:
        """As of `Predictor`; the server is not asked."""
        self._rows(records)

    def _elsewhere(self) -> ValueError:
        return ValueError(f"the model is at {self._served.backend.url}; it is moved and looked at there.")

    def _rows(self, records: Records) -> datasets.Dataset:
        """The rows in tokens, which leave room for what is to be written."""
        written = self._settings.max_new_tokens if self.kind == "completion" else 1
        most = self._served.max_model_len
        room = None if most is None else most - written
        if room is not None and room < 1:
            raise ValueError(f"max_new_tokens is {written}, and the server has room for {most} tokens; lower it.")
        limits = [limit for limit in (self._settings.max_length, room) if limit]
        encoder = encode_prompts if self.kind == "completion" else encode
        return encoder(
            scored_as(self.reader.read(records), self.readout),
            SPLIT,
            self.tokenizer,
            min(limits) if limits else None,
            truncation=self._settings.truncation,
        )

    def _predict(self, records: Records) -> Prediction:
        encoded = self._rows(records)
        assert isinstance(self.readout, (AnswerTokens, ChoiceTexts))
        if isinstance(self.readout, ChoiceTexts):
            scores = self._choice_scores(encoded, self.readout)
        else:
            ids = list(map(str, encoded["id"]))
            scores = self._served.next_tokens(encoded["input_ids"][:], list(self.readout.token_ids), ids=ids)
        classes = torch.arange(self.readout.num_classes)
        offered = classes < torch.tensor(encoded["num_choices"][:])[:, None]
        scores = (scores / self.export.logit_temperature).masked_fill(~offered[:, None], -torch.inf)
        return Prediction(
            log_probs=torch.log_softmax(scores, dim=-1),
            labels=torch.tensor(encoded["labels"][:], dtype=torch.int64),
            classes=self.readout.answers,
            ids=tuple(map(str, encoded["id"])),
            mode=self.export.mode,
            seed=self.export.seed,
            logit_temperature=self.export.logit_temperature,
        )

    def _choice_scores(self, encoded: datasets.Dataset, readout: ChoiceTexts) -> Tensor:
        """Log-likelihoods (N, K, C) of the choices' texts, by byte where the readout has it so."""
        places = [(row, label) for row, ids in enumerate(encoded["input_ids"]) for label in range(len(ids))]
        texts_likelihoods = self._served.text_likelihoods(
            [encoded["input_ids"][row][label] for row, label in places],
            [encoded["choice_lengths"][row][label] for row, label in places],
            ids=[str(encoded["id"][row]) for row, _ in places],
        )
        scores = torch.full((len(encoded), self.num_draws, readout.num_classes), -torch.inf, dtype=torch.float64)
        for (row, label), likelihoods in zip(places, texts_likelihoods, strict=True):
            by = max(1, encoded["choice_bytes"][row][label]) if readout.length_normalization == "bytes" else 1
            scores[row, :, label] = likelihoods / by
        return scores

    def _generate(self, records: Records) -> Generations:
        encoded, most = self._rows(records), self._settings.max_new_tokens
        texts = [[""] * self.num_draws for _ in range(len(encoded))]
        shape = (len(encoded), self.num_draws)
        lengths, likelihoods = torch.ones(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.float64)
        finished = torch.zeros(shape, dtype=torch.bool)
        body = {"max_tokens": most, "temperature": 0, "logprobs": 1}
        for row, adapter, choice in self._served.completions(encoded["input_ids"][:], body):
            log_probs = [value for value in logprobs_of(choice).get("token_logprobs") or [] if value is not None]
            texts[row][adapter] = str(choice.get("text", ""))
            lengths[row, adapter], likelihoods[row, adapter] = max(1, len(log_probs)), math.fsum(log_probs)
            finished[row, adapter] = choice.get("finish_reason") == "stop"
        return Generations(
            texts=tuple(map(tuple, texts)),
            num_tokens=lengths,
            log_likelihoods=likelihoods,
            finished=finished,
            ids=tuple(map(str, encoded["id"])),
            final_answer=self.run.facts["task"].get("final_answer") or "text",
            max_new_tokens=most,
            mode=self.export.mode,
            seed=self.export.seed,
        )
