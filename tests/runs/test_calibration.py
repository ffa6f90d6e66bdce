"""What the validation rows of a run have decided before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from varlora.posterior import PointMass, PosteriorMeta, PredictionConfig
from varlora.runs.calibration import also_used_for
from varlora.runs.config import RunConfig
from varlora.runs.folder import RunFolder


@pytest.mark.parametrize(
    ("settings", "meta", "said"),
    [
        ({}, {}, ()),
        ({}, {"held_out": {"source": "validation", "measurements": 4}}, ("λ was steered",)),
        ({}, {"held_out": {"source": "validation", "measurements": 0}}, ()),
        ({}, {"held_out": {"source": "train", "measurements": 4}}, ()),
        (
            {},
            {"held_out": {"source": "validation", "measurements": 1, "why": "they are asked once, at the end"}},
            ("a temperature of the logits was fitted",),
        ),
        ({"early_stopping": True}, {}, ("training was stopped early",)),
        ({"temperature_scaling": True}, {}, ("a temperature of the logits was fitted",)),
        ({"method": "temperature"}, {}, ("a temperature of the logits was fitted",)),
        ({"method": "laplace", "prior_choice": "validation"}, {}, ("the prior was chosen",)),
    ],
)
def test_what_the_rows_have_decided_before(
    settings: dict[str, Any], meta: dict[str, Any], said: tuple[str, ...]
) -> None:
    config = RunConfig.from_dict(
        {"model_name_or_path": "m", "train_file": "t", "output_dir": "o", "method": "adamw", **settings}
    )
    q = PointMass(mean={"w": torch.ones(1)}, meta=PosteriorMeta(diagnostics=meta))
    assert also_used_for(RunFolder(path=Path("o"), config=config, posterior=q, metrics={}, facts={})) == said
    tuned = PosteriorMeta(tuned=PredictionConfig(mode="mean", logit_temperature=2.0))
    q = PointMass(mean=q.mean, meta=dataclasses.replace(tuned, diagnostics=meta))
    again = also_used_for(RunFolder(path=Path("o"), config=config, posterior=q, metrics={}, facts={}))
    assert again == (*said, "`varlora tune` chose how to predict")
