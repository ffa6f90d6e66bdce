"""temper against its definition."""

from __future__ import annotations

import math

import pytest
import torch

from gaussians import one
from varlora.posterior import DiagonalGaussian, PointMass
from varlora.posterior.ops import PointMassError, prune, temper


def test_temper_scales_the_variance() -> None:
    q = prune(one([0.1, 2.0], [1.0, 0.5]), 0.5)
    hot = temper(q, 4.0)
    assert isinstance(hot, DiagonalGaussian)
    assert hot.variance["w"].tolist() == [0.0, 2.0]
    assert torch.equal(hot.mean["w"], q.mean["w"])
    assert hot.meta.history[-1] == {"op": "temper", "temperature": 4.0}
    back = temper(hot, 0.25)
    assert isinstance(back, DiagonalGaussian)
    assert torch.equal(back.precision["w"], q.precision["w"])


def test_a_tempered_draw_is_the_same_noise_scaled() -> None:
    q = one([1.0, 2.0], [1.0, 0.5])
    cold, warm = (x.sample(torch.Generator().manual_seed(0))["w"] for x in (q, temper(q, 4.0)))
    torch.testing.assert_close(warm - q.mean["w"], 2 * (cold - q.mean["w"]))


def test_temperature_zero_is_the_mean() -> None:
    q = temper(one([1.0], [1.0]), 0.0)
    assert isinstance(q, PointMass)
    assert q.mean["w"].tolist() == [1.0]


def test_temper_refuses_what_has_no_meaning() -> None:
    q = DiagonalGaussian(mean={"w": torch.ones(1)}, precision={"w": torch.full((1,), 1e30)})
    for bad in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="at least 0"):
            temper(q, bad)
    with pytest.raises(ValueError, match=r"out of the range of torch\.float32"):
        temper(q, 1e-20)
    with pytest.raises(PointMassError, match="no variance to temper"):
        temper(PointMass(mean=q.mean), 2.0)  # type: ignore[arg-type]
