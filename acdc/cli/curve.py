"""What `acdc evaluate --curve -o FILE` writes: the table of a curve, or its plot, as the file ends."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING

from acdc.cli import terminal
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.evaluation.curve import Curve

COLUMNS = ("share", "edges", "faithfulness", "kl")
PLOTS = (".svg", ".png", ".pdf")


def check_place(path: Path, *, curve: bool, force: bool) -> None:
    """Refuse a file that nothing would be written to, or that is there, before the work."""
    if not curve:
        raise AcdcError("-o/--out is for the curve: give --curve too")
    if path.suffix.lower() not in (".csv", *PLOTS):
        raise AcdcError(f"expected a file that ends in .csv, {', '.join(PLOTS)}, got {str(path)!r}")
    terminal.check_new_file(path, force=force)


def write(curve: Curve, path: Path, *, name: str, force: bool) -> None:
    """Write the table or the plot of a curve."""
    from acdc.store.writing import write_atomically

    out = io.BytesIO()
    if path.suffix.lower() == ".csv":
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([COLUMNS, *curve.rows()])
        out.write(text.getvalue().encode())
    else:
        from acdc.viz import plots

        figure = plots.faithfulness_curves({name: curve}).get_figure(root=True)
        assert figure is not None
        figure.savefig(out, format=path.suffix[1:].lower(), dpi=200)
    write_atomically(path, out.getvalue(), replace=force)
