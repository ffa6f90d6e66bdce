"""What frozen layers that are computed once per row save: processor seconds of a step, and of an evaluation by draws.

    python benchmarks/frozen_layers.py MODEL --task sst2 --task_dir data/sst2 --lora_layers top:8

Trains IVON on one thread for --epochs epochs of --rows rows, then predicts as many test rows with ten draws: with the
whole model, with cached layers, and with states that another run has left in a folder. In the first epoch and in the
first draw rows are new, unless they are in the folder. Processor seconds, since a machine that does other things, too,
makes the clock say little.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from varlora.posterior import PredictionConfig
from varlora.runs.config import RunConfig
from varlora.runs.predict import frozen_layers_once, predict_split
from varlora.runs.run import method_of, train
from varlora.runs.setting import load_setting


class Clock(TrainerCallback):
    """Processor time at the end of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *args: object, **kwargs: object) -> None:
        """Notes the time."""
        self.times.append(time.process_time())


def measured(config: RunConfig, folder: Path) -> tuple[float, float, float]:
    """Seconds of a step of the first and of the last epoch, and of the prediction."""
    setting, clock = load_setting(config), Clock()
    with frozen_layers_once(setting, folder=folder):
        start = time.process_time()
        trained = train(setting, method_of(config), checkpoints=folder, progress=False, callbacks=[clock])
        per_epoch = len(clock.times) // int(config.num_train_epochs)
        first = (clock.times[per_epoch - 1] - start) / per_epoch
        last = (clock.times[-1] - clock.times[-1 - per_epoch]) / per_epoch
        start = time.process_time()
        predict_split(setting, trained.posterior, "test", PredictionConfig(samples=10))
        return first, last, time.process_time() - start


def main() -> None:
    """Prints a line for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--task", required=True)
    parser.add_argument("--task_dir")
    parser.add_argument("--lora_layers", default="top:8")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"whole model": {}, "frozen layers once": {"cache_frozen_layers": True}}
    with tempfile.TemporaryDirectory() as states:
        shared = {"cache_frozen_layers": True, "frozen_layers_dir": states}
        ways |= {"frozen layers into a folder": shared, "frozen layers from the folder": shared}
        for how, options in ways.items():
            _measure_and_print(args, how, options)


def _measure_and_print(args: argparse.Namespace, how: str, options: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            model_name_or_path=args.model,
            task=args.task,
            task_dir=args.task_dir,
            max_train_samples=args.rows,
            max_validation_samples=8,
            max_test_samples=args.rows,
            num_train_epochs=args.epochs,
            lora_target_modules="q_proj,v_proj",
            lora_layers=args.lora_layers,
            method_options={"learning_rate": 1.5e-3, "held_out": "none"},
            output_dir=str(Path(folder) / "run"),
            dtype="float32",
            **options,
        )
        first, last, prediction = measured(config, Path(folder) / "run.checkpoints")
    print(f"{how}: {first:.2f} s a step of the first epoch, {last:.2f} s of the last, {prediction:.1f} s to predict")


if __name__ == "__main__":
    main()
