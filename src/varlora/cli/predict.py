"""`varlora predict`: answers and uncertainties for rows without labels."""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.markup import escape

from varlora.cli.console import out
from varlora.cli.finished import check_new_file, load_finished, read_finished
from varlora.cli.selective import chosen, report_of, say_caveats, say_sets, say_threshold, wanted_of
from varlora.io.files import finite
from varlora.io.folders import atomic_file
from varlora.metrics import mutual_information, predictive_entropy
from varlora.prediction.generation import Generations
from varlora.prediction.prediction import Prediction
from varlora.prediction.prediction_setup import explain_point
from varlora.runs.data import load_new_rows, read_new_rows
from varlora.runs.decision import Decision
from varlora.runs.generation import generate_split
from varlora.runs.run import predict_split
from varlora.tasks.rows import Records

SPLIT = "input"
ANSWERS = ("prediction", "confidence", "probabilities", "predictive_entropy", "mutual_information", "answered", "set")
TEXTS = ("prediction", "agreement", "answers", "text", "log_likelihood_per_token", "finished")
"""What is written beside a row's own columns, of classes and of completions."""
FORMATS = (".jsonl", ".parquet")


def execute(arguments: Namespace) -> None:
    """Predicts and writes."""
    wanted = wanted_of(arguments)
    target = check_new_file(arguments.output_file, overwrite=arguments.overwrite)
    assert target is not None
    if target.suffix not in FORMATS:
        raise ValueError(f"--output_file is {target}; its name must end in {' or '.join(FORMATS)}.")
    run, settings, config = read_finished(arguments, judged=False)
    asked = read_new_rows(arguments.input_file, settings, columns=arguments.dataset_columns, labelled=False)
    task = load_new_rows(asked, run, settings, split=SPLIT, labelled=False)
    given = asked.as_given or asked.rows
    _check_columns(asked, given, TEXTS if run.facts["task"]["kind"] == "completion" else ANSWERS)
    setting = load_finished(run, settings, task)
    selected = chosen(wanted, arguments, run, setting, config) if wanted is not None else None
    q, progress = run.posterior, not arguments.no_progress
    prediction: Prediction | Generations
    if setting.readout is None:
        prediction = generate_split(setting, q, SPLIT, config, judged=False, progress=progress)
        records = list(_texts(prediction))
    else:
        answered = predict_split(setting, q, SPLIT, config, progress=progress)
        assert isinstance(answered, Prediction)
        prediction, records = answered, list(_answers(answered))
        if selected is not None:
            _select(records, selected, answered)
    with atomic_file(target, overwrite=arguments.overwrite) as file:
        _write([_beside(*both) for both in zip(given, records, strict=True)], file, target.suffix)
    draws = "1 draw" if prediction.num_draws == 1 else f"{prediction.num_draws} draws"
    how = {
        "samples": f"the {'average' if setting.readout is not None else 'majority'} over {draws}",
        "linearised": f"the average over {draws} of the linearised model's logits",
    }.get(prediction.mode, "the posterior's mean")
    rows = len(prediction.ids)
    out.print(
        f"{rows} {'row' if rows == 1 else 'rows'} answered by {how}; written to [bold]{escape(str(target))}[/bold]."
    )
    if arguments.samples is None and run.config.samples and (why := explain_point(run.posterior)):
        out.print(f"One pass, since {why} (--samples {run.config.samples}: draws).", highlight=False, soft_wrap=True)
    if selected is not None:
        _say(selected, records)


def _check_columns(asked: Records, given: Sequence[Mapping[str, Any]], ours: Collection[str]) -> None:
    """Refuses rows which have a column that is to be written beside them."""
    if taken := [column for column in ours if any(column in row for row in given)]:
        raise ValueError(
            f"{asked.where} has the columns {', '.join(taken)}, which `varlora predict` writes; rename them, as the "
            "other columns are kept beside the answers."
        )


def _beside(row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, Any]:
    """A row as it was given, its id first, with what is answered."""
    return {"id": row.get("id", answer["id"]), **row, **{name: answer[name] for name in answer if name != "id"}}


def _say(decision: Decision, records: list[dict[str, Any]]) -> None:
    report = report_of(decision, {})
    if decision.threshold is not None:
        kept = sum(record["answered"] for record in records)
        out.print(f"{kept} of them sure enough (`answered` in the file).", highlight=False)
        say_threshold(report)
    if decision.sets is not None:
        size = sum(len(record["set"]) for record in records) / len(records)
        out.print(f"{size:.2f} answers in a set on average (`set` in the file).", highlight=False)
        say_sets(report)
    say_caveats(report)


def _answers(prediction: Prediction) -> Iterator[dict[str, Any]]:
    """One record per row; a choice that the row does not offer has no probability."""
    probs, draws = prediction.probs, prediction.log_probs
    confidence, predicted = probs.max(dim=1)
    entropy = predictive_entropy(draws)
    disagreement = mutual_information(draws) if prediction.num_draws > 1 else None
    offered = ~torch.isneginf(draws).all(dim=1)
    for n, name in enumerate(prediction.ids):
        answer: dict[str, Any] = {
            "id": name,
            "prediction": prediction.classes[int(predicted[n])],
            "confidence": float(confidence[n]),
            "probabilities": {
                label: float(probs[n, c]) for c, label in enumerate(prediction.classes) if bool(offered[n, c])
            },
            "predictive_entropy": float(entropy[n]),
        }
        if disagreement is not None:
            answer["mutual_information"] = float(disagreement[n])
        yield answer


def _select(records: list[dict[str, Any]], decision: Decision, prediction: Prediction) -> None:
    """Adds to each record whether its row is answered, and its set of answers."""
    decided = decision.decide(prediction)
    for n, record in enumerate(records):
        if decided.answered is not None:
            record["answered"] = bool(decided.answered[n])
        if decided.sets is not None:
            record["set"] = [
                label for label, inside in zip(prediction.classes, decided.sets[n].tolist(), strict=True) if inside
            ]


def _texts(generations: Generations) -> Iterator[dict[str, Any]]:
    """One record per prompt; the text is that of the first draw which gives the answer."""
    shares, likelihood = generations.agreement, generations.log_likelihood_per_token
    for n, (name, prediction) in enumerate(zip(generations.ids, generations.majority, strict=True)):
        answers = generations.answers[n]
        draw = answers.index(prediction)
        answer: dict[str, Any] = {"id": name, "prediction": prediction}
        if generations.num_draws > 1:
            votes = Counter(one for one in answers if one is not None)
            answer["agreement"] = float(shares[n])
            answer["answers"] = [
                {"answer": one, "share": count / generations.num_draws} for one, count in votes.most_common()
            ]
        answer["text"] = generations.texts[n][draw]
        answer["log_likelihood_per_token"] = float(likelihood[n])
        answer["finished"] = bool(generations.finished[n, draw])
        yield answer


def _write(answers: list[dict[str, Any]], file: Path, suffix: str) -> None:
    if suffix == ".parquet":
        columns = dict.fromkeys(name for answer in answers for name in answer)
        try:
            table = pa.table({name: [answer.get(name) for answer in answers] for name in columns})
        except (pa.ArrowException, OverflowError) as error:
            raise ValueError(
                f"the columns of the input do not fit into a Parquet table, which holds one type a column: {error}. "
                "Write a .jsonl file."
            ) from error
        pq.write_table(table, file)
    else:
        lines = "".join(json.dumps(finite(answer), ensure_ascii=False, default=str) + "\n" for answer in answers)
        file.write_text(lines, encoding="utf-8")
