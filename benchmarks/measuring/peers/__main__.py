"""Make the environments, run the tools and ourselves, compare, write the report.

python -m acdc.benchmarks.measuring.peers
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from acdc.benchmarks.measuring.peers import report
from acdc.benchmarks.measuring.peers.compare import OTHER_NAMES, compare, joined, make_case, make_job, ours
from acdc.benchmarks.measuring.peers.environments import (
    AUTO_CIRCUIT,
    EAP,
    TRANSFORMER_LENS,
    Environment,
    default_cache,
    python_of,
    run,
)
from acdc.benchmarks.measuring.peers.exchange import read_results
from acdc.benchmarks.measuring.speed.cases import SHAPES
from acdc.errors import AcdcError


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m acdc.benchmarks.measuring.peers", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=("S", "M"), default=["S"])
    parser.add_argument(
        "--work",
        nargs="+",
        choices=("eap", "eap-ig", "exact", "acdc"),
        help="default: eap, exact and acdc on S; eap on M",
    )
    parser.add_argument("--tools", nargs="+", choices=(AUTO_CIRCUIT.name, TRANSFORMER_LENS.name), default=None)
    parser.add_argument(
        "--eap", type=Path, metavar="FOLDER", help="folder from which the EAP-IG papers' `eap` imports"
    )
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--tau", type=float, help="ACDC's threshold; by default one that keeps about half of S")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="where the environments are kept")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/peers"))
    return parser.parse_args(arguments)


def environments(options: argparse.Namespace) -> list[Environment]:
    wanted = [
        tool for tool in (AUTO_CIRCUIT, TRANSFORMER_LENS) if options.tools is None or tool.name in options.tools
    ]
    if options.eap is not None:
        if not (options.eap / "eap" / "graph.py").is_file():
            raise AcdcError(
                f"{options.eap} holds no module `eap` of the EAP-IG papers; expected eap/graph.py in it"
            )
        wanted.append(EAP)
    return wanted


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    tools = [(tool, python_of(tool, options.cache)) for tool in environments(options)]
    entries, versions = [], {}
    for name in options.shapes:
        works = tuple(options.work or (("eap", "exact", "acdc") if name == "S" else ("eap",)))
        if options.work is None and options.eap is not None:
            works += ("eap-ig",)
        case = make_case(SHAPES[name], pairs=options.pairs, tokens=options.tokens)
        with tempfile.TemporaryDirectory() as folder:
            job = make_job(
                case, Path(folder), works, repeats=options.repeats, threads=options.threads, tau=options.tau
            )
            for tool, python in tools:
                before = ours(case, job)
                run(tool, python, job.folder, extra_path=options.eap if tool is EAP else None)
                mine = joined(before, ours(case, job))
                versions[tool.name], theirs = read_results(job.folder, tool.name)
                for work, result in theirs.items():
                    found = compare(work, tool.name, mine[OTHER_NAMES.get(work, work)], result)
                    entries.append((f"{name}, {options.pairs} × {options.tokens}", found))
                    print(report.row(*entries[-1]), flush=True)
    report.write(options.output, entries, versions, shown(arguments), options.threads)


def shown(arguments: Sequence[str]) -> str:
    """The command line without the folders of one machine."""
    kept = [a for a, before in zip(arguments, ["", *arguments], strict=False) if "--cache" not in (a, before)]
    return " ".join(
        ["python -m acdc.benchmarks.measuring.peers", *("FOLDER" if Path(a).is_absolute() else a for a in kept)]
    )


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except AcdcError as error:
        sys.exit(f"error: {error}")
