"""`varlora tune`: how to predict with a finished run, chosen on its validation rows and kept in its posterior.json.

The rows' predictions come from the run folder where training has left them (τ = 1, and the mean), and are made once
each otherwise. Rows that are test rows, too, are left out. What was chosen is kept beside the posterior, whose tensors
stay (`varlora.prediction.prediction_setup`), so that it can be chosen again, or taken back. tune.json keeps all that
was tried.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from varlora.io.files import LARGEST_JSON, json_text, read_text
from varlora.io.folders import atomic_file, atomic_folder, check_target
from varlora.metrics import WORTHWHILE
from varlora.posterior import Criterion, Posterior, PredictionConfig
from varlora.posterior.folder import load_posterior
from varlora.posterior.manifest import MANIFEST, library_version, read_manifest, write_tuned
from varlora.prediction.prediction_setup import remove_tuning
from varlora.runs.finished import with_description
from varlora.runs.folder import RunFolder, read_run, write_derived
from varlora.runs.setting import Setting
from varlora.runs.space import Grid, space_of
from varlora.runs.tuning import LOGIT_TEMPERATURES, Choice, choose
from varlora.runs.validation import ValidationRows
from varlora.tasks import Task
from varlora.training.checkpoint_files import CHECKPOINT_FILES

TABLE = "tune.json"
CARD = "README.md"
_BEGIN, _END = "<!-- varlora tune: begin -->", "<!-- varlora tune: end -->"


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """What was chosen for a run, and on what evidence.

    Attributes:
        split: the rows' split.
        rows: how many rows it was chosen on.
        left_out: how many labelled rows of the split were left out because they are test rows, too.
        by: what pruning was tried by.
        choice: all that was tried, and what was chosen.
        tuned: how to predict, as posterior.json says now (`meta.tuned`); None if everything is kept as trained.
        notes: what could not be tuned, and why.
    """

    split: str
    rows: int
    left_out: int
    by: Criterion
    choice: Choice
    tuned: PredictionConfig | None
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was chosen, in words."""
        choice = self.choice
        if self.tuned is None:
            return (
                f"Kept as trained: nothing that was tried has a validation NLL below {choice.nll_before:.4g} by more "
                f"than noise and {WORTHWHILE:g} ({self.rows} rows)."
            )
        gain = (
            f"validation NLL {choice.nll_before:.4g} to {choice.nll_after:.4g} "
            f"({choice.difference:+.4f} ± {choice.standard_error:.4f} over {self.rows} rows)"
        )
        return f"Chosen: {self.tuned.describe()}; {gain}."

    def to_dict(self) -> dict[str, Any]:
        """All that was tried, and what was chosen."""
        return {
            "split": self.split,
            "rows": self.rows,
            "left_out": self.left_out,
            "by": self.by,
            "tuned": None if self.tuned is None else self.tuned.to_dict(),
            "sentence": self.sentence,
            "notes": self.notes,
            **{n: value for n, value in dataclasses.asdict(self.choice).items() if n not in ("chosen", "kept")},
        }


def tune(
    folder: str | Path | RunFolder,
    grid: Grid | None = None,
    *,
    split: str = "validation",
    rows: Task | None = None,
    output_dir: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Tuning:
    """Chooses how to predict with a run, on its validation rows, and writes it into its posterior.json.

    It starts from the posterior as training left it, also where the run was tuned before. `predict`, `varlora eval`
    and `varlora predict` then predict as was chosen; `reset` takes it back.

    Args:
        folder: the run, or what `varlora.runs.finished.read_finished_folder` made of another folder.
        grid: what to try.
        split: the rows; validation rows only.
        rows: other validation rows than the run's own, as the split "validation".
        output_dir: a new folder to write the posterior to with what was chosen; None writes into the run's own.
        overwrite: replace that new folder, or what was tuned in the run.
        progress: show progress bars.

    Returns:
        What was chosen and what was tried; the same is written to the folder's tune.json.

    Raises:
        ValueError: it is no run, it has too few labelled validation rows that are not test rows, another split is
            asked for, an option is out of its range; what was tuned may not be replaced; a Trainer's checkpoint or a
            plain adapter, in which nothing can be kept, without `output_dir`.
    """
    run = folder if isinstance(folder, RunFolder) else read_run(folder)
    if output_dir is None:
        _check_can_be_written(run.path)
        if run.posterior.meta.tuned is not None and not overwrite:
            raise ValueError(
                f"{run.path} is tuned: {run.posterior.meta.tuned.describe()}. Replace that with --overwrite, or take "
                "it back with --reset."
            )
    else:
        check_target(output_dir, overwrite=overwrite)
    tuning = tuning_of(run, grid, split=split, rows=rows, progress=progress)
    if output_dir is None:
        _write(run, remove_tuning(run.posterior), tuning)
        return tuning
    q = remove_tuning(with_description(run))
    with atomic_folder(output_dir, overwrite=overwrite) as new:
        write_derived(new, q, sources=[run.path], name=Path(output_dir).name)
        _write(dataclasses.replace(run, path=new, posterior=q), q, tuning)
    return tuning


def tuning_of(
    run: RunFolder,
    grid: Grid | None = None,
    *,
    split: str = "validation",
    rows: Task | None = None,
    setting: Setting | None = None,
    progress: bool = False,
) -> Tuning:
    """What `tune` chooses; nothing is written.

    Args:
        run: the run.
        grid, split, rows, progress: as of `tune`.
        setting: the model and the rows, where they are loaded already.

    Raises:
        ValueError: as `tune`.
    """
    _check_split(run, split, rows)
    space, notes = space_of(remove_tuning(run.posterior), run.config.samples, grid or Grid())
    if run.is_completion and space.fit_logits:
        notes.append("Completions have no classes, so no temperature of the logits is tried.")
        space = dataclasses.replace(space, fit_logits=False)
    validation = ValidationRows(run, rows=rows, setting=setting, progress=progress)
    choice = choose(validation.log_probs, validation.labels, space)
    fits = sum(candidate.stage == "scale" and candidate.fitted for candidate in choice.candidates)
    if space.fit_logits and fits < len(space.temperatures):
        low, high = LOGIT_TEMPERATURES
        notes.append(
            f"At {len(space.temperatures) - fits} of {len(space.temperatures)} values of τ the best T lies outside "
            f"{low:g} to {high:g} and is not tried."
        )
    return Tuning(
        split=split,
        rows=len(validation.labels),
        left_out=validation.left_out,
        by=space.by,
        choice=choice,
        tuned=None if choice.kept else choice.chosen.config,
        notes=tuple(notes),
    )


def reset(folder: str | Path) -> None:
    """Takes back what `tune` chose: posterior.json (in this format) and the model card are as they were, byte for byte.

    Raises:
        ValueError: the run is not tuned.
    """
    path = Path(folder)
    q = load_posterior(path)
    if q.meta.tuned is None:
        raise ValueError(f"{path} is not tuned; there is nothing to take back.")
    _check_can_be_written(path)
    write_tuned(path, None, remove_tuning(q).meta.history)
    _annotate(path, None)
    (path / TABLE).unlink(missing_ok=True)


def _check_can_be_written(path: Path) -> None:
    """Refuses a folder in which a choice cannot be kept, or whose files are another program's."""
    if any((path / name).is_file() for name in (CHECKPOINT_FILES, "optimizer.pt")):
        raise ValueError(
            f"{path} is a Trainer's checkpoint, from which a training may go on: nothing is written into it. Tune a "
            "folder of its own (--output_dir FOLDER), which then holds the posterior with what was chosen."
        )
    if not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} has no {MANIFEST} to keep a choice in. Tune a folder of its own (--output_dir FOLDER), which then "
            "holds the adapter with what was chosen."
        )


def _check_split(run: RunFolder, split: str, rows: Task | None) -> None:
    if split != "validation":
        reason = "the posterior was trained on" if split == "train" else "are there to be reported"
        raise ValueError(
            f"split is {split!r}, whose rows {reason}: what is chosen on them looks better there than it is. Only the "
            "rows of 'validation' may be chosen on."
        )
    if rows is None and split not in run.facts["task"]["rows"]:
        raise ValueError(
            f"{run.path} has no validation rows, and nothing is tuned on rows that are reported. Give labelled rows "
            "that are not (--validation_file), train with validation_file or validation_size (rows cut from the "
            "training set), or predict as trained: τ = 1."
        )


def _write(run: RunFolder, q: Posterior, tuning: Tuning) -> None:
    """The table, then posterior.json if it changes, then the note in the model card; each whole or not at all."""
    choice = tuning.choice
    table = {
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "varlora": library_version("varlora"),
        "made_from": {name: entry["sha256"] for name, entry in read_manifest(run.path)["files"].items()},
        **tuning.to_dict(),
    }
    with atomic_file(run.path / TABLE, overwrite=True) as file:
        file.write_text(json_text(table), encoding="utf-8")
    if tuning.tuned is None:
        if run.posterior.meta.tuned is not None:
            write_tuned(run.path, None, q.meta.history)
            _annotate(run.path, None)
        return
    entry = {
        "op": "tune",
        "split": tuning.split,
        "rows": tuning.rows,
        "nll_before": choice.nll_before,
        "nll_after": choice.nll_after,
        "standard_error": choice.standard_error,
    }
    write_tuned(run.path, tuning.tuned, (*q.meta.history, entry))
    _annotate(run.path, tuning.sentence)


def _annotate(folder: Path, sentence: str | None) -> None:
    """The model card with a note of what was tuned at its end; None takes the note out."""
    card = folder / CARD
    if not card.is_file():
        return
    text = read_text(card, largest=LARGEST_JSON)
    start, end = text.find(f"\n{_BEGIN}\n"), text.find(f"{_END}\n")
    if 0 <= start < end:
        text = text[:start] + text[end + len(_END) + 1 :]
    if sentence is not None:
        note = f"{sentence} Results above were measured before; `varlora eval` measures as tuned ({MANIFEST}, {TABLE})."
        text = f"{text}\n{_BEGIN}\n## Tuned\n\n{note}\n{_END}\n"
    with atomic_file(card, overwrite=True) as file:
        file.write_bytes(text.encode("utf-8"))
