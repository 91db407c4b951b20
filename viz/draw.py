"""`draw`: a circuit as a picture, through Graphviz if it is installed, else the same picture through matplotlib."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

import graphviz

from acdc.circuit import Circuit
from acdc.errors import AcdcError, check_type, unknown
from acdc.graph import BoolArray
from acdc.store.writing import write_atomically
from acdc.viz import graphviz_renderer, tikz
from acdc.viz.diagram import make_diagram
from acdc.viz.prompt import ShownPrompt
from acdc.viz.reduce import Detail
from acdc.viz.style import Style, get_style

FORMATS = ("svg", "pdf", "png", "dot", "tikz")
_SUFFIXES = {".gv": "dot", ".tex": "tikz"} | {f".{name}": name for name in FORMATS}


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A picture that was drawn.

    Attributes:
        content: the file's content.
        format: one of "svg", "pdf", "png", "dot", "tikz".
        path: the file it was written to, if any.
        renderer: "graphviz", "matplotlib", or "text" for formats that nothing needs to render.
        note: one line on what the reader should know (which renderer stood in for which), or empty.
        caption: what the picture shows, and what it leaves out.
    """

    content: bytes = dataclasses.field(repr=False)
    format: str
    path: Path | None
    renderer: str
    note: str
    caption: str

    def _repr_svg_(self) -> str | None:
        return self.content.decode() if self.format == "svg" else None

    def _repr_png_(self) -> bytes | None:
        return self.content if self.format == "png" else None


def draw(
    circuit: Circuit,
    path: str | Path | None = None,
    *,
    format: str | None = None,
    truth: Circuit | BoolArray | None = None,
    style: str | Style = "paper",
    detail: Detail = "port",
    max_edges: int = 120,
    fold: int | None = None,
    title: str | None = None,
    legend: bool = True,
    roles: Mapping[str, Collection[str]] | None = None,
    renderer: str | None = None,
    replace: bool = True,
    neurons: Mapping[str, BoolArray] | None = None,
    prompt: ShownPrompt | None = None,
) -> Drawing:
    """Draw a circuit from the input (bottom) to the logits (top).

    Args:
        path: where to write the picture; None only returns it.
        format: "svg", "pdf", "png", "dot" or "tikz"; by default that of the path's suffix, else "svg".
        truth: the true circuit, or its edges `[n_destinations, n_sources]`: edges and nodes are then marked as
            true, false or missed.
        style: "paper", "slides", "dark", or a `Style`.
        detail: "port" draws q, k and v apart, "head" merges them, "layer" merges the heads of a layer too.
        max_edges: a picture with more lines is drawn with q, k and v merged, then with its weakest nodes in boxes,
            then with the strongest lines only; the caption says so.
        fold: heads with at most so many edges are drawn as one box with the others of their layer that have as few,
            which says how many it stands for; 0: none. By default the weakest nodes are one box with their
            neighbours, until the rows of a deep model fit a page and there are no more lines than `max_edges`.
        title: by default the task and the model; "" for none.
        legend: explain colours, line styles and arrowheads.
        roles: components by role, like `{"induction": ("a5.h5",)}`, which then share a fill; None: those of the
            published circuit of this task in this model, if there is one.
        renderer: "graphviz" or "matplotlib"; by default Graphviz if its program `neato` is installed.
        replace: whether a file that is there may be replaced.
        neurons: which stay in each MLP, `[hidden unit]`, as `NeuronCircuit.kept`: marks along its box.
        prompt: its tokens stand below the input, its answer beside the logits; `ShownPrompt.of(dataset, model)` is one
            of a task's.
    """
    check_type("a Circuit", circuit, Circuit)
    if prompt is not None:
        check_type("a ShownPrompt, as ShownPrompt.of makes", prompt, ShownPrompt)
    format = _format(path, format)
    diagram = make_diagram(
        circuit, get_style(style), truth=truth, detail=detail, max_edges=max_edges, fold=fold, title=title,
        legend=legend, roles=roles, neurons=neurons, prompt=prompt,
    )  # fmt: skip
    note = ""
    if format in ("dot", "tikz"):
        text = graphviz_renderer.to_dot(diagram) if format == "dot" else tikz.to_tikz(diagram)
        content, used = text.encode(), "text"
    else:
        used, note = _renderer(renderer)
        if used == "graphviz":
            try:
                content = graphviz_renderer.render(diagram, format)
            except (graphviz.ExecutableNotFound, graphviz.CalledProcessError) as error:
                if renderer == "graphviz":
                    raise AcdcError(f"Graphviz could not draw the circuit as {format}: {error}") from None
                used, note = "matplotlib", f"drawn with matplotlib: Graphviz cannot write {format} here"
        if used == "matplotlib":
            from acdc.viz import matplotlib_renderer

            content = matplotlib_renderer.render(diagram, format)
    written = None if path is None else write_atomically(path, content, replace=replace)
    return Drawing(content, format, written, used, note, diagram.caption)


def _format(path: str | Path | None, format: str | None) -> str:
    if format is None:
        suffix = Path(path).suffix.lower() if path is not None else ".svg"
        if suffix not in _SUFFIXES:
            raise unknown("picture format", suffix.lstrip("."), FORMATS)
        return _SUFFIXES[suffix]
    if format not in FORMATS:
        raise unknown("picture format", format, FORMATS)
    return format


def _renderer(asked: str | None) -> tuple[str, str]:
    """Which renderer to use, and what to tell the reader."""
    if asked not in (None, "graphviz", "matplotlib"):
        raise unknown("renderer", asked, ("graphviz", "matplotlib"))
    if asked == "matplotlib":
        return asked, ""
    if shutil.which("neato"):
        return "graphviz", ""
    if asked == "graphviz":
        raise AcdcError("Graphviz's program `neato` is not installed: install Graphviz, or draw with matplotlib")
    return "matplotlib", "drawn with matplotlib: Graphviz (the `dot` and `neato` programs) is not installed"
