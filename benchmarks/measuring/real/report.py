"""The report on real models, from its cells: tables by task, and at how many sizes the search is nearest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from acdc.benchmarks.measuring.real.cells import RIVALS_ON, SEARCH, SHARES, Cell, Size
from acdc.metrics import mean_interval, ratio_interval, share_interval

RULES = {"mean-absolute": "mean \\|·\\|", "signed": "\\|mean\\|"}
RULES |= {f"{name}, kl": f"{shown}, by KL" for name, shown in RULES.items()}
"""How tables name what ranks the edges."""
SHOWN = {"acdc": "acdc in eap-ig's best tenth"}
"""What tables call methods that are not as published."""


def markdown(cells: Sequence[Cell], missing: Sequence[tuple[str, str, str]], command: str) -> str:
    parts = [
        f"""# Real language models

How faithful are circuits of each size, on models that people trained? Each method ranks all edges on one set of
prompts, by the task's own metric and, where it has a gradient there, by KL; the best share of the edges, those on no
path left out, is a circuit, measured on other prompts. Of a search these are the circuits on its way, of one
search by KL. Whole components and, on {RIVALS_ON}, ACDC and learned masks go by KL too, and have the processor time
that the search took (`benchmarks/measuring/real/rivals.py`). KL is in nats from the full model; |1 − f| is the
distance of the faithfulness from 1 by the task's own metric; in brackets are 95% intervals over the prompts, where
there is one (docs/intervals.md). The models had 4-bit weights, dequantised: their numbers are not those of the full
models.

Made by `{command}`, which goes on where it was stopped; tasks of other numbers of prompts
than 64 and 128 held out with `--size` and `--held-out`. Cells that were not run: {_listed(missing)}."""
    ]
    parts.append(nearest(cells))
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in cells):
        these = [cell for cell in cells if (cell.model, cell.task) == (model, task)]
        first = these[0]
        parts.append(
            f"## {task} on {model}\n\n{first.n_prompts} prompts, {first.n_held_out} held out, "
            f"{first.n_edges_total:,} edges; metric {first.metric}: on average {np.mean(first.full):.3g} of the full "
            f"model, above 0 on {np.mean(np.array(first.full) > 0):.0%} of the held-out prompts, and "
            f"{np.mean(first.empty):.3g} with no edge."
        )
        for title, name in (("KL", "kl"), ("\\|1 − f\\|", "unfaithfulness"), ("same answer", "same_answer")):
            head = [title, *(f"{share:.1%}" for share in SHARES)]
            body = [
                [_row_name(cell, aggregate)]
                + [_shown(size, name) for size in cell.sizes if size.aggregate == aggregate]
                for cell in these
                for aggregate in cell.aggregates
            ]
            parts.append(_table(head, body))
    head = ["model", "task", "method", "s", "processor s", "forward", "backward", "peak memory"]
    body = [
        [cell.model, cell.task, cell.method, _known(cell.seconds, ".4g"), _known(cell.processor_seconds, ".4g"),
         _known(cell.forward, ",d"), _known(cell.backward, ",d"), _known(cell.peak_bytes / 1e9, ".2f", " GB")]
        for cell in cells
    ]  # fmt: skip
    machines = ", ".join(dict.fromkeys(cell.machine for cell in cells))
    parts.append(
        f"## What they cost\n\nPasses are of one prompt; measured on {machines}. Of a search that went on from where "
        "it was stopped, passes, and seconds where they were not noted, are not known (–)."
    )
    parts.append(_table(head, body))
    return "\n\n".join(parts) + "\n"


def nearest(cells: Sequence[Cell]) -> str:
    """At how many sizes the search is nearer to the model than every other row, and surely so."""
    body = []
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in cells):
        these = [cell for cell in cells if (cell.model, cell.task) == (model, task)]
        ours = [cell for cell in these if cell.method == SEARCH]
        if not ours or len(these) == 1:
            continue
        row = [model, task]
        for distance in (_kl_apart, _unfaithfulness_apart):
            best = sure = 0
            for place, _ in enumerate(SHARES):
                apart = [
                    distance(ours[0], ours[0].sizes[place], size)
                    for cell in these
                    for size in cell.sizes[place :: len(SHARES)]
                    if cell.method != SEARCH
                ]
                best += all(mean < 0 for mean, _ in apart)
                sure += all(surely for _, surely in apart)
            row += [f"{best} of {len(SHARES)}", f"{sure} of {len(SHARES)}"]
        body.append(row)
    head = ["model", "task", "least KL", "surely", "least \\|1 − f\\|", "surely"]
    return (
        f"## {SEARCH.capitalize()} against the others\n\nAt how many sizes the search's circuit is nearer to the full "
        "model than the circuit of every other row, and at how many surely so: against each of them the 95% interval "
        "of the difference, prompt by prompt, lies below 0. Where a few prompts decide the mean of KL it has no "
        "interval; then the circuit must be nearer on more than half of all prompts, by the interval of that share.\n\n"
        f"{_table(head, body)}"
    )


def _kl_apart(_: Cell, ours: Size, other: Size) -> tuple[float, bool]:
    """The difference of two circuits' KL, and whether the prompts tell that it is below 0."""
    apart = np.array(ours.kls) - np.array(other.kls)
    high = mean_interval(apart)[1]
    nearer = high < 0 if np.isfinite(high) else share_interval(apart < 0)[0] > 0.5
    return float(apart.mean()), bool(nearer and apart.mean() < 0)


def _unfaithfulness_apart(cell: Cell, ours: Size, other: Size) -> tuple[float, bool]:
    """The same of |1 − f|."""
    full, empty = np.array(cell.full), np.array(cell.empty)
    mine, theirs = (full - np.array(size.values) for size in (ours, other))
    apart = np.copysign(1, mine.mean()) * mine - np.copysign(1, theirs.mean()) * theirs
    whole = full - empty
    return float(apart.mean() / whole.mean()), ratio_interval(apart, whole)[1] < 0


def _row_name(cell: Cell, aggregate: str) -> str:
    name = SHOWN.get(cell.method, cell.method)
    return f"{name}, {RULES[aggregate]}" if len(cell.aggregates) > 1 else name


def _listed(cells: Sequence[tuple[str, str, str]]) -> str:
    """Which methods of which task and model, in words."""
    tasks = dict.fromkeys((model, task) for model, task, _ in cells)
    parts = [
        f"{task} on {model} ({', '.join(method for *which, method in cells if which == [model, task])})"
        for model, task in tasks
    ]
    return "; ".join(parts) or "none"


def _shown(size: Size, name: str) -> str:
    low, high = getattr(size, f"{name}_interval")
    value = f"{getattr(size, name):.2f}"
    return value if np.isnan(low) else f"{value} [{low:.2f}, {high:.2f}]"


def _known(number: float, form: str, unit: str = "") -> str:
    return f"{number:{form}}{unit}" if number and np.isfinite(number) else "–"


def _table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    columns = list(head)
    lines = [columns, ["---"] * len(columns), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
