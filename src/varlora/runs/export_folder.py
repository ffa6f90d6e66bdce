"""A posterior as plain PEFT adapters, for servers that know of no posterior, and the manifest that describes them.

NAME-draw00-HASH/          adapter_config.json, adapter_model.safetensors: one draw of the weights
export.json                names, weights in the average, readout, temperature of the logits, base model
README.md                  the commands that serve them
config.yaml, run.json, the tokenizer      as the run has them, so that rows are read as in training

An adapter's name ends in a hash of its content. Servers keep caches by name (vLLM those of prefixes), so that other
weights under a known name could be answered for by those before.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self

from varlora.io.files import json_text, read_bytes, read_json
from varlora.io.json_dataclass import from_json, with_defaults, without_unknown
from varlora.posterior import Mixture, PointMass, PosteriorMeta
from varlora.posterior.folder import adapter_config_in, tensors_in
from varlora.posterior.manifest import ADAPTER_CONFIG, ADAPTER_MEAN, library_version
from varlora.runs.folder import CONFIG, EXPORT, FACTS, Facts, RunFolder, read_config

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class ExportedAdapter:
    """One adapter of an export.

    Attributes:
        name: of its folder, and under which a server is to know it.
        sha256: of its two files together, whose first digits the name ends in.
        weight: of its probabilities in the average.
    """

    name: str
    sha256: str
    weight: float


@dataclass(frozen=True, kw_only=True)
class Export:
    """What an export folder holds, as export.json says it.

    Attributes:
        kind: "adapters", or "merged" where the mean was merged into the base model.
        base_model: name or path of the base model.
        base_revision: its revision, where known.
        base_fingerprint: what tells its weights from another model's (`varlora.adapters.base_fingerprint`); None where
            it is unknown, as of an export of an older version.
        adapters: the adapters, in the order of the draws; empty where merged.
        mode: "samples", or "mean" where the point alone was exported.
        seed: of the draws; None where none was drawn.
        rank: the largest rank of an adapted module.
        logit_temperature: T, which divides the logits of the answers before the softmax over them.
        readout: how an answer is read (`varlora.readout.readout`); None of completions, or where it is unknown.
        decision: which rows are answered, and sets (`varlora.runs.decision`); None where the run has no decision that
            is for this average.
        prompt: the run's settings that word and cut a row; empty where they are unknown.
        not_plain: what of the adapter vLLM and SGLang do not load, in words; empty for plain LoRA.
        version: of varlora.
        format_version: of the file.
    """

    kind: Literal["adapters", "merged"]
    base_model: str
    base_revision: str | None = None
    base_fingerprint: Mapping[str, Any] | None = None
    adapters: tuple[ExportedAdapter, ...] = ()
    mode: Literal["samples", "mean"]
    seed: int | None = None
    rank: int
    logit_temperature: float
    readout: Mapping[str, Any] | None = None
    decision: Mapping[str, Any] | None = None
    prompt: Mapping[str, Any] = field(default_factory=dict)
    not_plain: tuple[str, ...] = ()
    version: str = field(default_factory=lambda: library_version("varlora"))
    format_version: int = FORMAT_VERSION

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads an export folder's manifest; the adapters are not opened, which may lie on another machine.

        A field that is left out has its default. One that is unknown, as of a later version, is left aside, with a
        warning.

        Raises:
            ValueError: there is none, or it is of another format, or lacks what has no default, or is damaged.
        """
        file = Path(folder) / EXPORT
        if not file.is_file():
            raise ValueError(f"{folder} is no export, it has no {EXPORT}. Give a folder that `varlora export` wrote.")
        values = read_json(file, dict[str, Any])
        writer = values.setdefault("version", "unknown")
        if (version := values.get("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
            raise ValueError(
                f"{file} is of format {version!r}, and this varlora reads {FORMAT_VERSION}. Export anew, or read it "
                f"with the varlora that wrote it ({writer})."
            )
        values, unknown = without_unknown(values, cls)
        if unknown:
            logger.warning("%s: left aside is what this varlora does not know: %s", file, ", ".join(unknown))
        try:
            export = from_json(with_defaults(values, cls), cls)
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}). Export anew.") from error
        for adapter in export.adapters:
            if adapter.name in ("", ".", "..") or set(adapter.name) & set("/\\\0"):
                raise ValueError(f"{file} is damaged ({adapter.name!r} is no name of a folder in it). Export anew.")
        return export

    def save(self, folder: Path) -> None:
        """Writes export.json into an existing folder."""
        (folder / EXPORT).write_text(json_text(asdict(self)), encoding="utf-8")


def is_export(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds exported adapters."""
    return (Path(folder) / EXPORT).is_file()


def read_export(folder: str | os.PathLike[str]) -> tuple[RunFolder, Export]:
    """An export as a run whose posterior is the mixture of its adapters, which are checked against their hashes.

    Raises:
        ValueError: it is none, or of no run; an adapter is missing, or is not the one that its name says.
    """
    path = Path(folder)
    export = Export.load(path)
    if absent := [name for name in (CONFIG, FACTS) if not (path / name).is_file()]:
        raise ValueError(
            f"{path} lacks {', '.join(absent)}: it was exported from a posterior without a run, and does not say how a "
            "row is asked. Export the run's folder."
        )
    if not export.adapters:
        raise ValueError(f"{path} holds a merged model, which is one model and no posterior; load it by transformers.")
    config: dict[str, Any] = {}
    weights = []
    for adapter in export.adapters:
        data = {name: read_bytes(path / adapter.name / name) for name in (ADAPTER_CONFIG, ADAPTER_MEAN)}
        if hashlib.sha256(b"".join(data.values())).hexdigest() != adapter.sha256:
            raise ValueError(f"{path / adapter.name} was changed after it was exported (SHA-256 differs). Export anew.")
        config = adapter_config_in(path / adapter.name / ADAPTER_CONFIG, data[ADAPTER_CONFIG])
        weights.append(tensors_in(path / adapter.name / ADAPTER_MEAN, data[ADAPTER_MEAN]))
    meta = PosteriorMeta(
        method="export",
        base_model=export.base_model,
        base_revision=export.base_revision,
        base_fingerprint=export.base_fingerprint,
        adapter_config=config,
        readout=export.readout,
        logit_temperatures={export.mode if len(weights) > 1 else "mean": export.logit_temperature},
    )
    points = tuple(PointMass(mean=mean, meta=meta) for mean in weights)
    run = RunFolder(
        path=path,
        config=read_config(path),
        posterior=Mixture(components=points, meta=meta) if len(points) > 1 else points[0],
        metrics={},
        facts=read_json(path / FACTS, Facts),
    )
    return run, export
