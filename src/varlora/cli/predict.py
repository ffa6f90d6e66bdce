"""`varlora predict`: a `Predictor`'s answers to the rows of a file, beside the rows' own columns."""

from __future__ import annotations

import json
import logging
import sys
from argparse import Namespace
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from rich.markup import escape
from transformers.utils import logging as progress_bars

from varlora.cli.console import on_stderr, out, say
from varlora.cli.finished import check_new_file, read_finished, read_first
from varlora.cli.selective import calibrate_by_options, report_of, say_caveats, say_sets, say_threshold, wanted_of
from varlora.io.files import finite
from varlora.io.folders import atomic_file, find_interrupted
from varlora.io.words import counted
from varlora.metrics import check_exchangeability
from varlora.prediction.prediction_setup import explain_point
from varlora.predictor.answer import Answer, TextAnswer
from varlora.predictor.answering import BATCHES_A_CHUNK
from varlora.predictor.predictor import Predictor, stored_decision
from varlora.predictor.reader import RowReader
from varlora.runs.choose_decision import choose_decision
from varlora.runs.data import stream_new_rows
from varlora.runs.decision import Decision
from varlora.runs.setting import reload_model
from varlora.tasks.files import reads_once
from varlora.tasks.rows import Records

logger = logging.getLogger(__name__)

ANSWERS: Mapping[str, str] = {
    "prediction": "label",
    "confidence": "probability",
    "probabilities": "probabilities",
    "predictive_entropy": "entropy",
    "mutual_information": "mutual_information",
    "answered": "answered",
    "set": "prediction_set",
    "band": "band",
    "expected_cost": "expected_cost",
    "intervals": "intervals",
    "draws_taken": "draws_taken",
}
"""Columns that are written beside a row's own, and the fields of an `Answer` that stand in them, where it has them."""
TEXTS = ("prediction", "agreement", "answers", "text", "log_likelihood_per_token", "finished")
"""Those of a run on completions."""
FORMATS = (".jsonl", ".parquet")
STANDARD_OUTPUT = "-"


def execute(arguments: Namespace) -> None:
    """Predicts and writes."""
    with on_stderr() if arguments.output_file == STANDARD_OUTPUT else nullcontext():
        _execute(arguments)


def _execute(arguments: Namespace) -> None:
    wanted = wanted_of(arguments)
    target = None
    if arguments.output_file != STANDARD_OUTPUT:
        target = check_new_file(arguments.output_file, overwrite=arguments.overwrite)
        assert target is not None
        if target.suffix not in FORMATS:
            allowed = f"{' or '.join(FORMATS)}, or be {STANDARD_OUTPUT} for standard output"
            raise ValueError(f"--output_file is {target}; its name must end in {allowed}.")
    until_sure = arguments.samples == "auto"
    if until_sure and wanted is not None:
        raise ValueError(
            "--samples auto takes as many draws as each row needs, and thresholds and sets are chosen for one number "
            "of draws; give the number."
        )
    some = read_first(arguments, arguments.input_file)
    run, settings, config = read_finished(arguments, some, judged=False)
    if until_sure and run.facts["task"]["kind"] == "completion":
        raise ValueError("--samples auto is for answers; for texts give a number.")
    reader = RowReader(run=run, config=settings)
    size = BATCHES_A_CHUNK * settings.per_device_eval_batch_size
    again = not reads_once(arguments.input_file)

    def parts() -> Iterator[Records]:
        file, columns = arguments.input_file, arguments.dataset_columns
        return stream_new_rows(file, settings, size, labelled=False, columns=columns)

    if again:  # before the model is loaded
        first = next(parts())
        reader.read(first)
        _Checked(kind=reader.kind).add(first)
    decision = None
    if wanted is None and not arguments.undecided:
        decision = stored_decision(run, untuned=arguments.untuned)
    if arguments.check_exchangeability is not None and wanted is None and decision is None:
        raise ValueError(
            "--check_exchangeability compares the rows with those that a decision was chosen on, and there is none: "
            "`varlora decide` first, or --coverage, --target_accuracy or --prediction_sets."
        )
    loaded = reload_model(run)
    if wanted is not None:
        calibration = calibrate_by_options(arguments, run, config, reported=(), loaded=loaded)
        decision = choose_decision(wanted, calibration)
    predictor = Predictor(
        run=run, loaded=loaded, config=config, decision=decision, reader=reader, until_sure=until_sure
    )
    total = None
    if again:  # all of them, before anything is predicted
        checked = _Checked(kind=reader.kind)
        for records in parts():
            predictor.check(records)
            checked.add(records)
        total = checked.rows
    counts = _Counts()
    with _writer(target, overwrite=arguments.overwrite) as write:
        checked = _Checked(kind=reader.kind)
        shown = not arguments.no_progress
        with progress_bars.tqdm(total=total, desc="predict", unit="row", disable=not shown) as bar:
            for records in parts():
                checked.add(records)
                answers: list[Answer | TextAnswer] = list(predictor.answers(records))
                counts.add(answers)
                write([_beside(row, answer) for row, answer in zip(_given(records), answers, strict=True)])
                bar.update(len(answers))
    _say(counts, predictor, target, at_most=until_sure)
    if arguments.samples is arguments.mode is None and run.config.samples and (why := explain_point(run.posterior)):
        say(f"One pass, since {why} (--samples {run.config.samples}: draws).")
    if decision is not None:
        _say_decided(counts, decision)
        if (alpha := arguments.check_exchangeability) is not None:
            check = check_exchangeability(decision.reference, counts.confidences, alpha=alpha)
            out.print(check.sentence, highlight=False, soft_wrap=True, style=None if check.exchangeable else "bold")


@dataclass
class _Checked:
    """Parts of a file, of which no column is written over, and each row has an id of its own."""

    kind: str
    rows: int = 0
    _lines: dict[str, int] = field(default_factory=dict)

    def add(self, records: Records) -> None:
        """Raises for what does not go with the parts before it."""
        _check_columns(records, TEXTS if self.kind == "completion" else ANSWERS)
        for index, row in enumerate(records.rows):
            if isinstance(name := row.get("id"), (str, int)):
                before = self._lines.setdefault(str(name), records.first + index)
                if before != records.first + index:
                    same = f"an id of its own ({records.unit} {before + 1} has the same)"
                    raise records.error(index, "id", name, same)
        self.rows += len(records.rows)


def _check_columns(records: Records, ours: Collection[str]) -> None:
    """Refuses rows which have a column that is to be written beside them."""
    if taken := [column for column in ours if any(column in row for row in _given(records))]:
        raise ValueError(
            f"{records.where} has the columns {', '.join(taken)}, which `varlora predict` writes; rename them, as the "
            "other columns are kept beside the answers."
        )


def _given(records: Records) -> Sequence[Mapping[str, Any]]:
    """The rows with the names that the file has."""
    return records.as_given if records.as_given is not None else records.rows


def _beside(row: Mapping[str, Any], answer: Answer | TextAnswer) -> dict[str, Any]:
    """A row as it was given, its id first, with what is answered."""
    fields = answer.to_dict()
    if isinstance(answer, Answer):
        columns = {column: fields[name] for column, name in ANSWERS.items() if fields[name] is not None}
    else:
        fields["prediction"] = answer.answer
        fields["answers"] = [{"answer": one, "share": share} for one, share in answer.answers.items()]
        single = answer.agreement is None
        columns = {column: fields[column] for column in TEXTS if not (single and column in ("agreement", "answers"))}
    return {"id": row.get("id", answer.id), **row, **columns}


class _Writer:
    """Writes rows as they come: lines of JSON, or at the end a Parquet table, which has one type a column."""

    def __init__(self, stream: BinaryIO | None) -> None:
        self.stream, self.held = stream, list[dict[str, Any]]()

    def __call__(self, rows: Sequence[dict[str, Any]]) -> None:
        if self.stream is None:
            self.held += rows
            return
        for row in rows:
            self.stream.write(f"{json.dumps(finite(row), ensure_ascii=False, default=str)}\n".encode())
        self.stream.flush()


@contextmanager
def _writer(target: Path | None, *, overwrite: bool) -> Iterator[_Writer]:
    """Writes to a file, whole or not at all, or to standard output."""
    if target is None:
        yield _Writer(sys.stdout.buffer)
        return
    if left := find_interrupted(target):
        logger.warning("an interrupted prediction left %s; delete it, unless one still runs", ", ".join(map(str, left)))
    with atomic_file(target, overwrite=overwrite) as file:
        if target.suffix == ".parquet":
            writer = _Writer(None)
            yield writer
            _write_table(writer.held, file)
        else:
            with file.open("wb") as stream:
                yield _Writer(stream)


def _write_table(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    columns = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pa.table({name: [row.get(name) for row in rows] for name in columns})
    except (pa.ArrowException, OverflowError) as error:
        raise ValueError(
            f"the columns of the input do not fit into a Parquet table, which holds one type a column: {error}. "
            "Write a .jsonl file."
        ) from error
    pq.write_table(table, file)


@dataclass
class _Counts:
    """What is said of all answers at the end."""

    rows: int = 0
    answered: int = 0
    in_sets: int = 0
    confidences: list[float] = field(default_factory=list)

    def add(self, answers: Sequence[Answer | TextAnswer]) -> None:
        """Counts."""
        self.rows += len(answers)
        for answer in answers:
            if isinstance(answer, Answer):
                self.answered += answer.answered is True
                self.in_sets += len(answer.prediction_set or ())
                self.confidences.append(max(answer.probabilities.values()))


def _say(counts: _Counts, predictor: Predictor, target: Path | None, *, at_most: bool) -> None:
    draws = f"{'at most ' if at_most else ''}{counted(predictor.num_draws, 'draw')}"
    how = {
        "samples": f"the {'majority' if predictor.kind == 'completion' else 'average'} over {draws}",
        "linearised": f"the average over {draws} of the linearised model's logits",
    }.get(predictor.config.canonical.mode, "the posterior's mean")
    where = "standard output" if target is None else f"[bold]{escape(str(target))}[/bold]"
    out.print(f"{counted(counts.rows, 'row')} answered by {how}; written to {where}.")


def _say_decided(counts: _Counts, decision: Decision) -> None:
    report = report_of(decision, {})
    if decision.threshold is not None:
        say(f"{counts.answered} of them sure enough (`answered` in the file).")
        say_threshold(report)
    elif decision.costs is not None:
        say(f"{counts.answered} of them cost less to answer than to leave (`answered` in the file).")
    if decision.sets is not None:
        size = counts.in_sets / counts.rows
        say(f"{size:.2f} answers in a set on average (`set` in the file).")
        say_sets(report)
    say_caveats(report)
