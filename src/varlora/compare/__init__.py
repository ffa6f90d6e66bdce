"""Models × methods × tasks × seeds: a plan, its runs, and what comes of them."""

from varlora.compare.cell import Cell
from varlora.compare.plan import Curve, MethodPlan, Override, Plan, chosen
from varlora.compare.plan_file import read_plan
from varlora.compare.variant import Variant

__all__ = [
    "Cell",
    "Curve",
    "MethodPlan",
    "Override",
    "Plan",
    "Variant",
    "chosen",
    "read_plan",
]
