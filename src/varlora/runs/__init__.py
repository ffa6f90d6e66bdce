"""One run from start to end, its settings and its folder."""

from varlora.runs.config import RunConfig
from varlora.runs.data import fills_blank, load_task
from varlora.runs.folder import CompletionScores, RunFolder, finite, is_run, read_run, write_derived, write_run
from varlora.runs.generation import generate_split
from varlora.runs.health import run_health
from varlora.runs.measure import measure
from varlora.runs.run import AlreadyFinishedError, RunResult, Trained, evaluate, method_of, predict_split, run, train
from varlora.runs.setting import Setting, load_setting, reload_setting
from varlora.runs.tune import Tuning, reset, tune

__all__ = [
    "AlreadyFinishedError",
    "CompletionScores",
    "RunConfig",
    "RunFolder",
    "RunResult",
    "Setting",
    "Trained",
    "Tuning",
    "evaluate",
    "fills_blank",
    "finite",
    "generate_split",
    "is_run",
    "load_setting",
    "load_task",
    "measure",
    "method_of",
    "predict_split",
    "read_run",
    "reload_setting",
    "reset",
    "run",
    "run_health",
    "train",
    "tune",
    "write_derived",
    "write_run",
]
