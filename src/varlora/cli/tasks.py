"""`varlora tasks`: the named tasks, one of them in detail, and the shapes of one's own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table

from varlora.cli.console import out, say
from varlora.io.nearest import nearest
from varlora.tasks import PROMPT_STYLES, TASKS, Task, answer_tokens, count_overlap, keep_num_choices
from varlora.tasks.named import Benchmark
from varlora.tasks.overlap import overlap_in_words
from varlora.tasks.rows import LISTED_LABELS, SHAPES
from varlora.tasks.tokens import SharedTokenError
from varlora.tasks.unread import unread_in_words

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def execute(arguments: Namespace) -> None:
    """Prints the tables."""
    if arguments.name is None:
        given = [n for n in ("prompt_style", "model_name_or_path", "task_dir", "load") if getattr(arguments, n)]
        if given:
            raise ValueError(f"--{given[0]} has no effect without the NAME of a task; `varlora tasks` lists them.")
        _list()
        return
    if arguments.name not in TASKS:
        raise ValueError(f"unknown task {arguments.name!r}; {nearest(arguments.name, TASKS)}")
    task = TASKS[arguments.name]
    out.print(f"[bold cyan]{arguments.name}[/bold cyan]")
    if isinstance(task, Benchmark):
        _show(task)
        tokenizer = None
        if arguments.model_name_or_path is not None:
            from transformers import AutoTokenizer  # the list need not wait for it

            from varlora.runs.base_model import pretrained_name

            tokenizer = AutoTokenizer.from_pretrained(pretrained_name(arguments.model_name_or_path))
        worded = list(PROMPT_STYLES) if "question" in (task.example or {}) else ["varlora"]
        _show_prompts(task, [arguments.prompt_style] if arguments.prompt_style else worded, tokenizer)
    if arguments.task_dir is not None or arguments.load:
        loaded = task(arguments.task_dir, prompt_style=arguments.prompt_style or "varlora")
        _show_rows(keep_num_choices(loaded, 4) if arguments.choices == "four" else loaded)


def _list() -> None:
    table = Table("--task", "On the hub", "Splits", "Source and licence", show_lines=True)
    for name, task in TASKS.items():
        if isinstance(task, Benchmark):
            hub = task.dataset + (f"\n{task.config}" if task.config else "")
            splits = "\n".join(dict.fromkeys([*task.splits, *task.files]))
            table.add_row(f"[cyan]{name}[/cyan]", hub, splits, f"{task.source}\n[dim]{task.licence}[/dim]")
        else:
            table.add_row(f"[cyan]{name}[/cyan]")
    out.print(table)
    shapes = "\n".join(f"  {' / '.join(fields)}" for fields in SHAPES.values())
    about = "Your own rows (--train_file: JSONL, CSV or Parquet) have the columns of one of"
    say(f"\n{about}:\n{shapes}")
    say("\n[dim]varlora tasks NAME shows one task.[/dim]")


def _show(task: Benchmark) -> None:
    table = Table.grid(padding=(0, 2))
    for heading, text in _facts(task):
        table.add_row(f"[dim]{heading}[/dim]", escape(text))
    out.print(Padding(table, (0, 0, 0, 2)), highlight=False)


def _facts(task: Benchmark) -> Iterator[tuple[str, str]]:
    yield "Source", task.source
    yield "Licence", task.licence
    yield "On the hub", f"{task.dataset}{f', {task.config}' if task.config else ''}"
    for split in dict.fromkeys([*task.splits, *task.files]):
        names = task.files.get(split, ())
        local = names if isinstance(names, str) else " or ".join(names)
        hub = ", ".join(filter(None, [task.configs.get(split), task.splits.get(split)]))
        yield f"Split {split}", f"{f'{hub} on the hub' if hub else 'not on the hub'}; locally {local}"
    if "train" in task.splits and "validation" not in task.splits:
        yield "Split validation", "cut from train (validation_size, data_seed)"
    if task.note:
        yield "Note", task.note
    for deviation in task.deviations:
        yield "Elsewhere", deviation


def _show_prompts(task: Benchmark, styles: list[str], tokenizer: PreTrainedTokenizerBase | None) -> None:
    """The prompt of the task's example in each of the styles, and what may follow it."""
    for name in styles:
        example = task.example_task(name)
        if example is None:
            continue
        row, style = example.rows("example")[0], PROMPT_STYLES[name]
        out.print(Panel(escape(row["prompt"]), title=f"prompt_style {name}", title_align="left", expand=False))
        if example.cloze:
            answered = f"Scored {_scored(row, example.continuations)}"
        else:
            answered = f"Answered by {_answers(task, row['prompt'], example.continuations, tokenizer)}"
        out.print(Padding(answered, (0, 0, 0, 2)), highlight=False)
        lines = [f"Published: {style.source}"] * (name != "varlora") + [
            f"Deviation: {text}" for text in style.deviations
        ]
        for line in lines:
            out.print(Padding(escape(line), (0, 0, 0, 2)), style="dim", highlight=False)


def _answers(task: Benchmark, prompt: str, answers: tuple[str, ...], tokenizer: PreTrainedTokenizerBase | None) -> str:
    if task.example is not None and "completion" in task.example:
        return escape(f"a text such as {task.example['completion']!r}")
    if task.label_names is None and task.example is not None and "label" in task.example:
        return escape("' ' and the name of the class, known by its first token")
    shown = [repr(answer) for answer in answers]
    if tokenizer is not None:
        try:
            tokens = answer_tokens(tokenizer, [prompt], answers)
        except SharedTokenError:
            return escape(f"{', '.join(shown)}, scored as texts, since some begin with one token")
        shown = [f"{answer} (token {token})" for answer, token in zip(shown, tokens, strict=True)]
    return escape(", ".join(shown))


def _scored(row: Mapping[str, Any], continuations: tuple[str, ...]) -> str:
    """The texts that are scored behind a row's prompt, or each behind a prompt of its own."""
    choices = row.get("choices") or [{"prompt": row["prompt"], "text": text} for text in continuations[:LISTED_LABELS]]
    shared = all(choice["prompt"] == row["prompt"] for choice in choices)
    shown = [repr(c["text"]) if shared else f"{c['text']!r} behind {c['prompt']!r}" for c in choices]
    return escape(f"{', '.join(shown)}{', ...' if len(continuations) > len(choices) else ''}")


def _show_rows(task: Task) -> None:
    rows = {split: len(rows) for split, rows in task.splits.items()}
    say(f"Rows: {', '.join(f'{split} {count}' for split, count in rows.items())}.")
    if shared := overlap_in_words(count_overlap(task), rows):
        say(escape(shared))
    for note in filter(None, [*task.notes, unread_in_words(task.not_read, rows)]):
        say(f"[dim]{escape(note)}[/dim]")
