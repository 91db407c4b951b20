"""What work takes on a GPU, measured in ten minutes: `python -m acdc.benchmarks.measuring.gpu` writes docs/gpu.md.

Each row is one kind of work on one model, beside the bare model's own passes on the same prompts. The rows of a model
are measured in one process, which is ended when a row takes longer than it may; the row is an error then, and the next
process goes on with the others. Rows are files (docs/gpu), so that the command goes on from where it was stopped.
Weights are random but for SmolLM2's, which is measured where it has been fetched. TF32 is off unless asked for.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

import acdc
from acdc.benchmarks.cost import device_name, measure_once
from acdc.benchmarks.measuring.speed.cases import SHAPES as SHAPES_OF_SPEED
from acdc.benchmarks.measuring.speed.cases import Case, Shape, make_module
from acdc.circuit import Scores, selection
from acdc.engine.circuits import measure_circuits
from acdc.engine.memory import give_back
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES
from acdc.model.pretrained import fetched_folder
from acdc.store.amounts import size
from acdc.store.rows import Rows
from acdc.store.writing import write_atomically
from acdc.tasks.prompts import Prompts

KEY = ("device", "model", "work", "tf32")
SMOLLM2 = "smollm2-135m-q4"
AGAIN = 2.0
"""Seconds below which work is timed three times, of which the best counts; the first run of anything is slower."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and its prompts.

    Attributes:
        shape: of a model with random weights; None: SmolLM2, on indirect objects.
        works: that are measured, in order.
    """

    what: str
    shape: Shape | None
    prompts: int
    tokens: int
    works: tuple[str, ...]
    dtype: str = "float32"


ATTRIBUTION = ("forward", "forward and backward", "eap", "eap-ig", "circuit")
SEARCHES = ("acdc, 3% kept", "acdc, 1% kept", "guided")
SUBJECTS = {
    "gpt2": Subject(
        "GPT-2 small's shape", SHAPES_OF_SPEED["M"], 16, 16, (*ATTRIBUTION, *SEARCHES)
    ),
    "smollm2": Subject("SmolLM2-135M, IOI", None, 16, 0, (*ATTRIBUTION, *SEARCHES)),
    "1b": Subject(
        "Llama 3.2 1B's shape", Shape("1B", 16, 32, 2048, 128_256, n_kv_heads=8, d_mlp=8192), 64, 32, ATTRIBUTION,
        "bfloat16",
    ),
    "8b": Subject(
        "Llama 3.1 8B's shape", Shape("8B", 32, 32, 4096, 128_256, n_kv_heads=8, d_mlp=14_336), 64, 32, ATTRIBUTION,
        "bfloat16",
    ),
    "tiny": Subject("a toy", Shape("tiny", 2, 2, 16, 40), 4, 4, (*ATTRIBUTION, *SEARCHES)),
}  # fmt: skip
"""By name; the toy only when it is asked for."""
DEFAULT = [name for name in SUBJECTS if name != "tiny"]


# ---- works ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Ready:
    """A model on its device, with prompts.

    Attributes:
        given: what is given to `acdc.score` and `acdc.discover`: a task's prompts, or random ones.
    """

    case: Case
    model: acdc.Model
    prompts: Prompts
    given: Any

    @functools.cached_property
    def problem(self) -> Problem:
        return Problem(self.model, self.model.graph(), self.prompts, OUTCOMES["logit-difference"])

    @functools.cached_property
    def eap(self) -> Scores:
        return acdc.score(self.model, self.given, "eap", metric="logit-difference")

    def tau(self, share: float) -> float:
        """The absolute EAP score of that rank: a threshold at which ACDC keeps about so many edges."""
        sizes = np.sort(np.abs(self.eap.values[self.eap.graph.valid]))[::-1]
        return float(sizes[int(share * len(sizes))])


def make_ready(subject: Subject, device: torch.device) -> Ready:
    """Load SmolLM2, or draw a model's weights on the device, in its dtype.

    Raises:
        AcdcError: SmolLM2 has not been fetched.
    """
    if subject.shape is None:
        if fetched_folder(SMOLLM2) is None:
            raise AcdcError(f"{SMOLLM2} has not been fetched: acdc models fetch {SMOLLM2}")
        model = acdc.load(SMOLLM2, device=str(device))
        data = acdc.tasks.load("ioi", size=subject.prompts).prepare(model)
        shape = dataclasses.replace(SHAPES_OF_SPEED["M"], vocabulary_size=model.vocabulary_size)
        case = Case(shape, len(data.discovery), data.discovery.clean.shape[1], given=model.module)
        case.__dict__["prompts"] = data.discovery
        return Ready(case, model, data.discovery, data)
    dtype = getattr(torch, subject.dtype)
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            module = make_module(subject.shape)
    finally:
        torch.set_default_dtype(usual)
    case = Case(subject.shape, subject.prompts, subject.tokens, given=module)
    prompts = case.prompts.to(device)
    case.__dict__["prompts"] = prompts
    return Ready(case, case.model, prompts, prompts)


def _circuit(ready: Ready) -> dict[str, Any]:
    """A hundredth of the edges, by EAP, with the full model and the empty circuit beside it."""
    graph, scores = ready.eap.graph, ready.eap.values
    kept = selection.top_pruned(graph, scores, round(0.01 * graph.n_edges))
    measure_circuits(ready.problem, [np.zeros_like(kept), kept])
    return {"kept": int(kept.sum())}


def _acdc(ready: Ready, share: float) -> dict[str, Any]:
    circuit = acdc.discover(ready.model, ready.given, "acdc", threshold=ready.tau(share), metric="logit-difference")
    return {"kept": circuit.n_edges}


def _guided(ready: Ready) -> dict[str, Any]:
    """To nine tenths of what separates the full model from the empty circuit, by the KL divergence."""
    circuit = acdc.discover(ready.model, ready.given, "guided", faithfulness=0.9, metric="kl")
    return {"kept": circuit.n_edges}


def _score(ready: Ready, method: str, **options: Any) -> dict[str, Any]:
    acdc.score(ready.model, ready.given, method, metric="logit-difference", **options)
    return {}


WORKS: dict[str, Callable[[Ready], dict[str, Any] | None]] = {
    "forward": lambda ready: ready.case.forward(),
    "forward and backward": lambda ready: ready.case.forward_backward(),
    "eap": lambda ready: _score(ready, "eap"),
    "eap-ig": lambda ready: _score(ready, "eap-ig", steps=5),
    "circuit": _circuit,
    "acdc, 3% kept": lambda ready: _acdc(ready, 0.03),
    "acdc, 1% kept": lambda ready: _acdc(ready, 0.01),
    "guided": _guided,
}
NEED_SCORES = ("circuit", "acdc, 3% kept", "acdc, 1% kept")
"""Works whose circuits or thresholds come from EAP's scores, which are there before the clock starts."""


def timed(ready: Ready, work: str) -> dict[str, Any]:
    """Seconds, peak bytes on the GPU beside what was there (None on a CPU), and what the work says of itself."""
    device = ready.model.device
    if work in NEED_SCORES:
        _ = ready.eap
    on_gpu = device.type == "cuda"
    seconds: list[float] = []
    peak = None
    while not seconds or (len(seconds) < 3 and seconds[-1] < AGAIN):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        said, cost = measure_once(lambda: WORKS[work](ready), device)
        if on_gpu:
            peak = torch.cuda.max_memory_allocated(device) - before
        seconds.append(cost.seconds)
    give_back()
    return {"seconds": min(seconds), "peak_bytes": peak, **(said or {})}


# ---- rows -------------------------------------------------------------------------------------------------------


def rows_in(folder: Path) -> Rows:
    return Rows(folder, f"acdc {metadata.version('acdc-circuits')} (GPU rows of format 1)", KEY)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and how long it may take.

    Attributes:
        limit: seconds of a row, loading the model included in the first.
        minutes: after which nothing new begins, and what is in work ends without a row.
        retry: measure rows again that are errors.
    """

    folder: Path
    device: torch.device
    subjects: Sequence[str]
    tf32: bool = False
    limit: float = 150.0
    minutes: float = 10.0
    retry: bool = False

    def key(self, subject: str, work: str) -> tuple[str, ...]:
        return device_name(self.device), subject, work, "on" if self.tf32 else "off"

    def put(self, subject: str, work: str, **fields: Any) -> None:
        rows = rows_in(self.folder)
        rows.open()
        row = dict(zip(KEY, self.key(subject, work), strict=True)) | fields
        rows.put({**row, "torch": torch.__version__}, instead=True)

    def missing(self, subject: str) -> list[str]:
        rows = rows_in(self.folder)
        there = {work: rows.get(self.key(subject, work)) for work in SUBJECTS[subject].works}
        return [work for work, row in there.items() if row is None or (self.retry and row.get("error"))]


def one(plan: Plan, subject: str, works: Sequence[str]) -> Iterator[str]:
    """Measure some works on one model and put their rows; each is named before it begins."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = plan.tf32
    ready = make_ready(SUBJECTS[subject], plan.device)
    edges = ready.model.graph().n_edges
    about = {"edges": edges, "prompts": len(ready.prompts), "tokens": int(ready.prompts.clean.shape[1])}
    for work in works:
        yield work
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                found = timed(ready, work)
            except (AcdcError, torch.OutOfMemoryError) as error:
                found = {"error": " ".join(str(error).split())}
        plan.put(subject, work, **about, **found)


def measure_all(plan: Plan) -> None:
    """Measure what is missing, model by model, until the time is over."""
    rows_in(plan.folder).open()
    until = time.monotonic() + 60 * plan.minutes
    for subject in plan.subjects:
        works = plan.missing(subject)
        while works and time.monotonic() < until:
            done = _in_a_process(plan, subject, works, until)
            works = [work for work in works if work not in done]


def command_for(plan: Plan, subject: str, works: Sequence[str]) -> list[str]:
    """What measures works in a process of its own."""
    return [
        sys.executable, "-m", "acdc.benchmarks.measuring.gpu", subject, "--one", *works, "--rows", str(plan.folder),
        "--device", str(plan.device), *(["--tf32"] if plan.tf32 else []),
    ]  # fmt: skip


def _in_a_process(plan: Plan, subject: str, works: Sequence[str], until: float) -> list[str]:
    """Measure works in a process of their own, to the end of them or of what one may take; which have been tried."""
    with tempfile.TemporaryFile("w+", errors="replace") as messages:
        process = subprocess.Popen(
            command_for(plan, subject, works), stdout=subprocess.PIPE, stderr=messages, text=True
        )
        assert process.stdout is not None
        began, begun = time.monotonic(), list[str]()
        clock = _kill_in(process, min(plan.limit, until - began))
        for line in process.stdout:
            clock.cancel()
            began = time.monotonic()
            begun.append(line.strip())
            print(f"{subject}: {begun[-1]}", file=sys.stderr)
            clock = _kill_in(process, min(plan.limit, until - began))
        process.stdout.close()
        status = process.wait()
        clock.cancel()
        if not status or time.monotonic() >= until:
            return begun
        messages.seek(0)
        said = [line.strip() for line in messages if line.strip()]
        error = (
            f"over {plan.limit:.3g} s"
            if time.monotonic() - began >= plan.limit
            else " ".join(said[-1:]) or f"the process ended with status {status}"
        )
        for work in begun[-1:] or works:  # nothing has begun: the model cannot be made
            plan.put(subject, work, error=error)
        return begun or list(works)


def _kill_in(process: subprocess.Popen[str], seconds: float) -> threading.Timer:
    clock = threading.Timer(max(0.0, seconds), process.kill)
    clock.daemon = True
    clock.start()
    return clock


# ---- page -------------------------------------------------------------------------------------------------------

PAGE = """# On a GPU

Made by `python -m acdc.benchmarks.measuring.gpu` in ten minutes, on whatever GPU there is; a second run goes on with
what is missing. Seconds are of everything from the prompts to the scores or the circuit, the best of three runs where
one takes under two seconds; beside them multiples of the bare model's forward pass on the same prompts. Peak is what
was allocated on the device beside the weights. Weights are random but for SmolLM2's; random prompts share no token but
by chance. ACDC's thresholds are EAP scores of the rank that is to be kept, and guided pruning goes to a faithfulness of
0.9 by the KL divergence. TF32 is off unless a row says so: with it products have a mantissa of 10 bits, and searches
decide by noise.

For comparison: ACDC as published took 18,783 s on one H100, with 200 prompts on GPT-2 small ([Edge Pruning, Bhaskar et
al. 2024](https://arxiv.org/abs/2406.16778)). What these figures say of larger models and of searches is in
[scale](scale.md).
"""


def page(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table for each device. A row's `note` says what was unusual when it was measured."""
    text = [PAGE]
    for device in sorted({row["device"] for row in rows}):
        mine = [row for row in rows if row["device"] == device]
        text += [
            f"## {device}",
            "",
            "| model | prompts × tokens | edges | work | seconds | × forward | kept | peak |",
            "|---|---|---|---|---|---|---|---|",
        ]
        order = [(name, work) for name, subject in SUBJECTS.items() for work in subject.works]
        known = [row for row in mine if (row["model"], row["work"]) in order]
        for row in sorted(known, key=lambda row: (row["tf32"], order.index((row["model"], row["work"])))):
            text.append(_line(row, mine))
        text.append("")
    if not rows:
        text.append("No GPU has been measured yet: the table is filled by whoever has one for ten minutes.\n")
    return "\n".join(text)


def _line(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    what = SUBJECTS[row["model"]].what + (", TF32" if row["tf32"] == "on" else "")
    if row.get("error"):
        return f"| {what} | | | {row['work']} | {row['error'].replace('|', '/')} | | | |"
    bare = [r for r in rows if (r["model"], r["tf32"], r["work"]) == (row["model"], row["tf32"], "forward")]
    forward = bare[0].get("seconds") if bare else None
    ratio = row["seconds"] / forward if forward else None
    times = "" if ratio is None else f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.3g}"
    kept = "" if row.get("kept") is None else f"{row['kept']:,} ({row['kept'] / row['edges']:.1%})"
    peak = "" if row.get("peak_bytes") is None else size(row["peak_bytes"])
    where = f"{row['prompts']} × {row['tokens']}"
    work = row["work"] + (f" ({row['note']})" if row.get("note") else "")
    return f"| {what} | {where} | {row['edges']:,} | {work} | {row['seconds']:.3g} | {times} | {kept} | {peak} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", default=DEFAULT, help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/gpu.md"), help="the page to write")
    parser.add_argument("--rows", type=Path, default=Path("docs/gpu"), help="the folder of the rows")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, or cpu to try it out")
    parser.add_argument("--minutes", type=float, default=10.0, help="after which nothing new begins")
    parser.add_argument("--limit", type=float, default=150.0, help="seconds that a row may take")
    parser.add_argument("--tf32", action="store_true", help="products in TF32, as rows of their own")
    parser.add_argument("--retry", action="store_true", help="measure rows again that are errors")
    parser.add_argument("--one", nargs="+", metavar="WORK", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.subjects if name not in SUBJECTS]:
        parser.error(f"unknown subject {unknown[0]!r}: expected {', '.join(SUBJECTS)}")
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --device cpu tries it out")
    plan = Plan(options.rows, device, options.subjects, options.tf32, options.limit, options.minutes, options.retry)
    if options.one:
        for work in one(plan, options.subjects[0], options.one):
            print(work, flush=True)
        return
    measure_all(plan)
    write_atomically(options.out, page(rows_in(plan.folder).all()))


if __name__ == "__main__":
    main()
