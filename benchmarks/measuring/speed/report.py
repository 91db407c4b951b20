"""Rows to files: `speed.json` holds every raw number, `README.md` the table, `growth.svg` the plot."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from acdc.benchmarks.cost import device_name
from acdc.benchmarks.measuring.speed.works import Row
from acdc.circuit.provenance import library_versions
from acdc.store.reading import parse_json, read
from acdc.store.writing import write_atomically
from acdc.viz.plots import COLORS, MARKERS

FORMAT = 1


def write(folder: Path, rows: Sequence[Row], command: str) -> None:
    """Write all files into a folder. Rows of the same measurement that it holds already are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    before, commands = load(folder)
    rows, commands = merged(before, rows), list(dict.fromkeys([*commands, command]))
    record = {
        "format": FORMAT, "machine": device_name(), "versions": library_versions(), "commands": commands,
        "rows": [dataclasses.asdict(row) for row in rows],
    }  # fmt: skip
    write_atomically(folder / "speed.json", json.dumps(record, indent=1) + "\n")
    picture = growth_plot(rows)
    if picture is not None:
        write_atomically(folder / "growth.svg", picture)
    write_atomically(folder / "README.md", markdown(rows, commands, plot=picture is not None))


def load(folder: Path) -> tuple[list[Row], list[str]]:
    """The rows that a folder holds, and the commands that measured them."""
    if not (folder / "speed.json").is_file():
        return [], []
    record = parse_json(read(folder / "speed.json"), str(folder / "speed.json"))
    if record.get("format") != FORMAT:
        return [], []
    rows = []
    for fields in record["rows"]:
        values: dict[str, Any] = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        rows.append(Row(**values))
    return rows, record["commands"]


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """The old rows without those of works that were measured again on the same shape and batch, then the new."""

    def key(row: Row) -> tuple[object, ...]:
        return row.work, row.shape, row.threads, row.tokens

    again = {key(row) for row in new}
    rows = [row for row in old if key(row) not in again] + list(new)
    order = list(dict.fromkeys(row.work for row in rows))
    return sorted(rows, key=lambda row: (order.index(row.work), row.shape not in ("", "S"), row.tokens, row.shape))


# ---- table ------------------------------------------------------------------------------------------------------


def markdown(rows: Sequence[Row], commands: Sequence[str], *, plot: bool) -> str:
    """The table, with what its columns mean."""
    lines = [
        "# Speed",
        "",
        f"Measured by `{'`, `'.join(commands)}`",
        f"on {device_name()}; torch {library_versions().get('torch', '')}, float32, CPU.",
        "F and B are the bare Hugging Face model's forward and backward pass (frozen weights, all logits) on the same",
        "batch, timed before and after each round of the work in the same process. Figures are medians of the rounds,",
        "ratios those of wall time (of processor time in brackets, by which one thread is judged). Memory is the peak",
        "above what the process held before. The error is the largest difference from the slow way in the same run,",
        "relative to the largest value: of a search, the distance it ends with against a fresh patched forward pass.",
        "Operations are the floating-point operations of matrix products, as the same ratio: what the time could be if",
        "nothing else took any. S, M and L have random weights: S has 2 layers of 4 heads and width 64, M is GPT-2",
        "small's shape, L Qwen2-0.5B's. SmolLM2 (135M) and Gemma (3, 270M) are the trained models; tokens are random.",
        "",
        "| work | model, pairs × tokens | threads | seconds | processor s | ratio | operations | to reach | memory | "
        "kept | error |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [table_row(row) for row in rows]
    if plot:
        lines += ["", "![ACDC's cost against the number of layers and of kept edges](growth.svg)"]
        lines += ["", *slopes(rows)]
    return "\n".join(lines) + "\n"


def table_row(row: Row) -> str:
    batch = f"{row.shape}, {row.pairs} × {row.tokens}" if row.shape else "—"
    ratio = "—" if row.ratio is None else f"{row.ratio:.3g} ({row.cpu_ratio:.3g}) × {row.reference}"
    ratio += " an edge" if row.per > 1 else ""
    limits = []
    if row.limit is not None:
        limits.append(f"{row.limit:g} ×")
    if row.limit_seconds is not None:
        limits.append(f"{row.limit_seconds:g} s")
    if row.bytes_allowed is not None:
        limits.append(_megabytes(row.bytes_allowed))
    reach = "—" if not limits else f"≤ {', '.join(limits)}: {'yes' if row.within else '**no**'}"
    memory = _megabytes(row.peak_bytes)
    if row.reference_peak_bytes is not None:
        memory += f" ({row.reference}: {_megabytes(row.reference_peak_bytes)})"
    kept = "—" if row.kept is None else f"{row.kept:,} of {row.edges:,}"
    error = "—" if row.error is None else f"{row.error:.0e}"
    seconds, processor = f"{row.second:.3g}", f"{np.median(row.cpu_seconds):.3g}"
    operations = "—" if row.operations is None else f"{row.operations / row.per:.3g}"
    cells = [
        f"{row.work}: {row.what}", batch, str(row.threads), seconds, processor, ratio, operations, reach, memory, kept,
        error,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _megabytes(n: int | None) -> str:
    return "—" if n is None else f"{n / 1e6:,.0f} MB"


# ---- plot -------------------------------------------------------------------------------------------------------


def _growth_lines(rows: Sequence[Row]) -> dict[str, list[tuple[list[float], list[float], str]]]:
    """Per panel ("layers", "kept edges") and shape: x, cost of the whole search in F, name of the shape."""
    panels: dict[str, list[tuple[list[float], list[float], str]]] = {"layers": [], "kept edges": []}
    growing = [row for row in rows if row.work == "growth"]
    for shape in dict.fromkeys(row.shape for row in growing):
        these = [row for row in growing if row.shape == shape]
        first = {row.layers: row for row in reversed(these)}  # one a depth, all at the same share
        deepest = [row for row in these if row.layers == max(first)]  # type: ignore[type-var]
        chosen: dict[str, tuple[list[Row], Callable[[Row], float]]] = {
            "layers": ([first[n] for n in sorted(first)], lambda row: float(row.layers or 0)),  # type: ignore[type-var]
            "kept edges": (sorted(deepest, key=lambda row: row.kept or 0), lambda row: float(row.kept or 0)),
        }
        for name, (points, x) in chosen.items():
            points = [row for row in points if x(row) > 0]
            panels[name].append(([x(row) for row in points], [_cost(row) for row in points], shape))
    return panels


def _cost(row: Row) -> float:
    assert row.ratio is not None
    return row.ratio * row.per


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law that fits best: the slope on logarithmic axes."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def slopes(rows: Sequence[Row]) -> list[str]:
    """A sentence a line of the plot."""
    return [
        f"- {shape}: the whole search costs about ({panel})^{slope(x, y):.2f} forward passes of the same model."
        for panel, lines in _growth_lines(rows).items()
        for x, y, shape in lines
        if len(set(x)) > 1
    ]


def growth_plot(rows: Sequence[Row]) -> bytes | None:
    """ACDC's cost in forward passes against layers and against kept edges, both axes logarithmic, as SVG."""
    panels = _growth_lines(rows)
    if not any(panels.values()):
        return None
    figure = Figure(figsize=(6.8, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence[Axes] = figure.subplots(1, 2, sharey=True)
    for ax, (panel, lines) in zip(axes, panels.items(), strict=True):
        for i, (x, y, shape) in enumerate(lines):
            label = f"{shape}, slope {slope(x, y):.2f}" if len(set(x)) > 1 else shape
            ax.plot(x, y, marker=MARKERS[i], color=COLORS[i], linewidth=1.2, markersize=4, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        if panel == "layers":
            ax.xaxis.set_major_locator(FixedLocator(sorted({n for x, _, _ in lines for n in x})))
            ax.xaxis.set_major_formatter("{x:.0f}")
            ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlabel(panel, fontsize=8)
        ax.tick_params(labelsize=7)
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("whole search, forward passes", fontsize=8)
    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "acdc"}):  # the same bytes each time
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()
