"""How a run shows that it is alive: a bar with the loss, or a line in the log now and then."""

from __future__ import annotations

import logging
from typing import Any

from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

logger = logging.getLogger(__name__)

LINES_PER_RUN = 10


def show_progress(trainer: Trainer, *, shown: bool) -> None:
    """Puts our display in the place of the trainer's, which prints a dictionary at every log."""
    for theirs in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(theirs)
    trainer.add_callback(LossBar() if shown else LossLines())


class LossBar(ProgressCallback):
    """The trainer's bar, with the last loss behind it."""

    training_bar: Any

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the bar."""
        super().on_train_begin(args, state, control, **kwargs)  # type: ignore[no-untyped-call]
        if self.training_bar is not None:
            self.training_bar.set_description("train")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Shows the losses among the logged numbers."""
        losses = {name: f"{logs[name]:.4g}" for name in ("loss", "eval_loss") if name in (logs or {})}
        if self.training_bar is not None and losses:
            self.training_bar.set_postfix(losses)


class LossLines(TrainerCallback):
    """About ten log lines a run."""

    def __init__(self) -> None:
        self._next = 0.0

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Logs the loss when another tenth of the run is done."""
        if "loss" in (logs or {}) and state.global_step >= self._next:
            logger.info("step %d of %d: loss %.4g", state.global_step, state.max_steps, logs["loss"])
            self._next = state.global_step + state.max_steps / LINES_PER_RUN
