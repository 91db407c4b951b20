"""Pictures of circuits: diagrams for papers and slides."""

from acdc.viz.draw import FORMATS, Drawing, draw
from acdc.viz.style import STYLES, Style

__all__ = ["FORMATS", "STYLES", "Drawing", "Style", "draw"]
