"""One run's settings, in one place: the command line, the YAML file and the run folder all speak of these."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from varlora.methods import METHODS


def option(help_text: str, default: Any = None) -> Any:
    """A dataclass field with a help text for the command line."""
    return field(default=default, metadata={"help": help_text})


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `varlora train` runs.

    The data are one of: a named task (`task`, from the hub or from `task_dir`), JSONL files (`train_file`, ...), or
    a data set on the hub (`dataset_name`). The fields' help texts say the rest.

    Raises:
        ValueError: a value is out of its range, or no data were named.
    """

    # The model
    model_name_or_path: str = option("Pre-trained model: a name on the hub or a local folder.", "")
    model_revision: str | None = option("Branch, tag or commit of the model on the hub.")
    model_class: Literal["auto", "causal", "encoder"] = option(
        "'causal' reads the answer's token, 'encoder' a classification head; 'auto' goes by the model's architecture.",
        "auto",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option("Data type of the frozen weights.", "auto")

    # The data
    task: str | None = option("A named task (see `varlora tasks`).")
    task_dir: str | None = option("Folder with the named task's files; the hub otherwise.")
    train_file: str | None = option("JSONL file of training rows.")
    validation_file: str | None = option("JSONL file of validation rows; cut from the training rows otherwise.")
    test_file: str | None = option("JSONL file of test rows.")
    shift_file: str | None = option("JSONL file of one more test set, from another domain.")
    ood_file: str | None = option("JSONL file of rows that belong to no class (label -1), for out-of-scope detection.")
    dataset_name: str | None = option("Data set on the hub, or a local folder of one.")
    dataset_config: str | None = option("Configuration of the data set.")
    dataset_columns: str | None = option("Columns of the data set by our names, e.g. 'text=sentence,label=polarity'.")
    label_names_file: str | None = option("Class names in order: a JSON list, or one name a line.")
    validation_size: float = option("Validation rows to cut: a fraction below 1, or a number of rows.", 0.1)
    max_train_samples: int | None = option("Train on that many rows, drawn with the data seed.")
    data_seed: int = option("Seed of the cut and of the draw; independent of `seed`, so that seeds share the data.", 0)
    max_length: int | None = option("Most tokens in a row; the model's context otherwise.")
    truncation: Literal["error", "left", "right"] = option("What to do with longer rows.", "error")
    label_answers: Literal["names", "letters"] = option("How a causal LM names a class.", "names")

    # The adapter
    lora_r: int = option("Rank.", 8)
    lora_alpha: int = option("Scale: the update is alpha / r times B A.", 16)
    lora_dropout: float = option("Dropout on the adapter's input.", 0.1)
    lora_target_modules: str | None = option(
        "Adapted modules, comma-separated, or 'all-linear'; PEFT's choice for the model otherwise."
    )

    # The method
    method: str = option("How the adapter is trained (see `varlora methods`).", "ivon")
    learning_rate: float | None = option("Learning rate; the method's own default otherwise.")
    weight_decay: float | None = option("AdamW's decoupled decay; IVON's delta.")
    ess: float | None = option("IVON: effective sample size lambda; 5000 * sqrt(N) otherwise.")
    hess_init: float | None = option("IVON: initial Hessian h0.")
    clip_radius: float | None = option("IVON: bound on the preconditioned step.")
    beta1: float | None = option("IVON: decay of the momentum.")
    beta2: float | None = option("IVON: decay of the Hessian.")
    prior: Literal["fixed", "adaptive"] | None = option("IVON: one fixed prior, or one learned per tensor.")
    draws: int | None = option("IVON: Monte-Carlo draws per micro-batch in training.")

    # Training
    num_train_epochs: float = option("Passes over the training rows.", 3.0)
    max_steps: int = option("Optimizer steps; overrides the epochs when positive.", -1)
    per_device_train_batch_size: int = option("Rows per device and micro-batch.", 8)
    gradient_accumulation_steps: int = option("Micro-batches per step.", 1)
    lr_scheduler_type: str = option("Learning-rate schedule.", "linear")
    warmup_steps: int = option("Steps of linear warm-up.", 0)
    max_grad_norm: float = option("Norm to which gradients are clipped; 0 does not clip.", 1.0)
    gradient_checkpointing: bool = option("Recompute activations to save memory.", False)
    bf16: bool = option("Compute in bfloat16 (autocast).", False)
    early_stopping: bool = option("Keep the checkpoint with the lowest validation loss.", False)
    eval_steps: int | None = option("Steps between validations under early stopping; a twentieth of the run otherwise.")
    save_steps: int = option("Steps between checkpoints, from which --resume goes on.", 500)
    seed: int = option("Seed of initialisation, data order, dropout and noise.", 0)

    # Evaluation
    samples: int = option("Posterior draws at evaluation.", 10)
    per_device_eval_batch_size: int = option("Rows per device at evaluation.", 32)

    # The result
    output_dir: str = option("Folder for the result.", "")

    def __post_init__(self) -> None:
        def require(name: str, ok: bool, allowed: str) -> None:
            if not ok:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")

        require("model_name_or_path", bool(self.model_name_or_path), "a model's name or folder")
        require("output_dir", bool(self.output_dir), "a folder")
        sources = [n for n in ("task", "train_file", "dataset_name") if getattr(self, n) is not None]
        if len(sources) != 1:
            raise ValueError(
                "give the data by exactly one of task, train_file and dataset_name; got "
                f"{', '.join(sources) or 'none of them'}."
            )
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; {nearest(self.method, METHODS)}")
        for name in (
            "lora_r",
            "lora_alpha",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_steps",
        ):
            require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "ess", "hess_init", "clip_radius"):
            require(name, getattr(self, name) is None or getattr(self, name) > 0, "positive")
        for name in ("eval_steps", "max_train_samples", "max_length", "draws"):
            require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        require("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        require("samples", self.samples >= 0, "at least 0 (0: the mean only)")
        require("validation_size", self.validation_size > 0, "positive")
        require("num_train_epochs", self.num_train_epochs > 0, "positive")
        require("max_grad_norm", self.max_grad_norm >= 0, "at least 0")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON and YAML."""
        return dataclasses.asdict(self)

    @property
    def fingerprint(self) -> str:
        """A hash of every setting but `output_dir`: equal for runs that must give equal results."""
        settings = {k: v for k, v in self.to_dict().items() if k != "output_dir"}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def read_yaml(file: str | Path, known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a YAML file.

    Args:
        file: the file: one mapping of option names to values.
        known: the options that exist.

    Raises:
        ValueError: it is not a mapping, or names an option that does not exist (the nearest is suggested).
    """
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"there is no configuration file {path}.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one mapping of option names to values.")
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: unknown option {name!r}; {nearest(str(name), known)}")
    return values


def nearest(name: str, known: Mapping[str, Any]) -> str:
    """A hint for an unknown name: the nearest known one, or all of them.

    Example:
        >>> nearest("lora_rank", {"lora_r": 8, "seed": 0})
        "did you mean 'lora_r'?"
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(sorted(known))}."
