"""Pictures of tracings: a heat map for each site with the prompt's tokens on the axis, and a page of them all.

The page is one file without scripts or network: its cells say their numbers when pointed at.
"""

from __future__ import annotations

import html
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from acdc.errors import unknown
from acdc.shown import printable, rounded
from acdc.viz.matplotlib_renderer import METADATA, SETTINGS
from acdc.viz.plots import SIGNED, heat_map, new_axes

if TYPE_CHECKING:
    from acdc.tracing import SiteMap, Tracing

_LABEL = 14  # most characters of a label on an axis


def site_map(found: SiteMap, ax: Axes | None = None) -> Axes:
    """The heat map of one site: layers (or heads) by places, shares of the whole effect, or effects where there are
    none; NaN is left white."""
    values, rows, columns, row_name, column_name = found.matrix()
    columns = tuple(_short(label) for label in columns)
    if ax is None:
        ax = new_axes(1.4 + 0.28 * max(len(columns), 4), 1.1 + 0.2 * min(max(len(rows), 4), 48))
    heat_map(values, ax, rows=rows, columns=columns, label="effect" if found.share is None else "share of effect")
    ax.set_title(f"{found.site}: {found.metric}", fontsize=9)
    ax.set_ylabel(row_name, fontsize=8)
    ax.set_xlabel(column_name, fontsize=8)
    if any(len(column) > 3 for column in columns):
        for text in ax.get_xticklabels():
            text.set_rotation(90)
    return ax


def figure(tracing: Tracing) -> Figure:
    """The heat maps of all sites, one above the other."""
    shapes = [found.matrix()[0].shape for found in tracing.maps]
    widths = max(2.0 + 0.28 * max(columns, 4) for _, columns in shapes)
    heights = [1.4 + 0.2 * min(max(rows, 4), 48) for rows, _ in shapes]
    drawn = Figure(figsize=(widths, sum(heights)), layout="constrained")
    FigureCanvasAgg(drawn)
    axes = drawn.subplots(len(shapes), 1, squeeze=False, height_ratios=heights)[:, 0]
    for found, ax in zip(tracing.maps, axes, strict=True):
        site_map(found, ax)
    return drawn


def render(tracing: Tracing, format: str) -> bytes:
    """The figure as a file's content: svg, pdf or png; the same tracing gives the same bytes.

    Raises:
        AcdcError: another format.
    """
    if format not in METADATA:
        raise unknown("format of a heat map", format, METADATA)
    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # tokens are of any script
        figure(tracing).savefig(buffer, format=format, dpi=200, metadata=METADATA[format])
    return buffer.getvalue()


def page(tracing: Tracing, estimate: Tracing | None = None) -> str:
    """One HTML file: what was traced, and a table of colored cells for each site.

    Args:
        estimate: the same to first order, whose maps are shown beside, with how well they agree.
    """
    title = f"{tracing.task} in {tracing.model}"
    facts = "".join(
        f"<tr><th>{_text(name)}</th><td>{_text(text)}</td></tr>" for name, text in tracing.facts().items()
    )
    agreement = {} if estimate is None else tracing.agreement(estimate)
    sections = []
    for found in tracing.maps:
        maps = [_table(found, tracing.method)]
        if estimate is not None:
            maps.append(_table(estimate[found.site], _agreeing(agreement, found.site)))
        sections.append(f"<section><h2>{_text(found.site)}</h2><div class='maps'>{''.join(maps)}</div></section>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='generator' content='acdc'>"
        "<meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head><body><h1>{_text(title)}</h1>"
        f"<table class='facts'>{facts}</table>{''.join(sections)}</body></html>"
    )


def _agreeing(agreement: Mapping[str, tuple[float, float]], site: str) -> str:
    pearson, rank = agreement[site]
    return f"first-order (correlation with exact {rounded(pearson)}, of ranks {rounded(rank)})"


_STYLE = """
body { font: 14px/1.4 Helvetica, Arial, sans-serif; color: #1a1a1a; margin: 2em; }
h1 { font-size: 1.3em; } h2 { font-size: 1.1em; margin: 1.5em 0 .3em; }
table { border-collapse: collapse; } caption { text-align: left; color: #737373; font-size: .85em; }
.facts th { text-align: left; font-weight: normal; color: #737373; padding-right: 1.2em; vertical-align: top; }
.maps { display: flex; flex-wrap: wrap; gap: 2em; }
.map td { min-width: 1.6em; height: 1.35em; border: 1px solid #fff; }
.map th { font-weight: normal; font-size: .8em; white-space: pre; }
.map tbody th { text-align: right; padding-right: .5em; }
.map thead th { writing-mode: vertical-rl; text-align: left; padding-bottom: .3em; }
"""


def _table(found: SiteMap, caption: str) -> str:
    values, rows, columns, row_name, column_name = found.matrix()
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    colors = SIGNED(0.5 + 0.5 * np.nan_to_num(values) / limit)[..., :3]
    what = "share" if found.share is not None else "effect"
    head = "".join(f"<th>{_text(column)}</th>" for column in columns)
    lines = []
    for i in reversed(range(len(rows))):  # the first layer at the bottom, as in the heat map
        cells = []
        for j, column in enumerate(columns):
            value = values[i, j]
            if np.isnan(value):
                cells.append("<td></td>")
                continue
            color = "#" + "".join(f"{round(255 * part):02x}" for part in colors[i, j])
            tip = f"{row_name} {rows[i]}, {column_name} {column}: {what} {value:.3f}"
            cells.append(f"<td style='background:{color}' title='{_text(tip)}'></td>")
        lines.append(f"<tr><th>{_text(rows[i])}</th>{''.join(cells)}</tr>")
    return (
        f"<table class='map'><caption>{_text(caption)}: {what}, up to {limit:.3g}</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    )


def _short(label: str) -> str:
    shown = printable(label).replace("\n", "\\n")
    return shown if len(shown) <= _LABEL else f"{shown[: _LABEL - 1]}…"


def _text(text: str) -> str:
    return html.escape(printable(text), quote=True)
