"""The invariances that make the noise trustworthy: each compares with a loop that draws its own noise."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from models import lora, tiny_llama, tiny_qwen3
from varlora import IVON, NoiseController
from varlora.noise import CounterNoise, NoiseWarning, ReplayedNoise

OPTIONS = {"lr": 0.1, "ess": 200.0, "hess_init": 0.1, "betas": (0.9, 0.9), "weight_decay": 0.01}


class Net(nn.Module):
    """Two layers with a shared one between, in float64 so that equality is sharp."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.shared, self.last = (nn.Linear(4, 4, dtype=torch.float64) for _ in range(3))

    def forward(self, x):
        return self.last(torch.tanh(self.shared(torch.tanh(self.shared(torch.tanh(self.first(x)))))))


def data(rows, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, 4, generator=generator, dtype=torch.float64)


def loss_of(model, x):
    return (model(x) - 0.5).square().mean()


def attach(model, **options):
    optimizer = IVON(model.parameters(), **{**OPTIONS, **options})
    return optimizer, NoiseController(model, optimizer, seed=7)


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
    source = CounterNoise(seed)
    return {n: source.draw(n, p, step=step, draw=draw, rank=rank) for n, p in model.named_parameters()}


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

    source = CounterNoise(7)
    noise = {n: optimizer.noise_scale(p) * source.draw(n, p, step=0, draw=0, rank=0) for n, p in trained.items()}
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


def test_trained_embeddings_and_their_lora_are_covered():
    model = get_peft_model(
        tiny_llama(), LoraConfig(r=2, target_modules=["embed_tokens", "q_proj"], init_lora_weights=False)
    )
    optimizer = IVON([p for p in model.parameters() if p.requires_grad], **OPTIONS)
    controller = NoiseController(model, optimizer)
    ids = torch.arange(8).view(1, 8)
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert len(controller.collect()) == sum(p.requires_grad for p in model.parameters())


def test_tied_parameters_share_one_noise():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    model = Tied()
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    eps = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    controller = NoiseController(model, optimizer, ReplayedNoise({"a.weight": [eps]}))
    x = torch.ones(1, 3)
    weight = (model.a.weight + eps / 10.0**0.5).detach().requires_grad_()
    expected = (x @ weight.T @ weight.T).sum()
    (gradient,) = torch.autograd.grad(expected, weight)
    out = model(x).sum()
    out.backward()
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(controller.collect()[model.a.weight], gradient * eps / 10.0**0.5)


def test_weights_read_behind_the_modules_back_are_refused():
    class Sneaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return F.linear(self.other(x), self.inner.weight)

    model = Sneaky()
    optimizer = IVON([*model.other.parameters(), model.inner.weight], lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)
    model(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match=r"inner\.weight"):
        optimizer.step()


def test_attention_reads_its_projection_through_the_attention_layer():
    model = nn.MultiheadAttention(4, 2, batch_first=True)
    optimizer = IVON(model.parameters(), lr=0.1, ess=10.0, hess_init=1.0)
    NoiseController(model, optimizer)
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    model(x, x, x)[0].sum().backward()
    optimizer.step()
    assert optimizer.state[model.out_proj.weight]["step"] == 1


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


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_gives_the_eager_numbers(backend):
    torch._dynamo.reset()
    results = []
    for compiled in (False, True):
        model = Net()
        optimizer = IVON(model.parameters(), **OPTIONS)
        called = torch.compile(model, backend=backend) if compiled else model
        NoiseController(called, optimizer, seed=7)
        for step in range(3):
            loss_of(called, data(5, seed=step)).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                called.eval()
                at_mean = called(data(2))
                called.train()
        results.append(torch.cat([at_mean.flatten(), *[p.detach().flatten() for p in model.parameters()]]))
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-12)
