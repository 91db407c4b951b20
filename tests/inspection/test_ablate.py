"""Parts that are removed, and paths that are patched, give what the plain module gives under hooks."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

import acdc
import oracle
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.inspection import ablate, patch_path
from command_line import Command
from hook_loop import logit_difference, point, run
from problems import make_prompts, tiny


def by_oracle(model: acdc.Model, prompts: acdc.Prompts, edges: np.ndarray) -> torch.Tensor:
    """Logit difference of a circuit, `[B]`, by hooks."""
    graph = model.graph()
    references = oracle.source_outputs(model.module, graph, prompts.corrupted, prompts.mask)
    logits = oracle.patched_logits(model.module, graph, edges, prompts.clean, prompts.mask, None, references)
    return at_read(logits, prompts)


def at_read(logits: torch.Tensor, prompts: acdc.Prompts) -> torch.Tensor:
    read = prompts.positions.clamp(min=0)
    return logit_difference(logits.gather(1, read[..., None].expand(-1, -1, logits.shape[-1])), prompts)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox-parallel"])
@pytest.mark.parametrize("parts", ["a0.h1", "m1", "a1.h0<k>", "a0", ["a0.h0->a1.h2<v>", "input->m1"]])
def test_without_parts_is_without_their_edges(family: str, parts: Any) -> None:
    model, prompts = tiny(family), make_prompts(padding="right", reads=2)
    graph = model.graph()
    found = ablate(model, prompts, parts, batch_size=2)
    removed = np.zeros_like(graph.valid)
    for d, s in np.argwhere(graph.valid):
        source, destination = graph.sources[s], graph.destinations[d]
        names = {source, f"{source}->{destination}", source.split(".")[0]}
        names |= {destination} if "<" in destination else set()  # an MLP's name is what it writes
        removed[d, s] = bool(names & {*([parts] if isinstance(parts, str) else parts)})
    full, changed, empty = (
        by_oracle(model, prompts, edges)
        for edges in (graph.valid, graph.valid & ~removed, np.zeros_like(graph.valid))
    )
    assert found.n_edges == removed.sum() > 0
    assert (found.full, found.changed, found.empty) == pytest.approx(
        tuple(float(x.mean()) for x in (full, changed, empty)), abs=1e-9
    )
    assert found.effect == pytest.approx(float((changed - full).mean()), abs=1e-9)
    assert found.faithfulness == pytest.approx(
        float((changed.mean() - empty.mean()) / (full.mean() - empty.mean())), abs=1e-6
    )


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_head_at_positions_is_a_hook_there(family: str) -> None:
    model = tiny(family)
    prompts = make_prompts(padding="right")
    where = torch.zeros_like(prompts.mask)
    where[[0, 0, 1, 2], [1, 2, 3, 4]] = True
    prompts = dataclasses.replace(prompts, spans={"x": where})
    found = ablate(model, prompts, ["a1.h2@x", "a0.h0@-1"])
    last = torch.zeros_like(where)
    last[torch.arange(3), prompts.positions[:, 0]] = True
    first, second = point(model.module, "head", 0, 0), point(model.module, "head", 1, 2)
    one = run(model.module, prompts.swapped(), first)[1]
    two = run(model.module, prompts.swapped(), second)[1]
    with torch.no_grad():  # both hooks at once
        handles = [
            at.module.register_forward_pre_hook(
                lambda _, given, at=at, new=new, mask=mask: (replaced(given[0], at.part, new, mask),)
            )
            for at, new, mask in ((first, one, last), (second, two, where))
        ]
        changed = logit_difference(run(model.module, prompts)[0], prompts)
        for handle in handles:
            handle.remove()
    assert found.changed == pytest.approx(float(changed.mean()), abs=1e-9)


def replaced(x: torch.Tensor, part: slice, new: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    x[..., part] = torch.where(mask[..., None], new, x[..., part])
    return x


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
@pytest.mark.parametrize("reads", [1, 2])
def test_edges_kept_at_some_positions(family: str, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oracle mixes each destination's input position by position."""
    model, prompts = tiny(family), make_prompts(padding="left", reads=reads)
    graph, rng = model.graph(), np.random.default_rng(0)
    places = torch.as_tensor(rng.integers(3, size=prompts.mask.shape))
    kept = graph.valid & (rng.random((2, 3, *graph.valid.shape)) < 0.6)
    references = oracle.source_outputs(model.module, graph, prompts.corrupted, prompts.mask)
    with torch.no_grad():
        found = Patching(model, graph, prompts).logits(kept, places=places)  # [C, B, P, V]
    for circuit, own in zip(kept, found, strict=True):

        def mix(graph: Any, _: Any, name: str, current: Any, references: Any, circuit: Any = circuit) -> Any:
            total: Any = 0
            for source, value in current.items():
                column = circuit[:, graph.destination_index[name], graph.source_index[source]]
                here = torch.as_tensor(column)[places][..., None]
                total = total + torch.where(here, value, references[source])
            return total

        with monkeypatch.context() as patch:
            patch.setattr(oracle, "_mix", mix)
            logits = oracle.patched_logits(
                model.module, graph, graph.valid, prompts.clean, prompts.mask, None, references
            )
        for b, read in enumerate(prompts.positions.tolist()):
            for i, t in enumerate(read):
                if t >= 0:
                    np.testing.assert_allclose(own[b, i], logits[b, t], atol=1e-9)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt-neox-parallel"])
@pytest.mark.parametrize(
    "path", [["a0.h1", "logits"], ["a0.h1", "a1.h2<k>", "logits"], ["input", "m0", "a1.h0", "logits"]]
)
def test_a_path_alone_carries_the_other_prompt(family: str, path: list[str]) -> None:
    """On the corrupted prompt, what the first node is made of and the path are kept; all else is of the clean run."""
    model, prompts = tiny(family), make_prompts(padding="right", reads=2)
    graph = model.graph()
    found = patch_path(model, prompts, path, batch_size=2)
    stage = graph.source_stage[graph.source_index[path[0]]]
    kept = np.zeros_like(graph.valid)
    kept[graph.port_destination[graph.port_stage <= stage]] = True
    for part, following in pairwise(path):
        for d, name in enumerate(graph.destinations):
            if following in (name, name.split("<")[0]):
                kept[d, graph.source_index[part.split("<")[0]]] = True
    clean = oracle.source_outputs(model.module, graph, prompts.clean, prompts.mask)
    logits = oracle.patched_logits(
        model.module, graph, kept & graph.valid, prompts.corrupted, prompts.mask, None, clean
    )
    assert found.changed == pytest.approx(float(at_read(logits, prompts).mean()), abs=1e-9)
    assert found.how == "along"


def test_a_path_that_starts_at_a_place() -> None:
    model = tiny("gpt2")
    prompts = make_prompts()
    everywhere = patch_path(model, prompts, ["a1.h0", "logits"])
    here = patch_path(model, prompts, ["a1.h0@-1", "logits"])
    assert here.changed == pytest.approx(everywhere.changed, abs=1e-12)  # the logits read nowhere else
    assert patch_path(model, prompts, ["a1.h0@2", "logits"]).effect == pytest.approx(0, abs=1e-12)


def test_induction_is_carried_by_the_key_of_what_follows() -> None:
    """What stood before a token is written where that token is, and read there by the key of an induction head."""
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=16)
    at_answer, elsewhere = (ablate(model, task, f"a0.h1->a1.h1<k>@{where}") for where in ("answer", "rest"))
    assert at_answer.effect < 2 * elsewhere.effect < 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("a0.h9", "unknown part of the model 'a0.h9'"),
        ("a1.h0->a0.h0<q>", "is not executed before"),
        ([], "at least one part"),
        ("m0@", "expected a span or a position after @"),
        ("m0@S2", "name no spans"),
        ("m0@17", "prompt 1 has no '17'"),
        ([3], "expected the name of a part"),
    ],
)
def test_unknown_parts_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        ablate(tiny("gpt2"), make_prompts(), parts)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (["a0.h1"], "a path from a node to the logits"),
        (["a0.h1", "m1"], "a path from a node to the logits"),
        (["m1", "a1.h0", "logits"], "m1 is not executed before a1.h0"),
        (["a0.h1", "input", "logits"], "reads nothing"),
        (["a0", "logits"], "writes nothing by itself"),
        (["a0.h1", "m1@2", "logits"], "only the first part"),
        (["a0.h7", "logits"], "unknown part"),
        (["a1.h0<k>", "logits"], "'a1.h0<k>' is what one reads: begin with 'a1.h0'"),
        (["a0.h1<q>@end", "m1", "logits"], "'a0.h1<q>' is what one reads"),
        ("a0.h1", "a path as a list"),
    ],
)
def test_what_is_no_path_is_refused(path: Any, message: str) -> None:
    with pytest.raises(AcdcError, match=message):
        patch_path(tiny("gpt2"), make_prompts(), path)


def test_on_the_command_line(command: Command) -> None:
    result = command("ablate", "induction-2l", "a0.h1@answer", "m0", "--size", 8)
    assert result.status == 0
    for fact in ("without", "a0.h1@answer, m0", "faithfulness", "divergence", "same answer"):
        assert fact in result.out
    result = command("patch-path", "induction-2l", "a0.h1", "a1.h1<k>", "logits", "--size", 8, "--json")
    assert '"how": "along"' in result.out
    bad = command("ablate", "induction-2l", "a9.h1", "--size", 8)
    assert bad.status == 2
    assert "unknown part of the model 'a9.h1'" in bad.err.splitlines()[-1]
    for name in ("ablate", "patch-path"):
        assert f"Example: acdc {name}" in command(name, "--help").out
