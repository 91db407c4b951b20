"""The curves in the `training.json` of the tiny-tasks models, as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence

from matplotlib.figure import Figure

from acdc.benchmarks.figures import to_svg
from acdc.benchmarks.training.tiny_corpus import TASKS
from acdc.model.load import BUILTIN
from acdc.viz import plots

_DASHES = ("-", "--", ":", "-.")


def training_curves(models: Sequence[str]) -> str:
    """Accuracy of each task on held-out lines over the steps of training, a panel for each model, as SVG."""
    figure = Figure(figsize=(4.2 * len(models), 3.2), layout="constrained")
    panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, models, strict=True):
        curve = json.loads((BUILTIN / name / "training.json").read_text())["curve"]
        steps = [point["step"] for point in curve]
        for i, task in enumerate(TASKS):
            look = {"color": plots.COLORS[i % len(plots.COLORS)], "linestyle": _DASHES[i % len(_DASHES)]}
            axes.plot(steps, [point[task] for point in curve], label=task, linewidth=1.3, **look)
        axes.set(title=name, xlabel="step", ylim=(-0.02, 1.02), xlim=(0, max(steps)))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on held-out lines")
    panels[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return to_svg(panels[0])
