"""What work needs is known before it, what cannot fit is refused with what would, and a failed allocation says so."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import acdc
import live_tensors
import problems
from acdc.cli import terminal
from acdc.engine import memory
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import Measures
from acdc.engine.patching import Patching
from acdc.engine.problem import NeedText, Problem
from acdc.errors import AcdcError
from acdc.methods import METHODS, Target
from acdc.methods.groups import Groups
from acdc.methods.quadratic import Quadratic
from acdc.metrics import OUTCOMES
from acdc.model.load import load
from acdc.tasks.prompts import Prompts


def make(size: int = 5, T: int = 6, **options: Any) -> Problem:
    model = problems.tiny("gemma2")
    ids = torch.randint(50, (size, T), generator=torch.Generator().manual_seed(0))
    prompts = Prompts.from_tokens(ids, ids.flip(0), answers=[1] * size, wrong=[2] * size)
    return Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], **options)


def leave(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(memory, "available", lambda device: free)


def needed(problem: Problem, work: memory.Work) -> memory.Need:
    return memory.need(problem.model, problem.graph, problem.prompts, problem.outcome, problem.ablation, work)


@pytest.mark.parametrize("work", ["circuits", "exact", "gradients", "search"])
def test_attention_grows_with_the_square_of_the_length(work: memory.Work) -> None:
    short, long = (needed(make(size=1, T=T), work).prompt for T in (60, 600))
    assert long > 20 * short  # where scores are made one by one


def test_long_prompts_come_in_small_batches() -> None:
    """Each one's scores alone take a tenth of a gigabyte."""
    problem = make(size=200, T=1000)
    assert 1 <= problem.batch_of("circuits") <= 25


@pytest.mark.parametrize("metric", ["kl", "logit-difference"])
def test_a_vocabulary_counts_where_it_is_read(metric: str) -> None:
    problem = make()
    wide = dataclasses.replace(
        problem.model.decomposition, unembedding=torch.zeros(100_000, 20, dtype=torch.float64)
    )
    model = dataclasses.replace(problem.model, decomposition=wide)
    more = memory.need(model, problem.graph, problem.prompts, OUTCOMES[metric], "resample", "gradients")
    few = memory.need(problem.model, problem.graph, problem.prompts, OUTCOMES[metric], "resample", "gradients")
    assert (more.prompt > few.prompt + 100_000 * 8) == (metric == "kl")


def test_the_width_of_the_mlp_is_the_modules() -> None:
    narrow, wide = torch.nn.Linear(20, 20).double(), torch.nn.Sequential(
        torch.nn.Linear(20, 999).double(), torch.nn.GELU(), torch.nn.Linear(999, 20).double()
    )  # fmt: skip
    model = problems.tiny("gemma2")
    assert memory.kept_by_gradient(narrow, dataclasses.replace(model, module=narrow)) < 100
    assert 999 <= memory.kept_by_gradient(wide, dataclasses.replace(model, module=wide)) < 4 * 999


@pytest.mark.parametrize(
    ("sizes", "metric"),
    [
        ({"vocab_size": 20_000, "n_embd": 16, "n_layer": 2, "n_head": 2}, "kl"),
        ({"vocab_size": 50, "n_embd": 12, "n_layer": 6, "n_head": 6}, "kl"),
        ({"vocab_size": 50, "n_embd": 12, "n_layer": 6, "n_head": 6}, "logit-difference"),
    ],
)
def test_the_quadratic_model_of_guided_pruning_takes_no_more_than_was_said(
    sizes: dict[str, int], metric: str
) -> None:
    config = transformers.GPT2Config(n_positions=8, bos_token_id=0, eos_token_id=0, **sizes)
    model = load(transformers.GPT2LMHeadModel(config).eval())
    ids = torch.randint(50, (12, 4), generator=torch.Generator().manual_seed(0))
    prompts = Prompts.from_tokens(ids, ids.flip(0), answers=[1] * 12, wrong=[2] * 12)
    problem = Problem(model, model.graph(), prompts, OUTCOMES[metric], batch_size=6)
    valid = problem.graph.valid
    with live_tensors.most_bytes() as found:
        measures = Measures(problem.outcome, problem.searched())
        search = Groups(measures)
        around = Quadratic.around(measures, valid, 1.0, np.zeros(valid.shape))
        around.goes(10)
    assert (search.kept == valid).all()
    assert found[0] < needed(problem, "search").of(6, 0)
    assert found[0] > 0.3 * needed(problem, "search").of(6, 0)


def test_a_search_that_does_not_fit_at_once_comes_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(memory.TOKENS_AT_ONCE, "cpu", 12)
    problem = make(size=4, T=3)
    search = METHODS["acdc"].search
    assert search is not None
    whole = search(problem, Target(threshold=0.01))
    for more in (1, -1):
        leave(monkeypatch, needed(problem, "search").of(4) + more)
        problem = dataclasses.replace(problem)  # what is free is looked up once
        batches = problem.searched()
        assert (batches.size == 4) == (not batches.offload) == (more > 0)
        assert (search(problem, Target(threshold=0.01)).edges == whole.edges).all()


def test_a_batch_that_was_asked_for_and_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make(size=8, T=40, batch_size=8)
    leave(monkeypatch, needed(problem, "circuits").of(3) + 1)
    problem = dataclasses.replace(problem)
    circuits = [problem.graph.valid]
    with pytest.raises(AcdcError, match=r"a batch of 8 prompts .*\(--batch-size 3\)"):
        measure_prompts(problem, circuits)
    smaller = measure_prompts(dataclasses.replace(problem, batch_size=3), circuits)[0]
    leave(monkeypatch, 1e12)
    whole = measure_prompts(dataclasses.replace(problem), circuits)[0]
    np.testing.assert_allclose(smaller.circuits, whole.circuits, atol=1e-12)


def test_one_prompt_that_cannot_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    leave(monkeypatch, 1e3)
    with pytest.raises(AcdcError, match="use prompts shorter than 6 tokens"):
        measure_prompts(make(), [make().graph.valid])


def test_work_that_needs_much_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[NeedText] = []
    monkeypatch.setattr("acdc.engine.problem.NOTED", 1.0)
    leave(monkeypatch, 3e9)
    problem = make(progress=lambda done, total, text: said.append(text) if isinstance(text, NeedText) else None)
    problem.patching()
    (text,) = said
    need = needed(problem, "search")
    assert f"{memory.size(need.of(5, 0))} to {memory.size(need.of(5))} for 5 prompts at once" in text
    assert text.bytes == need.of(5)
    assert "3 GB is free" in text
    problem.batches("circuits")
    assert f"about {memory.size(needed(problem, 'circuits').of(5))} for 5" in said[-1]


def _torch() -> None:
    raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")


def _python() -> None:
    raise MemoryError


def _gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.")


VERBS: dict[str, Callable[..., Any]] = {
    "score": lambda model, prompts: acdc.score(model, prompts, "exact"),
    "discover": acdc.discover,
    "evaluate": lambda model, prompts: acdc.evaluate(
        model, prompts, acdc.Circuit(model.graph(), model.graph().valid), random_circuits=0
    ),
}


@pytest.mark.parametrize("fail", [_torch, _python, _gpu])
@pytest.mark.parametrize("verb", VERBS)
def test_an_allocation_that_fails_is_the_same_sentence(
    verb: str, fail: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Patching, "clean_logits", lambda *_: fail())
    problem = make()
    with pytest.raises(AcdcError, match=r"not enough memory: .* 5 prompts of 6 tokens needs about .* is free; use"):
        VERBS[verb](problem.model, problem.prompts)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Patching, "clean_logits", fail)
    with pytest.raises(RuntimeError, match="shapes"):
        VERBS["score"](make().model, make().prompts)


def test_limits_of_the_process_and_its_container_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files as Linux has them, in place of this machine's."""
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 5000 kB",
        "/proc/self/cgroup": "0::/a/b",
        "/sys/fs/cgroup/a/b/memory.max": "max",
        "/sys/fs/cgroup/a/b/memory.current": "100",
        "/sys/fs/cgroup/a/memory.max": "3000000",
        "/sys/fs/cgroup/a/memory.current": "2500000",
        "/sys/fs/cgroup/a/memory.stat": "anon 7\ninactive_file 400000",
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(str(path), "").splitlines())
    assert memory.available(torch.device("cpu")) == 900_000
    del files["/proc/self/cgroup"]
    assert memory.available(torch.device("cpu")) == 5_120_000


def test_the_command_line_says_it_in_a_line(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, unless later work needs more."""
    monkeypatch.setattr("acdc.engine.problem.NOTED", 1.0)
    with terminal.progress_bar() as progress:
        problem = make(progress=progress)
        problem.check_memory("search")
        problem.check_memory("search")
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "memory" in line]
    assert re.fullmatch(r"memory: .* to .* for 5 prompts at once; .* is free", line)


def test_a_search_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = make()
    leave(monkeypatch, needed(problem, "circuits").of(1) + 1)
    monkeypatch.setattr(Patching, "logits", lambda *_, **__: pytest.fail("ran"))
    with pytest.raises(AcdcError, match=r"one prompt of 6 tokens .* use prompts shorter than 6 tokens"):
        acdc.discover(problem.model, problem.prompts, "acdc")
