"""How long cells will take, and how much memory: before any of them runs.

Where a like cell has been finished, its seconds are taken. Otherwise a model of N parameters in frozen matrices takes

    forward 2 N, backward 2 N for each token        (the gradients of frozen weights are not computed)
    2 N more with gradient checkpointing            (the second forward pass)

floating-point operations to train, and 2 N for each token and draw to predict, read or written; divided by the device's
operations a second. It is an estimate, and said to be one.
"""

from __future__ import annotations

import socket
import statistics
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, try_to_load_from_cache

from varlora.compare.cell import Cell
from varlora.compare.content import path_settings
from varlora.compare.memory import Memory, Shape, memory_of, shape_of
from varlora.compare.variant import Variant
from varlora.files import read_bytes, read_json
from varlora.runs import RunConfig
from varlora.runs.folder import FACTS, Facts
from varlora.runs.space import DRAWS, TEMPERATURES
from varlora.tasks import FINAL_ANSWERS, TASKS
from varlora.tasks.named import Benchmark
from varlora.tuned import SAMPLES

UTILISATION = 0.35
"""Share of a GPU's peak that training reaches."""
PEAKS: Mapping[str, tuple[float, float]] = {
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91e12),
    "L4": (121e12, 30e12),
    "A10": (125e12, 31e12),
    "RTX 4090": (165e12, 83e12),
    "RTX 3090": (71e12, 36e12),
    "V100": (125e12, 15.7e12),
    "T4": (65e12, 8.1e12),
}
"""Operations a second that the makers state, dense: in 16 bit with 32-bit sums, and in float32."""
START_SECONDS = 10.0
"""That a process takes to begin: once, or for each cell that has a process of its own."""
LAYER_SECONDS = 4e-4
"""What a layer of a batch takes beside its arithmetic; it is what counts for tiny models."""
PASSES: Mapping[str, float] = {"ensemble": 5.0, "laplace": 1.5, "tfb": 1.5}
"""Trainings' worth of arithmetic that a method takes, with its defaults."""
POINTS = ("adamw", "temperature", "ema")
"""Methods without draws."""
KNOWN_ROWS: Mapping[str, tuple[int, int, int]] = {
    "arc_easy": (2251, 2946, 75),
    "arc_challenge": (1119, 1471, 80),
    "openbookqa": (4957, 1000, 60),
    "boolq": (9427, 3270, 160),
    "winogrande_s": (640, 1267, 55),
    "winogrande_m": (2558, 1267, 55),
    "sst2": (67349, 872, 30),
    "trec6": (5452, 500, 20),
    "clinc150": (15000, 8600, 25),
    "gsm8k": (7473, 1319, 220),
}
"""Of tasks on the hub: training rows, rows to predict for, and tokens of a row, all about."""
CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How much there is to read: training rows, rows to predict for, and tokens in one of them."""

    train: int
    predicted: int
    tokens: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a cell will take.

    Attributes:
        seconds: None where nothing is known.
        measured: whether `seconds` are those of finished cells, and not worked out.
        memory: None where nothing is known.
        unknown: why something is not known; "" if all is.
    """

    seconds: float | None
    measured: bool
    memory: Memory | None
    unknown: str = ""


class Timer:
    """Seconds of cells that are finished, and from them those of others."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        """Reads what the finished of some cells took."""
        self._found: dict[tuple[str, str, str], list[float]] = {}
        for cell in cells:
            if (seconds := seconds_of(cell)) is not None:
                self.add(cell, seconds)

    def add(self, cell: Cell, seconds: float) -> None:
        """Notes what a cell took."""
        self._found.setdefault((cell.model, cell.task, cell.method), []).append(seconds)

    def expected(self, cell: Cell) -> float | None:
        """The mean of cells that differ in the seed alone; else of those of the same model and task; else None."""
        own = self._found.get((cell.model, cell.task, cell.method))
        if own:
            return statistics.fmean(own)
        others = [s for (model, task, _), found in self._found.items() if (model, task) == _place(cell) for s in found]
        return statistics.fmean(others) if others else None


def seconds_of(cell: Cell) -> float | None:
    """What a finished run took by its own account: training and predictions, of the last try."""
    file = cell.folder / FACTS
    if not cell.trained:
        return None
    seconds = read_json(file, Facts)["seconds"]
    return sum(float(value) for value in seconds.values() if value is not None)


def estimates_of(
    cells: Sequence[Cell], timer: Timer | None = None, *, start: float = START_SECONDS
) -> dict[str, Estimate]:
    """What each cell will take, by its folder; cells that differ in the seed alone share the work.

    Args:
        cells: all.
        timer: of the finished ones; None makes one.
        start: seconds that each cell takes to begin; 0 where they share a process.
    """
    timer = timer if timer is not None else Timer(cells)
    worked: dict[tuple[str, str, str], Estimate] = {}
    shapes: dict[tuple[Any, ...], Shape | str] = {}
    found = {}
    for cell in cells:
        kind = (*_place(cell), cell.method)
        if kind not in worked:
            worked[kind] = _worked_out(cell, shapes)
        one, seconds = worked[kind], timer.expected(cell)
        if one.seconds is not None:
            one = replace(one, seconds=one.seconds + start)
        if seconds is not None:
            one = Estimate(seconds=seconds + start, measured=True, memory=one.memory, unknown=one.unknown)
        found[str(cell.folder)] = one
    return found


def training_seconds(config: RunConfig, shape: Shape, rows: Rows, *, passes: int, speed: float) -> float:
    """Seconds of a training, its predictions and the texts that it writes, worked out.

    Of a text, as many tokens as it may have are counted, a step each.

    Args:
        config: the settings.
        shape: of the model.
        rows: what it reads.
        passes: forward passes over the rows to predict for.
        speed: operations a second.

    Example:
        >>> shape = Shape(parameters=10**9, matrices=10**9, adapter=0, hidden=0, layers=0, vocabulary=0, bytes_each=2,
        ...               causal=True)
        >>> config = RunConfig(model_name_or_path="m", task="arc_easy", method="adamw", num_train_epochs=1,
        ...                    output_dir="o")
        >>> rows = Rows(train=1000, predicted=0, tokens=100)
        >>> training_seconds(config, shape, rows, passes=0, speed=1e12)
        400.0
    """
    step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    seen = config.max_steps * step if config.max_steps > 0 else rows.train * config.num_train_epochs
    draws = config.draws if config.method == "ivon" and config.draws is not None else 1
    times = PASSES.get(config.method, 1.0) * draws
    if config.method == "ensemble" and config.members is not None:
        times = float(config.members)
    each = 6 if config.gradient_checkpointing else 4
    operations = shape.matrices * rows.tokens * (each * seen * times + 2 * rows.predicted * passes)
    batches = 3 * times * seen / config.per_device_train_batch_size
    batches += passes * rows.predicted / config.per_device_eval_batch_size
    if new := written_tokens(config):
        texts = (1 + draws_of(config)) * rows.predicted
        operations += 2 * shape.matrices * texts * (rows.tokens + new)
        batches += texts / config.per_device_eval_batch_size * new
    return operations / speed + batches * shape.layers * LAYER_SECONDS


def written_tokens(config: RunConfig) -> int:
    """The most tokens of each text that a run writes; 0 for a task that has no final answers."""
    loader = TASKS.get(config.task) if config.task is not None else None
    known = loader.final_answer if isinstance(loader, Benchmark) else None
    kind = config.final_answer if config.final_answer is not None else known
    return config.max_new_tokens if kind in FINAL_ANSWERS else 0


def draws_of(config: RunConfig) -> int:
    """How many draws a run predicts with."""
    return 0 if config.method in POINTS else config.samples


def rows_of(config: RunConfig, generated: tuple[int, int] | None = None) -> Rows | None:
    """How much a run reads: counted in local files, or of a task on the hub as it is known to be; None otherwise.

    Args:
        config: the settings.
        generated: training rows and others of a generated task, whose files need not be there yet.
    """
    if generated is not None:
        found = Rows(train=generated[0], predicted=generated[1], tokens=25)
    else:
        files = {f: n for n, path in path_settings(config).items() if n in _DATA for f in _tables(path)}
        if any(file.suffix in UNCOUNTED for file in files):
            return None
        if files:
            found = _counted(files)
        elif config.task is not None and config.task in KNOWN_ROWS:
            train, predicted, tokens = KNOWN_ROWS[config.task]
            found = Rows(train=train, predicted=predicted, tokens=tokens)
        else:
            return None
    most = config.max_test_samples
    return Rows(
        train=min(found.train, config.max_train_samples or found.train),
        predicted=min(found.predicted, 2 * most) if most is not None else found.predicted,
        tokens=min(found.tokens, config.max_length or found.tokens),
    )


@cache
def operations_per_second(wide: bool) -> tuple[float, str]:
    """Floating-point operations a second of this machine, and where the figure is from.

    Args:
        wide: whether the weights are float32.
    """
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        for known, (narrow, single) in PEAKS.items():
            if known in name:
                peak = single if wide else narrow
                return peak * UTILISATION, f"{UTILISATION:.0%} of {peak / 1e12:.0f} TFLOP/s, stated for {name}"
        return _timed_matmul("cuda") * UTILISATION, f"{UTILISATION:.0%} of a matrix product timed on {name}"
    speed = _timed_matmul("cpu")
    return speed / 2, f"half of a matrix product timed on this processor ({speed / 1e9:.0f} GFLOP/s)"


UNCOUNTED = (".gz", ".json", ".parquet")
"""Endings of files whose rows are not lines."""
_DATA = ("task_dir", "train_file", "validation_file", "test_file", "shift_file", "ood_file", "dataset_name")


def _worked_out(cell: Cell, shapes: dict[tuple[Any, ...], Shape | str]) -> Estimate:
    """What a cell's settings let expect; models' shapes, or why they cannot be had, are kept in `shapes`."""
    config = cell.config
    sizes = cell.generated
    rows = rows_of(config, (sizes.train, 2 * sizes.validation + sizes.test) if sizes is not None else None)
    shape = shapes.get(_model(config))
    if shape is None:
        shape = shapes[_model(config)] = _shape_or_why_not(config)
    if isinstance(shape, str):
        return Estimate(seconds=None, measured=False, memory=None, unknown=shape)
    if rows is None:
        memory = memory_of(config, shape, config.max_length or 128)
        return Estimate(
            seconds=None, measured=False, memory=memory, unknown="the number of rows is not known beforehand"
        )
    passes = 1 + draws_of(config) + _passes(cell)
    speed, _ = operations_per_second(shape.bytes_each == 4 and not config.bf16)
    seconds = training_seconds(config, shape, rows, passes=passes, speed=speed)
    return Estimate(seconds=seconds, measured=False, memory=memory_of(config, shape, rows.tokens))


def _shape_or_why_not(config: RunConfig) -> Shape | str:
    """A model's shape, or why its configuration cannot be had; without network that is said at once."""
    name, cannot = config.model_name_or_path, "the model's configuration cannot be had"
    if not Path(name).is_dir() and try_to_load_from_cache(name, "config.json", revision=config.model_revision) is None:
        if constants.is_offline_mode():
            return f"{cannot} offline"
        if not _hub_answers():
            return f"{cannot}, since {constants.ENDPOINT} does not answer"
    try:
        return shape_of(config)
    except (OSError, ValueError) as error:
        return f"{cannot} ({str(error).splitlines()[0][:120]})"


def _hub_answers() -> bool:
    """Whether there is a way to the hub; its own client tries for half a minute."""
    address = urllib.parse.urlsplit(constants.ENDPOINT)
    if urllib.request.getproxies():
        return True  # they can be asked only in their own way
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _model(config: RunConfig) -> tuple[Any, ...]:
    """The settings that a model's shape hangs on."""
    names = ("model_name_or_path", "model_revision", "model_class", "dtype", "lora_r", "lora_target_modules")
    return tuple(getattr(config, name) for name in names)


def _passes(cell: Cell) -> int:
    """Forward passes of the variants that training does not predict by itself."""
    made = {v.key: v for v in cell.variants if v.prune != 0 or v.temperature not in (0, 1) or v.tune}
    return sum(_passes_of(variant, cell.config) for variant in made.values())


def _passes_of(variant: Variant, config: RunConfig) -> int:
    """Forward passes of one of them, at most: what is tuned is tried on validation rows, and counted as if on all."""
    if variant.tune:
        tried = [tau for tau in TEMPERATURES if tau not in (0, 1)]
        draws = config.samples or SAMPLES
        return 1 if config.method in POINTS else len(tried) * draws + max(*DRAWS, draws)
    return 1 if variant.mode == "mean" else (variant.samples or config.samples)


def _place(cell: Cell) -> tuple[str, str]:
    return cell.model, cell.task


def _tables(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.glob("*.jsonl"))


def _counted(files: Mapping[Path, str]) -> Rows:
    """Rows and tokens of JSONL files, given with the setting that names them; four characters count as a token."""
    lines = {file: read_bytes(file).count(b"\n") for file in files}
    train = sum(
        count
        for file, count in lines.items()
        if files[file] == "train_file" or (not files[file].endswith("_file") and file.stem.startswith("train"))
    )
    size = sum(file.stat().st_size for file in files)
    every = max(1, sum(lines.values()))
    return Rows(train=train, predicted=every - train, tokens=size / every / CHARACTERS_PER_TOKEN)


def _timed_matmul(device: str, size: int = 1024) -> float:
    a = torch.randn(size, size, device=device)
    synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best = float("inf")
    for _ in range(4):
        synchronize()
        start = time.perf_counter()
        _ = a @ a
        synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best
