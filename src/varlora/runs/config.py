"""One run's settings, in one place: the command line, the YAML file and the run folder all speak of these."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from varlora.io.nearest import nearest
from varlora.methods import METHODS, checked_options, options_of
from varlora.methods.known import OWN_OPTIONS, REPLACED_OPTIONS, why_replaced
from varlora.methods.options import MethodOptions
from varlora.registry.option_fields import checked_values, option, types_of
from varlora.runs.trackers import tracker_names
from varlora.tasks.own_prompts import OwnPrompt
from varlora.tasks.splitting import VALIDATION_SIZE

logger = logging.getLogger(__name__)


def _group(name: str) -> Callable[..., Any]:
    """Makes the fields of one group of options; the command line shows group, help text and default."""

    def make_field(help_text: str, default: Any = None, **bounds: float) -> Any:
        return option(default, help_text, group=name, **bounds)

    return make_field


_model, _data, _adapter, _method, _training, _evaluation, _result = map(
    _group, ("Model", "Data", "Adapter", "Method", "Training", "Evaluation", "Result")
)

NEEDS: Mapping[str, str] = {
    "task_dir": "task",
    "shift_task_dir": "shift_tasks",
    "validation_file": "train_file",
    "test_file": "train_file",
    "shift_file": "train_file",
    "ood_file": "train_file",
    "label_names_file": "train_file or dataset_name",
    "dataset_config": "dataset_name",
    "dataset_columns": "train_file or dataset_name",
    "dataset_splits": "dataset_name",
    "eval_steps": "early_stopping",
    "frozen_layers_memory": "cache_frozen_layers",
    "frozen_layers_dir": "cache_frozen_layers",
    "length_normalization": "prompt_style='cloze'",
    "run_name": "report_to",
}
"""Options that have no effect without another, without a value of it, or without one of two."""
GGUF = ".gguf"
"""How the name of a file ends that holds a whole model, its weights packed."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What `varlora train` runs.

    The data are one of: a named task (`task`, from the hub or from `task_dir`), files of rows (`train_file`, ...), or
    a data set on the hub (`dataset_name`). The fields' help texts say the rest. The method's own options are in
    `method_options`; in files, in plans and on the command line they stand beside the rest (`from_dict`, `to_dict`).

    Attributes:
        method_options: those of the method's options that are given, by name; None is not given.

    Raises:
        ValueError: a value is out of its range, no data were named, or the method has no such option.

    Example:
        >>> given = {"model_name_or_path": "m", "task": "sst2", "output_dir": "o", "method": "ensemble", "members": 3}
        >>> RunConfig.from_dict(given).method_options
        {'members': 3}
    """

    model_name_or_path: str = _model(
        "Pre-trained model: a name on the hub, a local folder, package:NAME/FOLDER or package:NAME/FILE.gguf of an "
        "installed package, or 'embedded', the small Llama that varlora carries.",
        "",
    )
    gguf_file: str | None = _model(
        "Name of a GGUF file in that folder or repository: the model, unpacked once into an ordinary folder below "
        "HF_HOME (extra gguf)."
    )
    model_revision: str | None = _model("Branch, tag or commit of the model on the hub.")
    model_class: Literal["auto", "causal", "encoder"] = _model(
        "'causal' reads the answer's token, 'encoder' a classification head; 'auto' goes by the model's architecture.",
        "auto",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = _model("Data type of the frozen weights.", "auto")
    quantization: Literal["none", "8bit", "4bit"] = _model(
        "Frozen weights in 8 or 4 bit by bitsandbytes (extra of that name).", "none"
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
    dataset_columns: str | None = _data(
        "Columns of the data set or the files by our names, e.g. 'text=sentence,label=polarity'."
    )
    dataset_splits: str | None = _data(
        "Splits of the data set by our names, e.g. 'test=validation', or 'test=none' to leave one out; those of 'ood' "
        "belong to no class. Its own train, validation and test otherwise."
    )
    label_names_file: str | None = _data("Class names in order: a JSON list, or one name a line.")
    validation_size: float = _data("Validation rows to cut: a fraction below 1, or a number of rows.", VALIDATION_SIZE)
    max_train_samples: int | None = _data("Train on that many rows, drawn with the data seed.", at_least=1)
    max_validation_samples: int | None = _data("Validate on that many rows, drawn with the data seed.", at_least=1)
    max_test_samples: int | None = _data(
        "Test on that many rows of each other split, drawn with the data seed.", at_least=1
    )
    data_seed: int = _data("Seed of the cut and of the draw; independent of `seed`, so that seeds share the data.", 0)
    max_length: int | None = _data("Most tokens in a row; the model's context otherwise.", at_least=1)
    truncation: Literal["error", "left", "right"] = _data(
        "What to do with longer rows: 'left' and 'right' cut their text there; instruction, choices and cue stay.",
        "error",
    )
    label_answers: Literal["names", "letters"] = _data("How a causal LM names a class.", "names")
    prompt_style: Literal["varlora", "cloze", "laplace-lora", "blob"] = _data(
        "How a causal LM is asked: our wording, or a published one (see `varlora tasks NAME`), for questions only; "
        "'cloze' scores each choice's text behind the question, or each class's name behind the text.",
        "varlora",
    )
    prompt_template: str | None = _data(
        "Words of your own around rows with answers to choose from, in place of prompt_style's: text, or @FILE of it, "
        "with fields in braces, e.g. 'Review: {text}\\nSentiment:'. Fields are {text}, or {passage} and {question}, "
        "with {labels}; or {question}, {choices} and {letters}; and any other column. An encoder reads it as its text."
    )
    prompt_format: Literal["plain", "chat"] = _data(
        "'chat' makes the prompt the user's turn in the tokenizer's chat template, and reads the answer where the "
        "assistant's begins.",
        "plain",
    )
    system_prompt: str | None = _data("With prompt_format 'chat': the system's turn, text or @FILE of it.")
    length_normalization: Literal["none", "bytes"] | None = _data(
        "With prompt_style 'cloze': a choice's score is the sum of its tokens' log-probabilities ('none', unless "
        "given), or that by byte."
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

    lora_r: int = _adapter("Rank.", 8, at_least=1)
    lora_alpha: int = _adapter("Scale: the update is alpha / r times B A.", 16, at_least=1)
    lora_dropout: float = _adapter("Dropout on the adapter's input.", 0.1, at_least=0, below=1)
    lora_target_modules: str | None = _adapter(
        "Adapted modules, comma-separated, or 'all-linear', or a regular expression; PEFT's choice for the model "
        "otherwise."
    )
    lora_layers: str | None = _adapter(
        "Adapt them in the uppermost layers only, e.g. 'top:8'; in place of a regular expression."
    )

    method: str = _method("How the adapter is trained (see `varlora methods`).", "ivon")
    method_options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    num_train_epochs: float = _training("Passes over the training rows.", 3.0, above=0)
    max_steps: int = _training("Optimizer steps; overrides the epochs when positive.", -1)
    per_device_train_batch_size: int = _training("Rows per device and micro-batch.", 8, at_least=1)
    gradient_accumulation_steps: int = _training("Micro-batches per step.", 1, at_least=1)
    lr_scheduler_type: str = _training("Learning-rate schedule.", "linear")
    warmup_steps: int = _training(
        "Steps of linear warm-up; BLoB and ScalaBL take 6 percent of the steps for 0.", 0, at_least=0
    )
    max_grad_norm: float = _training("Norm to which gradients are clipped; 0 does not clip.", 1.0, at_least=0)
    gradient_checkpointing: bool = _training("Recompute activations to save memory.", False)
    cache_frozen_layers: bool = _training(
        "Models adapted in upper layers only: compute the frozen lower layers once per row, without dropout.", False
    )
    frozen_layers_memory: float | None = _training(
        "GiB of the frozen layers' states to keep in memory, 2 unless given; what is more is kept in mapped files.",
        above=0,
    )
    frozen_layers_dir: str | None = _training(
        "Folder in which these states are kept, for all runs of the same frozen layers that name it. `varlora compare` "
        "has one for its cells."
    )
    bf16: bool = _training("Compute in bfloat16 (autocast).", False)
    early_stopping: bool = _training("Keep the checkpoint with the lowest validation loss.", False)
    eval_steps: int | None = _training(
        "Steps between validations under early stopping; a twentieth of the run otherwise.", at_least=1
    )
    save_steps: int = _training("Steps between checkpoints, from which --resume goes on.", 500, at_least=1)
    seed: int = _training("Seed of initialisation, data order, dropout and noise.", 0, at_least=0, below=1 << 32)
    report_to: str = _training(
        "Trackers that see the training as it runs: tensorboard, wandb, trackio, mlflow, comma-separated.", "none"
    )
    run_name: str | None = _training("The run's name there; that of the output folder otherwise.")

    samples: int = _evaluation(
        "Posterior draws at evaluation; 0 is the mean only. Of a linearised model always 100, which cost nothing.",
        10,
        at_least=0,
    )
    temperature_scaling: bool | None = _evaluation(
        "Divide the logits by a temperature fitted on validation rows, one for each mode of prediction. Unless said, "
        "ivon's recipe 'auto' does so where validation rows have labels and may steer ess.",
        None,
    )
    max_new_tokens: int = _evaluation("Most tokens of a text, where completions have a final answer.", 256, at_least=1)
    per_device_eval_batch_size: int = _evaluation("Rows per device at evaluation.", 32, at_least=1)

    output_dir: str = _result("Folder for the result.", "")

    def __post_init__(self) -> None:
        for name, value in checked_values(type(self), {name: getattr(self, name) for name in SETTINGS}).items():
            object.__setattr__(self, name, value)
        layers, size = self.lora_layers, self.validation_size
        for name, fits, allowed in (
            ("model_name_or_path", self.model_name_or_path, "a model's name or folder"),
            ("output_dir", self.output_dir, "a folder"),
            ("lora_layers", layers is None or re.fullmatch("top:[1-9][0-9]*", layers), "top:1, top:2, ..."),
            ("gguf_file", self.gguf_file is None or self.gguf_file.endswith(GGUF), f"the name of a file *{GGUF}"),
            ("validation_size", 0 < size < 1 or size == int(size) > 0, "a fraction below 1, or a number of rows"),
        ):
            if not fits:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {allowed}.")
        self.check_data()
        for name, needed in NEEDS.items():
            if getattr(self, name) is not None and not any(map(self._is_set, needed.split(" or "))):
                raise ValueError(f"{name} is {getattr(self, name)!r}, which has no effect without {needed}.")
        self._check_prompt()
        if taken := sorted(set(SETTINGS) & types_of(options_of(self.method)).keys()):
            raise ValueError(f"method {self.method!r} has the option {taken[0]}, which every run has; rename it there.")
        object.__setattr__(self, "method_options", checked_options(self.method, self.method_options))
        tracker_names(self.report_to)  # all are known
        packed = self.gguf_file is not None or self.model_name_or_path.endswith(GGUF)
        if packed and self.quantization != "none":
            raise ValueError(
                f"quantization is {self.quantization!r}, and the base model is a GGUF file, whose weights are "
                "unpacked. Leave quantization out, or give the model that the file was made from."
            )
        if packed and self.model_class == "encoder":
            raise ValueError("model_class is 'encoder', and a GGUF file is read as a causal LM. Leave model_class out.")
        _check_schedule(self.lr_scheduler_type, validates=self.early_stopping)

    def _is_set(self, option: str) -> bool:
        """Whether an option is given, or has the value behind its name: "task", "prompt_style='cloze'"."""
        name, _, value = option.partition("=")
        if name == "report_to":
            return bool(tracker_names(self.report_to))
        return bool(getattr(self, name)) if not value else repr(getattr(self, name)) == value

    def _check_prompt(self) -> None:
        for name in ("prompt_template", "system_prompt"):
            if (getattr(self, name) or "").startswith("@"):
                raise ValueError(
                    f"{name} begins with '@', which names a file where a command line or a plan has it; give its text."
                )
        if self.own_prompt.template is not None and self.prompt_style not in ("varlora", "cloze"):
            raise ValueError(
                f"prompt_template words the rows, as prompt_style {self.prompt_style!r} does; leave one out."
            )

    @property
    def own_prompt(self) -> OwnPrompt:
        """The words and turns of one's own around the rows."""
        return OwnPrompt(template=self.prompt_template, format=self.prompt_format, system=self.system_prompt)

    def check_data(self) -> None:
        """Raises ValueError where the settings name no data, or name them twice."""
        sources = [n for n in ("task", "train_file", "dataset_name") if getattr(self, n) is not None]
        if len(sources) != 1:
            raise ValueError(
                "give the data by exactly one of task, train_file and dataset_name; got "
                f"{', '.join(sources) or 'none of them'}."
            )

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The settings that `to_dict`, a YAML file or a command line gives, the method's options beside the rest.

        Args:
            settings: by name. An option of a method that is None is not given, whichever method has it.

        Raises:
            ValueError: there is no such setting, or one does not fit.
        """
        method = settings.get("method", cls.method)
        known = setting_names([method] if isinstance(method, str) and method in METHODS else [])
        if strange := [name for name in settings if name not in known]:
            listed = "`varlora train --help` lists them."
            hint = nearest(str(strange[0]), known, otherwise=listed)
            raise ValueError(f"unknown option {strange[0]!r}; {hint}{options_elsewhere()}")
        own = {name: value for name, value in settings.items() if name in SETTINGS}
        return cls(**own, method_options={n: v for n, v in settings.items() if n not in SETTINGS})

    @classmethod
    def of_finished(cls, settings: Mapping[str, Any]) -> RunConfig:
        """The settings of a finished run, which an older version may have trained; as `from_dict` otherwise.

        What this version has no more, a movement prior, is left out, with a warning.

        Args:
            settings: as `to_dict` of that version gave them.

        Raises:
            ValueError: one does not fit.
        """
        given = {name: value for name, value in settings.items() if value is not None}
        method = str(given.get("method", cls.method))
        gone = [name for name, value in given.items() if why_replaced(method, name, value) is not None]
        if gone:
            logger.warning(
                "this run was trained by an older version of varlora, with %s: this version knows the posterior, and "
                "not the setting",
                ", ".join(f"{name}={settings[name]!r}" for name in gone),
            )
        return cls.from_dict({name: value for name, value in settings.items() if name not in gone})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON and YAML: the settings, and beside them the method's options, None where not given."""
        flat: dict[str, Any] = {}
        for f in fields(self):
            if f.name == "method_options":
                flat |= {name: self.method_options.get(name) for name in types_of(options_of(self.method))}
            else:
                flat[f.name] = getattr(self, f.name)
        return flat

    def given(self) -> dict[str, Any]:
        """As `to_dict`, without settings at their default and options that are not given.

        Whether T is fitted stands there where it is, said or not, so that runs are told apart by what they do.
        """
        defaults = {f.name: f.default for f in fields(self)}
        settings = {**self.to_dict(), "temperature_scaling": self.scales_temperature or None}
        return {name: value for name, value in settings.items() if value != defaults.get(name)}

    def differences(self, other: RunConfig) -> dict[str, tuple[Any, Any]]:
        """Settings that are not the other run's, by name, with this run's value and the other's.

        Of a temperature it is whether one is fitted, said or not, so that runs differ in what they do.

        Example:
            >>> runs = [RunConfig(model_name_or_path="m", task="boolq", output_dir="o", method=method, seed=seed,
            ...                   temperature_scaling=scaling)
            ...         for method, seed, scaling in (("adamw", 0, None), ("adamw", 1, False), ("ivon", 0, None))]
            >>> runs[0].differences(runs[1])
            {'seed': (0, 1)}
            >>> runs[0].differences(runs[2])["temperature_scaling"]
            (False, True)
        """
        here, there = ({**c.to_dict(), "temperature_scaling": c.scales_temperature} for c in (self, other))
        return {name: (value, there.get(name)) for name, value in here.items() if value != there.get(name)}

    @property
    def scales_temperature(self) -> bool:
        """`temperature_scaling`; where that is not said, as the method has it."""
        if self.temperature_scaling is not None:
            return self.temperature_scaling
        own = options_of(self.method)(**self.method_options)
        return isinstance(own, MethodOptions) and own.scales_temperature

    @property
    def fingerprint(self) -> str:
        """A hash of every setting that is no place to write to: equal for runs that must give equal results.

        Options of varlora's other methods count as not given, as in the folders of earlier versions; those that came
        later count where they are given, as do defaults that have changed (`MethodOptions.new_defaults`). A finished
        run's own is in its run.json, since its version may have had other defaults.
        """
        options = dict.fromkeys(set(setting_names()).difference(SETTINGS))
        own = options_of(self.method)(**self.method_options)
        changed = own.new_defaults() if isinstance(own, MethodOptions) else {}
        defaults = {f.name: f.default for f in fields(self)}
        scaled = {"temperature_scaling": self.scales_temperature}
        settings = {
            name: value
            for name, value in {**options, **self.to_dict(), **scaled, **changed}.items()
            if name not in PLACES and (name not in LATER or value != defaults.get(name))
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


LATER = (
    *("lora_layers", "frozen_layers_memory", "length_normalization", "gguf_file", "variance"),
    *("prompt_template", "prompt_format", "system_prompt"),
)
"""Settings that versions lacked whose fingerprints are still known."""
SETTINGS = tuple(f.name for f in fields(RunConfig) if f.name != "method_options")
"""What every run has, whatever its method."""
PLACES = ("output_dir", "frozen_layers_dir", "report_to", "run_name")
"""Settings that say where something is written, not what."""


def setting_names(methods: Iterable[str] = ()) -> tuple[str, ...]:
    """The names that settings may have: of every run, and of the options of varlora's methods.

    Args:
        methods: whose options are known, too, those of other packages among them.

    Raises:
        ValueError: there is no such method.
    """
    kinds = [*OWN_OPTIONS.values(), *map(options_of, methods)]
    return tuple(dict.fromkeys([*SETTINGS, *(name for kind in kinds for name in types_of(kind)), *REPLACED_OPTIONS]))


def options_elsewhere() -> str:
    """A sentence on options that are not known because nobody has named their methods, which packages bring."""
    names = ", ".join(METHODS.not_imported)
    return f" The options of {names} are known where the method is named." if names else ""


def _check_schedule(name: str, *, validates: bool) -> None:
    """Asks transformers, which takes seconds to import, where the schedule is not the default."""
    if name == RunConfig.lr_scheduler_type:
        return
    import torch
    from transformers import SchedulerType, get_scheduler

    schedules = [schedule.value for schedule in SchedulerType]
    if name not in schedules:
        raise ValueError(f"lr_scheduler_type is {name!r}; {nearest(name, schedules)}")
    try:
        made = get_scheduler(name, torch.optim.SGD([torch.zeros(1)]), num_warmup_steps=1, num_training_steps=2)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lr_scheduler_type is {name!r}, which needs numbers of its own that no option gives ({error}). Choose "
            "another, such as 'linear', 'cosine' or 'constant'."
        ) from error
    if not isinstance(made, torch.optim.lr_scheduler.LambdaLR) and not validates:  # a function of the step
        raise ValueError(f"lr_scheduler_type is {name!r}, which goes by validation losses; it needs early_stopping.")
