"""Where plots are drawn: Matplotlib, imported when something is drawn, and figures also where it has no window to show them in."""

import logging
from typing import TYPE_CHECKING

from gptoss_jax.quoting import said

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_log = logging.getLogger(__name__)


def pyplot():
    """matplotlib.pyplot. Raises ImportError, with what to install, where there is none."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("plots need Matplotlib, which is not installed; pip install 'gptoss-jax[notebooks]'") from error
    return plt


def axes(width: float, height: float) -> "Axes":
    """Axes of a new figure of so many inches: pyplot's; where its backend cannot be had, one that is not shown and can be saved."""
    options, plt = {"figsize": (width, height), "layout": "constrained"}, pyplot()
    try:
        return plt.figure(**options).subplots()
    except Exception as error:  # no display, or no such backend: toolkits have errors of their own
        from matplotlib.figure import Figure

        _log.warning("Matplotlib's backend cannot be used (%s); the figure is not shown; save it with ax.figure.savefig.", said(error))
        return Figure(**options).subplots()
