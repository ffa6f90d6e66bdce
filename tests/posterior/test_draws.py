"""How many draws there are of each kind of posterior, from where, and what dropout masks do to a model."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from varlora.adapters import dropout_modules, trained_tensors
from varlora.posterior import DiagonalGaussian, DropoutMasks, Mixture, PointMass, Posterior
from varlora.posterior.draws import number_of_draws, over_draws, progress_bar, weight_draws

RATE = 0.5


def point(value: float) -> PointMass:
    return PointMass(mean={"w": torch.full((3,), value)})


def gaussian(value: float) -> DiagonalGaussian:
    return DiagonalGaussian(mean={"w": torch.full((3,), value)}, precision={"w": torch.full((3,), 100.0)})


def values(q: Posterior, samples: int, **options: bool) -> list[Tensor]:
    return [draw["w"] for draw in weight_draws(q, samples, seed=1, **options)]


# Draws of weights ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("q", "samples", "expected"),
    [
        (None, 10, 1),
        (point(0.0), 10, 1),
        (gaussian(0.0), 0, 1),
        (gaussian(0.0), 5, 5),
        (Mixture(components=[point(float(i)) for i in range(3)]), 0, 1),
        (Mixture(components=[point(float(i)) for i in range(3)]), 1, 3),
        (Mixture(components=[point(float(i)) for i in range(3)]), 10, 3),
        (Mixture(components=[gaussian(float(i)) for i in range(3)]), 1, 3),
        (Mixture(components=[gaussian(float(i)) for i in range(3)]), 10, 12),
        (Mixture(components=[gaussian(0.0), point(1.0)]), 5, 6),
        (DropoutMasks(mean={"w": torch.ones(3)}, rate=0.1), 7, 7),
        (DropoutMasks(mean={"w": torch.ones(3)}, rate=0.1), 0, 1),
    ],
)
def test_there_are_as_many_draws_as_announced(q: Posterior | None, samples: int, expected: int) -> None:
    assert number_of_draws(q, samples) == expected
    assert progress_bar(4, q, samples, shown=False).total == 4 * expected
    if q is not None and not isinstance(q, DropoutMasks):
        assert len(values(q, samples)) == expected


def test_every_component_of_a_mixture_gives_the_same_number_of_draws() -> None:
    draws = values(Mixture(components=[gaussian(0.0), gaussian(10.0), gaussian(20.0)]), 7)
    assert [round(draw.mean().item(), -1) for draw in draws] == [0, 0, 0, 10, 10, 10, 20, 20, 20]
    assert len({tuple(draw.tolist()) for draw in draws}) == 9


def test_components_have_noise_of_their_own() -> None:
    first, second = values(Mixture(components=[gaussian(0.0), gaussian(0.0)]), 2)
    assert not torch.allclose(first, second)


def test_draws_are_mirrored_about_their_own_component() -> None:
    q = Mixture(components=[gaussian(0.0), gaussian(10.0)])
    draws = values(q, 4)
    for mean, (one, other) in zip((0.0, 10.0), (draws[:2], draws[2:]), strict=True):
        torch.testing.assert_close((one + other) / 2, torch.full((3,), mean), atol=1e-5, rtol=0)
    single = values(q, 4, antithetic=False)
    assert not torch.allclose(single[0] + single[1], torch.zeros(3))


def test_a_posterior_that_is_not_symmetric_is_not_mirrored() -> None:
    class Skewed(DiagonalGaussian):
        symmetric = False

        def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
            return {"w": torch.rand(3, generator=generator).exp()}

    draws = values(Skewed(mean=gaussian(0.0).mean, precision=gaussian(0.0).precision), 4)
    assert all((draw >= 1).all() for draw in draws)


def test_a_mixture_of_points_gives_each_point_whatever_the_seed() -> None:
    q = Mixture(components=[point(float(i)) for i in range(3)])
    assert [draw[0].item() for draw in values(q, 10)] == [0.0, 1.0, 2.0]
    assert torch.equal(values(q, 0)[0], q.point["w"])


# Dropout masks ---------------------------------------------------------------------------------------------


class Net(nn.Module):
    """A linear layer behind a dropout of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.9)
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x))  # type: ignore[no-any-return]


def net(rate: float = RATE, **config: bool) -> PeftModel:
    torch.manual_seed(0)
    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["linear"], lora_dropout=rate, **config))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
    return model


def masks_of(model: PeftModel, rate: float = RATE) -> DropoutMasks:
    return DropoutMasks(mean={key: p.detach().clone() for key, p in trained_tensors(model).items()}, rate=rate)


def passes(model: PeftModel, q: Posterior, x: Tensor, samples: int, seed: int = 0) -> Tensor:
    return over_draws(model, q, samples, lambda: model(x), antithetic=True, seed=seed)


@pytest.mark.parametrize("dora", [False, True])
def test_masks_differ_between_passes_and_between_examples(dora: bool) -> None:
    model = net(use_dora=dora)
    logits = passes(model, masks_of(model), torch.ones(400, 4), 3)
    assert logits.shape == (400, 3, 3)
    for s in range(3):
        assert len((logits[:, s] * 1e4).round().unique(dim=0)) == 2**4, "the same example, under every mask"
    assert not any(torch.allclose(logits[:, s], logits[:, s - 1]) for s in range(3))


def test_mean_and_variance_of_the_passes_are_those_of_the_masks() -> None:
    model, x = net(), torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    each = 100  # rows of one batch have masks of their own, too
    logits = passes(model, masks_of(model), x.repeat(each, 1), 20_000 // each).double()
    logits = logits.unflatten(0, (each, len(x))).transpose(0, 1).flatten(1, 2)
    layer = model.base_model.model.linear
    product = (layer.scaling["default"] * layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    mean = (layer.base_layer(x) + x @ product.T).detach()
    variance = RATE / (1 - RATE) * x.square() @ product.square().T
    assert ((logits.mean(1) - mean).abs() < 5 * (variance / 20_000).sqrt()).all()
    torch.testing.assert_close(logits.var(1), variance.double(), atol=0, rtol=0.05)


def test_the_models_own_dropout_stays_off() -> None:
    model = net().train()
    x = torch.tensor([[0.0, 0.0, 0.0, 2.0]]).expand(200, 4)
    logits = passes(model, masks_of(model), x, 1)[:, 0]
    assert (
        len(logits.unique(dim=0)) == 2
    )  # the adapter's one input that counts, kept or dropped; the base's always kept


def test_the_rate_is_the_posteriors() -> None:
    model = net(rate=0.1)
    logits = passes(model, masks_of(model, rate=0.9), torch.eye(4)[:1].expand(4000, 4), 1)[:, 0]
    base = model.base_model.model.linear.base_layer(torch.eye(4)[:1])
    dropped = torch.isclose(logits, base).all(1).float().mean().item()
    assert abs(dropped - 0.9) < 0.02
    assert [module.p for module in dropout_modules(model).values()] == [0.1]


def test_the_seed_alone_decides_the_masks() -> None:
    model = net()
    q, x = masks_of(model), torch.ones(8, 4)
    torch.manual_seed(1)
    first = passes(model, q, x, 4, seed=5)
    torch.manual_seed(2)
    assert torch.equal(passes(model.train(), q, x, 4, seed=5), first)
    assert torch.equal(passes(model, q, x, 2, seed=5), first[:, :2])
    assert not torch.equal(passes(model, q, x, 4, seed=6), first)


def test_no_samples_is_the_model_in_eval_mode_at_the_point() -> None:
    model = net().train()
    q = DropoutMasks(mean={key: t + 1 for key, t in masks_of(model).mean.items()}, rate=RATE)
    x = torch.ones(8, 4)
    assert torch.equal(passes(model, q, x, 0), passes(model, PointMass(mean=q.mean), x, 3))


@pytest.mark.parametrize("fails", [False, True])
def test_modes_rates_weights_and_random_state_are_as_before(fails: bool) -> None:
    model = net().train()
    model.base_model.model.dropout.eval()
    q = DropoutMasks(mean={key: t + 1 for key, t in masks_of(model).mean.items()}, rate=0.2)
    before = ([m.training for m in model.modules()], {n: t.clone() for n, t in model.state_dict().items()})
    state = torch.get_rng_state()

    def one_pass() -> Tensor:
        if fails:
            raise KeyboardInterrupt
        return model(torch.ones(2, 4))  # type: ignore[no-any-return]

    try:
        over_draws(model, q, 3, one_pass, antithetic=True, seed=0)
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == before[0]
    assert all(torch.equal(t, before[1][n]) for n, t in model.state_dict().items())
    assert [module.p for module in dropout_modules(model).values()] == [RATE]


def test_a_model_without_dropout_is_refused() -> None:
    model = net(rate=0.0)
    with pytest.raises(ValueError, match=r"lora_dropout=0.*Train with lora_dropout > 0"):
        passes(model, masks_of(model), torch.ones(1, 4), 2)
    with pytest.raises(ValueError, match="samples is -1"):
        passes(net(), masks_of(net()), torch.ones(1, 4), -1)


@pytest.mark.gpu
def test_on_a_gpu_masks_differ_and_are_reproducible() -> None:
    model = net().to("cuda")
    q, x = masks_of(model), torch.ones(400, 4, device="cuda")
    state = torch.cuda.get_rng_state()
    first = passes(model, q, x, 3, seed=1)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    torch.manual_seed(7)
    assert torch.equal(passes(model, q, x, 3, seed=1), first)
    assert all(len((first[:, s] * 1e4).round().unique(dim=0)) == 2**4 for s in range(3))
    assert not torch.allclose(first[:, 0], first[:, 1])
