"""Tensors that FSDP2 has cut over ranks, and plain ones alike."""

from __future__ import annotations

from torch import Tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor (every rank must ask), or the tensor itself."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, or the tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_sums(sums: Tensor, like: Tensor) -> Tensor:
    """Sums over this rank's parts of tensors, added over the ranks that hold the others (every rank must ask).

    Args:
        sums: any shape.
        like: one of the tensors, which are all cut alike.
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    if not isinstance(like, DTensor):
        return sums
    placements = [Partial() if placement.is_shard() else Replicate() for placement in like.placements]
    return DTensor.from_local(sums, like.device_mesh, placements, run_check=False).full_tensor()


def sharded_like(parameter: Tensor, tensor: Tensor) -> Tensor:
    """Cuts this rank's part out of a tensor that is whole and equal on all ranks, if `parameter` is sharded."""
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(parameter, DTensor):
        return tensor
    mesh = parameter.device_mesh
    replicated = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(placements=parameter.placements)
