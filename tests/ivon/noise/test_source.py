"""Noise is a function of what it is for, and of nothing else."""

import pytest
import torch

from varlora.ivon.noise import CounterNoise, ReplayedNoise


def test_noise_is_keyed_by_step_draw_rank_and_name_only():
    source, like = CounterNoise(seed=3), torch.zeros(50)
    one = source.draw("a", like, step=1, draw=0, rank=0)
    assert torch.equal(one, CounterNoise(seed=3).draw("a", like, step=1, draw=0, rank=0))
    others = [
        source.draw("b", like, step=1, draw=0, rank=0),
        source.draw("a", like, step=2, draw=0, rank=0),
        source.draw("a", like, step=1, draw=1, rank=0),
        source.draw("a", like, step=1, draw=0, rank=1),
        CounterNoise(seed=4).draw("a", like, step=1, draw=0, rank=0),
    ]
    assert all(not torch.equal(one, other) for other in others)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    CounterNoise(seed=3).draw("a", torch.zeros(5), step=1, draw=0, rank=0)
    assert torch.equal(before, torch.get_rng_state())


def test_noise_is_standard_normal_in_the_dtype_asked_for():
    noise = CounterNoise(seed=0).draw("a", torch.zeros(100, 100, dtype=torch.float64), step=0, draw=0, rank=0)
    assert noise.dtype == torch.float64
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)


def test_replayed_noise_comes_in_order_per_name_and_ends():
    source = ReplayedNoise({"a": [torch.ones(4), torch.zeros(4)], "b": [torch.full((4,), 2.0)]})
    like = torch.empty(2, 2, dtype=torch.float64)
    drawn = [source.draw(name, like, step=9, draw=9, rank=9) for name in ("a", "b", "a")]
    assert [d.unique().item() for d in drawn] == [1.0, 2.0, 0.0]
    assert {(d.shape, d.dtype) for d in drawn} == {(like.shape, like.dtype)}
    with pytest.raises(IndexError):
        source.draw("b", like, step=9, draw=9, rank=9)
