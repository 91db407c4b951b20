"""Pictures of circuits: diagrams for papers and slides (`draw`), plots of results (`acdc.viz.plots`), and views for
the terminal (`acdc.viz.terminal`)."""

from acdc.viz.draw import FORMATS, Drawing, draw
from acdc.viz.style import STYLES, Style

__all__ = ["FORMATS", "STYLES", "Drawing", "Style", "draw"]
