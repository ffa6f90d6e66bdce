"""What a trainer saves: beside the mean, the posterior.

Every way that transformers' Trainer has of saving (`save_model`, `push_to_hub`, its checkpoints) goes through `_save`.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

from varlora.adapters import saved_in
from varlora.posterior import posterior_of
from varlora.posterior.folder import write_posterior_beside
from varlora.posterior.gaussian_optimizer import AutoOptimizer
from varlora.posterior.manifest import BESIDE, MANIFEST, PLAIN_MEAN
from varlora.posterior.training_record import training_record
from varlora.posterior.wrapped import unwrapped

logger = logging.getLogger(__name__)


class SavesPosterior:
    """Makes a trainer whose optimizer is IVON save its posterior with the weights. A base of the mixin.

    What is saved is a posterior folder (`varlora.load_posterior`), with what else the trainer writes. The process that
    saves the weights saves the posterior; under FSDP2 all gather it.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        trainer: Any = self
        if not (trainer.args.should_save or trainer.is_fsdp_enabled):
            return
        folder = Path(output_dir if output_dir is not None else trainer.args.output_dir)
        optimizer = unwrapped(trainer.optimizer)
        if optimizer is None or (isinstance(optimizer, AutoOptimizer) and optimizer.is_open()):
            logger.warning("%s holds no posterior: there is none before the first training", folder)
            return
        counted = "counted" in training_record(optimizer)
        q = posterior_of(
            trainer.model,
            optimizer,
            num_examples=None if counted else _length(trainer.train_dataset),
            readout=trainer.answer_readout(),
        )
        if trainer.args.should_save:
            write_posterior_beside(q, saved_in(trainer.model, folder))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves the weights and the posterior; by `from_pretrained` and `varlora.load_posterior` they come back."""
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]
        trainer: Any = self
        if trainer.is_fsdp_enabled and "FULL_STATE_DICT" not in str(
            trainer.accelerator.state.fsdp_plugin.state_dict_type
        ):
            logger.warning(
                "sharded weights are saved without their posterior. Ask for whole ones (fsdp_state_dict_type "
                "FULL_STATE_DICT), or call posterior_of(model, optimizer) on every process and save_posterior on one."
            )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        trainer: Any = self
        if trainer.is_world_process_zero():  # the trainer pushes a copy of the checkpoint's files that it knows by name
            for file in (MANIFEST, BESIDE, PLAIN_MEAN):
                if (Path(checkpoint_folder) / file).is_file():
                    shutil.copy(Path(checkpoint_folder) / file, Path(trainer.args.output_dir) / file)
        super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]


def _length(dataset: Any) -> int | None:
    return len(dataset) if hasattr(dataset, "__len__") else None
