"""Over which processes a parameter's gradient is averaged, as the model's wrappers say.

Products of noise and gradient are averaged over the same processes: another set's would be the curvature of another
model's loss.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor, nn

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
    found: list[Groups] = []
    for p in parameters:
        mesh = getattr(p, "device_mesh", None)
        groups = mesh.get_all_groups() if mesh is not None else [wrapped.get(id(p), otherwise)]
        found.append(tuple(group for group in groups if dist.get_world_size(group) > 1))
    return found


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
