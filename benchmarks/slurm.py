"""A script for Slurm: an array of jobs, each of which runs the same benchmark in the same folder.

Jobs share rows as any processes do that share a folder (`acdc.store.rows`), so none of them has a part of its own: one
that comes late finds less to do, and what one that is ended had in work is done by the others, or by those of the same
script submitted again.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from acdc.store.amounts import bytes_of

MADE_BY = "# Written by acdc benchmark --slurm"
"""How a script begins that may be replaced."""
BESIDE = 2 * 2**30
"""Bytes that a job asks for beside `--memory`: Python, libraries and the weights of the models of the suites."""


def script(command: Sequence[str], folder: str | Path, *, jobs: int, threads: int, memory: str | None) -> str:
    """The script.

    Args:
        command: that each job runs.
        folder: in which it runs it.
        jobs: of the array.
        threads: processors of a job.
        memory: how much a row may use beside the weights, like "4GB"; None: the partition's default is left as it is.
    """
    asks = [
        "--job-name=acdc-benchmark",
        f"--array=0-{jobs - 1}",
        f"--cpus-per-task={threads}",
        "--requeue",
        "--open-mode=append",
    ]
    if memory is not None:
        asks.append(f"--mem={math.ceil((bytes_of(memory) + BESIDE) / 2**20)}M")
    return "\n".join(
        [
            "#!/bin/bash",
            f"{MADE_BY}: jobs that share the rows of one folder. Submitted again, it goes on from there.",
            *(f"#SBATCH {ask}" for ask in asks),
            f"cd {shlex.quote(str(folder))} || exit 1",
            f"export OMP_NUM_THREADS={threads}",
            f"exec {shlex.join(command)}",
            "",
        ]
    )
