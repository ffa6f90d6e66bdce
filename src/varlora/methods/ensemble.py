"""Deep ensemble of adapters: the same training from M seeds, predictions averaged.

    p(y | x) = (1/M) Σ_i softmax(f(x; θ_i))

Each member has its own start of the adapter, order of the data and dropout masks; the base model is one. Members
differ because training finds different optima from different starts, and where they disagree the average is unsure.
M trainings cost M times one; memory is that of one, since they run one after another in the same model.

Every member's training keeps its checkpoints in a folder of its own, and its result, once there is one, beside them:

    output_dir/member-0/checkpoint-100/    the trainer's, as for every method
    output_dir/member-0/finished/          the member's posterior and its log, whole or not there

so that resuming skips what has finished and goes on within the member that had not.

Source: Lakshminarayanan et al. 2017, arXiv 1612.01474; for LoRA Wang et al. 2023, arXiv 2310.00035.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainingArguments
from transformers.trainer_callback import ExportableState

from varlora.adapters import load_into, reset_adapter, saved_tensors
from varlora.io.files import read_json
from varlora.io.folders import atomic_folder
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import EnsembleOptions
from varlora.posterior import Mixture, PointMass, Posterior, point_mass_of
from varlora.posterior.folder import MANIFEST, load_posterior, write_posterior_files

logger = logging.getLogger(__name__)

_FINISHED = "finished"
_LOG = "log.json"


@dataclass(frozen=True, kw_only=True)
class Ensemble(EnsembleOptions, AdamW):
    """M adapters by AdamW, each from its own seed; the first is what `AdamW` gives with the job's seed.

    What trains but is no LoRA factor (a head of `modules_to_save`, say) starts from the job's values in every member:
    it may be pre-trained.
    """

    def fit(self, job: Job) -> Fit:
        """The members, trained one after another, as a mixture of point masses.

        To resume, the model must again be what it was when the training first began.

        Raises:
            ValueError: the adapter's start cannot be drawn again (`varlora.adapters.reset_adapter`), or the output
                folder holds members of an earlier training and the job is not to resume it.
        """
        folders = [Path(str(job.arguments.output_dir)) / f"member-{i}" for i in range(self.members)]
        # What the main process sees counts for all: their file systems may differ, and their steps must not.
        done = [folder for folder in folders if (folder / _FINISHED / MANIFEST).is_file()]
        if job.arguments.world_size > 1:
            [done] = broadcast_object_list([done])
        if done and not job.resume:
            raise ValueError(
                f"{done[0]} holds a member of an earlier training. Go on with it by resuming, or give another folder."
            )
        start = {key: tensor.detach().clone() for key, tensor in saved_tensors(job.model).tensors().items()}
        reset_adapter(job.model, job.arguments.seed)  # before hours of work: it refuses what cannot be drawn again
        components, log = [], []
        for i, folder in enumerate(folders):
            if folder not in done:
                self._train(job, i, start, folder)
            component, entries = _read(folder)
            components.append(component)
            log += [{"member": i, **entry} for entry in entries]
        seeds = [member_seed(job.arguments.seed, i) for i in range(self.members)]
        meta = dataclasses.replace(components[0].meta, method=self.name, diagnostics={"seeds": seeds})
        q = Mixture(components=tuple(PointMass(mean=c.point, meta=meta) for c in components), meta=meta)
        load_into(job.model, q.point)
        return Fit(posterior=q, log=log)

    def _train(self, job: Job, i: int, start: Mapping[str, Tensor], folder: Path) -> None:
        arguments = _arguments(job.arguments, i, folder)
        logger.info("member %d of %d, seed %d", i + 1, self.members, arguments.seed)
        load_into(job.model, start)
        if i > 0:
            reset_adapter(job.model, arguments.seed)
        member = dataclasses.replace(
            job,
            arguments=arguments,
            callbacks=[copy.deepcopy(c) if isinstance(c, ExportableState) else c for c in job.callbacks],
        )
        log = member.run(self.trainer(member))
        if member.arguments.should_save:
            with atomic_folder(folder / _FINISHED) as new:
                (new / _LOG).write_text(json.dumps(log), encoding="utf-8")
                write_posterior_files(point_mass_of(job.model, **record(job, AdamW.name)), new)
        if member.arguments.world_size > 1:
            PartialState().wait_for_everyone()


def member_seed(seed: int, member: int) -> int:
    """The seed of a member's training: the ensemble's for the first; else a hash, so that ensembles share no member.

    Args:
        seed: the ensemble's.
        member: index, from 0.

    Returns:
        A number below 2³², as numpy wants it.

    Example:
        >>> [member_seed(7, member) for member in range(3)]
        [7, 2831006954, 2097421109]
    """
    if member == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(repr((seed, member)).encode(), digest_size=4).digest(), "big")


def _arguments(given: TrainingArguments, member: int, folder: Path) -> TrainingArguments:
    arguments = copy.copy(given)
    arguments.output_dir = str(folder)
    arguments.seed = member_seed(given.seed, member)
    if given.data_seed is not None:
        arguments.data_seed = member_seed(given.data_seed, member)
    return arguments


def _read(folder: Path) -> tuple[Posterior, list[dict[str, Any]]]:
    log = read_json(folder / _FINISHED / _LOG, list[dict[str, Any]], instead="Train again, with --overwrite.")
    return load_posterior(folder / _FINISHED), log
