"""Agreements to files: `peers.json` and a table."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from acdc.benchmarks.cost import device_name
from acdc.benchmarks.measuring.peers.compare import Agreement
from acdc.circuit.provenance import library_versions
from acdc.store.writing import write_atomically

Entry = tuple[str, Agreement]
"""Name of the shape and batch, and the agreement."""


def write(
    folder: Path, entries: Sequence[Entry], versions: Mapping[str, Mapping[str, str]], command: str, threads: int
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "machine": device_name(), "threads": threads, "command": command,
        "versions": {"acdc": library_versions(), **versions},
        "rows": [{"shape": shape, **dataclasses.asdict(agreement)} for shape, agreement in entries],
    }  # fmt: skip
    write_atomically(folder / "peers.json", json.dumps(record, indent=1) + "\n")
    write_atomically(folder / "README.md", markdown(entries, versions, command, threads))


def markdown(
    entries: Sequence[Entry], versions: Mapping[str, Mapping[str, str]], command: str, threads: int
) -> str:
    tools = "; ".join(
        f"{tool}: {', '.join(f'{name} {version}' for name, version in found.items())}"
        for tool, found in versions.items()
    )
    lines = [
        "# Peers, side by side",
        "",
        f"Measured by `{command}` on {device_name()}, {threads} thread(s), float32. Every tool has the same GPT-2 with",
        "random weights, the same pairs and the same metric: the logit difference at the last position, for ACDC the",
        "KL divergence. The largest difference is over all edges, relative to the largest score. Seconds are medians;",
        "ours are measured before and after the other tool's. F is the bare Hugging Face model's forward pass in our",
        'process. In "acdc in our order" auto-circuit is given the edges in the order in which we test them; its own',
        "follows a set and may change from run to run. Denoising: the gradient on the corrupted prompts.",
        f"Environments: {tools}.",
        "",
        "| work | tool | model | edges | largest difference | rank correlation | kept by both, us, them | "
        "our seconds | theirs | times faster | our F | theirs |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [row(*entry) for entry in entries]) + "\n"


def row(shape: str, found: Agreement) -> str:
    """A line of the table."""
    kept = "—" if found.kept is None else " / ".join(map(str, found.kept))
    correlation = "—" if found.rank_correlation is None else f"{found.rank_correlation:.6f}"
    difference = "—" if found.kept is not None else f"{found.largest_difference:.1e}"
    cells = [
        found.work, found.tool, shape, f"{found.n_edges:,}", difference, correlation, kept, f"{found.seconds:.3g}",
        f"{found.their_seconds:.3g}", f"{found.times_faster:.3g}", f"{found.forwards:.3g}",
        f"{found.their_forwards:.3g}",
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"
