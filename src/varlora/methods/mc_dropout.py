"""MC dropout: AdamW with dropout on the adapter's inputs, which stays on when predicting.

    h = W x + (α/r) B A (x ∘ z / (1 − p)),   z_j ~ Bernoulli(1 − p), anew for every example, token and module
    p(y | x) ≈ (1/S) Σ_s softmax(f(x; θ, z_s))

Training is that of method `adamw`; only prediction differs, by S passes in place of one. A mask is no set of weights:
the result predicts, and its weights can be pruned or merged, but it is no posterior over weights to sample or temper.

Source: Gal & Ghahramani 2016, arXiv 1506.02142.
"""

from __future__ import annotations

from dataclasses import dataclass

from varlora.adapters import dropout_modules
from varlora.methods.adamw import AdamW
from varlora.methods.method import Fit, Job, record
from varlora.methods.options import McDropoutOptions
from varlora.posterior import DropoutMasks, point_mass_of


@dataclass(frozen=True, kw_only=True)
class McDropout(McDropoutOptions, AdamW):
    """AdamW, its LoRA dropout left on at prediction; the rate is the adapter's own `lora_dropout`."""

    def fit(self, job: Job) -> Fit:
        """The trained weights, with the rate of their masks.

        Raises:
            ValueError: the adapter has no dropout.
        """
        rates = {dropout.p for dropout in dropout_modules(job.model).values()}
        if len(rates) != 1:
            raise ValueError(
                f"method 'mc_dropout' needs an adapter with one dropout rate above 0, not {sorted(rates) or 'none'}; "
                "set lora_dropout to 0.1, say. Without dropout use 'adamw'."
            )
        log = job.run(self.trainer(job))
        trained = point_mass_of(job.model, **record(job, self.name))
        return Fit(posterior=DropoutMasks(mean=trained.mean, rate=rates.pop(), meta=trained.meta), log=log)
