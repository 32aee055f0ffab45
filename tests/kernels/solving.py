"""Options for solves in the tests; a test names only what it is about."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinoreg_kernels import SolverOptions

BASE = SolverOptions(
    search_factor=(3, 3, 3),
    search_radius=(4, 4, 4),
    cost_smoothing_mm=14.0,
    field_smoothing_mm=10.0,
    coupling=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
    consistency_rounds=15,
    iterations=(80,),
    learning_rate_mm=4.0,
    smoothing_mm=5.66,
    smoothness=1.25,
    correlation_window_mm=4.0,
    correlation_noise=0.1,
    fold_penalty=1.0,
    fold_margin=0.1,
)


def solver_options(**changes: Any) -> SolverOptions:
    """`BASE` with changes."""
    return dataclasses.replace(BASE, **changes)
