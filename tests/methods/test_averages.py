"""AdamW with the average of its path."""

import pytest
import torch

from varlora.methods.averages import AveragedAdamW, averaged_adamw


def trained(
    steps: int, dtype: torch.dtype = torch.float64, decay: float = 0.7
) -> tuple[AveragedAdamW, list[torch.Tensor]]:
    p = torch.nn.Parameter(torch.arange(3, dtype=dtype))
    optimizer = AveragedAdamW([p], lr=0.1, ema_decay=decay)
    path = []
    for step in range(steps):
        p.grad = (p.detach() - step).to(dtype)
        optimizer.step()
        path.append(p.detach().clone())
    return optimizer, path


def test_the_path_is_adamws() -> None:
    optimizer, path = trained(6)
    p = torch.nn.Parameter(torch.arange(3, dtype=torch.float64))
    adamw = torch.optim.AdamW([p], lr=0.1)
    for step in range(6):
        p.grad = p.detach() - step
        adamw.step()
    assert torch.equal(p, path[-1])
    assert optimizer.ema_decay == 0.7


def test_the_average_is_the_recursion_with_its_warm_up() -> None:
    optimizer, path = trained(40)
    expected = path[0]
    for t, weights in enumerate(path, start=1):
        keep = min(0.7, (1 + t) / (10 + t))
        expected = keep * expected + (1 - keep) * weights
    torch.testing.assert_close(optimizer.average(optimizer.param_groups[0]["params"][0]), expected)


def test_a_half_precision_weight_has_an_average_in_float32_that_survives_saving() -> None:
    optimizer, _ = trained(5, dtype=torch.bfloat16)
    p = optimizer.param_groups[0]["params"][0]
    average = optimizer.average(p)
    assert average.dtype == torch.float32
    assert not torch.equal(average, average.bfloat16().float())
    again = AveragedAdamW([torch.nn.Parameter(p.detach().clone())], lr=0.1, ema_decay=0.7)
    again.load_state_dict(optimizer.state_dict())
    assert torch.equal(again.average(again.param_groups[0]["params"][0]), average)


def test_a_weight_without_a_gradient_is_its_own_average() -> None:
    used, unused = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.full((1,), 2.0))
    optimizer = AveragedAdamW([used, unused], lr=0.1, ema_decay=0.5)
    used.grad = torch.ones(1)
    optimizer.step()
    assert torch.equal(optimizer.average(unused), unused)


def test_a_plain_adamws_state_is_refused() -> None:
    p = torch.nn.Parameter(torch.ones(1))
    adamw = torch.optim.AdamW([p], lr=0.1)
    p.grad = torch.ones(1)
    adamw.step()
    with pytest.raises(ValueError, match="kept no average"):
        AveragedAdamW([p], lr=0.1, ema_decay=0.5).load_state_dict(adamw.state_dict())


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema_decay={decay}; it must be at least 0 and below 1"):
        AveragedAdamW([torch.zeros(1, requires_grad=True)], ema_decay=decay)


def test_another_optimizer_is_refused() -> None:
    with pytest.raises(TypeError, match="ema needs its own AdamW, but the trainer's optimizer is SGD"):
        averaged_adamw(torch.optim.SGD([torch.zeros(1)], lr=0.1))
