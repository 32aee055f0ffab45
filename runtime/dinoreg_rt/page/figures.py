"""Figures of matplotlib without its global state and warnings."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(**settings: Any) -> Figure:
    """Return a figure with a canvas for PNG files.

    It does not use pyplot, whose global state is not thread-safe. matplotlib logs warnings to
    stderr if the home directory cannot be written, which does no harm, so only errors are shown.
    """
    logger = logging.getLogger("matplotlib")
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.ERROR)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**settings)
    FigureCanvasAgg(figure)
    return figure
