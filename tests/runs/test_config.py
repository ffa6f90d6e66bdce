"""Settings: what is refused, and that equal settings are recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from varlora.io.yaml_files import load_yaml, read_yaml
from varlora.runs.config import RunConfig, setting_names

LEAST: dict[str, Any] = {"model_name_or_path": "m", "task": "sst2", "output_dir": "out"}
KNOWN = setting_names()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model_name_or_path": ""}, "model_name_or_path is ''; it must be a model's name or folder"),
        ({"output_dir": ""}, "output_dir is ''; it must be a folder"),
        ({"task": None}, "exactly one of task, train_file and dataset_name; got none of them"),
        ({"train_file": "a.jsonl"}, "got task, train_file"),
        ({"test_file": "a.jsonl"}, "test_file is 'a.jsonl', which has no effect without train_file"),
        ({"shift_task_dir": "d"}, "shift_task_dir is 'd', which has no effect without shift_tasks"),
        (
            {"prompt_style": "blobb"},
            "prompt_style is 'blobb'; it must be one of 'varlora', 'cloze', 'laplace-lora', 'blob'",
        ),
        ({"choices": "4"}, "choices is '4'; it must be one of 'all', 'four'"),
        ({"eval_steps": 5}, "eval_steps is 5, which has no effect without early_stopping"),
        ({"method": "ivom"}, "method is 'ivom'; did you mean 'ivon'"),
        ({"method": "adamw", "ess": 9}, "has no option ess; it has label_smoothing, .* ess is one of ivon. Leave out"),
        (
            {"draws": 2, "members": 3, "tolerance": 1},
            "no option members, tolerance; .* members is one of ensemble. tol",
        ),
        ({"lion_beta": 9}, "unknown option 'lion_beta'; `varlora train --help` lists them"),
        ({"membrs": 9}, "unknown option 'membrs'; did you mean 'members'"),
        ({"clip_radius": 1}, "clip_radius=1.0, which has no effect with update='adam'"),
        ({"method": "laplace", "per_tensor": True, "prior_choice": "validation"}, "per_tensor needs prior_choice"),
        ({"lora_r": 0}, "lora_r is 0; it must be at least 1"),
        ({"lora_r": "eight"}, "lora_r is 'eight'; it must be a whole number"),
        ({"lora_r": 8.5}, "lora_r is 8.5; it must be a whole number"),
        ({"lora_r": True}, "lora_r is True; it must be a whole number"),
        ({"bf16": 1}, "bf16 is 1; it must be true or false"),
        ({"task": 3}, "task is 3; it must be text"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size is 0; it must be at least 1"),
        ({"per_device_eval_batch_size": -1}, "per_device_eval_batch_size is -1; it must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps is 0"),
        ({"save_steps": 0}, "save_steps is 0; it must be at least 1"),
        ({"seed": -1}, r"seed is -1; it must be in \[0, 4294967296\)"),
        ({"seed": 1 << 32}, r"seed is 4294967296; it must be in \[0, 4294967296\)"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be positive"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; it must be positive"),
        ({"learning_rate": "1e-4"}, "learning_rate is '1e-4'; it must be a number"),
        ({"ess": -1}, "ess is -1.0; it must be positive"),
        ({"hess_init": 0}, "hess_init is 0.0; it must be positive"),
        ({"ess": "many"}, "ess is 'many'; it must be a number or 'auto'"),
        ({"recipe": "cong"}, "recipe is 'cong'; it must be one of 'auto', 'cong2024', 'cong2025'"),
        ({"update": "sgd"}, "update is 'sgd'; it must be one of 'newton', 'adam'"),
        ({"clip_radius": -1e-3}, "clip_radius is -0.001; it must be positive"),
        ({"beta1": 1}, r"beta1 is 1.0; it must be in \[0, 1\)"),
        ({"beta2": 1.1}, r"beta2 is 1.1; it must be in \[0, 1\]"),
        ({"weight_decay": -1}, "weight_decay is -1.0; it must be at least 0"),
        ({"prior": "learned"}, "prior is 'learned'; it must be one of 'fixed', 'adaptive'"),
        ({"model_class": "decoder"}, "model_class is 'decoder'; it must be one of 'auto', 'causal', 'encoder'"),
        ({"dtype": "float64"}, "dtype is 'float64'; it must be one of 'auto', 'float32', 'bfloat16', 'float16'"),
        ({"truncation": "middle"}, "truncation is 'middle'; it must be one of 'error', 'left', 'right'"),
        ({"draws": 0}, "draws is 0; it must be at least 1"),
        ({"max_length": 0}, "max_length is 0; it must be at least 1"),
        ({"max_train_samples": 0}, "max_train_samples is 0; it must be at least 1"),
        ({"lora_dropout": 1.0}, r"lora_dropout is 1.0; it must be in \[0, 1\)"),
        ({"samples": -1}, "samples is -1; it must be at least 0"),
        ({"validation_size": 0}, "validation_size is 0.0; it must be a fraction below 1, or a number of rows"),
        ({"validation_size": 1.5}, "validation_size is 1.5; it must be a fraction below 1"),
        ({"num_train_epochs": 0}, "num_train_epochs is 0.0; it must be positive"),
        ({"max_grad_norm": -1}, "max_grad_norm is -1.0; it must be at least 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        ({"lr_scheduler_type": "cosinus"}, "lr_scheduler_type is 'cosinus'; did you mean 'cosine'"),
        (
            {"lr_scheduler_type": "warmup_stable_decay"},
            "'warmup_stable_decay', which needs numbers of its own .*steps'",
        ),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "'cosine_with_min_lr', which needs numbers of its own"),
        ({"lr_scheduler_type": "reduce_lr_on_plateau"}, "goes by validation losses; it needs early_stopping"),
    ],
)
def test_a_setting_out_of_range_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunConfig.from_dict(LEAST | given)


def test_the_fingerprint_tells_settings_apart_but_not_folders() -> None:
    one = RunConfig(**LEAST)
    assert RunConfig(**(LEAST | {"output_dir": "elsewhere"})).fingerprint == one.fingerprint
    assert RunConfig(**(LEAST | {"seed": 1})).fingerprint != one.fingerprint
    first, second = ({"ess": ess} for ess in (1e6, 1_000_000))
    assert RunConfig(**LEAST, method_options=first).fingerprint == RunConfig(**LEAST, method_options=second).fingerprint
    assert RunConfig(**LEAST, method_options=first).fingerprint != one.fingerprint


def test_settings_survive_their_dict() -> None:
    options = {"ess": 1e6, "hess_init": "auto", "beta2": 1, "draws": None}
    one = RunConfig(**LEAST, method_options=options, lora_target_modules="q_proj,v_proj")
    assert one.method_options == {"ess": 1e6, "hess_init": "auto", "beta2": 1.0}
    assert RunConfig.from_dict(one.to_dict()) == one
    assert one.given() == {**LEAST, **one.method_options, "lora_target_modules": "q_proj,v_proj"}


def written(folder: Path, text: str) -> Path:
    file = folder / "run.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_yaml_numbers_are_numbers(tmp_path: Path) -> None:
    text = (
        "ess: 1e6\nhess_init: 1e-3\nlearning_rate: 3.0e-2\nclip_radius: 1.0e7\nbeta1: .5e0\nweight_decay: 5E+1\n"
        "seed: 3\ntask: 1e\nbf16: true\n"
    )
    assert read_yaml(written(tmp_path, text), KNOWN) == {
        "ess": 1e6,
        "hess_init": 1e-3,
        "learning_rate": 0.03,
        "clip_radius": 1e7,
        "beta1": 0.5,
        "weight_decay": 50.0,
        "seed": 3,
        "task": "1e",
        "bf16": True,
    }


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    assert read_yaml(written(tmp_path, "# nothing\n"), KNOWN) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lora_rank: 8\n", r"run\.yaml: unknown option 'lora_rank'; did you mean 'lora_r'"),
        ("- seed\n", r"run\.yaml must hold one mapping"),
        ("seed: [1\n", r"run\.yaml is not valid YAML"),
        ("seed: !!python/object/apply:os.getcwd []\n", r"run\.yaml is not valid YAML"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_yaml(written(tmp_path, text), KNOWN)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no configuration file .*none\.yaml"):
        read_yaml(tmp_path / "none.yaml", KNOWN)


BEFORE: list[tuple[str, dict[str, Any], str]] = [
    ("adamw", {}, "bd00469048cc0d3b"),
    (
        "ivon",
        {"recipe": "cong2024", "ess": 1e7, "hess_init": 3e-4, "draws": 2, "learning_rate": 0.02},
        "e9c03f196e4ed7ef",
    ),
    ("ensemble", {"members": 3, "weight_decay": 0.0}, "1a48aa8b6b4f165a"),
    ("laplace", {"prior_choice": "validation", "curvature": "diag"}, "752ef0be89dfda7c"),
    ("blob", {"kl_reweighting": False}, "d6adad2e4d022b3f"),
    ("swag", {"snapshots": 4}, "e53ff9de52eab401"),
    ("tfb", {"draws": 5}, "c1e9d07cc662d4f2"),
]
"""Fingerprints by the version that kept every method's options as fields of `RunConfig`."""


@pytest.mark.parametrize(("method", "options", "fingerprint"), BEFORE)
def test_checkpoints_of_the_version_before_are_gone_on_with(
    method: str, options: dict[str, Any], fingerprint: str
) -> None:
    where = {"model_name_or_path": "some/model", "task": "arc_easy", "output_dir": "runs/old", "seed": 3}
    assert RunConfig(**where, method=method, method_options=options).fingerprint == fingerprint


def test_a_default_that_has_changed_is_another_run() -> None:
    where = {"model_name_or_path": "some/model", "task": "arc_easy", "output_dir": "runs/old", "seed": 3}
    movement_prior = "190d9b1d41ae17c0"
    default = RunConfig(**where).fingerprint
    assert default != movement_prior
    assert RunConfig.from_dict({**where, "variance": "fit"}).fingerprint == default
    assert RunConfig.from_dict({**where, "variance": "hessian"}).fingerprint not in (default, movement_prior)


def test_runs_are_told_apart_by_whether_they_fit_a_temperature() -> None:
    def told(method: str, wanted: bool | None, **options: Any) -> tuple[bool, str, bool]:
        made = RunConfig(**LEAST, method=method, method_options=options, temperature_scaling=wanted)
        return made.scales_temperature, made.fingerprint, "temperature_scaling" in made.given()

    for method, options in (("adamw", {}), ("ivon", {"recipe": "cong2024"})):
        assert told(method, None, **options) == told(method, False, **options) != told(method, True, **options)
        assert told(method, None, **options)[::2] == (False, False)
    assert told("ivon", None) == told("ivon", True) != told("ivon", False)
    assert told("ivon", False)[::2] == (False, False)


def test_layers_are_a_setting_like_others() -> None:
    given = RunConfig(**LEAST, lora_layers="top:8", cache_frozen_layers=True, frozen_layers_memory=1)
    others = [RunConfig(**LEAST, cache_frozen_layers=True, lora_layers=layers) for layers in ("top:8", "top:7", None)]
    assert len({config.fingerprint for config in (given, *others)}) == 4
    assert RunConfig.from_dict(given.to_dict()) == given
    for layers in ("8", "top:0", "top:", "top: 8", "top:-1", "bottom:8", "top:08"):
        with pytest.raises(ValueError, match=rf"lora_layers is '{layers}'; it must be top:1, top:2, \.\.\."):
            RunConfig(**LEAST, lora_layers=layers)
    with pytest.raises(ValueError, match="which has no effect without cache_frozen_layers"):
        RunConfig(**LEAST, frozen_layers_memory=1)
    with pytest.raises(ValueError, match="frozen_layers_dir is 'there', which has no effect without cache_frozen_"):
        RunConfig(**LEAST, frozen_layers_dir="there")
    moved = RunConfig.from_dict({**given.to_dict(), "frozen_layers_dir": "there"})
    assert moved.fingerprint == given.fingerprint
    with pytest.raises(ValueError, match="frozen_layers_memory is 0"):
        RunConfig(**LEAST, cache_frozen_layers=True, frozen_layers_memory=0)


def test_a_file_with_every_methods_options_is_read() -> None:
    file = Path(__file__).parents[1] / "data" / "config_with_every_methods_options.yaml"
    config = RunConfig.from_dict(load_yaml(file))
    assert (config.method, config.seed) == ("laplace", 3)
    assert config.method_options == {"prior_choice": "validation", "curvature": "diag"}
    assert config.fingerprint == "752ef0be89dfda7c"


OLD = {**LEAST, "method": "ivon", "prior_width": None}


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        ({}, {}, None),
        ({"draws": 2, "prior": None}, {"draws": 2}, None),
        ({"prior": "movement", "prior_width": 3.0}, {}, "prior_width=3.0, prior='movement'"),
        ({"beta2": 0.999, "prior": "adaptive"}, {"beta2": 0.999, "prior": "adaptive"}, None),
        ({"hess_init": 0.001, "prior": "movement"}, {"hess_init": 0.001}, "prior='movement'"),
    ],
)
def test_a_finished_run_of_an_older_version_is_read(
    given: dict[str, Any], options: dict[str, Any], told: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    assert RunConfig.of_finished({**OLD, **given}).method_options == options
    assert told in caplog.text if told is not None else not caplog.text


@pytest.mark.parametrize("given", [{"prior_width": 3.0}, {"prior_width": "auto"}, {"prior": "movement"}])
def test_what_older_versions_had_is_refused_of_a_new_run(given: dict[str, Any]) -> None:
    assert RunConfig.from_dict(OLD).method_options == {}
    with pytest.raises(ValueError, match=r"of an older version: .* were replaced by variance='fit'.* Leave it out"):
        RunConfig.from_dict({**OLD, **given})


def test_a_variance_counts_where_it_is_given() -> None:
    default, same = RunConfig(**LEAST), RunConfig.from_dict({**LEAST, "variance": None})
    other = RunConfig.from_dict({**LEAST, "variance": "hessian"})
    assert default.fingerprint == same.fingerprint != other.fingerprint
