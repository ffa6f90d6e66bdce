"""Folders, read into what is served: runs, posteriors, PEFT adapters, bare models; one base model is loaded once."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from varlora.adapters import refuse_foreign
from varlora.io.files import read_json
from varlora.io.folders import content_in_words
from varlora.posterior import Posterior
from varlora.posterior.folder import load_posterior
from varlora.posterior.manifest import ADAPTER_CONFIG, MANIFEST
from varlora.prediction.prediction_setup import SAMPLES, apply_config, choose_config
from varlora.predictor.predictor import STORED, Predictor
from varlora.readout.readout import ClassHead
from varlora.runs.base_model import locate_model, pretrained_of, tokenizer_name
from varlora.runs.finished import read_finished_folder
from varlora.runs.folder import is_run
from varlora.runs.load_model import base_of
from varlora.serve.language_model import LanguageModel

logger = logging.getLogger(__name__)

MODEL_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How folders are loaded; None is what a folder says.

    Attributes:
        samples, untuned, device, dtype, truncation: as of `Predictor.from_pretrained`.
        undecided: whether what `varlora decide` chose is left aside.
        base_model: name or folder of the base model, if it is not where it was in training.
    """

    samples: int | None = None
    untuned: bool = False
    undecided: bool = False
    device: str | None = None
    dtype: str | None = None
    base_model: str | None = None
    truncation: str | None = None


def named_folders(words: Sequence[str]) -> dict[str, str]:
    """Folders by the names that requests give: NAME=FOLDER, or a folder by its own name.

    Raises:
        ValueError: two have one name, or something is no folder.

    Example:
        >>> named_folders(["reviews=no-such-folder"])
        Traceback (most recent call last):
        ValueError: no-such-folder is no folder. Give the output_dir of a run, a PEFT adapter or a model.
    """
    folders: dict[str, str] = {}
    for word in words:
        name, given, folder = word.partition("=")
        if not given or Path(word).is_dir():
            name, folder = Path(word).resolve().name, word
        if not Path(folder).is_dir():
            raise ValueError(f"{folder} is no folder. Give the output_dir of a run, a PEFT adapter or a model.")
        if name in folders:
            raise ValueError(
                f"{folders[name]} and {folder} are both called {name!r}; name one of them: other-name={folder}."
            )
        folders[name] = folder
    return folders


def load_models(folders: Mapping[str, str], options: LoadOptions) -> dict[str, Predictor | LanguageModel]:
    """Loads all of them, in their order.

    Args:
        folders: by name.
        options: how.

    Raises:
        ValueError: a folder is neither a run, nor an adapter, nor a model, or does not load.
    """
    shelf = _Shelf(options)
    loaded: dict[str, Predictor | LanguageModel] = {}
    for name, folder in sorted(folders.items(), key=lambda item: _is_bare(Path(item[1]))):
        loaded[name] = shelf.load(name, Path(folder))
    return {name: loaded[name] for name in folders}


class _Shelf:
    """The base models that are loaded, with the adapters that are on them."""

    def __init__(self, options: LoadOptions) -> None:
        self.options = options
        self.predictors: dict[tuple[str, ...], Predictor] = {}
        self.bases: dict[tuple[str, str | None], Any] = {}

    def load(self, name: str, folder: Path) -> Predictor | LanguageModel:
        """One folder's model."""
        if is_run(folder) or _says_task(folder):
            return self._asked(folder)
        if (folder / ADAPTER_CONFIG).is_file():
            return self._adapter(name, folder)
        if not (folder / MODEL_CONFIG).is_file():
            raise ValueError(
                f"{folder} is neither a run (config.yaml, run.json), nor a PEFT adapter ({ADAPTER_CONFIG}), nor a "
                f"model ({MODEL_CONFIG}): it {content_in_words(folder)}. Give the output_dir of a finished `varlora "
                "train`, or the folder of an adapter or a model."
            )
        model = self._base(str(folder), None)
        return LanguageModel(name=name, model=model, adapter=None, tokenizer=_tokenizer(str(folder), None))

    def _asked(self, folder: Path) -> Predictor:
        """A folder that says how its rows are read, whoever wrote it."""
        options = self.options
        config = read_finished_folder(folder, model_name_or_path=options.base_model, dtype=options.dtype).config
        key = base_of(config)
        predictor = Predictor.from_pretrained(
            folder,
            samples=options.samples,
            untuned=options.untuned,
            device=options.device,
            dtype=options.dtype,
            base_model=options.base_model,
            truncation=options.truncation,
            decision=None if options.undecided else STORED,
            beside=self.predictors.get(key),
        )
        if predictor.loaded.family == "causal":
            self.predictors.setdefault(key, predictor)
            self.bases.setdefault(_place(pretrained_of(config), config.model_revision), predictor.loaded.model)
        return predictor

    def _adapter(self, name: str, folder: Path) -> LanguageModel:
        """An adapter without rows of its own: it writes texts, also by the draws of its posterior where it has one."""
        said = read_json(folder / ADAPTER_CONFIG, dict[str, Any])
        refuse_foreign(said)
        if said.get("task_type") not in (None, "CAUSAL_LM"):
            raise ValueError(
                f"{folder} is an adapter of task_type {said['task_type']}, without a run's description of its classes; "
                "only adapters of causal language models are served without one."
            )
        base_name = self.options.base_model or said.get("base_model_name_or_path")
        if not base_name:
            raise ValueError(f"{folder} does not say its base model; give it with --base_model.")
        revision = None if self.options.base_model is not None else said.get("revision")
        base, adapter = self._base(str(base_name), revision), "default"
        if isinstance(base, PeftModel):
            adapter = f"beside{len(base.peft_config)}"
            base.load_adapter(str(folder), adapter_name=adapter)
            model = base
        else:
            model = PeftModel.from_pretrained(base, str(folder))
            self.bases[_place(str(base_name), revision)] = model
        model.eval().requires_grad_(False)
        own = any(folder.glob("tokenizer*"))
        q = load_posterior(folder) if (folder / MANIFEST).is_file() else None
        samples = SAMPLES if self.options.samples is None else self.options.samples
        return LanguageModel(
            name=name,
            model=model,
            adapter=adapter,
            tokenizer=_tokenizer(str(folder) if own else str(base_name), None if own else revision),
            posterior=drawn_posterior(q, samples),
            samples=samples,
        )

    def _base(self, name: str, revision: str | None) -> Any:
        """A base model, loaded once; with the adapters that are already on it."""
        place = _place(name, revision)
        if place not in self.bases:
            if locate_model(name).is_missing:
                raise ValueError(f"there is no base model folder {name}; say where it is now: --base_model.")
            dtype = self.options.dtype
            device = self.options.device or ("cuda" if torch.cuda.is_available() else "cpu")
            loader: Any = AutoModelForCausalLM
            model = loader.from_pretrained(
                name, revision=revision, dtype="auto" if dtype is None else getattr(torch, dtype)
            )
            self.bases[place] = model.to(device).eval().requires_grad_(False)
        return self.bases[place]


def writer(name: str, predictor: Predictor) -> LanguageModel | None:
    """The texts of a predictor's model; None where it is no causal language model."""
    loaded, facts = predictor.loaded, predictor.run.facts["task"]
    base, own = pretrained_of(loaded.config), tokenizer_name(loaded.config, predictor.run.path)
    if loaded.family != "causal":
        return None
    samples, seed = loaded.config.samples, loaded.config.seed
    chat = facts["kind"] == "completion"
    return LanguageModel(
        name=name,
        model=loaded.model,
        adapter=loaded.adapter,
        tokenizer=_tokenizer(own, loaded.config.model_revision if own == base else None)
        if chat
        else copy.deepcopy(loaded.tokenizer),  # its own, as threads go
        posterior=drawn_posterior(predictor.run.posterior, samples, seed=seed),
        samples=samples,
        seed=seed,
        final_answer=facts.get("final_answer") or "text",
    )


def drawn_posterior(q: Posterior | None, samples: int, *, seed: int = 0) -> Posterior | None:
    """The posterior whose draws write texts, with what was tuned applied; None where there are no draws."""
    if q is None or not samples:
        return None
    try:
        config = choose_config(q, samples)
        config = config if config.canonical.mode == "mean" else config.at("samples")
    except ValueError as error:
        logger.info("no draws write texts: %s", error)
        return None
    return apply_config(q, config, seed=seed) if config.canonical.mode != "mean" else None


def _place(name: str, revision: str | None) -> tuple[str, str | None]:
    return (os.path.realpath(name) if os.path.isdir(name) else name), None if revision == "main" else revision


def _tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, revision=revision)
    return tokenizer


def _says_task(folder: Path) -> bool:
    """Whether the folder of a Trainer or of `save_posterior` says how its rows are read."""
    if not (folder / MANIFEST).is_file():
        return False
    meta = load_posterior(folder).meta
    task, readout = meta.task or {}, meta.readout or {}
    return task.get("wording") is not None or task.get("kind") == "completion" or readout.get("kind") == ClassHead.kind


def _is_bare(folder: Path) -> bool:
    """Whether it holds a model without an adapter; it is loaded last, when the adapters on it are known."""
    return not (folder / ADAPTER_CONFIG).is_file()
