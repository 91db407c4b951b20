"""What tracing gives: for each site an array with named axes, and how it is shown, tabulated and compared."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float64

from acdc.errors import AcdcError, unknown
from acdc.graph import FloatArray
from acdc.metrics import CONFIDENCE, mean_interval, spearman
from acdc.shown import Shown, counted, rounded

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SiteMap(Shown):
    """What replacing the values of one site does, cell by cell.

    Attributes:
        site: its name.
        axes: names of the axes but the last, such as ("layer", "position"), ("layer", "head"), or all three.
        labels: of each axis, in order.
        effects: `[*axes, prompt]`, the metric with the value replaced less the metric without; NaN where a prompt has
            no such place, or a layer no such component.
        separation: `[prompt]`, what the metric would change by if everything were replaced (corrupted less clean
            prompts; clean less corrupted where denoising); None where values are not those of the other prompt.
        metric: its name.
    """

    site: str
    axes: tuple[str, ...]
    labels: tuple[tuple[str, ...], ...]
    effects: Float64[FloatArray, "... prompt"]
    separation: Float64[FloatArray, " prompt"] | None
    metric: str = ""

    @cached_property
    def effect(self) -> FloatArray:
        """`[*axes]`: mean effect over the prompts that have the cell."""
        count = np.isfinite(self.effects).sum(-1)
        total = np.nansum(self.effects, axis=-1)
        return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)

    @cached_property
    def share(self) -> FloatArray | None:
        """`[*axes]`: `effect` as a share of what replacing everything does, over the same prompts; 1 is all of it."""
        if self.separation is None:
            return None
        there = np.isfinite(self.effects)
        whole = np.where(there, self.separation, 0.0).sum(-1)
        total = np.nansum(self.effects, axis=-1)
        return np.divide(total, whole, out=np.full(total.shape, np.nan), where=whole != 0) + 0.0  # no −0

    def at(self, **where: str | int) -> float:
        """The mean effect in one cell: `at(layer=3, position=5)`, by index or by label.

        Raises:
            AcdcError: an unknown axis or label, or an axis is missing.
        """
        for axis in where:
            if axis not in self.axes:
                raise unknown("axis", axis, self.axes)
        if missing := [axis for axis in self.axes if axis not in where]:
            raise AcdcError(f"expected a cell of {', '.join(self.axes)}; {missing[0]} is missing")
        index = []
        for axis, labels in zip(self.axes, self.labels, strict=True):
            given = where[axis]
            if isinstance(given, str) and given not in labels:
                raise unknown(axis, given, labels)
            if not isinstance(given, str) and not -len(labels) <= given < len(labels):
                raise AcdcError(f"expected {axis} below {len(labels)}, got {given}")
            index.append(labels.index(given) if isinstance(given, str) else given)
        return float(self.effect[tuple(index)])

    def matrix(self) -> tuple[FloatArray, tuple[str, ...], tuple[str, ...], str, str]:
        """What a heat map shows: `[row, column]` shares (effects where there are none), row and column labels, and
        names of both axes; layer and head are one axis where there is a third."""
        values = self.effect if self.share is None else self.share
        rows, columns, *rest = (*self.labels, ("",)) if values.ndim == 1 else self.labels
        if not rest or values.ndim == 1:
            other = self.axes[1] if values.ndim == 2 else ""
            return values.reshape(len(rows), len(columns)), rows, columns, self.axes[0], other
        names = [f"{row}.{column}" for row in rows for column in columns]
        flat = values.reshape(len(names), len(rest[0]))
        there = [i for i, row in enumerate(flat) if np.isfinite(row).any()]
        kept = tuple(names[i] for i in there)
        return flat[there], kept, rest[0], f"{self.axes[0]}.{self.axes[1]}", self.axes[2]

    def rows(self, confidence: float | None = CONFIDENCE) -> Iterator[dict[str, str | float]]:
        """A record for each cell: site, a label for each axis, effect, its interval over the prompts, and share."""
        for index in np.ndindex(self.effect.shape):
            effects = self.effects[index]
            effects = effects[np.isfinite(effects)]
            if not len(effects):
                continue
            low, high = (np.nan, np.nan) if confidence is None else mean_interval(effects, confidence=confidence)
            labels = (names[i] for names, i in zip(self.labels, index, strict=True))
            share = np.nan if self.share is None else float(self.share[index])
            yield {
                "site": self.site,
                **dict(zip(self.axes, labels, strict=True)),
                "effect": float(self.effect[index]),
                "low": low,
                "high": high,
                "share": share,
            }

    def plot(self, ax: Axes | None = None) -> Axes:
        """A heat map; `ax` None: on a figure of its own."""
        from acdc.viz.tracing import site_map

        return site_map(self, ax)

    def _summary(self) -> str:
        return f"{self.site}, {' × '.join(f'{len(x)} {name}s' for name, x in zip(self.axes, self.labels, strict=True))}"

    def facts(self) -> dict[str, str]:
        """Its axes and the largest effects."""
        return {"site": self.site, "axes": " × ".join(self.axes)} | self.strongest()

    def strongest(self, most: int = 3) -> dict[str, str]:
        """The cells with the largest effects, and those."""
        order = np.argsort(-np.abs(np.nan_to_num(self.effect)), axis=None, kind="stable")[:most]
        found = {}
        for place in order:
            index = np.unravel_index(place, self.effect.shape)
            name = ", ".join(
                f"{axis} {names[int(i)]}" for axis, names, i in zip(self.axes, self.labels, index, strict=True)
            )
            share = "" if self.share is None else f" ({rounded(float(self.share[index]))} of all)"
            found[name] = f"{self.effect[index]:.4g}{share}"
        return found


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Tracing(Shown):
    """What replacing values, one place at a time, does to the metric.

    Attributes:
        model, task, metric: by name; ablation: where the values come from; direction: "noise" replaces values of the
            clean run, "denoise" those of the corrupted run by clean ones; method: "exact" or "first-order".
        by: "position", "span" or "all".
        maps: a map for each site.
        clean, corrupted: `[prompt]`, the metric on the clean and on the corrupted prompts.
    """

    model: str
    task: str
    metric: str
    ablation: str
    direction: str
    method: str
    by: str
    maps: tuple[SiteMap, ...]
    clean: Float64[FloatArray, " prompt"]
    corrupted: Float64[FloatArray, " prompt"]
    seed: int = 0

    def __getitem__(self, site: str) -> SiteMap:
        from acdc.tracing.sites import site_of

        name = site_of(site).name
        for found in self.maps:
            if found.site == name:
                return found
        raise unknown("site of this tracing", name, [found.site for found in self.maps])

    def rows(self, confidence: float | None = CONFIDENCE) -> list[dict[str, str | float]]:
        """A record for each cell of all maps; see `SiteMap.rows`."""
        return [row for found in self.maps for row in found.rows(confidence)]

    def to_frame(self, confidence: float | None = CONFIDENCE) -> Any:
        """The records as a pandas DataFrame.

        Raises:
            AcdcError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise AcdcError(
                "to_frame needs pandas, which is not installed; rows() gives the same records"
            ) from None
        return pandas.DataFrame(self.rows(confidence))

    def plot(self, ax: Axes | None = None) -> Axes:
        """The heat map of the only site.

        Raises:
            AcdcError: there are several: `tracing["residual"].plot(ax)`, or `acdc.viz.tracing.figure(tracing)`.
        """
        if len(self.maps) != 1:
            names = ", ".join(found.site for found in self.maps)
            raise AcdcError(
                f'these are maps of {names}: plot one, as tracing["{self.maps[0].site}"].plot(ax), or all, with '
                "acdc.viz.tracing.figure(tracing)"
            )
        return self.maps[0].plot(ax)

    def agreement(self, other: Tracing) -> dict[str, tuple[float, float]]:
        """Pearson's and Spearman's correlation of the mean effects with another tracing's, by site.

        Raises:
            AcdcError: the other has not the same cells.
        """
        if [(a.site, a.labels) for a in self.maps] != [(b.site, b.labels) for b in other.maps]:
            raise AcdcError("tracings of different sites or places cannot be compared")
        found = {}
        for a, b in zip(self.maps, other.maps, strict=True):
            there = np.isfinite(a.effect) & np.isfinite(b.effect)
            x, y = a.effect[there], b.effect[there]
            flat = len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
            found[a.site] = (float("nan") if flat else float(np.corrcoef(x, y)[0, 1]), spearman(x, y))
        return found

    def _summary(self) -> str:
        return f"{self.task} in {self.model}: {', '.join(found.site for found in self.maps)} by {self.by}"

    def facts(self) -> dict[str, str]:
        """What was replaced by what, and what it did most."""
        sense = "clean values into the corrupted run" if self.direction == "denoise" else f"{self.ablation} values"
        clean, corrupted = self.clean.mean(), self.corrupted.mean()
        found = {
            "traced": f"{self.task} in {self.model}: {sense}, {self.method}",
            self.metric: f"clean {clean:.4g}, corrupted {corrupted:.4g}, on {counted(len(self.clean), 'prompt')}",
        }
        for each in self.maps:
            strongest = "; ".join(f"{where}: {effect}" for where, effect in each.strongest().items())
            found[each.site] = strongest
        return found
