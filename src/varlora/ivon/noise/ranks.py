"""Over which processes a parameter's gradient is averaged, as the model's wrappers say.

Products of noise and gradient are averaged over the same processes: another set's would be the curvature of another
model's loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from varlora.ivon.noise.places import Site
from varlora.posterior.gaussian_optimizer import GaussianOptimizer
from varlora.posterior.sharded import whole

Groups = tuple[dist.ProcessGroup, ...]
"""Process groups over which one reduces one after another; none in a single process."""


def gradient_groups(
    model: nn.Module, parameters: Iterable[Tensor], process_group: dist.ProcessGroup | None = None
) -> list[Groups]:
    """The groups over which each parameter's gradient is averaged.

    Those of its device mesh (FSDP2, all dimensions of a hybrid one), else that of the DistributedDataParallel around
    it; where the model is in neither, as inside a trainer or a loop that averages by itself, the given one or else all
    processes.

    Args:
        model: wrapped as it is trained.
        parameters: the parameters.
        process_group: of gradients that no wrapper averages.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> gradient_groups(model, model.parameters())                    # a single process
        [(), ()]
    """
    if not (dist.is_available() and dist.is_initialized()):
        return [() for _ in parameters]
    wrapped = {
        id(p): module.process_group
        for module in model.modules()
        if isinstance(module, nn.parallel.DistributedDataParallel)
        for p in module.parameters()
    }
    otherwise = process_group if process_group is not None else dist.GroupMember.WORLD
    assert otherwise is not None
    by_parameter: list[Groups] = []
    for p in parameters:
        mesh = getattr(p, "device_mesh", None)
        groups = mesh.get_all_groups() if mesh is not None else [wrapped.get(id(p), otherwise)]
        by_parameter.append(tuple(group for group in groups if dist.get_world_size(group) > 1))
    return by_parameter


def size_of(groups: Groups) -> int:
    """How many processes take part.

    Example:
        >>> size_of(())
        1
    """
    size = 1
    for group in groups:
        size *= dist.get_world_size(group)
    return size


def reduce_(tensor: Tensor, groups: Groups, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
    """Reduces in place over all groups, and returns the tensor.

    Example:
        >>> import torch
        >>> reduce_(torch.ones(1), groups=())
        tensor([1.])
    """
    for group in groups:
        dist.all_reduce(tensor, operation, group=group)
    return tensor


def averaged(
    sites: Sequence[Site], optimizer: GaussianOptimizer, groups: Groups, device: torch.device, *, products: bool = True
) -> list[tuple[bool, Tensor | None, bool]]:
    """Noise · gradient of the sites, averaged over the ranks that average their gradients.

    Args:
        sites: whose gradients are averaged alike.
        optimizer: says the shape of what took part on another rank alone.
        groups: over which.
        device: where they communicate.
        products: whether the products are wanted.

    Returns:
        by site, whether it took part on some rank; the product, None where it did not or none is wanted; and whether
        gradient came without noise.
    """
    used, bypassed = [site.took_part for site in sites], [False] * len(sites)
    flags = {i: flag for i, site in enumerate(sites) if (flag := site.bypassed) is not None}
    for i, flag in zip(flags, torch.stack([*flags.values()]).tolist() if flags else (), strict=True):
        bypassed[i] = flag
    if groups:
        seen = torch.tensor([used, bypassed], dtype=torch.int32, device=device)
        used, bypassed = reduce_(seen, groups, dist.ReduceOp.MAX).bool().tolist()
    of_sites: list[Tensor | None] = [site.product for site in sites]
    if products and groups:
        parts = [
            site.product if site.product is not None else torch.zeros_like(whole(optimizer.mean(site.parameter)))
            for site in sites
        ]
        flat = reduce_(torch.cat([part.flatten().to(device) for part in parts]), groups) / size_of(groups)
        cut = torch.split(flat, [part.numel() for part in parts])
        means = [a.view_as(part).to(part.device) for a, part in zip(cut, parts, strict=True)]
        of_sites = [mean if took_part else None for mean, took_part in zip(means, used, strict=True)]
    return list(zip(used, of_sites, bypassed, strict=True))
