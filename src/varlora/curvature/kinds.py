"""Which curvatures there are."""

from __future__ import annotations

from typing import Literal

Structure = Literal["kron", "diag"]
Fisher = Literal["ggn", "mc"]
