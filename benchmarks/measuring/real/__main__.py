"""The command: measures the cells that are missing, and writes the report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import acdc
from acdc.benchmarks.measuring.real.cells import (
    EVERYWHERE,
    METHODS,
    RIVALS_ON,
    SEARCH,
    TASKS,
    cells_of,
    compute,
    read,
)
from acdc.benchmarks.measuring.real.report import markdown
from acdc.benchmarks.measuring.real.rivals import RIVALS
from acdc.errors import AcdcError
from acdc.model.model import Model
from acdc.model.pretrained import PRETRAINED
from acdc.store.rows import Rows
from acdc.store.writing import write_atomically


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m acdc.benchmarks.measuring.real", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(PRETRAINED), default=list(TASKS), help="default: all")
    tasks = sorted(set().union(*TASKS.values()))
    parser.add_argument("--tasks", nargs="+", choices=tasks, help="of those each model does; default: all")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--size", type=int, default=64, help="prompts")
    parser.add_argument("--held-out", type=int, default=128, help="prompts that circuits are measured on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu", help="a rival is to be measured where the search was")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/real"))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    wanted = [
        (model, task, method)
        for model, task, method in every_cell()
        if model in options.models
        and (options.tasks is None or task in options.tasks)
        and method in options.methods
    ]
    loaded: dict[str, Model] = {}
    cells = cells_of(options.output)
    cells.open()
    for name, task, method in wanted:
        with cells.claimed((name, task, method)) as mine:
            if not mine or cells.get((name, task, method)) is not None:
                continue
            check_prompts(cells, name, task, options)
            given = seconds_of_search(cells, name, task) if method in RIVALS else None
            if method in RIVALS and given is None:
                print(f"{name}, {task}, {method}: first measure {SEARCH}, whose time it is given", flush=True)
                continue
            loaded = {
                name: loaded[name] if name in loaded else acdc.load(name, device=options.device)
            }  # one at a time
            cell = compute(
                loaded[name], task, method, size=options.size, held_out=options.held_out,
                notes=options.output / "found" / f"{name}-{task}-{method}", given=given,
            )  # fmt: skip
            cells.put(dataclasses.asdict(cell))
        report(options.output)
        print(f"{name}, {task}, {method}: {cell.seconds:.3g} s", flush=True)
    report(options.output)


def every_cell() -> list[tuple[str, str, str]]:
    """What is measured in all: model, task, method."""
    return [
        (model, task, method)
        for model, tasks in TASKS.items()
        for task in tasks
        for method in METHODS
        if method in EVERYWHERE or task == RIVALS_ON
    ]


def check_prompts(cells: Rows, model: str, task: str, options: argparse.Namespace) -> None:
    """Refuse to measure on other numbers of prompts than the task's other cells, with which they are compared."""
    for method in METHODS:
        there = cells.get((model, task, method))
        if there is not None and (there["n_prompts"], there["n_held_out"]) != (options.size, options.held_out):
            raise AcdcError(
                f"the cells of {task} on {model} in {options.output} are of {there['n_prompts']} prompts and "
                f"{there['n_held_out']} held out, not of {options.size} and {options.held_out}: give --size and "
                "--held-out as they are, or another folder with -o"
            )


def seconds_of_search(cells: Rows, model: str, task: str) -> float | None:
    """Processor time that the search took; None if that is not known."""
    search = cells.get((model, task, SEARCH))
    return None if search is None else search["processor_seconds"]


def report(folder: Path) -> None:
    """Write the README of all cells that are there."""
    every = every_cell()
    found = {cell: values for cell in every if (values := cells_of(folder).get(cell)) is not None}
    cells = [read(values) for values in found.values()]
    missing = [cell for cell in every if cell not in found]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "README.md", markdown(cells, missing, "python -m acdc.benchmarks.measuring.real"))


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AcdcError as error:
        sys.exit(f"error: {error}")
