"""matplotlib, as pictures need it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """A figure with a canvas for PNG files.

    The object interface: pyplot keeps global state and is not safe in a thread. matplotlib warns
    through its logger, on stderr, where the home directory cannot be written; it works all the
    same, so only its errors are let through.
    """
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**settings)
    FigureCanvasAgg(figure)
    return figure
