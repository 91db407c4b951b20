"""What going from coarse to fine spares: neurons and dimensions pruned inside kept nodes, against all of them at once.

    python -m acdc.benchmarks.measuring.grains tiny-tasks:ioi smollm2-135m-q4:ioi -o docs/grains.csv

At one grain all units of the whole model are ranked and pruned. From coarse to fine, nodes go first, within half of
what may be lost, and then units inside the nodes that stay, within all of it. Both stop at the same faithfulness and
number of runs. Each is a process of its own, in which the peak of the resident set is reset after loading (Linux). A
row a way.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import acdc
from acdc.benchmarks.measuring.memory import process_bytes, reset_peak
from acdc.model.hidden import hidden_layers
from acdc.neurons import discover_neurons, evaluate_neurons
from acdc.store.writing import write_atomically

WAYS = ("one grain", "coarse to fine")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way on one task.

    Attributes:
        units: hidden units of MLPs and dimensions of heads in the whole model; kept: that stay; nodes: that stay.
        faithfulness: on held-out prompts.
        peak_mb: of memory beside what was held after loading; seconds: of processor time.
    """

    model: str
    task: str
    way: str
    prompts: int
    units: int
    nodes: int
    kept: int
    faithfulness: float
    peak_mb: float
    seconds: float


def measured(name: str, task: str, way: str, *, size: int, faithfulness: float, runs: int) -> Row:
    """Run one way in this process."""
    model = acdc.load(name)
    data = acdc.tasks.load(task, size=size).prepare(model)
    graph = model.graph()
    before, start = reset_peak(), time.process_time()
    circuit = acdc.Circuit(graph, graph.valid)
    if way == "coarse to fine":
        circuit = acdc.discover(model, data, "nap-ig", units="node", faithfulness=(1 + faithfulness) / 2)
    found = discover_neurons(model, data, circuit, inside="both", faithfulness=faithfulness, runs=runs)
    peak, seconds = process_bytes("VmHWM") - before, time.process_time() - start
    whole = sum(
        layer.attention.w_o.shape[:2].numel() for layer in model.decomposition.layers if layer.mixer is None
    )
    whole += sum(hidden.width for hidden in hidden_layers(model))
    judged = evaluate_neurons(model, data, found, random_neurons=0)
    return Row(
        name, task, way, size, whole, len(found.kept), found.n_neurons, judged.faithfulness, peak / 1e6, seconds
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="MODEL:TASK")
    parser.add_argument("-o", "--out", type=Path)
    parser.add_argument("--size", type=int, default=16, help="prompts")
    parser.add_argument("--faithfulness", type=float, default=0.8)
    parser.add_argument("--runs", type=int, default=200, help="of circuits, after the ranking is cut")
    parser.add_argument("--way", choices=WAYS, help="run this one in this process, and print it")
    options = parser.parse_args()
    how = {"size": options.size, "faithfulness": options.faithfulness, "runs": options.runs}
    if options.way:
        warnings.simplefilter("ignore")
        name, task = options.cases[0].split(":")
        print(json.dumps(dataclasses.asdict(measured(name, task, options.way, **how))))
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(Row)])
    for case in options.cases:
        for way in WAYS:
            command = [sys.executable, "-m", "acdc.benchmarks.measuring.grains", case, "--way", way]
            command += [f"--{name}={value}" for name, value in how.items()]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(found, file=sys.stderr, flush=True)
            writer.writerow([f"{x:.4g}" if isinstance(x, float) else x for x in found.values()])
    if options.out is not None:
        write_atomically(options.out, text.getvalue())


if __name__ == "__main__":
    main()
