"""Every kind of file that varlora reads, made once and small; how it is read; and ways to break it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import safetensors.torch
import torch
import yaml
from hypothesis import strategies as st
from ledger import read_published

from compare.plans import SMALL_PLAN, variant_of
from models import lora, tiny_llama
from varlora import NoiseController
from varlora.adapters import adapter_config, trained_tensors
from varlora.compare.cell import make_cell
from varlora.compare.cells_file import read_cells, write_cells
from varlora.compare.details import curves_of
from varlora.compare.plan_file import read_plan
from varlora.compare.variant_files import FOLDER, facts_of, read_usable_rows, stored_as, variant_folder
from varlora.ivon import IVON
from varlora.ivon.trainer_checkpoint import posterior_from_checkpoint
from varlora.metrics.costs import Costs
from varlora.posterior import (
    DiagonalGaussian,
    DropoutMasks,
    KroneckerGaussian,
    LowRankGaussian,
    Mixture,
    PointMass,
    Posterior,
    PosteriorMeta,
)
from varlora.posterior.folder import MANIFEST, load_posterior, write_posterior_files
from varlora.posterior.kronecker import KroneckerFactors
from varlora.posterior.manifest import sha256, to_json
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.runs.calibration import Calibration, ChosenOn
from varlora.runs.choose_decision import Wanted, WantedBands, choose_decision
from varlora.runs.config import RunConfig
from varlora.runs.decision import Decision
from varlora.runs.export import export_adapters
from varlora.runs.export_folder import read_export
from varlora.runs.folder import CompletionScores, read_run
from varlora.runs.health import run_health
from varlora.runs.result import RunResult, write_run
from varlora.runs.setting import Setting
from varlora.tasks import Task, load_jsonl
from varlora.tasks.jsonl import read_label_names


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A file, and what reads it.

    Attributes:
        file: what is broken.
        read: reads it; `folder` is where it is.
        sign: makes the files beside it fit to it again.
    """

    file: str
    read: Callable[[Path], Any]
    sign: Callable[[Path], None] = lambda folder: None


META = PosteriorMeta(method="ivon", num_examples=9, ess=900.0, readout={"kind": "class_head", "classes": ["a", "b"]})


def posteriors() -> dict[str, Posterior]:
    """One of each kind, over the tensors of a tiny LoRA adapter."""
    model = lora(tiny_llama(layers=1), r=2)
    mean = {key: tensor.detach().clone() for key, tensor in trained_tensors(model).items()}
    meta = replace(META, adapter_config=adapter_config(model), base_model="m")
    factors = {
        key: KroneckerFactors(
            out_vectors=torch.eye(len(m)),
            out_values=torch.ones(len(m)),
            in_vectors=torch.eye(m.shape[1]),
            in_values=torch.ones(m.shape[1]),
        )
        for key, m in mean.items()
    }
    gaussian = DiagonalGaussian(mean=mean, precision={k: torch.full_like(m, 4.0) for k, m in mean.items()}, meta=meta)
    return {
        "diagonal": gaussian,
        "point": PointMass(mean=mean, meta=meta),
        "kronecker": KroneckerGaussian(mean=mean, factors=factors, prior_precision=dict.fromkeys(mean, 1.0), meta=meta),
        "low_rank": LowRankGaussian(
            mean=mean,
            diagonal={key: torch.ones_like(m) for key, m in mean.items()},
            deviations={key: torch.ones(2, *m.shape) for key, m in mean.items()},
            shared=True,
            meta=meta,
        ),
        "mixture": Mixture(components=[gaussian, PointMass(mean=mean)], meta=meta),
        "dropout": DropoutMasks(mean=mean, rate=0.1, meta=meta),
    }


def predictions() -> dict[str, Prediction]:
    """Of three rows, at the mean and by two draws."""
    log_probs = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.5, 0.5]], dtype=torch.float64).log()
    common = {"labels": torch.tensor([0, 1, -1]), "classes": ("a", "b"), "ids": ("x", "y", "z")}
    return {
        "mean": Prediction(log_probs=log_probs[:, None], mode="mean", **common),
        "samples": Prediction(log_probs=log_probs[:, None].repeat(1, 2, 1), mode="samples", seed=0, **common),
    }


def build(folder: Path) -> None:
    """Writes one of each."""
    held = posteriors()
    for name, q in held.items():
        (folder / name).mkdir()
        write_posterior_files(q, folder / name)
    _build_run(folder, held["diagonal"])
    _build_checkpoint(folder / "checkpoint-2")
    _build_comparison(folder)
    export_adapters(held["diagonal"], folder / "export", samples=2, source=folder / "run")
    _build_decisions(folder)
    rows = [{"text": "fine", "label": "a"}, {"text": "dull", "label": "b"}, {"text": "so", "label": "a"}]
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "labels.json").write_text('["a", "b"]', encoding="utf-8")


def _build_run(folder: Path, q: Posterior) -> None:
    (folder / "run").mkdir()
    rows = {"id": ["x", "y", "z"], "prompt": ["p"] * 3, "text": ["p"] * 3, "label": [0, 1, -1], "num_choices": [2] * 3}
    task = Task(name="t", kind="label", answers=("a", "b"), splits={"validation": datasets.Dataset.from_dict(rows)})
    found = predictions()
    options = {"learning_rate": 1e-3, "ess": "auto"}
    config = RunConfig(model_name_or_path="m", task="sst2", output_dir="o", method_options=options)
    unloaded: Any = None
    setting = Setting(
        config=config, folder=folder, task=task, tokenizer=unloaded, family="causal", model=unloaded, readout=None
    )
    result = RunResult(
        setting=setting,
        posterior=q,
        predictions={"validation": found},
        metrics={"validation": {mode: {"nll": 0.7, "accuracy": 1.0} for mode in found}},
        health=run_health(q, found, config.samples),
        seconds={"train": 1.0},
        log=[{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6, "member": 0}],
    )
    write_run(folder / "run", result)
    draws = torch.tensor([[-1.0, -2.0]] * 3, dtype=torch.float64)
    CompletionScores(log_likelihoods=draws, num_tokens=torch.tensor([3, 4, 5]), ids=("x", "y", "z")).save(
        folder / "scores.parquet"
    )
    Generations(
        texts=(("4", "so 4"),) * 3,
        num_tokens=torch.ones(3, 2, dtype=torch.int64),
        log_likelihoods=draws,
        finished=torch.ones(3, 2, dtype=torch.bool),
        ids=("x", "y", "z"),
        references=("4", "5", "4"),
        max_new_tokens=8,
        mode="samples",
    ).save(folder / "texts.parquet")


def _build_checkpoint(folder: Path) -> None:
    model = lora(tiny_llama(layers=1), r=2)
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], lr=0.1, ess=1e4, hess_init=0.1)
    noise = NoiseController(model, optimizer, seed=0)
    ids = torch.tensor([[1, 2, 3]])
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    noise.detach()
    model.save_pretrained(folder)
    torch.save(optimizer.state_dict(), folder / "optimizer.pt")


def _build_decisions(folder: Path) -> None:
    """With every part that a decision may have: one cannot have them all."""
    probs = torch.linspace(0.55, 0.99, 60, dtype=torch.float64)
    rows = Prediction(
        log_probs=torch.stack([probs, 1 - probs], -1).log()[:, None],
        labels=(torch.arange(60) % 7 == 3).long(),
        classes=("a", "b"),
    )
    calibration = Calibration(prediction=rows, chosen_on=ChosenOn(source="validation", rows=60, also_used_for=("T",)))
    wanted = {
        "by_group": Wanted(coverage=Fraction(1), sets=Fraction("0.9"), recalibrate=("temperature",)),
        "by_cost": Wanted(
            costs=Costs.of(("a", "b"), wrong={"a": 5, "*": 1}, abstain=0.3),
            bands=WantedBands(names=("high", "low"), cuts=(0.7,)),
            recalibrate=("venn_abers",),
        ),
    }
    groups = ["even", "odd"] * 30
    for name, one in wanted.items():
        grouped = {"group_column": "kind", "groups": groups} if name == "by_group" else {}
        (folder / name).mkdir()
        choose_decision(one, calibration, **grouped).save(folder / name)  # type: ignore[arg-type]


VARIANT = variant_of(temperature=2.0, samples=4)


def _build_comparison(folder: Path) -> None:
    (folder / "plan.yaml").write_text(yaml.safe_dump(dict(SMALL_PLAN)), encoding="utf-8")
    config = RunConfig(model_name_or_path="m", task="sst2", output_dir="o")
    cell = make_cell(
        model="m",
        task="t",
        method="ivon",
        config=config,
        output_dir=folder,
        code_version="0123456789",
        variants=[VARIANT],
    )
    write_cells([cell], folder)
    run = read_run(folder / "run")
    facts = {"format": 1, "draws": 4, "pruned": 0.0, "seconds": {"validation": 1.0}, "tuning": {"tuned": None}}
    made = variant_folder(run, stored_as(run, VARIANT))
    made.mkdir(parents=True)
    (made / "variant.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "run" / FOLDER / "validation.json").write_text('{"rows": 2, "usable": [0, 1]}', encoding="utf-8")
    row = {
        "what": "w",
        "source": "s",
        "recipe": "r.yaml",
        "model": "m",
        "tasks": ["t"],
        "row": "x",
        "values": {"nll": 1},
    }
    (folder / "published.yaml").write_text(yaml.safe_dump([row]), encoding="utf-8")


def sign(folder: Path) -> None:
    """Makes a posterior folder's manifest fit to its files again."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest.pop("sha256", None)
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"size": len(data), "sha256": sha256(data)}
    manifest["sha256"] = sha256(to_json(manifest))
    (folder / MANIFEST).write_bytes(to_json(manifest))


def sign_manifest(folder: Path) -> None:
    """Makes a manifest's own hash fit to it again, where it is an object at all."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        manifest.pop("sha256", None)
        (folder / MANIFEST).write_bytes(to_json({**manifest, "sha256": sha256(to_json(manifest))}))
    except (ValueError, AttributeError, TypeError, RecursionError):
        return


def _variant(folder: Path) -> dict[str, Any]:
    run = read_run(folder / "run")
    return facts_of(run, stored_as(run, VARIANT))


def _made(folder: Path) -> str:
    run = read_run(folder / "run")
    return str((variant_folder(run, stored_as(run, VARIANT)) / "variant.json").relative_to(folder))


def readers(folder: Path) -> Mapping[str, Reader]:
    """All of them, by name."""

    def run(part: Callable[[Any], Any]) -> Callable[[Path], Any]:
        return lambda folder: part(read_run(folder / "run"))

    found = {
        "config.yaml": Reader(file="run/config.yaml", read=run(lambda r: r.config)),
        "run.json": Reader(file="run/run.json", read=run(lambda r: (r.health(), r.facts["task"]["rows"]))),
        "metrics.json": Reader(file="run/metrics.json", read=run(lambda r: r.metrics)),
        "log.jsonl": Reader(file="run/log.jsonl", read=run(lambda r: curves_of({("m", 0): r}))),
        "prediction": Reader(
            file="run/predictions/validation.samples.parquet",
            read=run(lambda r: (r.prediction("validation", "samples").probs, r.health())),
        ),
        "scores": Reader(
            file="scores.parquet", read=lambda folder: CompletionScores.load(folder / "scores.parquet").metrics()
        ),
        "generations": Reader(
            file="texts.parquet", read=lambda folder: Generations.load(folder / "texts.parquet").metrics()
        ),
        "plan.yaml": Reader(file="plan.yaml", read=lambda folder: read_plan(folder / "plan.yaml")),
        "published.yaml": Reader(file="published.yaml", read=lambda folder: read_published(folder / "published.yaml")),
        "cells.json": Reader(file="cells.json", read=read_cells),
        "variant.json": Reader(file=_made(folder), read=_variant),
        "validation.json": Reader(
            file=f"run/{FOLDER}/validation.json", read=lambda folder: read_usable_rows(folder / "run")
        ),
        "export.json": Reader(file="export/export.json", read=lambda folder: read_export(folder / "export")),
        "decision.json by group": Reader(
            file="by_group/decision.json", read=lambda folder: Decision.load(folder / "by_group")
        ),
        "decision.json by cost": Reader(
            file="by_cost/decision.json", read=lambda folder: Decision.load(folder / "by_cost")
        ),
        "train.jsonl": Reader(
            file="train.jsonl",
            read=lambda folder: load_jsonl({split: folder / f"{split}.jsonl" for split in ("train", "validation")}),
        ),
        "labels.json": Reader(file="labels.json", read=lambda folder: read_label_names(folder / "labels.json")),
        "optimizer.pt": Reader(
            file="checkpoint-2/optimizer.pt", read=lambda folder: posterior_from_checkpoint(folder / "checkpoint-2")
        ),
        "checkpoint's adapter_config.json": Reader(
            file="checkpoint-2/adapter_config.json",
            read=lambda folder: posterior_from_checkpoint(folder / "checkpoint-2"),
        ),
        "checkpoint's weights": Reader(
            file="checkpoint-2/adapter_model.safetensors",
            read=lambda folder: posterior_from_checkpoint(folder / "checkpoint-2"),
        ),
        "posterior.json": Reader(
            file="diagonal/posterior.json",
            read=lambda folder: load_posterior(folder / "diagonal"),
            sign=lambda folder: sign_manifest(folder / "diagonal"),
        ),
        "adapter_config.json": Reader(
            file="diagonal/adapter_config.json",
            read=lambda folder: load_posterior(folder / "diagonal"),
            sign=lambda folder: sign(folder / "diagonal"),
        ),
    }
    for name in posteriors():
        for file in ("adapter_model", "posterior"):
            if (folder / name / f"{file}.safetensors").is_file():
                found[f"{name}'s {file}"] = Reader(
                    file=f"{name}/{file}.safetensors",
                    read=lambda folder, name=name: load_posterior(folder / name).mean,
                    sign=lambda folder, name=name: sign(folder / name),
                )
    return found


NASTY = (
    None,
    True,
    -1,
    0,
    3,
    10**9,
    10**400,
    1.5,
    1e308,
    float("inf"),
    "",
    "x",
    "\ud800",
    "\n|`<b>",
    [],
    {},
    [[]],
    {"x": 1},
)
BYTES = (
    b"",
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b"[" * 50,
    b"\n",
    b"&a *a",
    b"NaN",
    b"9" * 400,
    b"PK\x03\x04",
    b"\x80\x02",
    b": ",
)


def broken_bytes(data: bytes) -> st.SearchStrategy[bytes]:
    """The content with some bytes replaced, taken out or put in, or its end cut off."""
    at = st.integers(0, len(data))

    def apply(edits: list[tuple[int, int, bytes]]) -> bytes:
        found = data
        for start, length, new in edits:
            found = found[:start] + new + found[start + length :]
        return found

    new = st.one_of(st.sampled_from(BYTES), st.binary(max_size=4))
    return st.lists(st.tuples(at, st.sampled_from([0, 1, 4, 30, len(data)]), new), min_size=1, max_size=3).map(apply)


def broken_value(value: Any) -> st.SearchStrategy[Any]:
    """A value of JSON or YAML with something in it replaced, taken out or renamed."""
    places = list(_places(value))

    def apply(edits: list[tuple[tuple[Any, ...], Any, str]]) -> Any:
        found = json.loads(json.dumps(value))
        for place, new, how in edits:
            found = _edited(found, place, new, how)
        return found

    edit = st.tuples(
        st.sampled_from(places), st.sampled_from(NASTY), st.sampled_from(["put", "put", "put", "take out", "rename"])
    )
    return st.lists(edit, min_size=1, max_size=2).map(apply)


def broken(file: Path) -> st.SearchStrategy[bytes]:
    """Broken content of a file: byte by byte, and by what it holds."""
    data = file.read_bytes()
    kinds = [broken_bytes(data)]
    if file.suffix == ".json":
        kinds.append(broken_value(json.loads(data)).map(lambda v: json.dumps(v).encode()))
    elif file.suffix == ".jsonl":
        lines = [json.loads(line) for line in data.splitlines()]
        kinds.append(
            broken_value(lines).map(
                lambda v: "".join(json.dumps(x) + "\n" for x in (v if isinstance(v, list) else [v])).encode()
            )
        )
    elif file.suffix == ".yaml":
        kinds.append(broken_value(yaml.safe_load(data)).map(lambda v: yaml.safe_dump(v).encode("utf-8", "replace")))
    elif file.suffix == ".safetensors":
        tensors = safetensors.torch.load(data)
        kinds.append(st.tuples(st.sampled_from(sorted(tensors)), st.sampled_from(TENSORS)).map(_retensored(tensors)))
    elif file.suffix == ".parquet":
        table = pq.read_table(file)
        kinds.append(st.tuples(st.sampled_from(table.column_names), st.sampled_from(COLUMNS)).map(_retabled(table)))
        facts = json.loads(table.schema.metadata.get(b"varlora", b"{}")) if table.schema.metadata else {}
        if facts:
            kinds.append(
                broken_value(facts).map(
                    lambda v: _parquet(table.replace_schema_metadata({"varlora": json.dumps(v).encode()}))
                )
            )
    elif file.suffix == ".pt":
        kinds.append(st.tuples(st.integers(0, 40), st.sampled_from(NASTY)).map(_restated(file)))
    return st.one_of(kinds)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Any:
    yield at
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _places(item, (*at, key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _places(item, (*at, i))


def _edited(value: Any, place: tuple[Any, ...], new: Any, how: str) -> Any:
    if not place:
        return new
    key, rest = place[0], place[1:]
    if not isinstance(value, (dict, list)) or (isinstance(value, list) and not isinstance(key, int)):
        return value
    if key not in (value if isinstance(value, dict) else range(len(value))):
        return value
    if rest:
        value[key] = _edited(value[key], rest, new, how)
    elif how == "put":
        value[key] = new
    else:
        taken = value.pop(key)
        if how == "rename" and isinstance(value, dict):
            value[f"{key}x"] = taken
    return value


TENSORS: tuple[Callable[[torch.Tensor], torch.Tensor | None], ...] = (
    lambda t: None,
    lambda t: t.to(torch.int64),
    lambda t: t.to(torch.bfloat16),
    lambda t: t.to(torch.float64),
    lambda t: t.to(torch.bool),
    lambda t: torch.full_like(t, float("nan")) if t.is_floating_point() else t,
    lambda t: torch.full_like(t, float("inf")) if t.is_floating_point() else t,
    lambda t: -t if t.is_floating_point() else t,
    lambda t: t[None],
    lambda t: t.flatten(),
    lambda t: t.new_zeros(0),
    lambda t: t.new_zeros(*t.shape, 0),
    lambda t: t.new_zeros(0, 1 << 40),
    lambda t: t.new_zeros(()),
    lambda t: t.new_zeros(1, 1000),
)


def _retensored(tensors: Mapping[str, torch.Tensor]) -> Callable[[tuple[str, Any]], bytes]:
    def apply(edit: tuple[str, Any]) -> bytes:
        name, change = edit
        new = change(tensors[name])
        changed = {key: t for key, t in tensors.items() if key != name}
        changed[f"{name}x" if new is None else name] = tensors[name] if new is None else new.contiguous()
        return safetensors.torch.save(changed, metadata={"format": "pt"})

    return apply


COLUMNS: tuple[Callable[[Any, str], Any], ...] = (
    lambda table, name: table.drop_columns([name]),
    lambda table, name: table.slice(0, 0),
    lambda table, name: table.rename_columns([f"{c}x" if c == name else c for c in table.column_names]),
    lambda table, name: _with_column(table, name, [None] * len(table)),
    lambda table, name: _with_column(table, name, [None, *table[name].to_pylist()[1:]]),
    lambda table, name: _with_column(table, name, ["x"] * len(table)),
    lambda table, name: _with_column(table, name, [[]] * len(table)),
    lambda table, name: _with_column(table, name, [10**9] * len(table)),
    lambda table, name: _like_column(table, name, lambda v: v[:-1] if isinstance(v, list) else v),
    lambda table, name: _like_column(table, name, lambda v: [] if isinstance(v, list) else v),
    lambda table, name: _like_column(table, name, lambda v: 10**9 if isinstance(v, int) else v),
    lambda table, name: _like_column(table, name, lambda v: [float("nan")] * len(v) if isinstance(v, list) else v),
)


def _with_column(table: Any, name: str, values: list[Any]) -> Any:
    import pyarrow as pa

    return table.set_column(table.column_names.index(name), name, pa.array(values))


def _like_column(table: Any, name: str, change: Callable[[Any], Any]) -> Any:
    """The first row's value changed, in the column's own type where it will do."""
    import pyarrow as pa

    values = table[name].to_pylist()
    values[0] = change(values[0])
    try:
        column = pa.array(values, table[name].type)
    except (pa.ArrowException, TypeError, ValueError):
        return table
    return table.set_column(table.column_names.index(name), name, column)


def _retabled(table: Any) -> Callable[[tuple[str, Any]], bytes]:
    return lambda edit: _parquet(edit[1](table, edit[0]).replace_schema_metadata(table.schema.metadata))


def _parquet(table: Any) -> bytes:
    import io

    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


def _restated(file: Path) -> Callable[[tuple[int, Any]], bytes]:
    import io

    def apply(edit: tuple[int, Any]) -> bytes:
        content = torch.load(file, weights_only=True)
        flat = [
            *((content, key) for key in content),
            *((group, key) for group in content["param_groups"] for key in group),
            *((entry, key) for entry in content["state"].values() for key in entry),
        ]
        holder, key = flat[edit[0] % len(flat)]
        holder[key] = edit[1]
        target = io.BytesIO()
        torch.save(content, target)
        return target.getvalue()

    return apply
