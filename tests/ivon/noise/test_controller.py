"""The invariances that make the noise trustworthy: each compares with a loop that draws its own noise."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from noisy_nets import OPTIONS, Net, attach, data, loss_of
from varlora import IVON, NoiseController
from varlora.ivon.noise import CounterNoise


def literal_statistics(model, optimizer, draws):
    """Gradient and noise * gradient by hand: `draws` lists (batch, weight, noise per name)."""
    named = dict(model.named_parameters())
    gradient = {name: torch.zeros_like(p) for name, p in named.items()}
    product = {name: torch.zeros_like(p) for name, p in named.items()}
    for x, weight, noise in draws:
        sampled = {n: (p + optimizer.noise_scale(p) * noise[n]).detach().requires_grad_() for n, p in named.items()}
        loss = weight * (functional_call(model, sampled, (x,)) - 0.5).square().mean()
        for (name, p), g in zip(sampled.items(), torch.autograd.grad(loss, list(sampled.values())), strict=True):
            gradient[name] += g
            product[name] += (p - named[name]) * g
    return gradient, product


def noise_of(model, *, step, draw, rank=0, seed=7):
    return CounterNoise(seed).draw(dict(model.named_parameters()), step=step, draw=draw, rank=rank)


@pytest.mark.parametrize("sizes", [[6], [3, 3], [5, 1], [2, 2, 2, 1]])
def test_accumulation_over_micro_batches_is_as_many_draws_of_one_step(sizes):
    """Unequal micro-batches too: each loss carries its share of the examples as its weight."""
    model, total = Net(), sum(sizes)
    _, controller = attach(model)
    batches = [data(n, seed=i) for i, n in enumerate(sizes)]
    clone = Net()
    clone_optimizer = IVON(clone.parameters(), **OPTIONS)
    gradient, product = literal_statistics(
        clone, clone_optimizer, [(x, len(x) / total, noise_of(model, step=0, draw=i)) for i, x in enumerate(batches)]
    )
    for x in batches:
        (loss_of(model, x) * len(x) / total).backward()
    collected = controller.collect()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradient[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(collected[p], product[name], rtol=1e-12, atol=1e-14)


def test_evaluation_between_forward_and_backward_changes_nothing():
    results = []
    for evaluate in (False, True):
        model = Net()
        optimizer, _ = attach(model)
        for step in range(3):
            loss = loss_of(model, data(5, seed=step))
            if evaluate:
                at_mean = Net()
                at_mean.load_state_dict(model.state_dict())
                model.eval()
                with torch.no_grad():
                    assert torch.equal(model(data(3)), at_mean(data(3)))
                model.train()
                with torch.inference_mode():
                    assert torch.equal(model(data(3)), at_mean(data(3)))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


def test_one_draw_lasts_until_a_backward_pass_has_used_it():
    model = Net()
    attach(model)
    x = data(3)
    first, again = model(x), model(x)
    assert torch.equal(first, again)
    first.sum().backward()
    assert not torch.equal(model(x), first)


def test_training_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = nn.Linear(4, 4, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    torch.manual_seed(5)
    optimizer, _ = attach(model)
    loss_of(model, data(3)).backward()
    optimizer.step()
    assert torch.equal(torch.rand(3), expected)


def interrupted(kind, where):
    class Failing(Net):
        armed = False

        def forward(self, x):
            out = super().forward(x)
            if self.armed and where == "forward":
                raise kind
            if self.armed and where == "backward":
                out.register_hook(lambda g: (_ for _ in ()).throw(kind))
            return out

    return Failing()


@pytest.mark.parametrize("kind", [RuntimeError("out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["forward", "inner forward", "backward", "step"])
def test_an_interrupt_anywhere_leaves_the_model_at_the_mean(kind, where, monkeypatch):
    model = interrupted(kind, where)
    optimizer, _ = attach(model)
    loss_of(model, data(5)).backward()
    optimizer.step()
    optimizer.zero_grad()
    mean = copy.deepcopy(model.state_dict())
    addresses = [p.data_ptr() for p in model.parameters()]
    model.armed = True
    if where == "inner forward":
        original = F.linear

        def fails(*args, **kwargs):
            if args[1] is not None and not args[1].is_leaf:
                raise kind
            return original(*args, **kwargs)

        monkeypatch.setattr(F, "linear", fails)
    if where == "step":
        monkeypatch.setattr(optimizer, "_update", lambda *_: (_ for _ in ()).throw(kind))
    with pytest.raises(type(kind)):  # noqa: PT012
        loss_of(model, data(5)).backward()
        optimizer.step()
    monkeypatch.undo()
    for name, value in model.state_dict().items():
        assert torch.equal(value, mean[name])
    for module in (model.first, model.shared, model.last):
        assert module.weight is module._parameters["weight"]  # nothing shadows the mean
    assert [p.data_ptr() for p in model.parameters()] == addresses
    model.armed = False
    clean = Net()
    clean.load_state_dict(mean)
    with torch.no_grad():
        assert torch.equal(model.eval()(data(2)), clean(data(2)))


def test_an_abandoned_step_leaves_no_products_behind():
    """After an out-of-memory error, loops drop the gradients and go on; so must the products."""
    model, twin = Net(), Net()
    optimizer, _ = attach(model)
    loss_of(model, data(5, seed=99)).backward()
    model.zero_grad()  # not the optimizer's: it does not know
    loss_of(model, data(5)).backward()
    optimizer.step()

    twin_optimizer, _ = attach(twin)
    loss_of(twin, data(5)).backward()
    twin_optimizer.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(optimizer.state[p]["hessian"], twin_optimizer.state[q]["hessian"])
        assert torch.equal(p, q)


def test_gradient_clipping_acts_on_the_step_and_not_on_the_curvature():
    model = Net()
    optimizer, controller = attach(model)
    loss_of(model, data(5)).backward()
    before = {p: v.clone() for p, v in controller.collect().items()}
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    for p, product in controller.collect().items():
        assert torch.equal(product, before[p])
    clipped = {p: p.grad.clone() for p in model.parameters()}
    optimizer.step()
    for p in model.parameters():
        torch.testing.assert_close(optimizer.state[p]["momentum"], 0.1 * clipped[p], rtol=1e-12, atol=0)


def test_loss_scaling_is_undone_for_gradients_and_products():
    """A GradScaler multiplies the loss; IVON must see neither its scale nor an overflowed step's leftovers."""
    results = []
    for scaled in (False, True):
        model = Net()
        optimizer = IVON(model.parameters(), **OPTIONS)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=scaled)
        NoiseController(model, optimizer, seed=7, scaler=scaler)
        for step in range(3):
            if scaled and step == 1:  # an overflow: the scaler skips the step by itself
                scaler.scale(loss_of(model, data(5, seed=1)) * float("inf")).backward()
                scaler.step(optimizer)
                scaler.update()
                model.zero_grad()
                assert optimizer.step_index == 1
            scaler.scale(loss_of(model, data(5, seed=step))).backward()
            scaler.step(optimizer)
            scaler.update()
            model.zero_grad()
        results.append((model, optimizer))
    (plain, plain_optimizer), (scaled, scaled_optimizer) = results
    for p, q in zip(plain.parameters(), scaled.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(
            plain_optimizer.state[p]["hessian"], scaled_optimizer.state[q]["hessian"], rtol=1e-12, atol=1e-14
        )


def test_a_detached_controller_keeps_nothing_alive():
    model = Net()
    optimizer, controller = attach(model)
    loss_of(model, data(3)).backward()
    optimizer.step()
    controller.detach()
    import weakref

    reference = weakref.ref(controller)
    del controller
    gc.collect()
    assert reference() is None


def test_wrong_optimizers_and_models_are_named():
    model = Net()
    with pytest.raises(TypeError, match="got AdamW"):
        NoiseController(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(ValueError, match="holds no parameter of this model"):
        NoiseController(model, IVON(Net().parameters(), **OPTIONS))
    with pytest.raises(ValueError, match="1 parameters that are not in this model"):
        NoiseController(model, IVON([*model.parameters(), nn.Parameter(torch.ones(1))], **OPTIONS))
    with pytest.raises(ValueError, match="DataParallel"):
        NoiseController(nn.DataParallel(model), IVON(model.parameters(), **OPTIONS))
