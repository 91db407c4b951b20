"""Pictures of circuits: diagrams for papers and slides (`draw`), an interactive page to explore them (`write_page`),
plots of results (`acdc.viz.plots`), heat maps of tracings (`acdc.viz.tracing`), and views for the terminal
(`acdc.viz.terminal`).

What belongs to the page is imported when first used, since measuring takes torch and drawing does not.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acdc.viz.draw import FORMATS, Drawing, draw
from acdc.viz.prompt import ShownPrompt
from acdc.viz.style import STYLES, Style

if TYPE_CHECKING:
    from acdc.viz import plots as plots
    from acdc.viz import terminal as terminal
    from acdc.viz import tracing as tracing
    from acdc.viz.page import Findings, Page, investigate, write_page, write_positional_page

__all__ = [
    "FORMATS",
    "STYLES",
    "Drawing",
    "Findings",
    "Page",
    "ShownPrompt",
    "Style",
    "draw",
    "investigate",
    "write_page",
    "write_positional_page",
]


_PARTS = ("plots", "terminal", "tracing")


def __getattr__(name: str) -> Any:
    if name in _PARTS:
        return importlib.import_module(f"acdc.viz.{name}")
    if name not in ("Findings", "Page", "investigate", "write_page", "write_positional_page"):
        raise AttributeError(f"module 'acdc.viz' has no attribute {name!r}")
    from acdc.viz import page

    return getattr(page, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
