"""`python -m acdc.benchmarks.measuring.speed`: time the works on the shapes, print each row, and write the report."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from acdc.benchmarks.measuring.speed import report
from acdc.benchmarks.measuring.speed.cases import SHAPES, Case
from acdc.benchmarks.measuring.speed.works import WORKS, Row, Settings

DEFAULT = ("eap", "eap-ig", "circuit", "curve", "acdc", "guided", "exact", "select", "help")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    works = "; ".join(f"{work.name}: {work.description}" for work in WORKS.values())
    parser = argparse.ArgumentParser(prog="python -m acdc.benchmarks.measuring.speed", description=works)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["S", "M"], help=" ".join(SHAPES))
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(DEFAULT), metavar="WORK")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of prompts")
    parser.add_argument("--tokens", type=int, default=16, help="tokens a prompt")
    parser.add_argument("--layers", type=int, help="another number of layers, to try a long work out")
    parser.add_argument("--threads", type=int, default=2, help="torch's threads")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of works that take seconds")
    parser.add_argument(
        "--long",
        action="store_true",
        help="also the works that take minutes on M and L: acdc, guided, exact, growth",
    )
    parser.add_argument("--tau", type=float, nargs="+", default=[], help="ACDC's; by default from EAP scores")
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 4, 8, 12], help="numbers of layers for growth")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/speed"))
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> list[Row]:
    """All rows; each is printed when it is there."""
    settings = Settings(options.repeats, tuple(options.tau), tuple(options.depths))
    rows: list[Row] = []
    for name in options.shapes:
        shape = SHAPES[name]
        if options.layers is not None and options.layers != shape.n_layers:
            shape = dataclasses.replace(shape, name=f"{name} with {options.layers} layers", n_layers=options.layers)
        case = Case(shape, options.pairs, options.tokens)
        for work_name in options.work:
            work = WORKS[work_name]
            if not work.needs_model and name != options.shapes[0]:
                continue
            if work.minutes and not shape.small and not options.long:
                print(f"{work_name} on {name}: takes minutes; left out without --long", flush=True)
                continue
            for row in work.run(case, settings):
                print(report.table_row(row), flush=True)
                rows.append(row)
    return rows


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    report.write(
        options.output, measure(options), " ".join(["python -m acdc.benchmarks.measuring.speed", *arguments])
    )


if __name__ == "__main__":
    main(sys.argv[1:])
