"""Gradients of single examples with respect to the weights of linear layers, layer by layer.

A linear layer u = W a + b is called at the positions t of example n. For an output f_n of that example,

    ∂f_n/∂W = Σ_t g_nt a_ntᵀ,     ∂f_n/∂b = Σ_t g_nt,     g_nt = ∂f_n/∂u_nt

over all its calls, so the layers' inputs a and the gradients g of their outputs are all that is needed: no Jacobian
over all parameters, and one backward pass for a whole batch. Forward hooks keep the inputs and where in the graph
the outputs are; the parameters' own gradients are never asked for, except once, to check the layers against them.
An example that is several sequences (choices scored as texts) has the positions of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from varlora.adapters import saved_tensors, trained_tensors
from varlora.adapters.modes import evaluation_mode
from varlora.curvature.sparse_backward import sparse_backward
from varlora.readout.answer_logits import widened
from varlora.readout.batch_rows import num_rows
from varlora.readout.packed_choices import choices_as_rows
from varlora.readout.readout import Readout

JACOBIAN_BYTES = 2**30
"""How much of a batch's Jacobian is held at a time, unless a single tensor needs more."""
_CHECK_TOLERANCE = 0.05
"""Relative; autograd's own sum over positions may have been made in bfloat16."""
_CHECKED_ROWS = 4
"""Of the first batch: enough for a row that is not its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearTensor:
    """A weight (out, in) or bias (out,) of linear layers.

    Attributes:
        key: its checkpoint key.
        parameter: the live parameter.
        modules: the layers that own it; several if they are tied.
    """

    key: str
    parameter: nn.Parameter
    modules: tuple[nn.Linear, ...]

    @property
    def is_bias(self) -> bool:
        """Whether it is a bias."""
        return self.parameter.ndim == 1


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputGradient:
    """One call of a layer, seen from some output of each example.

    Attributes:
        inputs: a (B, P, in), at all P positions.
        real: (B, P), False at padding.
        gradient: g (B, P, out).
    """

    inputs: Tensor
    real: Tensor
    gradient: Tensor


def linear_tensors(model: nn.Module, keys: Sequence[str] | None = None) -> dict[str, LinearTensor]:
    """Where the model's trained tensors are.

    Args:
        model: as in `varlora.adapters.trained_tensors`.
        keys: checkpoint keys, of tensors that need not train; None: all that train.

    Raises:
        ValueError: there is none, a key is unknown, or a tensor is owned by something else than a linear layer.

    Example:
        >>> list(linear_tensors(nn.Sequential(nn.Linear(2, 3), nn.Tanh())))
        ['0.bias', '0.weight']
    """
    named: dict[str, Tensor]
    if keys is None:
        named = {**trained_tensors(model)}
    else:
        named = saved_tensors(model).tensors()
        if unknown := [key for key in keys if key not in named]:
            raise ValueError(f"the model does not have {', '.join(unknown[:4])}; use the model it was trained with.")
        named = {key: named[key] for key in keys}
    if not named:
        raise ValueError("no parameter of the model trains (requires_grad), so there is no curvature.")
    owners: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, owned_parameter in module._parameters.items():
            owners.setdefault(id(owned_parameter), []).append((module, name))
    found, outside = {}, []
    for key in sorted(named):
        parameter, owned = named[key], owners.get(id(named[key]), [])
        modules = tuple(m for m, name in owned if isinstance(m, nn.Linear) and name in ("weight", "bias"))
        if isinstance(parameter, nn.Parameter) and modules and len(modules) == len(owned):
            found[key] = LinearTensor(key=key, parameter=parameter, modules=modules)
        else:
            kinds = sorted({type(m).__name__ for m, _ in owned if not isinstance(m, nn.Linear)}) or ["no module"]
            outside.append(f"{key} ({', '.join(kinds)})")
    if outside:
        raise ValueError(
            f"curvature is known for linear layers alone; {len(outside)} trained tensor(s) are elsewhere: "
            f"{', '.join(outside[:4])}{', ...' if len(outside) > 4 else ''}. Freeze them, or adapt linear layers only "
            "(no embeddings or convolutions, use_dora=False)."
        )
    return found


@contextmanager
def recorded(model: nn.Module, tensors: Mapping[str, LinearTensor]) -> Iterator[Recorder]:
    """Within the block the model is in eval mode and its layers are watched; afterwards all is as it was."""
    frozen = [t.parameter for t in tensors.values() if not t.parameter.requires_grad]
    recorder = Recorder(model=model, tensors=tensors)
    modules = {module for tensor in tensors.values() for module in tensor.modules}
    plain = [m for m in modules if type(m) is nn.Linear and "forward" not in m.__dict__]
    handles = []
    try:
        with evaluation_mode(model), choices_as_rows(model), torch.inference_mode(False), torch.enable_grad():
            for parameter in frozen:
                parameter.requires_grad_(True)
            for module in plain:  # an output layer whose forward is its own is not narrowed to the answers' rows
                module.__dict__["forward"] = module.forward
            for module in modules:
                handles.append(module.register_forward_hook(recorder.keep, with_kwargs=True))
            with sparse_backward(model):
                yield recorder
    finally:
        for handle in handles:
            handle.remove()
        for module in plain:
            module.__dict__.pop("forward", None)
        for parameter in frozen:
            parameter.requires_grad_(False)


@dataclass(kw_only=True, eq=False)
class Recorder:
    """Watches the layers of some tensors; made by `recorded`."""

    model: nn.Module
    tensors: Mapping[str, LinearTensor]
    _calls: dict[nn.Module, list[tuple[Tensor, Tensor, GradientEdge]]] = field(default_factory=dict)
    _rows: int = 0
    _mask: Tensor | None = None
    _choices: Tensor | None = None
    _checked: bool = False

    def logits(self, readout: Readout, batch: Mapping[str, Any]) -> Tensor:
        """The batch's logits (B, C) with their graph; the first time, the layers are checked.

        Raises:
            ValueError: the logits do not depend on the weights through the layers' own forward alone.
        """
        if not self._checked:
            self._checked = self._check(readout, batch)
        return self._forward(readout, batch)

    def output_gradients(
        self, logits: Tensor, vectors: Tensor, keys: Sequence[str] | None = None
    ) -> dict[str, list[OutputGradient]]:
        """The layers' calls, with the gradients of each example's vᵀ f.

        Args:
            logits: f (B, C), from `logits`.
            vectors: v (B, C).
            keys: the tensors wanted; None: all.

        Returns:
            By key, the calls that f depends on; none for a layer that took no part.
        """
        wanted = list(self.tensors) if keys is None else list(keys)
        modules = list(dict.fromkeys(m for key in wanted for m in self.tensors[key].modules))
        calls = [(module, call) for module in modules for call in self._calls.get(module, [])]
        gradients: Sequence[Tensor | None] = []
        if calls and logits.requires_grad:
            gradients = torch.autograd.grad(
                logits, [edge for _, (_, _, edge) in calls], vectors.to(logits), retain_graph=True, allow_unused=True
            )
        found: dict[nn.Module, list[OutputGradient]] = {}
        for (module, (inputs, real, _)), gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                by_row = gradient.reshape(*real.shape, gradient.shape[-1])
                inputs, real, by_row = (self._of_examples(part) for part in (inputs, real, by_row))
                found.setdefault(module, []).append(OutputGradient(inputs=inputs, real=real, gradient=by_row))
        return {key: [g for m in self.tensors[key].modules for g in found.get(m, [])] for key in wanted}

    def jacobians(self, logits: Tensor, *, limit: int = JACOBIAN_BYTES) -> Iterator[tuple[str, Tensor]]:
        """J = ∂f/∂W of each example, one tensor after the other.

        Args:
            logits: f (B, C), from `logits`.
            limit: bytes of Jacobian to hold at a time; fewer means more backward passes.

        Yields:
            A key and its J (B, C, *shape), float32 or wider.
        """
        rows, classes = logits.shape
        for keys in _groups(self.tensors, rows * classes, limit):
            held = {}
            for key in keys:
                p = self.tensors[key].parameter
                held[key] = p.new_zeros(rows, classes, *p.shape, dtype=torch.promote_types(p.dtype, torch.float32))
            for c in range(classes):
                one_class = torch.zeros_like(logits)
                one_class[:, c] = 1
                for key, calls in self.output_gradients(logits, one_class, keys).items():
                    for call in calls:
                        held[key][:, c] += example_gradients(self.tensors[key], call)
            for key in keys:
                yield key, held.pop(key)

    def _forward(self, readout: Readout, batch: Mapping[str, Any]) -> Tensor:
        self._calls.clear()
        self._rows, self._mask, self._choices = num_rows(batch), batch.get("attention_mask"), None
        if "choice_lengths" in batch:  # the model is called with a row for each choice that exists
            self._choices, self._mask = batch["choice_mask"], batch["attention_mask"][batch["choice_mask"]]
            self._rows = len(self._mask)
        return readout.logits(self.model, batch)

    def keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        """The hook; recomputation of a checkpointed forward, and forwards without a graph, are let pass."""
        if not torch.is_grad_enabled() or torch._C._current_graph_task_id() != -1:
            return
        inputs: Tensor = args[0] if args else kwargs["input"]
        by_row, real = self._by_row(inputs.detach())
        self._calls.setdefault(module, []).append((by_row, real, get_gradient_edge(output)))

    def _by_row(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs (B, P, in) and which positions are real (B, P)."""
        shape, rows = inputs.shape[:-1], self._rows
        length = self._mask.shape[1] if self._mask is not None else None
        if len(shape) == 1 and length is not None and shape[0] == rows * length:
            shape = torch.Size((rows, length))
        if not shape or shape[0] != rows or (len(shape) > 1 and length is not None and shape[1] not in (1, length)):
            raise ValueError(
                f"a layer with a trained weight is called with an input of shape {tuple(inputs.shape)} in a batch of "
                f"{rows} rows{'' if length is None else f' of {length} tokens'}; which example its rows belong to is "
                "not known (experts that see some of the tokens?). Adapt other layers."
            )
        by_row = inputs.reshape(rows, -1, inputs.shape[-1])
        real = torch.ones(shape, dtype=torch.bool, device=inputs.device)
        if self._mask is not None and len(shape) > 1 and shape[1] == length:
            mask = (self._mask != 0).to(inputs.device)
            real = mask.reshape(*mask.shape, *(1 for _ in shape[2:])).expand(shape)
        return by_row, real.reshape(rows, -1)

    def _of_examples(self, by_row: Tensor) -> Tensor:
        """What is known of each row (R, P, ...) by example (B, P', ...), 0 at the positions of missing choices."""
        if self._choices is None:
            return by_row
        choices = self._choices.to(by_row.device)
        whole = by_row.new_zeros(*choices.shape, *by_row.shape[1:])
        whole[choices] = by_row
        return whole.flatten(1, 2)

    def _check(self, readout: Readout, batch: Mapping[str, Any]) -> bool:
        """Compares the layers' gradients with autograd's, for an output of the first example alone.

        Returns:
            False where its logits are no numbers, so that there is nothing to compare.
        """
        few = {name: v[:_CHECKED_ROWS] if isinstance(v, Tensor | list | tuple) else v for name, v in batch.items()}
        logits = self._forward(readout, few)
        if bool(logits.isnan().any()):
            return False
        if not logits.requires_grad or not self.tensors:
            return True
        vectors = torch.zeros_like(logits)
        vectors[0] = torch.arange(1, logits.shape[1] + 1)
        found = self.output_gradients(logits, vectors)
        parameters = [t.parameter for t in self.tensors.values()]
        expected: Sequence[Tensor | None] = torch.autograd.grad(
            logits, parameters, vectors, retain_graph=True, allow_unused=True
        )
        for (key, tensor), whole in zip(self.tensors.items(), expected, strict=True):
            reference = torch.zeros_like(tensor.parameter) if whole is None else widened(whole)
            mine, rounding = torch.zeros_like(widened(reference)), 0.0
            for call in found[key]:
                mine += example_gradients(tensor, call)[0]
                size = widened(call.gradient[0]).norm() * widened(call.inputs[0]).norm()
                rounding += 100 * torch.finfo(call.gradient.dtype).eps * size.item()
            error, scale = (mine - reference).norm().item(), reference.norm().item()
            if not error <= _CHECK_TOLERANCE * scale + rounding:
                raise ValueError(
                    f"the gradient of {key} is not the one that its linear layer's own calls give (off by {error:.3g}, "
                    f"norm {scale:.3g}): its weight is read elsewhere, or the layer's rows are not the batch's. "
                    "Curvature cannot be computed for it; adapt other layers."
                )
        return True


def example_gradients(tensor: LinearTensor, call: OutputGradient) -> Tensor:
    """Each example's gradient in one call, (B, *shape), float32 or wider."""
    gradient = widened(call.gradient)
    if tensor.is_bias:
        return gradient.sum(1)
    return gradient.mT @ widened(call.inputs).to(gradient.dtype)


def jacobian_bytes(tensors: Mapping[str, LinearTensor], rows: int, classes: int, limit: int = JACOBIAN_BYTES) -> int:
    """The most that `Recorder.jacobians` holds at a time, for batches of so many rows and classes.

    Example:
        >>> jacobian_bytes(linear_tensors(nn.Linear(2, 3)), rows=4, classes=5)
        720
    """
    return max(
        sum(_bytes(tensors[key], rows * classes) for key in keys) for keys in _groups(tensors, rows * classes, limit)
    )


def _groups(tensors: Mapping[str, LinearTensor], copies: int, limit: int) -> Iterator[list[str]]:
    keys: list[str] = []
    held = 0
    for key, tensor in tensors.items():
        needed = _bytes(tensor, copies)
        if keys and held + needed > limit:
            yield keys
            keys, held = [], 0
        keys.append(key)
        held += needed
    yield keys


def _bytes(tensor: LinearTensor, copies: int) -> int:
    return copies * tensor.parameter.numel() * max(4, tensor.parameter.element_size())
