"""What people do to models and optimizers between the lines of the manual."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from models import token_ids
from varlora import IVON, NoiseController


class Net(nn.Module):
    """A matrix, a vector, a scalar and an empty tensor; the top level owns the scalar."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.last = nn.Linear(4, 1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(0, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.tanh(self.first(x))) + self.nothing.sum()


def inputs(seed: int = 0) -> Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed))


def ivon(model: nn.Module, **options: Any) -> IVON:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return IVON(parameters, **({"lr": 0.1, "ess": 50.0, "hess_init": 1.0, "weight_decay": 0.1} | options))


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 1) -> None:
    model.train()
    for i in range(count):
        model(inputs(i)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def tensors(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("prior", ["fixed", "adaptive"])
def test_scalars_and_empty_tensors_train(prior: str) -> None:
    model = Net()
    optimizer = ivon(model, prior=prior)
    NoiseController(model, optimizer, seed=0)
    before = tensors(model)
    steps(model, optimizer, 3)
    assert optimizer.skipped_steps == 0
    assert not torch.equal(before[0], model.scale)
    for p in model.parameters():
        assert torch.isfinite(optimizer.precision(p)).all()
        assert torch.isfinite(torch.tensor(optimizer.prior_precision(p)))


def test_a_parameter_unfrozen_after_the_noise_was_attached_is_refused_not_forgotten() -> None:
    model = Net()
    model.last.weight.requires_grad_(False)
    optimizer = IVON(model.parameters(), lr=0.1, ess=50.0, hess_init=1.0)
    NoiseController(model, optimizer)
    steps(model, optimizer)
    model.last.weight.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"1 parameters .* no noise, .* shape \(1, 4\).*new NoiseController"):
        steps(model, optimizer)
    optimizer.zero_grad()
    NoiseController(model, optimizer)
    before = model.last.weight.detach().clone()
    steps(model, optimizer)
    assert not torch.equal(before, model.last.weight)


def test_a_group_added_after_the_noise_was_attached_is_refused_not_forgotten() -> None:
    model = Net()
    optimizer = IVON(model.first.parameters(), lr=0.1, ess=50.0, hess_init=1.0)
    NoiseController(model, optimizer)
    steps(model, optimizer)
    optimizer.add_param_group({"params": list(model.last.parameters()), "ess": 10.0})
    with pytest.raises(RuntimeError, match="new NoiseController"):
        steps(model, optimizer)


def test_a_frozen_parameter_stays_and_the_others_train() -> None:
    model = Net()
    optimizer = ivon(model)
    NoiseController(model, optimizer)
    steps(model, optimizer)
    model.first.weight.requires_grad_(False)
    frozen, other = model.first.weight.detach().clone(), model.last.weight.detach().clone()
    steps(model, optimizer)
    assert torch.equal(frozen, model.first.weight)
    assert not torch.equal(other, model.last.weight)


def test_a_new_controller_takes_the_place_of_one_that_was_left_behind() -> None:
    left_behind, fresh = Net(), Net()
    NoiseController(left_behind, ivon(left_behind), seed=9)
    left_behind.train()
    left_behind(inputs())  # and then the notebook's cell is interrupted
    for model in (left_behind, fresh):
        optimizer = ivon(model)
        NoiseController(model, optimizer, seed=1)
        steps(model, optimizer, 2)
    assert equal(tensors(left_behind), tensors(fresh))


def test_detaching_keeps_a_forward_that_was_there_before() -> None:
    model = Net()
    calls = []
    inner = model.forward

    def counted(x: Tensor) -> Tensor:
        calls.append(1)
        return inner(x)

    model.forward = counted  # type: ignore[method-assign]
    NoiseController(model, ivon(model)).detach()
    model(inputs())
    assert calls == [1]
    assert model.forward is counted


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.usefixtures("fresh_accelerate")
def test_accelerates_autocast_survives_attaching_and_detaching() -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = Net()
    model, optimizer = accelerator.prepare(model, ivon(model))
    expected = model.eval()(inputs())
    assert not torch.equal(expected, Net().eval()(inputs()))  # bf16 has rounded
    noise = NoiseController(model, optimizer, seed=0)
    steps(model, optimizer)
    assert noise.optimizer.step_index == 1
    noise.detach()
    model.load_state_dict(Net().state_dict())
    assert torch.equal(model.eval()(inputs()), expected)


def test_a_forward_wrapped_after_attaching_computes_at_the_mean_after_detaching() -> None:
    model = Net()
    noise = NoiseController(model, ivon(model))
    inner = model.forward
    model.forward = lambda x: inner(x)  # type: ignore[method-assign]
    model.train()(inputs()).sum().backward()
    noise.detach()
    assert torch.equal(model.train()(inputs()), Net()(inputs()))


def test_evaluating_a_part_of_the_model_between_micro_batches_is_at_the_mean(llama_lora: PeftModel) -> None:
    # PeftModel.generate calls the model inside, not the model that the controller watches.
    ids = token_ids()
    expected = llama_lora.eval().get_base_model()(input_ids=ids).logits
    NoiseController(llama_lora, ivon(llama_lora))
    llama_lora.train()(input_ids=ids, labels=ids).loss.backward()
    part = llama_lora.get_base_model()
    assert not torch.equal(part(input_ids=ids).logits, expected)  # training: the present draw
    llama_lora.eval()
    assert torch.equal(part(input_ids=ids).logits, expected)


class Recomputed(nn.Module):
    """`Net`, its activations recomputed in the backward pass."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net = Net()
        self.reentrant = reentrant
        self.interrupt = False

    def forward(self, x: Tensor) -> Tensor:
        if self.interrupt:
            raise KeyboardInterrupt
        return checkpoint(self.net, x.requires_grad_(), use_reentrant=self.reentrant)  # type: ignore[no-any-return]


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_backward_pass_after_switching_to_evaluation_recomputes_at_the_draw(reentrant: bool) -> None:
    results = []
    for switched in (False, True):
        model = Recomputed(reentrant)
        optimizer = ivon(model)
        NoiseController(model, optimizer, seed=0)
        loss = model.train()(inputs()).square().mean()
        model.train(not switched)
        loss.backward()
        optimizer.step()
        results.append(tensors(model))
    assert equal(*results)


def test_gradients_of_an_evaluation_forward_are_the_means() -> None:
    model = Net().eval()
    expected = torch.autograd.grad(model(inputs()).square().mean(), model.first.weight)[0]
    NoiseController(model, ivon(model))
    model(inputs()).square().mean().backward()
    assert torch.equal(model.first.weight.grad, expected)


def test_an_interrupted_evaluation_does_not_end_the_sampling_of_the_next_forward() -> None:
    results = []
    for interrupted in (False, True):
        model = Recomputed(reentrant=True)
        optimizer = ivon(model)
        NoiseController(model, optimizer, seed=0)
        if interrupted:
            model.interrupt = True
            with pytest.raises(KeyboardInterrupt), torch.no_grad():
                model.eval()(inputs())
            model.interrupt = False
        model.train()(inputs()).square().mean().backward()
        optimizer.step()
        results.append(tensors(model))
    assert equal(*results)


def test_a_copy_does_not_disturb_the_original() -> None:
    results = []
    for copied in (False, True):
        model = Net()
        optimizer = ivon(model)
        NoiseController(model, optimizer, seed=0)
        for i in range(3):
            loss = model.train()(inputs(i)).square().mean()
            if copied:
                twin = copy.deepcopy(copy.deepcopy(model))
                twin.train()(inputs()).sum().backward()
                twin.eval()(inputs())
                with pytest.raises(RuntimeError, match="no noise was drawn"):
                    copy.deepcopy(optimizer).step()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(tensors(model))
    assert equal(*results)


def test_a_closure_is_evaluated_at_sampled_weights() -> None:
    plain, closed = Net(), Net()
    optimizers = [ivon(model) for model in (plain, closed)]
    for model, optimizer in zip((plain, closed), optimizers, strict=True):
        NoiseController(model.train(), optimizer, seed=0)
    steps(plain, optimizers[0], 2)
    for i in range(2):

        def closure(i: int = i) -> Tensor:
            optimizers[1].zero_grad()
            loss: Tensor = closed(inputs(i)).square().mean()
            loss.backward()
            return loss

        assert optimizers[1].step(closure).requires_grad
    assert equal(tensors(plain), tensors(closed))


def test_a_learning_rate_of_zero_moves_the_statistics_only() -> None:
    model = Net()
    optimizer = ivon(model)
    NoiseController(model, optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0)
    before = tensors(model)
    steps(model, optimizer, 2)
    schedule.step()
    assert equal(before, tensors(model))
    assert not torch.equal(optimizer.state[model.first.weight]["momentum"], torch.zeros(4, 3))


def test_a_learning_rate_held_in_a_tensor_is_not_changed_by_a_step() -> None:
    models = [Net(), Net()]
    rates = [torch.tensor(0.1), 0.1]
    for model, rate in zip(models, rates, strict=True):
        optimizer = ivon(model, lr=rate, rescale_lr=True)
        NoiseController(model, optimizer, seed=0)
        steps(model, optimizer, 3)
        assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)
    for a, b in zip(tensors(models[0]), tensors(models[1]), strict=True):
        torch.testing.assert_close(a, b)


def test_an_ess_changed_on_the_way_changes_the_noise_of_the_next_draw() -> None:
    model = Net()
    optimizer = ivon(model)
    NoiseController(model, optimizer)
    steps(model, optimizer)
    wide = optimizer.noise_scale(model.first.weight)
    optimizer.param_groups[0]["ess"] *= 4
    torch.testing.assert_close(optimizer.noise_scale(model.first.weight), wide / 2)
    steps(model, optimizer)
    assert optimizer.skipped_steps == 0


def test_a_state_saved_in_full_precision_goes_on_in_half() -> None:
    model = Net()
    optimizer = ivon(model)
    NoiseController(model, optimizer, seed=0)
    steps(model, optimizer, 2)
    half = copy.deepcopy(model).bfloat16()
    resumed = ivon(half)
    resumed.load_state_dict(optimizer.state_dict())
    with pytest.warns(UserWarning, match="half precision"):
        NoiseController(half, resumed, seed=0)
    half.train()(inputs().bfloat16()).square().mean().backward()
    resumed.step()
    p = half.first.weight
    assert resumed.state[p]["mean"].dtype == resumed.state[p]["hessian"].dtype == torch.float32
    assert torch.equal(resumed.state[p]["mean"].bfloat16(), p.detach())


def test_weights_loaded_into_a_half_precision_model_move_its_master_copy() -> None:
    model = Net().bfloat16()
    optimizer = ivon(model)
    with pytest.warns(UserWarning, match="half precision"):
        NoiseController(model, optimizer)
    model.train()(inputs().bfloat16()).square().mean().backward()
    optimizer.step()
    model.load_state_dict(Net().bfloat16().state_dict())
    assert torch.equal(optimizer.mean(model.first.weight), Net().bfloat16().first.weight.float())


def test_a_state_with_other_groups_is_refused() -> None:
    model = Net()
    groups = [{"params": list(model.first.parameters())}, {"params": list(model.last.parameters())}]
    saved = IVON(groups, lr=0.1, ess=50.0, hess_init=1.0).state_dict()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        ivon(model).load_state_dict(saved)


def test_two_optimizers_share_a_model_when_their_modules_are_apart() -> None:
    model = Net()
    first, last = (IVON(part.parameters(), lr=0.1, ess=50.0, hess_init=1.0) for part in (model.first, model.last))
    NoiseController(model, first, seed=0)
    NoiseController(model, last, seed=1)
    before = tensors(model)
    model.train()(inputs()).square().mean().backward()
    first.step()
    last.step()
    assert first.step_index == last.step_index == 1
    assert not torch.equal(before[2], model.first.weight)


@pytest.mark.slow
def test_inductor_gives_the_eager_numbers() -> None:
    results = []
    for compiled in (False, True):
        model = Net()
        optimizer = ivon(model)
        NoiseController(model, optimizer, seed=0)
        steps(torch.compile(model) if compiled else model, optimizer, 3)
        results.append(tensors(model))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_an_empty_group_can_be_added_while_a_controller_is_attached():
    model = torch.nn.Linear(2, 1)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)
    optimizer.add_param_group({"params": []})
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert optimizer.step_index == 1
