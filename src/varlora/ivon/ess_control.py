r"""λ of `ess="auto"`, steered so that predictions for held-out rows are calibrated.

λ weighs the fit against the posterior's entropy: a smaller one gives wider noise, hence flatter predictions. A user who
scales the logits by a temperature T asks held-out rows for the T that minimises their NLL. Here the same rows are asked
whether T = 1 is that minimum already, and λ is moved until it is. For the average p(y) = (1/S) Σ_s softmax(f_s)_y over
S draws of the weights, with w_s ∝ softmax(f_s)_y and p_s = softmax(f_s), one row contributes to the derivatives of
L(b) = −log (1/S) Σ_s softmax(b f_s)_y at b = 1/T = 1

    slope           dL/db  = Σ_s w_s (E_p_s[f_s] − f_s,y)             (> 0: over-confident)
    information     I      = (1/S) Σ_s Var_p_s[f_s]                    (Fisher information of log T)

so that over n held-out rows one scoring step estimates the temperature that is missing, with its standard error:

    log T̂ = n mean(slope) / (n I + 4),        s.e. = √(V + 4) / (n I + 4),        V = n max(var(slope), I)

(4: a prior of sd 1/2 on log T; with no row log T̂ is 0 ± 1/2. I is the variance that slopes of a calibrated model have,
and the least that is believed: a few rows that happen to agree are no certainty. For V = n I the error is the sd of the
posterior of log T, 1/√(n I + 4).)

**Ten draws.** Predictions average ten draws in five opposite pairs, and an average of fewer is surer than it. K pairs
are asked, here two. They are independent of each other, so that to first order in 1/K an expectation over K pairs is
a + b/K; I does not depend on K. Slope and loss at five pairs come from those at K and at one pair (the mean of K),

    slope = slope_K + (1/5 − 1/K) / (1 − 1/K) · (slope_1 − slope_K)        = 1.6 slope_2 − 0.6 slope_1,

row by row, so that the spread of the rows is that of the extrapolation.

The law of control, at every measurement but one after which no step is left to train:

    z = sign(log T̂) · max(|log T̂| − 2 s.e., 0),        log λ ← log λ − clip(2 z, ±1),        λ within [1/10, 100] · λ_0

with λ_0 = 100 N. Within two such errors nothing moves, and what lies beyond grows from 0 with the number of rows: few
steer nothing, and no number of them is a threshold. While λ > λ_0 and nothing is wrong, λ returns a tenth of the way
(in logarithms) to λ_0. The means are running averages, half old and half new, over batches of the held-out rows in
turn; with weight w_k on measurement k of n_k rows, their effective number of rows is

    n = (Σ_k w_k)² / Σ_k (w_k² / n_k),        but never more than there are rows

(192 after many measurements of 64). The gain, 2: the noise acts with delay, and a unit of log λ moves log T by less
than a half.

**False alarms.** The same rows are asked again and again, and λ adds up what they say. Of trainings whose predictions
are exactly calibrated throughout, and whose λ nothing calls back, at most 5 % may see it leave [1/2, 2] λ_0 at any time
(`FALSE_ALARMS`); benchmarks/false_alarms.py measures 0 to 3 %, for 5 to 256 rows (docs/auto.md).

**What is left.** When training ends, log T̂ beyond two standard errors is the logit temperature of averages of ten
draws, and, from the slopes and the information at the mean of the posterior, another one is the mean's.

It is no minimisation of the held-out NLL over λ: the fixed point is a first-order condition in the one direction, the
confidence, in which λ mainly acts. Source: our choice (docs/auto.md); temperature scaling arXiv 1706.04599.
"""

from __future__ import annotations

import math

from varlora.posterior.held_out_record import LARGEST_MOVE

FALSE_ALARMS = 0.05
"""Share of trainings in which chance may move λ by more than a factor of two, at most: what is measured, and tested."""
BOUNDS = (0.1, 100.0)
"""Of λ/λ_0. The noise has then at most 10 times the variance that it has at λ_0, beyond which training unlearns what it
has learned, and at least a hundredth of it."""
GAIN = 2.0
RETURN = 0.9
"""What is left of log(λ/λ_0) > 0 after a measurement that asks for no move."""


def steered_ess(ess: float, start: float, excess: float) -> float:
    """λ after one measurement.

    Args:
        ess: the present λ.
        start: λ_0.
        excess: of log T̂ (`HeldOutRecord.beyond_chance`), > 0 where predictions are over-confident.

    Example:
        >>> steered_ess(100.0, 100.0, excess=0.0)
        100.0
        >>> round(steered_ess(100.0, 100.0, excess=0.7), 1)     # too confident: more noise
        36.8
    """
    ratio = math.log(ess / start) - min(max(GAIN * excess, -LARGEST_MOVE), LARGEST_MOVE)
    if excess == 0 and ratio > 0:
        ratio *= RETURN
    low, high = BOUNDS
    return start * min(max(math.exp(ratio), low), high)
