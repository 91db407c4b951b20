"""What work needs in memory, as `acdc.engine.memory` works it out and as it is measured: `docs/memory.md`.

Each kind of work on each shape runs in a process of its own, in which the peak of the resident set is reset after
loading (Linux). The models are random; only their shapes matter.

With `--large`, attribution of real models' shapes, up to a billion parameters.

With `--budgets`, searches and attribution under `--memory`: whether the peak stays within it, and what that costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc import tasks
from acdc.benchmarks.measuring.speed.cases import SHAPES as SHAPES_OF_SPEED
from acdc.benchmarks.measuring.speed.cases import Case
from acdc.engine.circuits import measure_circuits, measure_prompts
from acdc.engine.measure import Measure, Measures, bind
from acdc.engine.memory import Need, Work, give_back
from acdc.engine.problem import Problem
from acdc.methods import METHODS, Target
from acdc.methods.attribution import attribution, weight_gradient
from acdc.methods.exact import exact_scores
from acdc.methods.groups import Groups
from acdc.methods.quadratic import Quadratic
from acdc.metrics import OUTCOMES
from acdc.model.load import load
from acdc.store.amounts import bytes_of, size
from acdc.store.writing import write_atomically
from acdc.tasks.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class Shape:
    """A model and its prompts.

    Attributes:
        what: why it is here.
        family: of `transformers`; options: of its configuration.
        prompts, tokens: how many, and how long.
    """

    what: str
    family: str
    options: dict[str, Any]
    prompts: int
    tokens: int
    metric: str = "logit-difference"
    ablation: Any = "resample"
    dtype: str = "float32"


def _gpt2(**options: Any) -> dict[str, Any]:
    sizes = {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 1000, "n_positions": 1024}
    return {**sizes, "bos_token_id": 0, "eos_token_id": 0, **options}


def _llama(**options: Any) -> dict[str, Any]:
    sizes = {
        "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 1000, "max_position_embeddings": 1024,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    return {**sizes, **options}


SHAPES = {
    "short": Shape("short prompts", "GPT2", _gpt2(), 128, 24),
    "long": Shape("long prompts", "GPT2", _gpt2(n_layer=3), 6, 512),
    "vocabulary": Shape("a large vocabulary, all of it read", "GPT2", _gpt2(vocab_size=100_000), 64, 16, "kl"),
    "grouped": Shape("grouped keys and values", "Llama", _llama(), 24, 96),
    "soft-cap": Shape(
        "attention scores made one by one", "Gemma2", _llama(sliding_window=64, query_pre_attn_scalar=16), 6, 256
    ),
    "wide": Shape("a wide MLP, means by position", "GPTNeoX", {
        "hidden_size": 96, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 3,
        "vocab_size": 1000, "max_position_embeddings": 1024, "bos_token_id": 0, "eos_token_id": 0,
    }, 32, 64, ablation="mean-position"),
    "half": Shape("half precision", "GPT2", _gpt2(), 64, 48, dtype="bfloat16"),
}  # fmt: skip
LARGE = {
    "gpt2-small": Shape("GPT-2 small's", "GPT2", _gpt2(n_embd=768, n_layer=12, n_head=12, vocab_size=50257), 16, 16),
    "smollm2-135m": Shape("SmolLM2-135M's", "Llama", _llama(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        head_dim=64, vocab_size=49152, tie_word_embeddings=True,
    ), 16, 16),
    "gemma3-270m": Shape("Gemma 3 270M's", "Gemma3Text", _llama(
        hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1,
        head_dim=256, vocab_size=262144, tie_word_embeddings=True,
    ), 8, 16),
    "qwen2-0.5b": Shape("Qwen2-0.5B's", "Qwen2", _llama(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14, num_key_value_heads=2,
        head_dim=64, vocab_size=151936, tie_word_embeddings=True,
    ), 8, 16),
    "llama-1b": Shape("Llama 3.2 1B's, in half precision", "Llama", _llama(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64, vocab_size=128256, tie_word_embeddings=True,
    ), 4, 16, dtype="bfloat16"),
}  # fmt: skip
"""Shapes of real models, of which attribution alone is measured."""
WORKS: dict[str, Work] = {
    "circuits": "circuits", "exact": "exact", "eap-ig": "gradients", "acdc": "search", "guided": "search",
}  # fmt: skip


def make(shape: Shape, progress: Callable[..., None]) -> Problem:
    """The problem, with a random model."""
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{shape.family}Config")(**shape.options)
    module = transformers.AutoModelForCausalLM.from_config(config).eval().to(getattr(torch, shape.dtype))
    clean = torch.randint(1, 900, (shape.prompts, shape.tokens))
    corrupted = torch.where(torch.arange(shape.tokens) > 0, torch.randint(1, 900, clean.shape), clean)
    answers, wrong = torch.randint(1, 900, (2, shape.prompts))
    prompts = Prompts.from_tokens(clean, corrupted, answers, wrong)
    model = load(module)
    outcome = OUTCOMES[shape.metric]
    return Problem(model, model.graph(), prompts, outcome, shape.ablation, len(clean), progress=progress)


def work(problem: Problem, name: str) -> None:
    """Do one kind of work on all prompts of the problem at once."""
    graph = problem.graph
    if name == "circuits":
        rng = np.random.default_rng(0)
        random = graph.valid & (rng.random(graph.valid.shape) < 0.5)
        measure_prompts(problem, [np.zeros_like(random), random, graph.valid], [problem.outcome, OUTCOMES["kl"]])
    elif name == "exact":  # edges of the last destinations hold no less than those of all
        (patching,) = problem.batches("exact")
        last = [int(d) for d in np.flatnonzero(graph.destination_layer >= graph.n_layers - 1)]
        exact_scores(patching, bind(problem.outcome, patching), destinations=last)
    elif name == "eap-ig":
        score = METHODS[name].score
        assert score is not None
        score(problem, steps=2)
    else:
        search = METHODS[name].search
        assert search is not None
        takes_share = "faithfulness" in METHODS[name].targets
        search(problem, Target(faithfulness=0.9) if takes_share else Target(threshold=1e-3))


@dataclasses.dataclass(frozen=True)
class Budgeted:
    """Work under a budget.

    Attributes:
        model: built in or fetched; None: random weights of GPT-2 small's shape, with random prompts.
        method: its name; None: those steps of guided pruning that need most, without the tests between them.
    """

    what: str
    model: str | None
    prompts: int
    method: str | None
    budget: str

    def problem(self) -> Problem:
        if self.model is None:
            return Case(SHAPES_OF_SPEED["M"], self.prompts, 16, metric="kl").problem
        model = load(self.model)
        data = tasks.load("ioi", size=self.prompts).prepare(model)
        return Problem(model, model.graph(), data.discovery, data.metric)

    def work(self, problem: Problem) -> None:
        if self.method is None:
            _largest_steps(problem)
        elif (search := METHODS[self.method].search) is not None:
            search(problem, Target(faithfulness=0.9))
        elif (score := METHODS[self.method].score) is not None:
            score(problem)


def _largest_steps(problem: Problem) -> None:
    """Attribution, a gradient in the whole model, a quadratic model of it, and tests of large groups; some go."""
    rng = np.random.default_rng(0)
    measures = Measures(problem.outcome, problem.searched())
    attribution(problem.outcome, measures.batches, problem.units, alphas=(0.0,))
    weight_gradient(measures, problem.graph.valid, Measure.value)
    Quadratic.around(measures, problem.graph.valid, 1.0, np.zeros(problem.graph.valid.shape))
    search = Groups(measures)
    for _ in range(3):
        edges = np.flatnonzero(search.kept)
        groups = [np.sort(rng.choice(edges, len(edges) // 4, replace=False)) for _ in range(2)]
        search.measure_without(groups)
        search.remove(groups[0])


BUDGETED = {
    "tiny-tasks": Budgeted("`tiny-tasks`, 64 prompts: guided", "tiny-tasks", 64, "guided", "60MB"),
    "gpt2-eap-ig": Budgeted("GPT-2 small's shape, 16 prompts: eap-ig", None, 16, "eap-ig", "300MB"),
    "gpt2-guided": Budgeted("GPT-2 small's shape, 16 prompts: guided's largest steps", None, 16, None, "600MB"),
    "smollm2-eap-ig": Budgeted("SmolLM2-135M, 16 prompts: eap-ig", "smollm2-135m-q4", 16, "eap-ig", "1GB"),
    "smollm2-guided": Budgeted(
        "SmolLM2-135M, 16 prompts: guided's largest steps", "smollm2-135m-q4", 16, None, "1GB"
    ),
    "smollm2-guided-64": Budgeted(
        "SmolLM2-135M, 64 prompts: guided's largest steps", "smollm2-135m-q4", 64, None, "2GB"
    ),
}


def under_budget(name: str, *, whole: bool) -> dict[str, float]:
    """Prompts a batch, peak bytes beside what was there before, and processor seconds, all prompts at once or not."""
    case = BUDGETED[name]
    problem = case.problem()
    limit = None if whole else bytes_of(case.budget)
    size = len(problem.prompts) if whole else None
    problem = dataclasses.replace(problem, memory_limit=limit, batch_size=size)
    few = dataclasses.replace(problem, prompts=problem.prompts[:2], memory_limit=None, batch_size=None)
    measure_circuits(few, [few.graph.valid])  # libraries
    before, start = reset_peak(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case.work(problem)
    batch = problem.batch_of("gradients" if case.method == "eap-ig" else "search")
    return {"batch": batch, "peak": process_bytes("VmHWM") - before, "seconds": time.process_time() - start}


def budget_table(found: Mapping[str, tuple[dict[str, float], dict[str, float]]]) -> str:
    """Markdown: a row a case; under its budget, and all prompts at once."""
    lines = [
        "| work | budget | prompts a batch | peak | processor seconds | all prompts at once: peak | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (within, whole) in found.items():
        if not within or not whole:
            continue
        case = BUDGETED[name]
        lines.append(
            f"| {case.what} | {size(bytes_of(case.budget))} | {within['batch']:.0f} | {size(within['peak'])} | "
            f"{within['seconds']:.1f} | {size(whole['peak'])} | {whole['seconds']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def measured(shape: str, name: str) -> dict[str, float]:
    """Bytes: what is expected, and the peak beside what was there before."""
    every = SHAPES | LARGE
    problem = make(every[shape], lambda *_: None)
    need: Need = problem._need(WORKS[name])
    few = dataclasses.replace(problem, prompts=problem.prompts[:2], batch_size=None)
    work(few, "circuits")  # libraries
    before = reset_peak()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        work(problem, name)
    weights = sum(p.numel() * p.element_size() for p in problem.model.module.parameters())
    peak = max(1.0, process_bytes("VmHWM") - before)
    return {"expected": need.of(len(problem.prompts)), "measured": peak, "weights": weights}


def reset_peak() -> float:
    """Set the peak back to what the process holds, in bytes."""
    give_back()
    Path("/proc/self/clear_refs").write_text("5")
    return process_bytes("VmRSS")


def process_bytes(name: str) -> float:
    """What the system (Linux) says of this process: "VmRSS" is what it holds, "VmHWM" the most since `reset_peak`."""
    found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024.0 * int(found[1])


def large_table(found: Mapping[str, dict[str, float]]) -> str:
    """Markdown: a row a real model's shape; what attribution of it (`eap-ig`) is expected to take, and takes."""
    lines = [
        "| model's shape | weights | prompts × tokens | expected | measured | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if one:
            shape, expected, peak = LARGE[name], one["expected"], one["measured"]
            lines.append(
                f"| {shape.what} | {size(one['weights'])} | {shape.prompts} × {shape.tokens} | {size(expected)} | "
                f"{size(peak)} | {expected / peak:.2f} |"
            )
    return "\n".join(lines) + "\n"


def table(found: dict[tuple[str, str], dict[str, float]]) -> str:
    """Markdown: a row a shape, a column a kind of work; expected, measured, and their ratio."""
    lines = ["| shape | prompts × tokens | " + " | ".join(WORKS) + " |", "|---|---|" + "---|" * len(WORKS)]
    for name, shape in SHAPES.items():
        cells = []
        for kind in WORKS:
            one = found.get((name, kind))
            cells.append(
                "" if one is None else
                f"{size(one['expected'])} / {size(one['measured'])} = {one['expected'] / one['measured']:.2f}"
            )  # fmt: skip
        lines.append(f"| {shape.what} | {shape.prompts} × {shape.tokens} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES), help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=list(WORKS))
    parser.add_argument("-o", "--out", type=Path, help="Markdown file whose table to replace; otherwise printed")
    parser.add_argument("--budgets", nargs="*", metavar="CASE", help=f"work under --memory: {', '.join(BUDGETED)}")
    parser.add_argument("--large", nargs="*", metavar="SHAPE", help=f"attribution of: {', '.join(LARGE)}")
    parser.add_argument("--one", nargs=2, metavar=("SHAPE", "WORK"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        shape, kind = options.one
        found = under_budget(shape, whole=kind == "whole") if shape in BUDGETED else measured(shape, kind)
        print(json.dumps(found))
        return
    if options.budgets is not None:
        names = options.budgets or list(BUDGETED)
        text = budget_table({name: (_alone(name, "budget"), _alone(name, "whole")) for name in names})
        _show(text, "| work | budget |", options.out)
        return
    if options.large is not None:
        text = large_table({name: _alone(name, "eap-ig") for name in options.large or list(LARGE)})
        _show(text, "| model's shape |", options.out)
        return
    every = {}
    for shape in options.shapes:
        for kind in options.works:
            if one := _alone(shape, kind):
                every[shape, kind] = one
    _show(table(every), "| shape |", options.out)


def _alone(what: str, kind: str) -> dict[str, float]:
    """Measure one thing in a process of its own; nothing if it fails."""
    command = [sys.executable, "-m", "acdc.benchmarks.measuring.memory", "--one", what, kind]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{what} {kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return {}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(what, kind, found, file=sys.stderr)
    return found


def _show(text: str, first: str, out: Path | None) -> None:
    """Print a table, or put it where the page has the one that begins so."""
    if out is None:
        print(text)
        return
    old = out.read_text()
    write_atomically(out, re.sub(rf"{re.escape(first)}.*?\n(?=\n|$)", lambda _: text, old, flags=re.DOTALL))


if __name__ == "__main__":
    main()
