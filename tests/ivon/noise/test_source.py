"""Noise is a function of what it is for, and of nothing else; it is standard normal, and independent over its keys."""

import hashlib
from itertools import combinations

import pytest
import torch

from varlora.ivon.noise import CounterNoise, ReplayedNoise

KEY = {"step": 1, "draw": 0, "rank": 0}
ODD = {f"tensor {i}": torch.empty(size) for i, size in enumerate((1, 7, 33, 4099, 2**19 + 1, 2**19 + 5))}


def test_noise_is_keyed_by_step_draw_rank_and_names_only():
    source, like = CounterNoise(seed=3), torch.zeros(50)
    one = source.draw({"a": like}, **KEY)["a"]
    assert torch.equal(one, CounterNoise(seed=3).draw({"a": like}, **KEY)["a"])
    others = [
        source.draw({"b": like}, **KEY)["b"],
        source.draw({"a": like}, **{**KEY, "step": 2})["a"],
        source.draw({"a": like}, **{**KEY, "draw": 1})["a"],
        source.draw({"a": like}, **{**KEY, "rank": 1})["a"],
        CounterNoise(seed=4).draw({"a": like}, **KEY)["a"],
        *source.draw({"a": like, "b": like}, **KEY).values(),
    ]
    assert all(not torch.equal(*pair) for pair in combinations([one, *others], 2))


def test_the_order_in_which_tensors_are_given_changes_nothing():
    one = CounterNoise(seed=3).draw(ODD, **KEY)
    other = CounterNoise(seed=3).draw(dict(reversed(ODD.items())), **KEY)
    assert all(torch.equal(one[name], other[name]) for name in ODD)


def test_a_tensor_alone_gets_what_it_always_got():
    """So that methods with a random factor keep their numbers."""
    key = hashlib.blake2b(repr((3, 1, 0, 0, "a")).encode(), digest_size=8).digest()
    expected = torch.randn(4, 5, generator=torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1))
    assert torch.equal(CounterNoise(seed=3).draw({"a": torch.empty(4, 5)}, **KEY)["a"], expected)


def test_drawing_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    CounterNoise(seed=3).draw({"a": torch.zeros(5)}, **KEY)
    assert torch.equal(before, torch.get_rng_state())


def test_tensors_of_odd_sizes_share_no_entry():
    noise = CounterNoise(seed=0).draw({"a": torch.empty(3, 7), "b": torch.empty(0), "c": torch.empty(())}, **KEY)
    assert [tuple(one.shape) for one in noise.values()] == [(3, 7), (0,), ()]
    before = noise["c"].clone()
    noise["a"].zero_()
    assert torch.equal(noise["c"], before)
    assert all(one.is_contiguous() for one in noise.values())


def test_a_million_entries_follow_the_normal_law():
    """Moments, tails, and the largest distance to the distribution function (Kolmogorov), at five standard errors."""
    x = torch.cat([one.double() for one in CounterNoise(seed=0).draw(ODD, **KEY).values()])
    n = len(x)
    for power, moment, variance in ((1, 0.0, 1.0), (2, 1.0, 2.0), (3, 0.0, 15.0), (4, 3.0, 96.0)):
        assert abs(x.pow(power).mean().item() - moment) < 5 * (variance / n) ** 0.5
    for bound in (1.0, 2.0, 3.0, 4.0):
        tail = 2 * torch.special.ndtr(torch.tensor(-bound, dtype=torch.float64)).item()
        assert abs((x.abs() > bound).double().mean().item() - tail) < 5 * (tail / n) ** 0.5
    steps = torch.arange(n + 1) / n
    law = torch.special.ndtr(x.sort().values)
    distance = torch.maximum((steps[1:] - law).max(), (law - steps[:-1]).max()).item()
    assert distance < 1.95 / n**0.5  # exceeded once in a thousand


def test_steps_draws_ranks_tensors_and_neighbours_are_independent():
    source, likes = CounterNoise(seed=0), {name: torch.empty(2**16 + 3) for name in "ab"}
    keys = [KEY, *({**KEY, name: KEY[name] + 1} for name in KEY)]
    drawn = torch.stack([one.double() for key in keys for one in source.draw(likes, **key).values()])
    drawn = torch.cat([drawn, drawn[:1].roll(1, 1)])
    for values in (drawn, drawn.square()):
        off = torch.corrcoef(values) - torch.eye(len(drawn))
        assert off.abs().max().item() < 5 / drawn.shape[1] ** 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_noise_is_in_the_dtype_asked_for(dtype):
    likes = {"a": torch.empty(100, 101, dtype=dtype), "b": torch.empty(100, 101)}
    noise = CounterNoise(seed=0).draw(likes, **KEY)
    assert (noise["a"].dtype, noise["b"].dtype) == (dtype, torch.float32)
    for one in noise.values():
        assert one.double().mean().item() == pytest.approx(0.0, abs=0.05)
        assert one.double().std().item() == pytest.approx(1.0, abs=0.05)
    assert torch.corrcoef(torch.stack([one.double().flatten() for one in noise.values()]))[0, 1].abs() < 0.05


def test_replayed_noise_comes_in_order_per_name_and_ends():
    source = ReplayedNoise({"a": [torch.ones(4), torch.zeros(4)], "b": [torch.full((4,), 2.0)]})
    like = torch.empty(2, 2, dtype=torch.float64)
    first = source.draw({"a": like, "b": like}, step=0, draw=0, rank=0)
    again = source.draw({"a": like}, step=0, draw=0, rank=0)
    second = source.draw({"a": like}, step=0, draw=1, rank=0)
    drawn = [*first.values(), *again.values(), *second.values()]
    assert [d.unique().item() for d in drawn] == [1.0, 2.0, 1.0, 0.0]
    assert {(d.shape, d.dtype) for d in drawn} == {(like.shape, like.dtype)}
    with pytest.raises(IndexError):
        source.draw({"b": like}, step=1, draw=0, rank=0)
