"""Reads a plan from YAML, and says of every mistake where it is and what is allowed."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from varlora.compare.content import Generated
from varlora.compare.plan import CELL, Curve, MethodPlan, Over, Override, Plan
from varlora.compare.variant import Variant
from varlora.io.folders import check_can_be_folder
from varlora.io.nearest import nearest
from varlora.io.yaml_files import load_yaml
from varlora.methods import METHODS
from varlora.metrics import METRICS, shown_metrics
from varlora.runs.config import setting_names
from varlora.runs.text_settings import read_texts

NOTES = ("note", "source")
KNOWN = (
    *("name", "output_dir", "data", "code_versions", "reference", "seeds", "settings", "models", "tasks", "methods"),
    *("overrides", "metrics", "small", "extends", *NOTES),
)
NAME = re.compile(r"[\w][\w.+-]*")


def read_plan(
    file: str | Path,
    *,
    small: bool = False,
    output_dir: str | Path | None = None,
    data: str | Path | None = None,
    seeds: Sequence[int] | None = None,
    code_versions: Sequence[str] = (),
) -> Plan:
    """Reads a plan.

    Args:
        file: the YAML file.
        small: merge the file's section `small` over the rest.
        output_dir: in place of the file's; runs/NAME where neither says, of the small plan with "-small" behind it.
        data: folder that holds the named tasks' folders, in place of the file's.
        seeds: in place of the file's.
        code_versions: other versions of the code whose cells are taken too.

    Raises:
        ValueError: a mistake in the file; the message says where, what is allowed, and what is nearest. Or the
            output folder is a file.
    """
    whole = _load(Path(file))
    where = str(file)
    values = {key: value for key, value in whole.items() if key != "small"}
    _check_keys(whole, KNOWN, where)
    _check_needed(values, where)
    names = {kind: set(_mapping(values[f"{kind}s"], f"{where}: {kind}s")) for kind in CELL[:3]}
    if small and "small" not in whole:
        raise ValueError(f"{where} has no section `small`, which --small asks for. See docs/compare.md.")
    plan: Plan | None = None
    if "small" in whole:  # read in any case, so that a mistake shows before it is used
        merged = _merged(values, _mapping(whole["small"], f"{where}: small"), f"{where}: small")
        _check_needed(merged, f"{where} with --small")
        for kind in CELL[:3]:
            names[kind] |= set(_mapping(merged[f"{kind}s"], f"{where}: small: {kind}s"))
        plan = _plan(merged, f"{where} with --small", names)
    if plan is None or not small:
        plan = _plan(values, where, names)
    else:
        ending = {key: "" if key in whole["small"] else "-small" for key in ("name", "output_dir")}
        folder = Path(f"{plan.output_dir}{ending['output_dir']}")
        plan = dataclasses.replace(plan, name=f"{plan.name}{ending['name']}", output_dir=folder)
    check_can_be_folder(output_dir or plan.output_dir)
    return dataclasses.replace(
        plan,
        output_dir=Path(output_dir or plan.output_dir),
        data=Path(data) if data is not None else plan.data,
        seeds=plan.seeds if seeds is None else _seeds(list(seeds), "seeds"),
        code_versions=tuple(dict.fromkeys([*plan.code_versions, *code_versions])),
    )


def _load(file: Path) -> Mapping[str, Any]:
    """What a file says, on top of what the file that it `extends` says, which lies beside it and extends none."""
    own = dict(load_yaml(file))
    if "extends" not in own:
        return own
    name = _text(own.pop("extends"), f"{file}: extends")
    base = load_yaml(file.parent / name)
    _check_keys(base, [key for key in KNOWN if key != "extends"], f"{file.parent / name}, which {file} extends,")
    return _merged(base, own, str(file))


def _check_needed(values: Mapping[str, Any], where: str) -> None:
    for key in ("name", "reference", "models", "tasks", "methods"):
        if key not in values:
            raise ValueError(f"{where} lacks {key}. A plan has {', '.join(KNOWN[:11])}; see docs/compare.md.")


def _plan(values: Mapping[str, Any], where: str, names: Mapping[str, Collection[str]]) -> Plan:
    known = setting_names(sorted(_methods_in(values) & set(METHODS)))
    models = {
        name: _settings(given, f"{where}: models.{name}", known)
        for name, given in _named(values["models"], f"{where}: models").items()
    }
    for name, model in models.items():
        if "model_name_or_path" not in model and "model_name_or_path" not in (values.get("settings") or {}):
            raise ValueError(f"{where}: models.{name} lacks model_name_or_path.")
    tasks = {
        name: _task(given, f"{where}: tasks.{name}", known)
        for name, given in _named(values["tasks"], f"{where}: tasks").items()
    }
    methods = {
        name: _method(name, given, f"{where}: methods.{name}", known)
        for name, given in _named(values["methods"], f"{where}: methods").items()
    }
    _check_labels(methods, values["reference"], where)
    return Plan(
        name=_name(values["name"], f"{where}: name"),
        output_dir=Path(_text(values.get("output_dir", f"runs/{values['name']}"), f"{where}: output_dir")),
        reference=values["reference"],
        seeds=_seeds(values.get("seeds", [0]), f"{where}: seeds"),
        models=models,
        tasks=tasks,
        methods=methods,
        settings=_settings(values.get("settings"), f"{where}: settings", known),
        overrides=tuple(
            _override(given, f"{where}: overrides[{number}]", names, known)
            for number, given in enumerate(_list(values.get("overrides", []), f"{where}: overrides"))
        ),
        data=Path(_text(values["data"], f"{where}: data")) if values.get("data") is not None else None,
        code_versions=tuple(map(str, _list(values.get("code_versions", []), f"{where}: code_versions"))),
        metrics=_metrics(values.get("metrics", []), f"{where}: metrics"),
        note=_text(values.get("note", ""), f"{where}: note"),
        source=_text(values.get("source", ""), f"{where}: source"),
    )


def _methods_in(values: Any) -> set[str]:
    """The methods that some part of a plan names, whose options may stand in its settings."""
    if isinstance(values, list):
        return set().union(*map(_methods_in, values))
    if not isinstance(values, Mapping):
        return set()
    own = {values["method"]} if isinstance(values.get("method"), str) else set()
    return own.union(*map(_methods_in, values.values()))


def _method(name: str, given: Any, where: str, known: Sequence[str]) -> MethodPlan:
    values = _mapping(given, where)
    _check_keys(values, ("settings", "rows", "curves", *NOTES), where)
    settings = _settings(values.get("settings"), f"{where}.settings", known)
    rows = {
        _text(label, f"{where}.rows"): Variant.from_dict({} if row is None else row, where=f"{where}.rows[{label!r}]")
        for label, row in _mapping(values.get("rows"), f"{where}.rows").items()
    }
    curves = [
        _curve(curve, f"{where}.curves[{number}]")
        for number, curve in enumerate(_list(values.get("curves", []), f"{where}.curves"))
    ]
    if not rows and not curves:
        raise ValueError(f"{where} has neither rows nor curves, so nothing would be shown of it.")
    return MethodPlan(name=name, settings=settings, rows=rows, curves=tuple(curves))


def _curve(given: Any, where: str) -> Curve:
    values = dict(_mapping(given, where))
    over, steps = values.pop("over", None), values.pop("values", None)
    if over not in get_args(Over):
        raise ValueError(f"{where}: over is {over!r}; it must be one of {', '.join(get_args(Over))}.")
    if not isinstance(steps, list) or not steps:
        raise ValueError(f"{where}: values is {steps!r}; it must be a list of values of {over}.")
    for short in ("by", "scope"):
        if short in values:
            if f"prune_{short}" in values:
                raise ValueError(f"{where} has {short} and prune_{short}, which are one field. Leave one of them out.")
            values[f"prune_{short}"] = values.pop(short)
    if over in values:
        raise ValueError(f"{where} has {over} beside `over: {over}`; put its values in `values`.")
    curve = Curve(over=over, values=tuple(steps), variant=Variant.from_dict(values, where=where))
    if "tune" in curve.variant.chosen:
        raise ValueError(f"{where} varies {over}, but with tune: true validation rows choose; make it a row, no curve.")
    try:
        curve.variants()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return curve


def _override(given: Any, where: str, names: Mapping[str, Collection[str]], known: Sequence[str]) -> Override:
    values = _mapping(given, where)
    _check_keys(values, ("when", "settings", *NOTES), where)
    when = {}
    for kind, wanted in _mapping(values.get("when"), f"{where}.when").items():
        if kind not in CELL:
            raise ValueError(f"{where}.when has {kind!r}; {nearest(str(kind), CELL)}")
        when[kind] = tuple(wanted) if isinstance(wanted, list) else (wanted,)
        for value in when[kind]:
            if kind == "seed" and (not isinstance(value, int) or isinstance(value, bool)):
                raise ValueError(f"{where}.when.seed is {value!r}; it must be a whole number.")
            if kind != "seed" and (not isinstance(value, str) or value not in names[kind]):
                raise ValueError(f"{where}.when: the plan has no {kind} {value!r}; {nearest(str(value), names[kind])}")
    if not when or not values.get("settings"):
        raise ValueError(f"{where} must have `when` (of {', '.join(CELL)}) and `settings`.")
    return Override(when=when, settings=_settings(values["settings"], f"{where}.settings", known))


def _task(given: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    settings = _settings(given, where, (*known, "folder", "generated"))
    if (sizes := settings.get("generated")) is not None:
        parts = [f.name for f in dataclasses.fields(Generated)]
        _check_keys(_mapping(sizes, f"{where}.generated"), parts, f"{where}.generated")
        for name, size in sizes.items():
            if not isinstance(size, int) or isinstance(size, bool) or size < (name == "train"):
                raise ValueError(f"{where}.generated: {name} is {size!r}; it must be a whole number.")
    if "folder" in settings:
        _text(settings["folder"], f"{where}.folder")
    return settings


def _settings(given: Any, where: str, known: Sequence[str]) -> dict[str, Any]:
    values = {name: value for name, value in _mapping(given, where).items() if name not in NOTES}
    for name, instead in (("seed", "seeds"), ("output_dir", "output_dir, or --output_dir")):
        if name in values:
            raise ValueError(f"{where} has {name}; a plan says it once, at the top: {instead}.")
    _check_keys(values, known, where)
    try:
        return read_texts(values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _seeds(given: Any, where: str) -> tuple[int, ...]:
    seeds = _list(given, where)
    if not seeds or any(not isinstance(seed, int) or isinstance(seed, bool) or seed < 0 for seed in seeds):
        raise ValueError(f"{where} is {given!r}; it must be a list of whole numbers, with at least one.")
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"{where} is {given!r}; a seed is there twice.")
    return tuple(seeds)


def _metrics(given: Any, where: str) -> tuple[str, ...]:
    """Names of metrics of classes that no table has by itself."""
    names = tuple(dict.fromkeys(map(str, _list(given, where))))
    allowed = [metric.name for metric in METRICS.values() if metric.kind == "classes" and metric.better is not None]
    for name in names:
        if name not in allowed:
            raise ValueError(f"{where} has {name!r}, by which rows are not compared; {nearest(name, allowed)}")
    return tuple(name for name in names if name not in shown_metrics())


def _check_labels(methods: Mapping[str, MethodPlan], reference: Any, where: str) -> None:
    owner: dict[str, str] = {}
    for method in methods.values():
        for label in method.rows:
            if label in owner:
                raise ValueError(
                    f"{where}: the row {label!r} is there twice, in methods.{owner[label]} and methods.{method.name}; "
                    "give each a label of its own."
                )
            owner[label] = method.name
    if not isinstance(reference, str) or reference not in owner:
        raise ValueError(f"{where}: reference is {reference!r}, which is no row; {nearest(str(reference), owner)}")


def _merged(base: Mapping[str, Any], over: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`over` on top of `base`, key by key; null takes a key out, and `replace: true` takes a mapping as it is."""
    result = dict(base)
    for key, value in over.items():
        if value is None:
            if key not in result:
                near = nearest(str(key), map(str, result))
                raise ValueError(f"{where}: {key} is null, which takes it out, but it is not there; {near}")
            del result[key]
        elif isinstance(value, Mapping) and value.get("replace") is True:
            result[key] = {name: part for name, part in value.items() if name != "replace"}
        elif isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = _merged(result[key], value, f"{where}.{key}")
        else:
            result[key] = value
    return result


def _check_keys(values: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in values:
        if name not in known:
            raise ValueError(f"{where} has {name!r}, which is unknown; {nearest(str(name), known)}")


def _named(given: Any, where: str) -> Mapping[str, Any]:
    values = _mapping(given, where)
    if not values:
        raise ValueError(f"{where} is empty; name at least one.")
    for name in values:
        _name(name, where)
    return values


def _name(given: Any, where: str) -> str:
    if not isinstance(given, str) or not NAME.fullmatch(given):
        raise ValueError(
            f"{where}: {given!r} will be a folder's name, so it may have letters, digits and . _ + - only, and must "
            "begin with a letter or a digit."
        )
    return given


def _mapping(given: Any, where: str) -> Mapping[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        _refuse(given, where, "a mapping of names to values")
    return given


def _list(given: Any, where: str) -> list[Any]:
    if not isinstance(given, list):
        _refuse(given, where, "a list")
    return given


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str):
        _refuse(given, where, "text")
    return given


def _refuse(given: Any, where: str, allowed: str) -> NoReturn:
    raise ValueError(f"{where} is {given!r}; it must be {allowed}.")
