"""A budget of memory decides batches and nothing else: what is found is the same, and too little is said at once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import acdc
import problems
from acdc.engine import memory
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.store.amounts import bytes_of, size
from acdc.tasks.prompts import Prompts
from command_line import Command

FEW = "300kB"
"""Enough for some of the tiny model's prompts, Python's own apart."""


def model() -> Model:
    return problems.tiny("gpt2-scaled-by-layer")


def prompts() -> Prompts:
    return problems.make_prompts(size=6)


def circuit() -> acdc.Circuit:
    graph = model().graph()
    return acdc.Circuit(graph, graph.valid & (np.random.default_rng(1).random(graph.valid.shape) < 0.7))


def judged(**options: Any) -> list[float]:
    found = acdc.evaluate(model(), prompts(), circuit(), random_circuits=3, **options)
    assert found.kl is not None
    return [found.full, found.empty, found.circuit, found.kl, *found.random_faithfulness, *found.faithfulness_range]


def searched(**options: Any) -> list[float]:
    found = acdc.discover(model(), prompts(), "acdc", threshold=0.003, **options)
    assert found.scores is not None
    assert found.scores.removal is not None
    return [*found.edges.ravel(), *np.nan_to_num(found.scores.removal).ravel()]


def knocked_out(**options: Any) -> list[float]:
    found = acdc.completeness(model(), prompts(), circuit(), random_sets=3, **options)
    return [value for knockout in found.knockouts for value in (knockout.model, knockout.circuit)]


WORK: dict[str, Callable[..., Any]] = {
    "eap-ig": lambda **o: acdc.score(model(), prompts(), "eap-ig", **o).values,
    "exact": lambda **o: acdc.score(model(), prompts(), "exact", **o).values,
    "acdc": searched,
    "evaluate": judged,
    "minimality": lambda **o: [e.change for e in acdc.minimality(model(), prompts(), circuit(), **o).edges],
    "completeness": knocked_out,
    "direct": lambda **o: acdc.inspection.direct_effects(model(), prompts(), **o).answer,
    "attention": lambda **o: acdc.inspection.attention_patterns(model(), prompts(), **o).mean,
    "lens": lambda **o: acdc.inspection.logit_lens(model(), prompts(), **o).answer_probability,
    "removal": lambda **o: list(
        acdc.inspection.removal_effects(model(), prompts(), circuit(), **o).changes.values()
    ),
    "check": lambda **o: acdc.tasks.check_task(model(), prompts(), **o).discovery.clean,
}


@pytest.fixture
def frugal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own memory does not count, so that tiny budgets say something."""
    monkeypatch.setattr(memory, "OVERHEAD", 0.0)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", WORK)
def test_a_budget_changes_no_number(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    start = Patching.__init__

    def seen(self: Patching, model: Any, graph: Any, prompts: Prompts, **options: Any) -> None:
        sizes.append(len(prompts))
        start(self, model, graph, prompts, **options)

    expected = WORK[name]()
    monkeypatch.setattr(Patching, "__init__", seen)
    found = WORK[name](memory=FEW)
    assert max(sizes, default=0) < 6
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("name", WORK)
def test_too_little_for_one_prompt_says_how_much_it_needs(name: str) -> None:
    with pytest.raises(AcdcError, match=r"one prompt of 6 tokens needs about .*B, and 2 kB is allowed") as refused:
        WORK[name](memory="2kB")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", WORK)
def test_what_is_no_amount_is_refused(name: str) -> None:
    with pytest.raises(AcdcError, match="expected an amount of memory like 4GB"):
        WORK[name](memory="4 parsecs")


@pytest.mark.usefixtures("frugal")
@pytest.mark.parametrize("work", ["circuits", "everywhere", "exact", "gradients", "search"])
def test_what_one_prompt_needs_is_enough_and_no_less_is(work: memory.Work) -> None:
    def made(limit: float) -> Problem:
        return Problem(model(), model().graph(), prompts(), OUTCOMES["logit-difference"], memory_limit=limit)

    one = made(1e9)._need(work).of(1, 0)
    assert made(one * 1.001).batches(work).size == 1
    with pytest.raises(AcdcError, match=f"needs about {re.escape(size(one))}"):
        made(one * 0.999).batches(work)
    for times in (2, 5, 50):
        batches = made(times * one).batches(work)
        need = made(times * one)._need(work)
        assert need.of(batches.size, batches.tokens) <= times * one
        assert batches.size == -(-6 // len(batches))  # of one size, as far as can be
        assert batches.offload == (batches.size < 6)


@pytest.mark.parametrize("amount", ["4", "-1GB", "4 parsecs"])
@pytest.mark.parametrize(
    "line",
    ["discover tracr-reverse", "evaluate nowhere", "view nowhere", "tasks check tracr-reverse", "benchmark smoke"],
)
def test_a_bad_amount_is_one_line_before_any_work(line: str, amount: str, command: Command) -> None:
    result = command(*line.split(), "--memory", amount)
    assert result.status == 2
    assert result.out == ""
    assert result.err.strip().splitlines() == [
        f"error: expected an amount of memory like 4GB or 512MB, got {amount!r}"
    ]


def test_the_command_line_says_how_much_one_prompt_needs(command: Command) -> None:
    result = command("discover", "induction-2l", "--memory", "4.1MB")
    assert result.status == 2
    (line,) = [line for line in result.err.splitlines() if line.startswith("error")]
    needed = re.search(r"one prompt of \d+ tokens needs about ([\d.]+ .B), and 4.1 MB is allowed", line)
    assert needed is not None
    more = command(
        "discover",
        "induction-2l",
        "--size",
        2,
        "--random-circuits",
        0,
        "--memory",
        f"{3 * bytes_of(needed[1]) / 1e6:.0f}MB",
    )
    assert more.status == 0


# ---- measured ---------------------------------------------------------------------------------------------------

MEASURED = """
import json, re, sys, warnings
from pathlib import Path
import torch, transformers, acdc
from acdc.tasks.prompts import Prompts

def status(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

torch.manual_seed(0); torch.set_num_threads(1); warnings.simplefilter("ignore")
config = transformers.GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=200, bos_token_id=0, eos_token_id=0)
model = acdc.load(transformers.GPT2LMHeadModel(config).eval())
clean, corrupted = torch.randint(1, 199, (2, 64, 12)); corrupted[:, :2] = clean[:, :2]
answers, wrong = torch.randint(1, 199, (2, 64))
some, every = (Prompts.from_tokens(clean[:n], corrupted[:n], answers[:n], wrong[:n]) for n in (2, 64))
acdc.score(model, some, "eap")  # libraries
before = status("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
found = acdc.discover(model, every, "acdc", threshold=0.001, memory=sys.argv[1])
print(json.dumps({"peak": status("VmHWM") - before, "edges": found.edge_names()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measures with /proc")
def test_the_measured_peak_stays_within_the_budget() -> None:
    found = []
    for amount in ("1GB", "40MB", "16MB"):
        done = subprocess.run([sys.executable, "-c", MEASURED, amount], capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout.splitlines()[-1]))
        assert found[-1]["peak"] <= bytes_of(amount)
    assert found[1]["edges"] == found[2]["edges"] == found[0]["edges"]
