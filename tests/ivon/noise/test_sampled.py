"""A module's forward at sampled weights: every parameter, recomputed, copied, compiled, in half precision."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from models import lora, tiny_llama, tiny_qwen3
from noisy_nets import OPTIONS, Net, attach, data, loss_of
from varlora import IVON, NoiseController
from varlora.ivon.noise import CounterNoise, NoiseWarning


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        x = torch.tanh(self.first(x))
        x = checkpoint(lambda y: torch.tanh(self.shared(torch.tanh(self.shared(y)))), x, use_reentrant=self.reentrant)
        return self.last(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_see_the_same_noise(reentrant):
    plain, recomputing = Net(), Checkpointed(reentrant)
    results = []
    for model in (plain, recomputing):
        optimizer, _ = attach(model)
        for step in range(4):
            for micro in range(2):
                (loss_of(model, data(5, seed=10 * step + micro)) / 2).backward()
            optimizer.step()
            optimizer.zero_grad()
        results.append((model.state_dict(), [optimizer.state[p]["hessian"] for p in model.parameters()]))
    for name, value in results[0][0].items():
        torch.testing.assert_close(value, results[1][0][name], rtol=1e-12, atol=1e-14)
    for a, b in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "lora_options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"bias": "lora_only"}]
)
@pytest.mark.parametrize("build", [tiny_llama, tiny_qwen3])
def test_every_trained_parameter_of_an_adapter_sees_its_noise(build, lora_options):
    """Against the model whose weights really are mean + noise: same loss, same gradient."""
    model = lora(build(), **lora_options)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    perturbed = copy.deepcopy(model)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    optimizer = IVON(trained.values(), **OPTIONS)
    controller = NoiseController(model, optimizer, seed=7)
    ids = torch.arange(12).view(2, 6)
    model.train()
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()

    eps = CounterNoise(7).draw(trained, step=0, draw=0, rank=0)
    noise = {n: optimizer.noise_scale(p) * eps[n] for n, p in trained.items()}
    twin = dict(perturbed.named_parameters())
    with torch.no_grad():
        for name, eps in noise.items():
            twin[name].add_(eps)
    expected = perturbed(input_ids=ids, labels=ids).loss
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    collected = controller.collect()
    assert set(collected) == set(trained.values())
    for name, p in trained.items():
        torch.testing.assert_close(p.grad, twin[name].grad, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(collected[p], noise[name] * twin[name].grad, rtol=1e-3, atol=1e-6)


def test_half_precision_parameters_are_warned_about_and_get_the_noise_they_saw():
    model = nn.Linear(8, 8, bias=False, dtype=torch.bfloat16)
    optimizer = IVON(model.parameters(), lr=0.1, ess=1e6, hess_init=1.0)  # sd 1e-3, near bf16's rounding
    with pytest.warns(NoiseWarning, match="half precision"):
        controller = NoiseController(model, optimizer)
    seen = {}
    model.register_forward_hook(lambda module, args, out: seen.update(out=out.detach().clone()))
    out = model(torch.eye(8, dtype=torch.bfloat16))
    out.sum().backward()
    sampled = seen["out"].T.float()  # identity input: the output is the sampled weight
    effective = sampled - model.weight.detach().float()
    torch.testing.assert_close(controller.collect()[model.weight], effective, rtol=0, atol=1e-7)


def test_torch_compile_gives_the_eager_numbers():
    """By "aot_eager", which traces as "eager" does and then cuts out the backward pass as well."""
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model = Net()
        optimizer = IVON(model.parameters(), **OPTIONS)
        called = torch.compile(model, backend="aot_eager") if compiled else model
        NoiseController(called, optimizer, seed=7)
        for step in range(2):
            loss_of(called, data(5, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                called.eval()
                at_mean = called(data(2))
                called.train()
        results.append(torch.cat([at_mean.flatten(), *[p.detach().flatten() for p in model.parameters()]]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)


def test_a_copy_made_during_training_computes_at_its_own_weights():
    model = Net()
    optimizer, _ = attach(model)
    loss_of(model, data(3))  # a draw is pending
    copied = copy.deepcopy(model)
    fresh = Net()
    assert torch.equal(copied(data(2)), fresh(data(2)))
    with torch.no_grad():
        copied.first.weight.zero_()
        assert not torch.equal(copied(data(2)), fresh(data(2)))
    loss_of(model, data(3)).backward()
    optimizer.step()


def test_state_dict_keys_and_modules_are_as_before_after_detach():
    model = lora(tiny_llama())
    keys, forwards = set(model.state_dict()), {n: m.forward.__func__ for n, m in model.named_modules()}
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **OPTIONS)
    controller = NoiseController(model, optimizer)
    assert set(model.state_dict()) == keys
    controller.detach()
    assert {n: m.forward.__func__ for n, m in model.named_modules()} == forwards
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert optimizer.noise is None


def test_gradients_that_arrive_as_one_tensor_stay_apart():
    """Backward of a sum hands both terms the same tensor; each parameter accumulates in its own."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))

        def forward(self):
            return self.a + self.b

    model = Sum()
    attach(model)
    for _ in range(3):
        model().sum().backward()
    for p in model.parameters():
        assert torch.equal(p.grad, torch.full((3,), 3.0))


def test_weights_loaded_between_two_forwards_of_a_draw_are_what_the_second_samples():
    """A forward without a backward pass (a look at the memory, a first loss), then a checkpoint, then training."""
    model = Net()
    attach(model)
    seen = {}
    model.last.register_forward_hook(lambda module, *_: seen.update(bias=module.bias.detach().clone()))
    model(data(3))
    before = seen["bias"] - model.last.bias.detach()
    with torch.no_grad():
        model.last.bias.add_(5.0)
    model(data(3))
    torch.testing.assert_close(seen["bias"] - model.last.bias.detach(), before)


def test_a_gradient_of_the_gradient_is_refused():
    """A penalty on gradients would hand noise · gradient on twice."""
    model = Net()
    attach(model)
    gradients = torch.autograd.grad(model(data(3)).sum(), list(model.parameters()), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        sum(g.square().sum() for g in gradients if g.requires_grad).backward()
