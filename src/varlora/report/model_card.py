"""The README.md of a run folder: what the adapter is, how it did, how to load it, what to beware of.

Built from plain dictionaries, as they stand in the folder's JSON files, and valid as a model card of the Hugging Face
Hub. The licence is the user's to choose and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml

from varlora.io.words import listing
from varlora.metrics import Metric, metric_named, shown_metrics
from varlora.posterior.meta import logit_temperature_in
from varlora.report.health import Health
from varlora.report.health_text import mode_in_words, remarks, scale_table, sentence, statements
from varlora.report.markdown import escape_markdown, inline_code
from varlora.report.tables import Cell, Number, Table
from varlora.report.vocabulary import coldness, fitted, learning, show
from varlora.tasks.overlap import overlap_in_words
from varlora.tasks.unread import unread_in_words

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_VARIANTS = {
    "mean": "at the mean",
    "samples": "averaged over samples",
    "linearised": "linearised",
    "pruned": "pruned, averaged over samples",
}
_HELD = {
    "diagonal_gaussian": ("the mean of the weights", "their precision (1 / variance)"),
    "kronecker_gaussian": ("the mean of the weights", "the Kronecker factors of their precision"),
    "low_rank_gaussian": ("the mean of the weights", "the diagonal and the directions of their covariance"),
    "mixture": ("the first of several adapters", "the others, over whose answers"),
    "dropout_masks": ("the weights", "the rate of the dropout that stays on, with which"),
}
"""What the adapter's file and the file beside it hold, by kind."""


def model_card(
    *,
    name: str,
    kind: str,
    meta: Mapping[str, Any],
    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]],
    task: Mapping[str, Any] | None = None,
    versions: Mapping[str, str] | None = None,
    health: Health | None = None,
) -> str:
    """The card as Markdown with YAML front matter.

    Args:
        name: Of the run; its folder's name.
        kind: The posterior's kind, as in posterior.json.
        meta: The fields of `PosteriorMeta`, as in posterior.json; what is missing is left out.
        metrics: Content of metrics.json: {split: {"mean": {...}, "samples": {...}}}.
        task: Name, kind, answers, source, licence, notes, not_read, rows and overlap of the task, as far as known.
        versions: Of the libraries.
        health: How the posterior does.

    Example:
        >>> card = model_card(name="run-1", kind="point_mass", meta={"method": "adamw"}, metrics={})
        >>> card.splitlines()[:3]
        ['---', 'library_name: peft', 'tags:']
    """
    sections = [
        f"# {escape_markdown(name)}",
        _what_it_is(kind, meta),
        *_task_section(task or {}),
        *_metrics_section(metrics, meta),
        *_health_section(health, name),
        *_loading_section(name, kind, meta),
        "## Limitations\n\n" + _bullets(_limitations(kind, meta, measured=bool(metrics))),
        *_versions_section(versions or {}),
    ]
    return _front_matter(kind, meta) + "\n\n".join(sections) + "\n"


def _front_matter(kind: str, meta: Mapping[str, Any]) -> str:
    front: dict[str, Any] = {}
    if base := _hub_id(meta.get("base_model")):
        front["base_model"] = base
    front["library_name"] = "peft"
    if task := _PIPELINES.get((meta.get("readout") or {}).get("kind", "")):
        front["pipeline_tag"] = task
    front["tags"] = ["varlora", "lora", "calibration"]
    if kind != "point_mass":
        front["tags"] += ["bayesian", "uncertainty"]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"


_PIPELINES = {
    "answer_tokens": "text-generation",
    "choice_texts": "text-generation",
    "class_head": "text-classification",
}


def _what_it_is(kind: str, meta: Mapping[str, Any]) -> str:
    base = meta.get("base_model")
    of = f" of {inline_code(base if _hub_id(base) else PurePath(base).name)}" if base else ""
    method = escape_markdown(str(meta.get("method", "unknown")))
    trained = f", trained with the method {method}" + (
        f" on {meta['num_examples']:,} examples" if meta.get("num_examples") else ""
    )
    if kind == "point_mass":
        return f"A LoRA adapter{of}{trained}. It holds one set of weights and no uncertainty about them."
    point, beside = _HELD[kind]
    how = {
        "mixture": "averages to say how sure an answer is",
        "dropout_masks": "predicts several times to say how sure an answer is",
    }.get(kind, "draws weights to say how sure an answer is")
    if kind not in ("mixture", "dropout_masks"):
        beside += ", from which"
    return (
        f"A LoRA adapter{of} **with its posterior**{trained}. `adapter_model.safetensors` holds {point} and is an "
        f"ordinary PEFT adapter; `posterior.safetensors` holds {beside} "
        f"[varlora](https://pypi.org/project/varlora/) {how}."
    )


def _task_section(task: Mapping[str, Any]) -> list[str]:
    if not task:
        return []
    lines = []
    if answers := task.get("answers"):
        lines.append(f"Answers: {listing([inline_code(answer) for answer in answers])}.")
    for field in ("source", "licence"):
        if task.get(field):
            lines.append(f"{field.capitalize()} of the data: {escape_markdown(str(task[field]))}.")
    lines += [escape_markdown(str(note)) for note in task.get("notes") or ()]
    if unread := unread_in_words(task.get("not_read") or {}, task.get("rows") or {}):
        lines.append(escape_markdown(f"Columns of the data {unread}."))
    if shared := overlap_in_words(task.get("overlap") or {}, task.get("rows") or {}):
        lines.append(escape_markdown(shared))
    heading = f"## Task: {escape_markdown(str(task.get('name', 'unnamed')))}"
    return [heading, *([_bullets(lines)] if lines else [])]


def _metrics_section(metrics: Mapping[str, Mapping[str, Mapping[str, Any]]], meta: Mapping[str, Any]) -> list[str]:
    measured = [(split, variant, values) for split, variants in metrics.items() for variant, values in variants.items()]
    names = shown_metrics("classes", "completions", "final_answers")
    shown = [metric_named(name) for name in names if any(values.get(name) is not None for *_, values in measured)]
    if not shown:
        return []
    rows = tuple(
        (
            f"{split}, {mode_in_words(_VARIANTS.get(variant, variant), _temperature(meta, variant))}",
            tuple(_cell(how, values.get(how.name)) for how in shown),
        )
        for split, variant, values in measured
    )
    meanings = _bullets([f"**{how.title}**: {how.meaning}." for how in shown])
    table = Table(
        caption="One training run; metrics.json has every metric.",
        headings=("Split", *(how.heading for how in shown)),
        rows=rows,
    )
    return [f"## Results\n\n{table.to_markdown()}\n\n{meanings}"]


def _cell(how: Metric, value: float | None) -> Cell:
    return Cell() if value is None else Cell(lines=((Number(how.show(value), value),),))


def _health_section(health: Health | None, name: str) -> list[str]:
    if health is None:
        return []
    words = "\n\n".join([f"**{_prose(sentence(health))}**", *(_prose(text) for text in remarks(health, name))])
    lines = [
        f"**{escape_markdown(what)}**: {escape_markdown(value)} {escape_markdown(meaning)}."
        for what, value, meaning in statements(health)
    ]
    table = scale_table(health)
    return [
        f"## Health of the posterior\n\n{words}",
        *([_bullets(lines)] if lines else []),
        *([table.to_markdown()] if table is not None else []),
    ]


def _prose(text: str) -> str:
    """Text in which code stands between backticks."""
    return "".join(
        inline_code(part) if i % 2 else f"{' ' * part[:1].isspace()}{escape_markdown(part)}{' ' * part[-1:].isspace()}"
        for i, part in enumerate(text.split("`"))
    )


def _loading_section(name: str, kind: str, meta: Mapping[str, Any]) -> list[str]:
    if meta.get("adapter_config") is None or not meta.get("base_model"):
        return []
    readout = (meta.get("readout") or {}).get("kind")
    auto = "AutoModelForSequenceClassification" if readout == "class_head" else "AutoModelForCausalLM"
    classes = (meta["readout"].get("classes") or ()) if readout == "class_head" else ()
    labels = f", num_labels={len(classes)}" if classes else ""
    folder = f"path/to/{name}"
    mean = f"""\
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({meta["base_model"]!r}{labels})
model = PeftModel.from_pretrained(base, {folder!r})"""
    alone = "its first adapter" if kind == "mixture" else "at the mean"
    sections = [f"## How to load it\n\nWith PEFT alone, {alone}:\n\n```python\n{mean}\n```"]
    if readout:
        module, call, averaged = "prediction", "predict(model, q, batches, samples=10", "# (N, C), averaged over draws"
        if kind == "point_mass":
            call, averaged = "predict(model, q, batches, samples=0", "# (N, C)"
        elif ((meta.get("diagnostics") or {}).get("sampling") or {"helps": True}).get("helps") is not True:
            call, averaged = "predict(model, q, batches, samples=0", "# (N, C); draws were not shown to help"
        elif meta.get("linearised"):
            module, call = "linearised", "predict_linearised(model, q, batches"
        read = ", by how likely each choice's text is behind the question" if readout == "choice_texts" else ""
        sections.append(f"""\
With varlora, probabilities of the answers{read} (`batches`: token ids as `varlora.tasks.Collator` makes them):

```python
from varlora.posterior.folder import load_posterior
from varlora.{module} import {call.split("(")[0]}
from varlora.readout.readout import readout_from_dict

q = load_posterior({folder!r})
prediction = {call}, readout=readout_from_dict(q.meta.readout))
prediction.probs  {averaged}
```""")
    return sections


def _limitations(kind: str, meta: Mapping[str, Any], *, measured: bool) -> list[str]:
    lines = ["How far its confidence can be trusted has not been measured."]
    if measured:
        lines = ["Its confidence was measured on the data above; on other data it may be off."]
    diagnostics = meta.get("diagnostics") or {}
    moved = (diagnostics.get("hessian_moved") or {}).get("overall")
    if kind != "point_mass" and meta.get("ess") and meta.get("num_examples"):
        compared = coldness(meta["ess"], meta["num_examples"], moved, fit=bool(diagnostics.get("fit_variance")))
        if (diagnostics.get("counted") or {}).get("mean_over") == "tokens":
            compared = (
                "The loss is a mean over tokens, so λ/N says nothing of Bayes' rule, which is λ = number of tokens"
            )
        lines.append(f"λ = {show(float(meta['ess']))}. {compared}.")
    if moved is not None:
        lines.append(f"The Hessian estimate moved by {100 * moved:.3g} % (median) from its start: {learning(moved)}.")
    for group in diagnostics.get("fit_variance") or ():
        lines.append(f"The standard deviation was {group['variance'] ** 0.5:.2g}, {fitted(group)}.")
    if divided := _divided(kind, meta):
        lines.append(f"The logits are to be divided by {divided}: varlora does it, PEFT does not.")
    for mode, fit in (diagnostics.get("logit_temperature") or {}).items():
        lines.append(f"T = {fit['value']:.4g} {_VARIANTS[mode]} was decided on {fit['rows']} validation rows.")
    lines += [f"After training: {_operation(operation)}." for operation in meta.get("history") or ()]
    if kind != "point_mass":
        lines.append("Merged into the base model, it can no longer be sampled.")
    return lines


def _temperature(meta: Mapping[str, Any], mode: str) -> float:
    """What divides the logits of predictions of a mode."""
    return float(logit_temperature_in(meta.get("logit_temperatures") or {}, mode))


def _divided(kind: str, meta: Mapping[str, Any]) -> str:
    """Each mode's temperature in words; empty where all are 1."""
    modes = (
        ("mean",) if kind == "point_mass" else ("mean", "samples", *(("linearised",) if meta.get("linearised") else ()))
    )
    temperatures = {mode: _temperature(meta, mode) for mode in modes}
    if all(temperature == 1 for temperature in temperatures.values()):
        return ""
    if len(set(temperatures.values())) == 1:
        return f"{temperatures['mean']:.4g}"
    return listing([f"{temperatures[mode]:.4g} {_VARIANTS[mode]}" for mode in temperatures])


def _operation(operation: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{key} {show(value)}" for key, value in operation.items() if key != "op")
    name = str(operation.get("op", "unknown operation"))
    return escape_markdown(f"{name} ({settings})" if settings else name)


def _versions_section(versions: Mapping[str, str]) -> list[str]:
    text = ", ".join(f"{escape_markdown(library)} {escape_markdown(str(v))}" for library, v in versions.items())
    return [f"Written with {text}."] if text else []


def _hub_id(base: Any) -> str | None:
    """`base` if it can be a name on the Hub, and not a folder here."""
    if isinstance(base, str) and _HUB_ID.fullmatch(base) and not Path(base).exists():
        return base
    return None


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
