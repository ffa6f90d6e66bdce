"""Several posteriors with equal weights: what a deep ensemble is.

    q(θ) = (1/M) Σ_i q_i(θ)
    mean       m = (1/M) Σ_i m_i
    variance   v = (1/M) Σ_i [v_i + (m_i − m)²]

The mean of the weights is no good adapter: B A is the same for (B R⁻¹)(R A), so the A's of two seeds have nothing to do
with each other, and the product of averaged factors is not the average of the products. `point` is therefore the first
component's, and predictions are averaged over the components, never the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from varlora.posterior.diagonal import DiagonalGaussian
from varlora.posterior.kinds import PointMassError, Posterior, draw_dtype
from varlora.posterior.kronecker import KroneckerGaussian
from varlora.posterior.low_rank import LowRankGaussian
from varlora.posterior.meta import PosteriorMeta
from varlora.posterior.point_mass import PointMass

_COMPONENTS: Mapping[str, Any] = {
    kind.kind: kind for kind in (PointMass, DiagonalGaussian, KroneckerGaussian, LowRankGaussian)
}
_NAME = re.compile(r"component\.(0|[1-9][0-9]*)\.([a-z_]+)/(point|tensors)/(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mixture:
    """Posteriors over the same tensors, each with weight 1/M.

    Args:
        components: M posteriors, of any kinds that are distributions over weights, but no mixtures.
        meta: see `PosteriorMeta`; what the components' own say is not kept in files.

    Raises:
        ValueError: there are not two components, or one is of a kind that does not fit, or its tensors differ from
            the first component's in keys or shapes; the message names component and tensor.

    Example:
        >>> q = Mixture(components=[PointMass(mean={"w": torch.tensor([m])}) for m in (1.0, 3.0)])
        >>> q.mean["w"].item(), q.variance["w"].item(), q.point["w"].item()
        (2.0, 1.0, 1.0)
    """

    kind: ClassVar[str] = "mixture"
    symmetric: ClassVar[bool] = False
    components: tuple[Posterior, ...]
    meta: PosteriorMeta = field(default_factory=PosteriorMeta)

    def __post_init__(self) -> None:
        object.__setattr__(self, "components", tuple(self.components))
        if len(self.components) < 2:
            raise ValueError(f"a mixture needs at least two components, not {len(self.components)}.")
        first = self.components[0]
        for i, component in enumerate(self.components):
            if component.kind not in _COMPONENTS:
                raise ValueError(
                    f"component {i} is a {component.kind}; a mixture is made of {', '.join(_COMPONENTS)}. "
                    "Give the components of a mixture one by one."
                )
            if differing := sorted(first.point.keys() ^ component.point.keys()):
                raise ValueError(f"components 0 and {i} must have the same keys; only one of them has {differing}.")
            for key, tensor in component.point.items():
                if tensor.shape != first.point[key].shape:
                    raise ValueError(
                        f"component {i} has {key} of shape {tuple(tensor.shape)}, component 0 of "
                        f"{tuple(first.point[key].shape)}; all must be posteriors over the same tensors."
                    )

    @property
    def mean(self) -> dict[str, Tensor]:
        """The components' means, averaged in float64: the first moment, not weights to predict with."""
        return {key: _stacked(self.components, "mean", key).mean(0).to(draw_dtype(m)) for key, m in self.point.items()}

    @property
    def variance(self) -> dict[str, Tensor]:
        """The variance within the components, averaged, plus that between their means (over M, not M − 1)."""
        variance = {}
        for key, point in self.point.items():
            between = _stacked(self.components, "mean", key).var(0, correction=0)
            variance[key] = (_stacked(self.components, "variance", key).mean(0) + between).to(draw_dtype(point))
        return variance

    @property
    def point(self) -> Mapping[str, Tensor]:
        """The first component's point."""
        return self.components[0].point

    def sample(self, generator: torch.Generator) -> dict[str, Tensor]:
        """A component drawn uniformly, then a draw of it.

        Predictions do not draw the component: they give every one the same number of draws (`varlora.posterior.draws`).
        """
        chosen = int(torch.randint(len(self.components), (), generator=generator, device=generator.device))
        return self.components[chosen].sample(generator)

    def zeroed(self, masks: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The masked entries are 0 in every component."""
        return type(self)(components=tuple(c.zeroed(masks, meta) for c in self.components), meta=meta)

    def scaled(self, temperature: float, meta: PosteriorMeta) -> Self:
        """Every component's covariance times the temperature; the components stay where they are.

        Raises:
            PointMassError: a component has no variance.
        """
        scaled = []
        for i, component in enumerate(self.components):
            try:
                scaled.append(component.scaled(temperature, meta))
            except PointMassError as error:
                raise PointMassError(f"component {i} of the mixture: {error}") from error
        return type(self)(components=tuple(scaled), meta=meta)

    def tensors(self) -> dict[str, Tensor]:
        """All components but the first's point, under names that say index, kind and part."""
        tensors: dict[str, Tensor] = {}
        for i, component in enumerate(self.components):
            prefix = f"component.{i}.{component.kind}"
            if i > 0:
                tensors |= {f"{prefix}/point/{key}": t for key, t in component.point.items()}
            tensors |= {f"{prefix}/tensors/{name}": t for name, t in component.tensors().items()}
        return tensors

    @classmethod
    def from_tensors(cls, point: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: PosteriorMeta) -> Self:
        """The mixture that `tensors` and `point` came from; every component gets the mixture's meta.

        A first component without tensors of its own is a point mass.
        """
        kinds: dict[int, str] = {}
        points: dict[int, dict[str, Tensor]] = {0: dict(point)}
        beside: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            match = _NAME.fullmatch(name)
            if match is None or (match[1], match[3]) == ("0", "point"):
                raise ValueError(f"{name!r} is no tensor of a mixture.")
            i, kind = int(match[1]), match[2]
            if kind not in _COMPONENTS or kinds.setdefault(i, kind) != kind:
                raise ValueError(f"{name!r}: component {i} is of no known kind, or of two.")
            (points if match[3] == "point" else beside).setdefault(i, {})[match[4]] = tensor
        kinds.setdefault(0, PointMass.kind)
        there = kinds.keys() & points.keys()  # the number of a name may be any, that of names is what is there
        if absent := [i for i in range(len(kinds)) if i not in there] or sorted(kinds.keys() - there):
            raise ValueError(f"the mixture has no point for component(s) {absent} of {max(kinds) + 1}.")
        components = []
        for i in sorted(kinds):
            try:
                components.append(_COMPONENTS[kinds[i]].from_tensors(points[i], beside.get(i, {}), meta))
            except ValueError as error:
                raise ValueError(f"component {i} of the mixture: {error}") from error
        return cls(components=tuple(components), meta=meta)


def _stacked(components: tuple[Posterior, ...], moment: str, key: str) -> Tensor:
    """One moment of one tensor, of all components: (M, *shape), float64."""
    return torch.stack([getattr(component, moment)[key].double() for component in components])
