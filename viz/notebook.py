"""A circuit in a notebook: its picture and what is known of it, as HTML without any script."""

from __future__ import annotations

import base64
import html

from acdc.circuit import Circuit
from acdc.viz.draw import draw
from acdc.viz.elements import clean


def circuit_html(circuit: Circuit) -> str:
    """The picture, as an image that nothing outside can reach into, and a table beside it."""
    drawing = draw(circuit, title="")
    picture = base64.b64encode(drawing.content).decode()
    rows = "".join(
        f'<tr><th style="text-align:left;font-weight:normal;opacity:.7;padding-right:1.2em">{html.escape(name)}</th>'
        f'<td style="text-align:left">{html.escape(clean(value, most=80))}</td></tr>'
        for name, value in circuit.facts().items()
    )
    return (
        '<div style="display:flex;flex-wrap:wrap;gap:1.5em;align-items:flex-start">'
        f'<img alt="{html.escape(drawing.caption)}" src="data:image/svg+xml;base64,{picture}" '
        'style="max-width:min(100%,640px);max-height:640px;background:white">'
        f"<table>{rows}</table></div>"
    )
