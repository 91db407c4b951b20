"""What circuits and scores are checked for: arrays of the right shape, one graph, and as many edges as asked for."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from acdc.errors import AcdcError
from acdc.graph import BoolArray, Graph
from acdc.shown import are, counted


def checked_array(
    given: npt.ArrayLike, shape: tuple[int, ...], dtype: npt.DTypeLike, what: str, axes: str
) -> npt.NDArray[Any]:
    """The argument as an array, its shape checked."""
    array = np.asarray(given)
    if dtype != np.bool_ and array.dtype.kind not in "biuf":
        raise AcdcError(f"expected {what} as real numbers, got {array.dtype}")
    if dtype == np.bool_ and array.dtype != np.bool_:
        raise AcdcError(f"expected {what} to be boolean, got {array.dtype}")
    if array.shape != shape:
        raise AcdcError(f"expected {what} of shape {list(shape)} ({axes}), got {list(array.shape)}")
    return array.astype(dtype, copy=False)


def checked_scores(given: npt.ArrayLike, graph: Graph, name: str) -> npt.NDArray[Any]:
    """Finite scores, 0 where there is no edge, and at least 0 unless they are "values"; nobody can write to them."""
    values = checked_array(given, graph.valid.shape, np.float64, "scores", "destinations, sources")
    values = np.where(graph.valid, values, 0.0)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        edge = graph.edge_name(*bad[0])
        raise AcdcError(f"{len(bad)} scores are NaN or infinite, the first that of {edge!r}")
    if name != "values" and (values < 0).any():
        raise AcdcError(f"expected {name} scores of at least 0, got {values.min():g}")
    return frozen(values)


def checked_front(given: npt.ArrayLike) -> npt.NDArray[Any]:
    """A search's front, its shape checked; nobody can write to it."""
    front = np.array(given, dtype=np.float64)
    if front.ndim != 2 or front.shape[1] != 2 or not np.isfinite(front).all():
        raise AcdcError(f"expected a front of pairs of numbers, got an array of shape {list(front.shape)}")
    return frozen(front)


def checked_removal(given: npt.ArrayLike, graph: Graph) -> npt.NDArray[Any]:
    """Effects of removal, NaN where they were not measured; nobody can write to them."""
    removal = checked_array(given, graph.valid.shape, np.float64, "effects of removal", "destinations, sources")
    if np.isinf(removal).any():
        raise AcdcError("some effects of removal are infinite")
    return frozen(removal.copy())


def warn_of_size(graph: Graph, edges: BoolArray, asked: int) -> None:
    """Say, two calls up, that there are fewer edges than were asked for, and why."""
    kept = int(edges.sum())
    if kept < asked:
        why = "the graph has no more" if kept == graph.n_edges else "the next ones only connect several at a time"
        warnings.warn(f"{counted(kept, 'edge')} {are(kept)} kept instead of {asked}: {why}", stacklevel=3)


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, which nobody can write to any more."""
    array.setflags(write=False)
    return array


def other_graph(what: str, given: Graph, expected: Graph) -> str:
    """Message for two graphs that should be one, naming what differs."""
    return f"{what} is of another graph: {given.unlike(expected)}"
