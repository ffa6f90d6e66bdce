"""`NoiseController.evaluation_draw`: one draw of the present posterior, between the steps of a training."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from adapted_models import ADAPTED
from models import lora, tiny_llama, token_ids
from noisy_nets import OPTIONS, Net, attach, data, loss_of
from varlora import IVON, NoiseController
from varlora.ivon.noise import CounterNoise, NoiseWarning


def trained_adapter(model, steps=2, **options):
    """`model` after a few steps, in evaluation mode."""
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **{**OPTIONS, "lr": 1e-2, **options})
    controller = NoiseController(model, optimizer, seed=7)
    ids = token_ids()
    model.train()
    for _ in range(steps):
        output = model(input_ids=ids)
        output.logits.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    return optimizer, controller


def logits_of(model):
    with torch.no_grad():
        return model(input_ids=token_ids()).logits


@pytest.mark.parametrize("kind", [*ADAPTED, "half precision"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_evaluation_draw_is_the_mean_plus_scaled_noise(kind, sign):
    """Against a copy whose weights are set by hand: after two steps, so that variances differ."""
    half = kind == "half precision"
    model = lora(tiny_llama()).bfloat16() if half else ADAPTED[kind]()
    with pytest.warns(NoiseWarning) if half else nullcontext():
        optimizer, controller = trained_adapter(model)
    trained_parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
    by_hand = copy.deepcopy(model)
    twins = dict(by_hand.named_parameters())
    likes = {f"evaluation/{name}": optimizer.mean(p) for name, p in trained_parameters.items()}
    noise = CounterNoise(7).draw(likes, step=2, draw=3, rank=0)
    with torch.no_grad():
        for name, p in trained_parameters.items():
            eps = optimizer.noise_scale(p) * noise[f"evaluation/{name}"]
            twins[name].copy_(optimizer.mean(p) + sign * eps)
    at_mean = logits_of(model)
    with controller.evaluation_draw(3, sign=sign):
        found = logits_of(model)
    controller.detach()
    torch.testing.assert_close(found, logits_of(by_hand), rtol=0, atol=0 if half else 1e-6)
    assert not torch.allclose(found, at_mean, rtol=1e-4)
    torch.testing.assert_close(logits_of(model), at_mean, rtol=0, atol=0)


def test_opposite_draws_have_the_mean_between_them():
    model = nn.Linear(4, 3, dtype=torch.float64)
    _, controller = attach(model)
    model.eval()
    with torch.no_grad():
        outputs = []
        for index, sign in ((0, 1.0), (0, -1.0), (1, 1.0)):
            with controller.evaluation_draw(index, sign=sign):
                outputs.append(model(data(2)))
        plus, minus, other = outputs
        torch.testing.assert_close((plus + minus) / 2, model(data(2)), rtol=1e-12, atol=0)
    assert not torch.allclose(plus, minus)
    assert not torch.allclose(plus, other)


def test_all_ranks_see_the_same_evaluation_draw_and_other_steps_another():
    found = []
    for rank in (0, 1):
        model = Net()
        optimizer = IVON(model.parameters(), **OPTIONS)
        controller = NoiseController(model, optimizer, seed=7, rank=rank)
        model.eval()
        with torch.no_grad(), controller.evaluation_draw(0):
            found.append(model(data(2)))
    assert torch.equal(*found)
    optimizer.param_groups[0]["step_index"] = 1
    with torch.no_grad(), controller.evaluation_draw(0):
        assert not torch.equal(model(data(2)), found[0])


def test_evaluation_draws_between_steps_change_nothing_in_training():
    results = []
    for evaluated in (False, True):
        model = Net()
        optimizer, controller = attach(model)
        torch.manual_seed(1)
        for step in range(3):
            for micro in range(2):
                (loss_of(model, data(5, seed=10 * step + micro)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
            if evaluated:
                model.eval()
                for index in range(3):
                    with torch.no_grad(), controller.evaluation_draw(index):
                        model(data(2))
                model.train()
        assert not controller.sampling
        state = [optimizer.state[p][key] for p in model.parameters() for key in ("hessian", "momentum")]
        results.append(torch.cat([t.detach().flatten() for t in (*model.parameters(), *state, torch.rand(2).double())]))
    assert torch.equal(*results)


@pytest.mark.parametrize("backward", [False, True])
def test_an_evaluation_draw_within_a_step_is_refused(backward):
    model, twin = Net(), Net()
    optimizer, controller = attach(model)
    loss = loss_of(model, data(5))
    if backward:
        loss.backward()
    with pytest.raises(RuntimeError, match=r"between a training forward and optimizer\.step\(\); call it after step"):
        with controller.evaluation_draw(0):
            pass
    if not backward:
        loss.backward()
    optimizer.step()  # and nothing was lost
    twin_optimizer, _ = attach(twin)
    loss_of(twin, data(5)).backward()
    twin_optimizer.step()
    assert torch.equal(model.first.weight, twin.first.weight)
    with controller.evaluation_draw(0):
        pass


def test_a_step_that_the_loss_scaler_skipped_does_not_forbid_evaluation_draws():
    """The trainer goes on as after any step: it zeroes the model's gradients, and measures."""
    model = Net()
    optimizer = IVON(model.parameters(), **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    controller = NoiseController(model, optimizer, seed=7, scaler=scaler)
    scaler.scale(loss_of(model, data(5)) * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    model.zero_grad()
    assert optimizer.step_index == 0
    with torch.no_grad(), controller.evaluation_draw(0):
        assert torch.isfinite(model.eval()(data(2))).all()
    scaler.scale(loss_of(model.train(), data(5))).backward()
    scaler.step(optimizer)
    fresh = Net()
    fresh_optimizer, _ = attach(fresh)
    loss_of(fresh, data(5)).backward()
    fresh_optimizer.step()
    torch.testing.assert_close(model.first.weight, fresh.first.weight, rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_exception_within_an_evaluation_draw_leaves_the_model_at_the_mean(kind):
    model = Net()
    optimizer, controller = attach(model)
    loss_of(model, data(5)).backward()
    optimizer.step()
    optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        at_mean = model(data(2))
        with pytest.raises(kind), controller.evaluation_draw(0):  # noqa: PT012
            assert not torch.equal(model(data(2)), at_mean)
            raise kind
        assert torch.equal(model(data(2)), at_mean)
    loss_of(model.train(), data(5)).backward()
    optimizer.step()
    assert optimizer.step_index == 2


def test_what_an_evaluation_draw_is_not_for_is_refused():
    model = Net()
    _, controller = attach(model)
    with torch.no_grad(), controller.evaluation_draw(0):
        with pytest.raises(RuntimeError, match=r"training mode, or with gradients; call model\.eval\(\)"):
            model.train()(data(2))
        with torch.enable_grad(), pytest.raises(RuntimeError, match="with gradients"):
            model.eval()(data(2))
        sampled = model(data(2))
        with pytest.raises(RuntimeError, match="leave the first block"), controller.evaluation_draw(1):
            pass
        assert torch.equal(model(data(2)), sampled)


def test_after_an_abandoned_step_and_an_evaluation_draw_parts_compute_at_the_mean():
    model = Net()
    optimizer, controller = attach(model)
    loss_of(model, data(5)).backward()
    optimizer.zero_grad()  # the step is given up
    with controller.evaluation_draw(0):
        pass
    assert torch.equal(model.shared(data(2)), Net().shared(data(2)))
