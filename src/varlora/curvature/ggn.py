"""Curvature of the loss at the trained weights: generalised Gauss-Newton or Fisher, diagonal or Kronecker-factored.

For logits f_n (C,) with probabilities p_n, summed (not averaged) over the examples,

    H = Σ_n J_nᵀ L_n J_n,     L_n = diag(p_n) − p_n p_nᵀ = Σ_c s_nc s_ncᵀ

L_n has rank C − 1 and so many columns, those of its Cholesky factor: with what is left of the mass, q_c = Σ_{j>c} p_j,

    s_c = √(p_c q_c / (p_c + q_c)) (e_c − Σ_{j>c} (p_j / q_c) e_j),     c < C

so that C − 1 backward passes, one for each column, give it exactly ("ggn"). With labels y_n drawn from p_n, one pass
with the column e_y − p_n gives H in expectation: the Fisher information by Monte Carlo ("mc").

    diagonal      diag(H): the squares of each example's own gradient, added up
    Kronecker     for each tensor W by itself G ⊗ K, with inputs a_nt and gradients g_ntc = (∂f_n/∂u_nt)ᵀ s_nc of its
                  outputs:  G = Σ_n Σ_t Σ_c g gᵀ,   K = mean over n, t of a aᵀ   (a bias has a = 1)

Positions t are those of the attention mask; a layer that is called several times has the positions of all its calls.

Source: Yang et al. 2023, arXiv 2308.13111; Daxberger et al. 2021, arXiv 2106.14806 (Laplace with GGN); Eschenhagen et
al. 2023, arXiv 2311.00636 ("expand" sharing of weights over positions).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn
from transformers.utils import logging as progress_bars

from varlora.curvature.gram import Gram, SketchedGram, accumulating, sketch_width
from varlora.curvature.kinds import Fisher, Structure
from varlora.curvature.layers import LinearTensor, OutputGradient, example_gradients, linear_tensors, recorded
from varlora.curvature.sparse_backward import nonzero_rows
from varlora.posterior import DiagonalGaussian, PosteriorMeta
from varlora.posterior.draws import on_device_of
from varlora.posterior.kronecker import KroneckerFactors, KroneckerGaussian
from varlora.readout.readout import Readout

logger = logging.getLogger(__name__)

_ENTRIES_AT_A_TIME = 2**22


@dataclass(frozen=True, kw_only=True, eq=False)
class Curvature:
    """Curvature at some weights, and how likely the data are there.

    Attributes:
        weights: θ by checkpoint key, the weights at which it was taken, copied.
        log_likelihood: Σ_n log p(y_n | x_n, θ).
        num_examples: N.
        diagonal: diag(H) by key, float64; empty if Kronecker-factored.
        factors: G and K by key, float64; empty if diagonal.
    """

    weights: Mapping[str, Tensor]
    log_likelihood: float
    num_examples: int
    diagonal: Mapping[str, Tensor] = field(default_factory=dict)
    factors: Mapping[str, KroneckerFactors] = field(default_factory=dict)

    @property
    def eigenvalues(self) -> dict[str, Tensor]:
        """Those of H that are not zero for sure, by key, in one dimension."""
        return {
            **{key: h.flatten() for key, h in self.diagonal.items()},
            **{key: f.eigenvalues.flatten() for key, f in self.factors.items()},
        }

    def posterior(
        self,
        prior_precision: Mapping[str, float],
        meta: PosteriorMeta,
        *,
        fixed: Mapping[str, Tensor] | None = None,
    ) -> DiagonalGaussian | KroneckerGaussian:
        """N(θ, (H + δ I)⁻¹), in float32 where the weights are not wider.

        Args:
            prior_precision: δ > 0 by key; infinity: the tensor is known exactly.
            meta: the posterior's record.
            fixed: tensors that belong to the adapter and did not train.
        """
        mean = {key: w.to(torch.promote_types(w.dtype, torch.float32)) for key, w in self.weights.items()}
        mean |= {key: w.detach().to(torch.promote_types(w.dtype, torch.float32)) for key, w in (fixed or {}).items()}
        if self.factors:
            free = {key: f for key, f in self.factors.items() if math.isfinite(prior_precision[key])}
            return KroneckerGaussian(
                mean=mean,
                factors={key: f.to(mean[key]) for key, f in free.items()},
                prior_precision={key: prior_precision[key] for key in free},
                meta=meta,
            )
        precision = {key: torch.full_like(m, math.inf) for key, m in mean.items()}
        precision |= {key: (h + prior_precision[key]).to(mean[key]) for key, h in self.diagonal.items()}
        return DiagonalGaussian(mean=mean, precision=precision, meta=meta)

    def quadratic_forms(self, key: str, vectors: Tensor, priors: Sequence[float]) -> Tensor:
        """X (H + δ I)⁻¹ Xᵀ of one tensor for each of Q prior precisions: what does not depend on δ is computed once.

        With P = Uᵀ X V (see `varlora.posterior.kronecker`) and R = X − U P Vᵀ, what of X is outside the factors' span,

            diagonal   Σ_k x_k x_kᵀ / (h_k + δ)          Kronecker   Σ_ij p_ij p_ijᵀ / (λ_i μ_j + δ) + R Rᵀ / δ

        R is subtracted before it is squared: X Xᵀ − P Pᵀ would leave rounding, which a small δ makes large.

        Args:
            key: the tensor.
            vectors: X (B, C, *shape): C vectors for each of B examples.
            priors: δ > 0; infinity: the tensor is known exactly.

        Returns:
            (Q, B, C, C), in the vectors' dtype.

        Raises:
            ValueError: a δ is not > 0.

        Example:
            >>> curvature = Curvature(weights={"w": torch.tensor([1.0])}, log_likelihood=0.0, num_examples=1,
            ...                       diagonal={"w": torch.tensor([2.0])})
            >>> curvature.quadratic_forms("w", torch.tensor([[[6.0]]]), [1.0, 4.0]).flatten().tolist()
            [12.0, 6.0]
        """
        if bad := [delta for delta in priors if not delta > 0]:
            raise ValueError(f"the prior precision of {key} is {bad[0]}; it must be positive.")
        if key in self.diagonal:
            return _weighted_products(vectors.flatten(2), self.diagonal[key].flatten(), priors)
        factors = self.factors[key]
        matrices = vectors.unsqueeze(-1) if self.weights[key].ndim == 1 else vectors
        inside, outside = factors.to(vectors).split(matrices)
        forms = _weighted_products(inside.flatten(2), factors.eigenvalues.flatten(), priors)
        if outside is not None:
            flat = outside.flatten(2)
            forms += (flat @ flat.mT) / vectors.new_tensor(priors)[:, None, None, None]
        return forms


def curvature_of(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    readout: Readout,
    structure: Structure = "kron",
    fisher: Fisher = "ggn",
    fisher_draws: int = 1,
    seed: int = 0,
    low_rank: int = 10,
    low_rank_above: int = 1024,
    progress: bool = False,
) -> Curvature:
    """Curvature over the trained tensors at the weights that the model holds.

    The batches are streamed, and how they are cut does not matter. The model is in eval mode meanwhile; afterwards its
    modes, `requires_grad`, `.grad` and the global random state are what they were, and no hook is left, also after an
    exception. The memory held is logged (level INFO) before the pass.

    Args:
        model: the model, on its device; all its trained tensors belong to linear layers.
        batches: what the readout reads, with `labels` (B,).
        readout: how the answer is read.
        structure: "kron" or "diag".
        fisher: "ggn" takes C − 1 backward passes a batch and is exact; "mc" takes `fisher_draws`.
        fisher_draws: labels drawn for each example ("mc").
        seed: decides those labels and the sketches.
        low_rank: eigenpairs kept of a factor G or K of more than `low_rank_above` dimensions.
        low_rank_above: see `low_rank`.
        progress: show a progress bar.

    Raises:
        ValueError: an option is out of range; there is no batch, no label, or the logits are not numbers; a trained
            tensor is not one of a linear layer, or its layer is used in a way that is not understood.

    Example:
        >>> from types import SimpleNamespace
        >>> from varlora.readout.readout import ClassHead
        >>> class Classifier(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.layer = nn.Linear(1, 2, bias=False)
        ...         nn.init.zeros_(self.layer.weight)
        ...     def forward(self, input_ids):
        ...         return SimpleNamespace(logits=self.layer(input_ids))
        >>> batch = {"input_ids": torch.tensor([[2.0]]), "labels": torch.tensor([0])}
        >>> found = curvature_of(Classifier(), [batch], readout=ClassHead(classes=("a", "b")), structure="diag")
        >>> found.diagonal["layer.weight"].round(decimals=6).tolist()    # x² p (1 − p)
        [[1.0], [1.0]]
    """
    if structure not in get_args(Structure) or fisher not in get_args(Fisher):
        raise ValueError(f"structure {structure!r} and fisher {fisher!r}; allowed: kron or diag, ggn or mc.")
    for name, value in (("low_rank", low_rank), ("low_rank_above", low_rank_above), ("fisher_draws", fisher_draws)):
        if value < 1 or value != int(value):
            raise ValueError(f"{name}={value!r}; it must be a positive integer.")
    tensors = linear_tensors(model)
    needed = curvature_bytes(tensors, structure=structure, low_rank=low_rank, low_rank_above=low_rank_above)
    logger.info("the %s curvature of %d tensors holds %.1f MB", structure, len(tensors), needed / 1e6)
    sums: dict[str, _Diagonal] | dict[str, _Kronecker]
    if structure == "diag":
        sums = {key: _Diagonal(t) for key, t in tensors.items()}
    else:
        sums = {key: _Kronecker(t, low_rank, low_rank_above, seed) for key, t in tensors.items()}

    generator = torch.Generator().manual_seed(seed)
    log_likelihood, examples = 0.0, 0
    with torch.random.fork_rng(devices=[]), recorded(model, tensors) as recorder:
        for batch in progress_bars.tqdm(batches, desc="curvature", unit="batch", disable=not progress):
            logits = recorder.logits(readout, on_device_of(model, batch))
            log_probs = torch.log_softmax(logits.detach().cpu().double(), dim=1)
            log_likelihood += _log_likelihood(log_probs, batch, examples)
            examples += len(logits)
            for number, column in enumerate(_columns(log_probs.exp(), fisher, fisher_draws, generator)):
                for key, calls in recorder.output_gradients(logits, column).items():
                    sums[key].add(calls, first=number == 0)
    if not examples:
        raise ValueError("there is no batch to take the curvature over.")
    return Curvature(
        weights={key: t.parameter.detach().clone() for key, t in tensors.items()},
        log_likelihood=log_likelihood,
        num_examples=examples,
        diagonal={key: s.total for key, s in sums.items() if isinstance(s, _Diagonal)},
        # each tensor's sums are let go before the next one's are taken apart
        factors={key: s.factors() for key in list(sums) if isinstance(s := sums.pop(key), _Kronecker)},
    )


def curvature_bytes(
    tensors: Mapping[str, LinearTensor], *, structure: Structure, low_rank: int = 10, low_rank_above: int = 1024
) -> int:
    """What `curvature_of` holds beside the model and one batch's activations, in bytes.

    The gradients of single examples, taken for the diagonal, add a tensor's size or 4M numbers, whichever is more.

    Example:
        >>> tensors = linear_tensors(nn.Linear(4096, 8, bias=False))
        >>> curvature_bytes(tensors, structure="diag"), curvature_bytes(tensors, structure="kron")
        (262144, 3277312)
    """
    numbers = 0
    for tensor in tensors.values():
        if structure == "diag":
            numbers += tensor.parameter.numel()
            continue
        for d in _sides(tensor):
            numbers += d * d if d <= low_rank_above else 2 * d * sketch_width(d, low_rank)
    return 8 * numbers


class _Diagonal:
    """Σ over examples and columns of the squared gradient."""

    def __init__(self, tensor: LinearTensor) -> None:
        self._tensor = tensor
        p = tensor.parameter
        self.total = torch.zeros_like(p, dtype=accumulating(p.device), requires_grad=False)

    def add(self, calls: list[OutputGradient], *, first: bool) -> None:
        rows = max(1, _ENTRIES_AT_A_TIME // self.total.numel())
        for start in range(0, len(calls[0].gradient) if calls else 0, rows):
            part = slice(start, start + rows)
            parts = [OutputGradient(inputs=c.inputs[part], real=c.real[part], gradient=c.gradient[part]) for c in calls]
            gradients = sum(
                (example_gradients(self._tensor, c) for c in parts[1:]), start=example_gradients(self._tensor, parts[0])
            )
            self.total += gradients.square_().sum(0)


class _Kronecker:
    """Sums for G and K."""

    def __init__(self, tensor: LinearTensor, low_rank: int, low_rank_above: int, seed: int) -> None:
        self._is_bias = tensor.is_bias
        self._positions = 0
        device = tensor.parameter.device
        grams: list[Gram | SketchedGram] = []
        for dimension in _sides(tensor):
            if dimension <= low_rank_above:
                grams.append(Gram.zeros(dimension, device))
            else:
                generator = torch.Generator().manual_seed(seed)
                grams.append(SketchedGram.zeros(dimension, device, rank=low_rank, generator=generator))
        self._out, self._in = grams

    def add(self, calls: list[OutputGradient], *, first: bool) -> None:
        for call in calls:
            gradients = call.gradient.flatten(0, 1)
            at = nonzero_rows(gradients)
            self._out.add(gradients if at is None else gradients[at])
            if first:
                real = call.inputs[call.real]
                self._positions += len(real)
                self._in.add(real.new_ones(len(real), 1) if self._is_bias else real)

    def factors(self) -> KroneckerFactors:
        (out_values, out_vectors), (in_values, in_vectors) = self._out.eigenpairs(), self._in.eigenpairs()
        return KroneckerFactors(
            out_vectors=out_vectors,
            out_values=out_values,
            in_vectors=in_vectors,
            in_values=in_values / max(1, self._positions),
        )


def _weighted_products(vectors: Tensor, eigenvalues: Tensor, priors: Sequence[float]) -> Tensor:
    """Σ_k x_k x_kᵀ / (h_k + δ) (Q, B, C, C) of x (B, C, K) and h (K,), some k at a time."""
    rows, classes, _ = vectors.shape
    deltas = eigenvalues.new_tensor(priors)
    forms = vectors.new_zeros(len(deltas), rows, classes, classes)
    width = max(1, _ENTRIES_AT_A_TIME // max(len(deltas), rows * classes))
    for x, h in zip(torch.split(vectors, width, dim=2), torch.split(eigenvalues, width), strict=True):
        inverse = (h[:, None] + deltas).reciprocal().to(x)
        for c in range(classes):
            forms[..., c, c:] += ((x[:, c:] * x[:, c : c + 1]) @ inverse).permute(2, 0, 1)
    return forms + forms.triu(1).mT


def _sides(tensor: LinearTensor) -> tuple[int, int]:
    shape = tensor.parameter.shape
    return shape[0], 1 if tensor.is_bias else shape[1]


def _columns(probs: Tensor, fisher: Fisher, draws: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Columns (B, C) whose outer products add up to L, exactly or in expectation."""
    if fisher == "ggn":
        left = probs.flip(1).cumsum(1).flip(1)  # p_c + q_c
        for c in range(probs.shape[1] - 1):
            p, q = probs[:, c], left[:, c + 1]
            column = torch.zeros_like(probs)
            column[:, c] = 1
            column[:, c + 1 :] = -(probs[:, c + 1 :] / q[:, None]).nan_to_num_()
            column *= (p * (q / left[:, c])).nan_to_num_().sqrt_()[:, None]
            if c == 0 or bool(column.any()):  # the first counts the inputs
                yield column
        return
    eye, steps = torch.eye(probs.shape[1], dtype=probs.dtype), probs.cumsum(1)
    for _ in range(draws):
        uniform = 1 - torch.rand(len(probs), 1, generator=generator, dtype=probs.dtype)  # in (0, 1]
        labels = (steps < uniform * steps[:, -1:]).sum(1)
        yield (eye[labels] - probs) / math.sqrt(draws)


def _log_likelihood(log_probs: Tensor, batch: Mapping[str, Any], before: int) -> float:
    labels = batch.get("labels")
    if labels is None or labels.ndim != 1:
        raise ValueError("the curvature's batches need labels (B,), the class of each row.")
    labels = labels.cpu().long()
    if bool(((labels < 0) | (labels >= log_probs.shape[1])).any()):
        raise ValueError(f"labels must be in 0..{log_probs.shape[1] - 1}; rows without a label cannot be used.")
    if bool(log_probs.isnan().any()):
        row = before + int(log_probs.isnan().any(1).nonzero()[0])
        raise ValueError(
            f"the model gives logits that are NaN or infinite, first for example {row}; its weights are broken."
        )
    return float(log_probs.gather(1, labels[:, None]).sum())
