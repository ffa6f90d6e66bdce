"""A posterior written as plain PEFT adapters, for servers that know of no posterior (`varlora.runs.export_folder`)."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from varlora.io.files import json_text
from varlora.io.folders import atomic_folder, check_target
from varlora.posterior import Mode, Posterior
from varlora.posterior.draws import weight_draws
from varlora.posterior.folder import tensor_bytes
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN
from varlora.prediction.prediction_setup import SAMPLES, apply_config, choose_default_config, remove_tuning
from varlora.readout.readout import answers_of, readout_from_dict
from varlora.runs.decision import Decision
from varlora.runs.export_folder import Export, ExportedAdapter
from varlora.runs.export_text import export_readme
from varlora.runs.folder import CONFIG, EXPORT, FACTS, TOKENIZER_FILES, read_config
from varlora.runs.predicted_as import PredictedAs

logger = logging.getLogger(__name__)

HASH_LENGTH = 10
PROMPT_SETTINGS = (
    "prompt_style",
    "prompt_template",
    "prompt_format",
    "system_prompt",
    "label_answers",
    "length_normalization",
    "max_length",
    "truncation",
)
_COPIED = (CONFIG, FACTS)


def export_adapters(
    q: Posterior,
    output_dir: str | Path,
    *,
    samples: int | None = None,
    seed: int = 0,
    untuned: bool = False,
    name: str | None = None,
    base_model: str | None = None,
    source: str | Path | None = None,
    overwrite: bool = False,
) -> Export:
    """Writes a posterior as plain PEFT adapters, one for each draw that `varlora.predict` averages.

    The draws are those of `varlora.predict(model, q, ..., samples=samples, seed=seed)`, from the posterior as it is
    predicted with (pruned, tempered, tuned). The mean of their probabilities is its prediction, up to the rounding of a
    server's data type.

    Args:
        q: The posterior, of a PEFT adapter.
        output_dir: Where to; parents are created. The folder appears whole or not at all.
        samples: K, the number of draws; 0 is the mean alone. None: as `varlora.predict` chooses.
        seed: Decides the draws.
        untuned: Leave aside what `varlora tune` chose.
        name: What the adapters' names begin with; the folder's name otherwise.
        base_model: Name or path of the base model for the server, if it is another than in training.
        source: The run's folder, whose settings and tokenizer are copied, and whose decision is taken over where it is
            for this average; None copies nothing.
        overwrite: Replace an export folder with everything in it; no other folder is ever replaced.

    Returns:
        What was written.

    Raises:
        ValueError: The posterior is of no adapter, or what is averaged are no weights (MC dropout; a linearised model);
            or the folder is taken.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from varlora.posterior import DiagonalGaussian, PosteriorMeta
        >>> meta = PosteriorMeta(base_model="my-model", adapter_config={"peft_type": "LORA", "r": 1})
        >>> key = "base_model.model.q_proj.lora_A.weight"
        >>> q = DiagonalGaussian(mean={key: torch.zeros(1, 2)}, precision={key: torch.ones(1, 2)}, meta=meta)
        >>> made = export_adapters(q, Path(tempfile.mkdtemp()) / "arc", samples=2)
        >>> [(adapter.name[:11], adapter.weight) for adapter in made.adapters]
        [('arc-draw00-', 0.5), ('arc-draw01-', 0.5)]
    """
    check_target(output_dir, overwrite=overwrite, marker=EXPORT)
    base = base_model_of(q, base_model)
    q = remove_tuning(q) if untuned else q
    how = choose_default_config(q, samples)
    if how.mode == "linearised" or (samples and q.meta.linearised):
        raise ValueError(
            "this posterior is predicted with by the model linearised at its mean, whose draws are logits and no "
            "weights. Export its mean (--samples 0), or put its averaged answers into one adapter: varlora distill."
        )
    q, draws = apply_config(q, how, seed=seed), how.draws(SAMPLES)
    mode: Literal["samples", "mean"] = "samples" if draws else "mean"
    adapter = {**(q.meta.adapter_config or {}), "base_model_name_or_path": base}
    stem = f"{_as_name(name or Path(output_dir).name)}-{'draw' if draws else 'mean'}"
    with atomic_folder(output_dir, overwrite=overwrite, marker=EXPORT) as folder:
        written = [
            _write_adapter(folder, f"{stem}{number:02d}" if draws else stem, adapter, weights)
            for number, weights in enumerate(weight_draws(q, draws, seed=seed))
        ]
        export = Export(
            kind="adapters",
            base_model=base,
            base_revision=q.meta.base_revision,
            base_fingerprint=q.meta.base_fingerprint,
            adapters=tuple(dataclasses.replace(one, weight=1 / len(written)) for one in written),
            mode=mode,
            seed=seed if draws else None,
            rank=largest_rank(adapter),
            logit_temperature=q.meta.logit_temperature_of(mode),
            readout=q.meta.readout,
            decision=_decision(q, source, mode=mode, draws=len(written)),
            prompt=prompt_of(source),
            not_plain=not_plain(adapter),
        )
        write_beside(export, folder, source, name=Path(output_dir).name)
    return export


def base_model_of(q: Posterior, given: str | None) -> str:
    """The base model that an export is for.

    Raises:
        ValueError: the posterior is of no adapter, or nobody says its base model.
    """
    if q.meta.adapter_config is None:
        raise ValueError("this posterior is of a plain module and of no PEFT adapter, so there is none to export.")
    base = given or q.meta.adapter_config.get("base_model_name_or_path") or q.meta.base_model
    if not base:
        raise ValueError("the posterior does not say its base model; name it (base_model, --model_name_or_path).")
    return str(base)


def write_beside(export: Export, folder: Path, source: str | Path | None, *, name: str) -> None:
    """Writes the manifest and the page, and copies what reading a row as in training needs."""
    if source is not None:
        for file in sorted(Path(source).iterdir()):
            known = file.name in _COPIED or file.name.startswith(TOKENIZER_FILES)
            if file.is_file() and known and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    export.save(folder)
    (folder / "README.md").write_text(export_readme(export, name=name), encoding="utf-8")


def _decision(q: Posterior, source: str | Path | None, *, mode: Mode, draws: int) -> dict[str, Any] | None:
    """The run's decision, if it was chosen for this average; else a warning says what it was chosen for."""
    decision = Decision.load(source) if source is not None else None
    if decision is None or q.meta.readout is None:
        return None
    classes, temperature = answers_of(readout_from_dict(q.meta.readout)), q.meta.logit_temperature_of(mode)
    try:
        asked = PredictedAs(mode=mode, draws=draws, logit_temperature=temperature, classes=classes)
        decision.predicted_as.check(asked)
    except ValueError as error:
        logger.warning("the run's decision is left out: %s", error)
        return None
    return decision.to_dict()


def prompt_of(source: str | Path | None) -> dict[str, Any]:
    """The settings of a run that word and cut a row."""
    if source is None or not (Path(source) / CONFIG).is_file():
        return {}
    settings = read_config(Path(source)).to_dict()
    return {name: settings[name] for name in PROMPT_SETTINGS if name in settings}


def largest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of an adapted module.

    Example:
        >>> largest_rank({"r": 8, "rank_pattern": {"q_proj": 32}})
        32
    """
    return max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])


def not_plain(config: Mapping[str, Any]) -> tuple[str, ...]:
    """What of an adapter vLLM and SGLang do not load.

    Example:
        >>> not_plain({"peft_type": "LORA", "r": 8, "use_dora": True, "modules_to_save": ["score"]})
        ('modules_to_save (score)', 'DoRA')
    """
    extras = []
    if modules := config.get("modules_to_save"):
        extras.append(f"modules_to_save ({', '.join(dict.fromkeys(modules))})")
    if config.get("use_dora"):
        extras.append("DoRA")
    if config.get("bias") not in (None, "none"):
        extras.append("trained biases")
    if config.get("peft_type") != "LORA":
        extras.append(f"an adapter by {config.get('peft_type')}")
    return tuple(extras)


def _write_adapter(
    folder: Path, stem: str, config: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> ExportedAdapter:
    """One adapter's folder, which is named by what is in it."""
    files = {ADAPTER_CONFIG: json_text(config).encode(), ADAPTER_MEAN: tensor_bytes(weights)}
    sha256 = hashlib.sha256(b"".join(files.values())).hexdigest()
    name = f"{stem}-{sha256[:HASH_LENGTH]}"
    (folder / name).mkdir()
    for file, data in files.items():
        (folder / name / file).write_bytes(data)
    return ExportedAdapter(name=name, sha256=sha256, weight=1.0)


def _as_name(text: str) -> str:
    """What servers and shells take as a name: "my-run-2" of "my run, 2"."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "adapter"
