"""One run's settings, in one place: the command line, the YAML file and the run folder all speak of these."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from varlora.methods import METHODS
from varlora.nearest import nearest


def _group(name: str) -> Callable[..., Any]:
    """Makes the fields of one group of options; the command line shows group, help text and default."""

    def option(help_text: str, default: Any = None) -> Any:
        return field(default=default, metadata={"group": name, "help": help_text})

    return option


_model, _data, _adapter, _method, _training, _evaluation, _result = map(
    _group, ("Model", "Data", "Adapter", "Method", "Training", "Evaluation", "Result")
)

_LARGEST_EXACT = 1 << 53
NEEDS: Mapping[str, str] = {
    "task_dir": "task",
    "shift_task_dir": "shift_tasks",
    "validation_file": "train_file",
    "test_file": "train_file",
    "shift_file": "train_file",
    "ood_file": "train_file",
    "label_names_file": "train_file or dataset_name",
    "dataset_config": "dataset_name",
    "dataset_columns": "dataset_name",
    "dataset_splits": "dataset_name",
    "eval_steps": "early_stopping",
}
"""Options that have no effect without another, or without one of two."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `varlora train` runs.

    The data are one of: a named task (`task`, from the hub or from `task_dir`), files of rows (`train_file`, ...), or
    a data set on the hub (`dataset_name`). The fields' help texts say the rest.

    Raises:
        ValueError: a value is out of its range, or no data were named.
    """

    model_name_or_path: str = _model("Pre-trained model: a name on the hub or a local folder.", "")
    model_revision: str | None = _model("Branch, tag or commit of the model on the hub.")
    model_class: Literal["auto", "causal", "encoder"] = _model(
        "'causal' reads the answer's token, 'encoder' a classification head; 'auto' goes by the model's architecture.",
        "auto",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _model("Data type of the frozen weights.", "auto")
    quantization: Literal["none", "8bit", "4bit"] = _model(
        "Frozen weights in 8 or 4 bit by bitsandbytes (extra of that name), on a CUDA GPU.", "none"
    )

    task: str | None = _data("A named task (see `varlora tasks`).")
    task_dir: str | None = _data("Folder with the named task's files; the hub otherwise.")
    train_file: str | None = _data("Training rows: a file in JSONL, CSV or Parquet.")
    validation_file: str | None = _data("Validation rows, in such a file; cut from the training rows otherwise.")
    test_file: str | None = _data("Test rows, in such a file.")
    shift_file: str | None = _data("One more test set, from another domain.")
    ood_file: str | None = _data("Rows that belong to no class (label -1), for out-of-scope detection.")
    dataset_name: str | None = _data("Data set on the hub, or a local folder of one.")
    dataset_config: str | None = _data("Configuration of the data set.")
    dataset_columns: str | None = _data("Columns of the data set by our names, e.g. 'text=sentence,label=polarity'.")
    dataset_splits: str | None = _data(
        "Splits of the data set by our names, e.g. 'test=validation', or 'test=none' to leave one out; those of 'ood' "
        "belong to no class. Its own train, validation and test otherwise."
    )
    label_names_file: str | None = _data("Class names in order: a JSON list, or one name a line.")
    validation_size: float = _data("Validation rows to cut: a fraction below 1, or a number of rows.", 0.1)
    max_train_samples: int | None = _data("Train on that many rows, drawn with the data seed.")
    max_validation_samples: int | None = _data("Validate on that many rows, drawn with the data seed.")
    max_test_samples: int | None = _data("Test on that many rows of each other split, drawn with the data seed.")
    data_seed: int = _data("Seed of the cut and of the draw; independent of `seed`, so that seeds share the data.", 0)
    max_length: int | None = _data("Most tokens in a row; the model's context otherwise.")
    truncation: Literal["error", "left", "right"] = _data(
        "What to do with longer rows: 'left' and 'right' cut their text there; instruction, choices and cue stay.",
        "error",
    )
    label_answers: Literal["names", "letters"] = _data("How a causal LM names a class.", "names")
    prompt_style: Literal["varlora", "laplace-lora", "blob"] = _data(
        "How a causal LM is asked: our wording, or a published one (see `varlora tasks NAME`); for questions only.",
        "varlora",
    )
    choices: Literal["all", "four"] = _data(
        "Questions to keep: all, or those with four choices, as some papers do with ARC.", "all"
    )
    shift_tasks: str | None = _data(
        "Named tasks whose test rows are further test sets, comma-separated, e.g. 'arc_challenge,mmlu_physics'."
    )
    shift_task_dir: str | None = _data("Folder that holds a folder for each of them; the hub otherwise.")
    final_answer: Literal["number", "text", "none"] | None = _data(
        "Completions: what must be right of a text written behind the prompt, its last number (or that behind '####') "
        "or all of it; 'none' writes no texts. By default the named task's own, and 'none' for other data."
    )

    lora_r: int = _adapter("Rank.", 8)
    lora_alpha: int = _adapter("Scale: the update is alpha / r times B A.", 16)
    lora_dropout: float = _adapter("Dropout on the adapter's input.", 0.1)
    lora_target_modules: str | None = _adapter(
        "Adapted modules, comma-separated, or 'all-linear', or a regular expression; PEFT's choice for the model "
        "otherwise."
    )

    method: str = _method("How the adapter is trained (see `varlora methods`).", "ivon")
    learning_rate: float | None = _method("Learning rate; the method's own default otherwise.")
    weight_decay: float | None = _method("AdamW's decoupled decay; IVON's delta.")
    recipe: Literal["auto", "cong2024", "cong2025"] | None = _method(
        "IVON: its other options' defaults. 'auto' needs nothing but AdamW's learning rate; the others are published."
    )
    update: Literal["newton", "adam"] | None = _method("IVON: the mean moves by IVON's own step, or by AdamW's.")
    ess: float | Literal["auto"] | None = _method("IVON: effective sample size lambda; 'auto' is 100 N.")
    hess_init: float | Literal["auto"] | None = _method("IVON: initial Hessian h0; 'auto' is N / lambda.")
    clip_radius: float | None = _method("IVON: bound on the preconditioned step, with the Newton update.")
    beta1: float | None = _method("IVON: decay of the momentum.")
    beta2: float | None = _method("IVON: decay of the Hessian; 1 keeps it at h0.")
    prior: Literal["fixed", "adaptive", "movement"] | None = _method(
        "IVON: one fixed prior around zero, or one learned per tensor, around zero or around where it began."
    )
    prior_width: float | Literal["auto"] | None = _method(
        "IVON: width of the movement prior; 'auto' grows from 0 to 4 in the course of the training."
    )
    held_out: Literal["auto", "validation", "train", "none"] | None = _method(
        "IVON: rows that steer lambda: validation rows, or training rows that are withheld for a while."
    )
    draws: int | None = _method("IVON: Monte-Carlo draws per micro-batch in training. TFB: draws for each scale tried.")

    curvature: Literal["kron", "diag"] | None = _method("Laplace: structure of the curvature.")
    fisher: Literal["ggn", "mc"] | None = _method("Laplace: exact GGN, or a Fisher with labels drawn from the model.")
    prior_choice: Literal["marglik", "validation"] | None = _method(
        "Laplace: prior precision by the marginal likelihood, or by the NLL of validation rows."
    )
    per_tensor: bool | None = _method("Laplace: a prior precision for each tensor, or one for all.")
    curvature_rank: int | None = _method("Laplace: eigenpairs kept of a large Kronecker factor.")
    curvature_rank_above: int | None = _method("Laplace: dimensions above which a Kronecker factor is large.")
    tolerance: float | None = _method("TFB: relative change of the anchor set's NLL that is borne.")
    anchor_examples: int | None = _method("TFB: size of the anchor set.")
    label_smoothing: float | None = _method("AdamW and methods on top of it: share of each label that is spread.")
    ema_decay: float | None = _method("EMA: share of the average that a step keeps.")
    members: int | None = _method("ensemble: number of adapters.")
    snapshots: int | None = _method("SWAG: snapshots of the adapter.")
    swag_start: float | None = _method("SWAG: share of the steps before the first snapshot.")
    swag_learning_rate: float | None = _method("SWAG: constant learning rate of the snapshots.")
    kl_learning_rate: float | None = _method("BLoB, ScalaBL: learning rate of the KL's gradient descent.")
    kl_reweighting: bool | None = _method("BLoB, ScalaBL: weight the KL by BLoB's cycle, or by 1/N in every step.")
    prior_std: float | None = _method("BLoB, ScalaBL: standard deviation of the prior.")
    initial_std_bound: float | None = _method("BLoB, ScalaBL: bound of the square root of the initial deviations.")

    num_train_epochs: float = _training("Passes over the training rows.", 3.0)
    max_steps: int = _training("Optimizer steps; overrides the epochs when positive.", -1)
    per_device_train_batch_size: int = _training("Rows per device and micro-batch.", 8)
    gradient_accumulation_steps: int = _training("Micro-batches per step.", 1)
    lr_scheduler_type: str = _training("Learning-rate schedule.", "linear")
    warmup_steps: int = _training("Steps of linear warm-up; BLoB and ScalaBL take 6 percent of the steps for 0.", 0)
    max_grad_norm: float = _training("Norm to which gradients are clipped; 0 does not clip.", 1.0)
    gradient_checkpointing: bool = _training("Recompute activations to save memory.", False)
    cache_frozen_layers: bool = _training(
        "Encoders adapted in upper layers only: compute the frozen lower layers once per row, without dropout.", False
    )
    bf16: bool = _training("Compute in bfloat16 (autocast).", False)
    early_stopping: bool = _training("Keep the checkpoint with the lowest validation loss.", False)
    eval_steps: int | None = _training(
        "Steps between validations under early stopping; a twentieth of the run otherwise."
    )
    save_steps: int = _training("Steps between checkpoints, from which --resume goes on.", 500)
    seed: int = _training("Seed of initialisation, data order, dropout and noise.", 0)

    samples: int = _evaluation(
        "Posterior draws at evaluation. Of a linearised model always 100, which cost nothing.", 10
    )
    temperature_scaling: bool = _evaluation(
        "Divide the logits by a temperature fitted on validation rows, one for each mode of prediction.", False
    )
    max_new_tokens: int = _evaluation("Most tokens of a text, where completions have a final answer.", 256)
    per_device_eval_batch_size: int = _evaluation("Rows per device at evaluation.", 32)

    output_dir: str = _result("Folder for the result.", "")

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name)
            if not _fits(value, kind):
                raise ValueError(f"{name} is {value!r}; it must be {_described(kind)}.")
            if isinstance(value, float) and math.isinf(value):
                raise ValueError(f"{name} is {value!r}; it must be finite.")
            if isinstance(value, int) and float in (kind, *get_args(kind)):
                if abs(value) > _LARGEST_EXACT:
                    raise ValueError(f"{name} is {value!r}, which no floating-point number is.")
                object.__setattr__(self, name, float(value))  # 5 and 5.0 are one setting

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
        for name, needed in NEEDS.items():
            if getattr(self, name) is not None and not any(getattr(self, one) for one in needed.split(" or ")):
                raise ValueError(f"{name} is {getattr(self, name)!r}, which has no effect without {needed}.")
        if self.method not in METHODS:
            raise ValueError(f"method is {self.method!r}; {nearest(self.method, METHODS)}")
        for name in (
            "lora_r",
            "lora_alpha",
            "per_device_train_batch_size",
            "per_device_eval_batch_size",
            "gradient_accumulation_steps",
            "save_steps",
            "max_new_tokens",
        ):
            require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("learning_rate", "ess", "hess_init", "clip_radius", "prior_width"):
            require(name, getattr(self, name) in (None, "auto") or getattr(self, name) > 0, "positive")
        for name in (
            "eval_steps",
            "max_train_samples",
            "max_validation_samples",
            "max_test_samples",
            "max_length",
            "draws",
        ):
            require(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        require("lora_dropout", 0 <= self.lora_dropout < 1, "in [0, 1)")
        require("samples", self.samples >= 0, "at least 0 (0: the mean only)")
        size = self.validation_size
        whole = size >= 1 and size == int(size)
        require("validation_size", 0 < size < 1 or whole, "a fraction below 1, or a number of rows")
        require("beta1", self.beta1 is None or 0 <= self.beta1 < 1, "in [0, 1)")
        require("beta2", self.beta2 is None or 0 <= self.beta2 <= 1, "in [0, 1]")
        require("weight_decay", self.weight_decay is None or self.weight_decay >= 0, "at least 0")
        require("warmup_steps", self.warmup_steps >= 0, "at least 0")
        _check_schedule(self.lr_scheduler_type)
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


def _check_schedule(name: str) -> None:
    """Asks transformers, which takes seconds to import, where the schedule is not the default."""
    if name == RunConfig.lr_scheduler_type:
        return
    from transformers import SchedulerType

    schedules = [schedule.value for schedule in SchedulerType]
    if name not in schedules:
        raise ValueError(f"lr_scheduler_type is {name!r}; {nearest(name, schedules)}")


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if get_args(kind):
        return any(_fits(value, one) for one in get_args(kind))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _described(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_args(kind):
        return " or ".join(_described(one) for one in get_args(kind) if one is not type(None))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[kind]
