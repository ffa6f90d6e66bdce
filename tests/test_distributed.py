"""Two gloo ranks, each with its own data and noise, against one process that has both."""

import sys
from contextlib import nullcontext

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ranks import RANKS, on_ranks
from varlora import IVON, NoiseController, posterior_of
from varlora.ivon.noise import CounterNoise, ReplayedNoise

OPTIONS = {"lr": 0.1, "ess": 200.0, "hess_init": 0.1, "betas": (0.9, 0.9), "weight_decay": 0.01}
ADAM = {"lr": 0.01, "ess": 200.0, "betas": (0.9, 1.0), "update": "adam", "variance": "fit"}
FIT = ("lr_sum", "loss_sum", "loss_weight")
STEPS, MICRO = 3, 2

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file store")


class Net(nn.Module):
    def __init__(self, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = (nn.Linear(4, 4, dtype=dtype) for _ in range(2))
        self.expert = nn.Linear(4, 4, dtype=dtype)  # rank 1 never uses it
        self.never = nn.Linear(2, 2, dtype=dtype)

    def forward(self, x, use_expert=True):
        x = torch.tanh(self.first(x))
        return self.second(self.expert(x) if use_expert else x)


def batch(step, rank, micro):
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + micro)
    return torch.randn(3, 4, generator=generator, dtype=torch.float64)


def flat(model, optimizer):
    """Means and the whole state (Hessians, momenta, ...), in parameter order."""
    ps = list(model.parameters())
    return torch.cat(
        [getattr(t, "full_tensor", lambda t=t: t)().detach().flatten() for t in ps]
        + [
            getattr(s, "full_tensor", lambda s=s: s)().flatten().double()
            for p in ps
            if optimizer.state.get(p)
            for _, s in sorted(optimizer.state[p].items())
        ]
        + [torch.tensor([optimizer.param_groups[0][name] for name in FIT], dtype=torch.float64)]
    )


def everywhere(rank, micro):
    return True


def on_the_first(rank, micro):
    return rank == 0


def at_first_on_the_first(rank, micro):
    """In a micro-batch whose gradients are not averaged yet."""
    return rank == micro == 0


def train_on_rank(rank, wrap, poison_step=None, uses_expert=on_the_first, options=OPTIONS, averages_late=False):
    model = Net()
    wrapped = wrap(model)
    optimizer = IVON(model.parameters(), **options)
    noise = NoiseController(wrapped, optimizer, seed=7)
    for step in range(STEPS):
        for micro in range(MICRO):
            x = batch(step, rank, micro)
            if poison_step == step and rank == 1:
                x = x * float("nan")
            with wrapped.no_sync() if averages_late and micro < MICRO - 1 else nullcontext():
                loss = wrapped(x, use_expert=uses_expert(rank, micro)).square().mean()
                noise.observe_loss(loss)
                (loss / MICRO).backward()
        optimizer.step()
        optimizer.zero_grad()
    posterior = posterior_of(model, optimizer)
    return flat(model, optimizer), optimizer.skipped_steps, dict(posterior.mean), dict(posterior.precision)


def in_one_process(steps=STEPS, uses_expert=on_the_first, options=OPTIONS):
    """All four draws of both ranks in one step, each loss weighted by 1 / (ranks * micro-batches)."""
    model, source = Net(), CounterNoise(7)
    order = [(s, r, m) for s in range(steps) for r in range(RANKS) for m in range(MICRO)]
    draws = [source.draw(dict(model.named_parameters()), step=s, draw=m, rank=r) for s, r, m in order]
    noise = {name: [draw[name] for draw in draws] for name, _ in model.named_parameters()}
    optimizer = IVON(model.parameters(), **options)
    controller = NoiseController(model, optimizer, ReplayedNoise(noise))
    for step in range(steps):
        for rank in range(RANKS):
            for micro in range(MICRO):
                loss = model(batch(step, rank, micro), use_expert=uses_expert(rank, micro)).square().mean()
                controller.observe_loss(loss)
                (loss / (RANKS * MICRO)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return flat(model, optimizer)


def ddp(model):
    return nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)


def fsdp2(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (RANKS,))
    for module in (model.first, model.second, model.expert):
        fully_shard(module, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def curvature_read(wrap):
    """One step, nothing but h = f remains: the curvature of a·w²/2, with a = 3 on rank 0 and 1 on rank 1."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    wrapped = wrap(model)
    optimizer = IVON(wrapped.parameters(), lr=0.1, ess=200.0, hess_init=0.1, betas=(0.9, 0.5))
    NoiseController(wrapped, optimizer, ReplayedNoise({"weight": [torch.ones(1, 1, dtype=torch.float64)]}))
    with torch.no_grad():
        for p in wrapped.parameters():
            p.zero_()  # the gradient at the sample is a · noise, so that f = a
    x = torch.full((1, 1), 3.0 if dist.get_rank() == 0 else 1.0, dtype=torch.float64).sqrt()
    (wrapped(x).square().sum() / 2).backward()
    optimizer.step()
    [h] = (getattr(s["hessian"], "full_tensor", lambda s=s: s["hessian"])().item() for s in optimizer.state.values())
    return h


def h_of(curvature, h0=0.1):
    return 0.5 * h0 + 0.5 * curvature + 0.5 * 0.25 * (h0 - curvature) ** 2 / h0


def alone():
    """A group of this rank only: of its own model, beside the other's."""
    groups = [dist.new_group([rank]) for rank in range(RANKS)]
    return groups[dist.get_rank()]


def ddp_alone(model):
    return nn.parallel.DistributedDataParallel(model, process_group=alone(), find_unused_parameters=True)


def fsdp2_on(mesh, model):
    from torch.distributed.fsdp import fully_shard

    return fully_shard(model, mesh=mesh)


def fsdp2_alone(model):
    from torch.distributed.device_mesh import DeviceMesh

    return fsdp2_on(DeviceMesh.from_group(alone(), "cpu"), model)


def hsdp(model):
    from torch.distributed.device_mesh import init_device_mesh

    return fsdp2_on(init_device_mesh("cpu", (RANKS, 1), mesh_dim_names=("replicate", "shard")), model)


def poisoned_alone(rank):
    """Rank 1 skips; rank 0, which trains a model of its own, does not."""
    return train_on_rank(rank, ddp_alone, poison_step=STEPS - 1, uses_expert=everywhere)[1]


def penalised(rank):
    """A read outside the module on rank 1 only: both ranks stop."""
    model = Net()
    wrapped = ddp(model)
    optimizer = IVON(model.parameters(), **OPTIONS)
    NoiseController(wrapped, optimizer)
    loss = wrapped(batch(0, rank, 0)).square().mean()
    (loss + rank * model.second.weight.square().sum()).backward()
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return "took the step"


SCENARIOS = {
    "curvature ddp": lambda rank: curvature_read(nn.parallel.DistributedDataParallel),
    "curvature ddp alone": lambda rank: curvature_read(ddp_alone),
    "curvature fsdp2 alone": lambda rank: curvature_read(fsdp2_alone),
    "curvature hsdp": lambda rank: curvature_read(hsdp),
    "poison alone": poisoned_alone,
    "penalty": penalised,
    "ddp": lambda rank: train_on_rank(rank, ddp),
    "fsdp2": lambda rank: train_on_rank(rank, fsdp2, uses_expert=everywhere),  # the ranks gather every shard together
    "ddp adam": lambda rank: train_on_rank(rank, ddp, options=ADAM),
    "fsdp2 adam": lambda rank: train_on_rank(rank, fsdp2, uses_expert=everywhere, options=ADAM),
    "late": lambda rank: train_on_rank(rank, ddp, uses_expert=at_first_on_the_first, averages_late=True),
    "late adam": lambda rank: train_on_rank(
        rank, ddp, uses_expert=at_first_on_the_first, averages_late=True, options=ADAM
    ),
    "poison": lambda rank: train_on_rank(rank, ddp, poison_step=STEPS - 1),
}


def run(rank):
    return {name: scenario(rank) for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks(run, tmp_path_factory.mktemp("ranks"))


USES = {"ddp": on_the_first, "fsdp2": everywhere, "late": at_first_on_the_first}
"""Who uses the expert, by scenario."""


@pytest.mark.parametrize("update", ["", " adam"])
@pytest.mark.parametrize("scenario", USES)
def test_two_ranks_equal_one_process_with_both_draws(results, scenario, update):
    (first, *_), (second, *_) = (result[f"{scenario}{update}"] for result in results)
    assert torch.equal(first, second)  # bit for bit
    alone = in_one_process(uses_expert=USES[scenario], options=ADAM if update else OPTIONS)
    torch.testing.assert_close(first, alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("update", ["", " adam"])
def test_the_posterior_of_sharded_parameters_is_whole(results, update):
    sharded, plain = (results[0][f"{scenario}{update}"] for scenario in ("fsdp2", "ddp"))
    for tensors, reference in zip(sharded[2:], plain[2:], strict=True):
        assert {key: (type(t), t.shape) for key, t in tensors.items()} == {
            key: (torch.Tensor, t.shape) for key, t in reference.items()
        }


def test_a_poisoned_rank_makes_every_rank_skip(results):
    (first, skipped, *_), (second, skipped_too, *_) = (result["poison"] for result in results)
    assert skipped == skipped_too == 1
    assert torch.equal(first, second)
    torch.testing.assert_close(first, in_one_process(steps=STEPS - 1), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("wrapper", "curvatures"),
    [("ddp", (2.0, 2.0)), ("hsdp", (2.0, 2.0)), ("ddp alone", (3.0, 1.0)), ("fsdp2 alone", (3.0, 1.0))],
)
def test_curvature_is_averaged_over_those_that_average_the_gradients(results, wrapper, curvatures):
    """Two models of curvature 3 and 1, each with a process group of its own, were both read as 2."""
    found = [result[f"curvature {wrapper}"] for result in results]
    assert found == pytest.approx([h_of(curvature) for curvature in curvatures], rel=1e-12)


def test_a_poisoned_model_does_not_make_another_skip(results):
    assert [result["poison alone"] for result in results] == [0, 1]


def test_a_gradient_without_noise_on_one_rank_stops_all(results):
    assert all("their noise: second.weight." in result["penalty"] for result in results)
