"""Work of each of the processes that share it, in a file of its own so that they can be started: what they find.

The same work is done by the test itself, alone, and compared (`tests/engine/test_ranks.py`).
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import acdc
import families
import problems
from acdc.cli import main as cli
from acdc.engine import ranks
from acdc.errors import AcdcError
from acdc.model.model import Model
from acdc.store import resume as resuming
from acdc.tasks.prompts import Prompts

DISCOVER = (
    "discover",
    "tracr-caesar",
    "--method",
    "eap-ig",
    "--edges",
    "4",
    "--size",
    "8",
    "--random-circuits",
    "0",
)
SIZE = 7
"""Prompts: an odd number, so that the processes have different ones."""
BATCH = 2
"""Prompts a batch: the processes have two batches each."""


def model_and_prompts() -> tuple[Model, Prompts]:
    """A model, and prompts that it gets right."""
    model, pairs = families.tiny("gpt2-scaled-by-layer", torch.float64), problems.make_prompts(size=SIZE)
    with torch.no_grad():
        answers, wrong = (
            model.plain_logits(tokens, pairs.mask)[:, -1].argmax(-1) for tokens in (pairs.clean, pairs.corrupted)
        )
    return model, Prompts.from_tokens(pairs.clean, pairs.corrupted, answers, wrong)


class Interrupted:
    """A progress callback that interrupts the work after some calls."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, done: int, total: int | None, text: str) -> None:
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt


def everything() -> dict[str, Any]:
    """What one process finds, alone or with others."""
    found: dict[str, Any] = {}
    model, prompts = model_and_prompts()
    for method in ("eap-ig", "atp-star", "information-flow", "cd-t", "nap", "exact", "ensemble"):
        scores = acdc.score(model, prompts, method, batch_size=BATCH)
        found[method] = scores.values
        if scores.absolute is not None:
            found[f"{method}, absolute"] = scores.absolute
    for ablation in ("mean", "mean-position"):
        found[ablation] = acdc.score(model, prompts, "eap-ig", ablation=ablation).values
    found["learned"] = acdc.score(model, prompts, "subnetwork-probing", steps=4, learning_rate=1.0).values
    for name, options in {
        "acdc": {"method": "acdc", "threshold": 0.02, "batch_size": BATCH},
        "acdc at once": {"method": "acdc", "threshold": 0.02},
        "guided": {"faithfulness": 0.8, "batch_size": BATCH},
        "guided nodes": {"faithfulness": 0.6, "units": "node"},
        "faithful": {"method": "eap", "faithfulness": 0.7},
    }.items():
        circuit = acdc.discover(model, prompts, **options)
        found[name] = circuit.edges
        assert circuit.scores is not None
        if circuit.scores.removal is not None:
            found[f"{name}, removal"] = circuit.scores.removal
        if name in ("guided", "guided nodes"):
            part = acdc.cut(model, prompts, circuit, faithfulness=0.4, batch_size=BATCH)
            found[f"{name}, cut"] = part.edges
    judged = acdc.evaluate(model, prompts, circuit, random_circuits=2, batch_size=BATCH)
    found["judged"] = np.array([judged.faithfulness, judged.kl, judged.exact_match, *judged.random_faithfulness])
    found["interval"] = np.array([*judged.faithfulness_interval, *judged.faithfulness_range])
    few = acdc.score(model, prompts[:1], "eap")
    found["few"] = few.values
    return found


def resumed(folder: Path) -> dict[str, Any]:
    """What is found by work that was interrupted once."""
    model, prompts = model_and_prompts()
    found = {}
    for method, calls in (("exact", 12), ("guided", 25)):
        file = folder / f"progress of {method}"
        with pytest.raises(KeyboardInterrupt):
            acdc.discover(
                model, prompts, method, edges=9, batch_size=BATCH, resume=file, progress=Interrupted(calls)
            )
        found[f"{method}, noted"] = sorted(path.name for path in folder.glob(f"{file.name}*"))
        circuit = acdc.discover(model, prompts, method, edges=9, batch_size=BATCH, resume=file)
        found[f"{method}, resumed"] = circuit.edges
        found[f"{method}, left"] = sorted(path.name for path in folder.glob(f"{file.name}*"))
    return found


def refused() -> dict[str, str]:
    """What is said of work that fails in the last process alone, and of work that is not the same in all."""
    model, prompts = model_and_prompts()
    rank = ranks.joined().rank

    def fails_in_the_last(logits: Tensor) -> Tensor:
        if rank:
            raise ValueError("no such number")
        return logits[..., 0].mean(-1)

    found = {}
    for name, options in {"failed": {"metric": fails_in_the_last}, "different": {"seed": rank}}.items():
        try:
            acdc.score(model, prompts, "eap", **options)
        except AcdcError as error:
            found[name] = str(error)
    return found


def command(folder: Path) -> int:
    """The status of a command."""
    os.chdir(folder)
    sys.argv = ["acdc", *DISCOVER, "--out", "run"]
    try:
        cli.main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def alone_in_company() -> bool:
    """Whether a call that one process alone makes waits for nobody."""
    model, prompts = model_and_prompts()
    if ranks.joined().rank == 1:
        with acdc.alone():
            return acdc.score(model, prompts, "eap").values.any()
    return True


def main(folder: Path) -> None:
    """What a process does that others work with."""
    resuming.LEAST_SECONDS = 0.0
    found = everything() | resumed(folder)
    found |= {"refused": refused(), "alone": alone_in_company(), "status": [command(folder), command(folder)]}
    torch.save(found, folder / f"found-{os.environ['RANK']}.pt")


def run(folder: Path) -> list[tuple[dict[str, Any], str, str]]:
    """What two processes find, print, and say on standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "PYTHONPATH": here},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    found = [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(2)]
    return [(own, *texts) for own, texts in zip(found, said, strict=True)]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
