"""Where gradients are taken: each path against its definition, by loops over residual streams of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import oracle
import problems
from acdc.engine.patching import Patching
from acdc.engine.plain_run import full_context
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.graph import FloatArray
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES
from acdc.model import forward
from acdc.model.trace import whole_run
from slow_attribution import slow_gradients

FAMILIES = ["gpt2", "gpt-neox-parallel", "llama", "gemma2"]


def scores(name: str, patching: Patching, ablation: Any = "resample", **options: Any) -> FloatArray:
    score = METHODS[name].score
    assert score is not None
    problem = Problem(patching.model, patching.graph, patching.prompts, OUTCOMES["logit-difference"], ablation)
    return -score(problem, **options).values * len(patching.prompts)


def outputs(patching: Patching, *, corrupted: bool) -> dict[str, Tensor]:
    prompts = patching.prompts
    tokens = prompts.corrupted if corrupted else prompts.clean
    return oracle.source_outputs(patching.model.module, patching.graph, tokens, prompts.mask)


def products(patching: Patching, gradients: Tensor, differences: list[Tensor]) -> FloatArray:
    graph = patching.graph
    flat = gradients.flatten(1) @ torch.stack(differences).flatten(1).T
    return graph.from_ports(np.where(graph.valid_ports, flat.numpy(), 0.0))


def assert_same(ours: FloatArray, theirs: FloatArray) -> None:
    assert np.abs(theirs).max() > 0
    np.testing.assert_allclose(ours, theirs, atol=1e-9 * np.abs(theirs).max())


@pytest.mark.parametrize("family", FAMILIES)
def test_on_activations_each_sublayer_walks_alone(family: str) -> None:
    patching, measure = problems.make(family, padding="both")
    graph = patching.graph
    clean, corrupted = outputs(patching, corrupted=False), outputs(patching, corrupted=True)
    expected = np.zeros(graph.valid.shape)
    walkers = {(None, "input")} | {(layer, p) for layer in range(graph.n_layers) for p in ("attention", "mlp")}
    for layer, place in walkers:
        own = [
            s for s in graph.sources
            if (s == "input" and layer is None)
            or (s != "input" and int(s[1:].split(".")[0]) == layer and (s[0] == "m") == (place == "mlp"))
        ]  # fmt: skip
        differences = [corrupted[s] - clean[s] if s in own else torch.zeros_like(clean[s]) for s in graph.sources]
        for k in (1, 2, 3):
            shift = (1 - k / 3) * sum(differences)
            x = clean["input"] + (shift if layer is None else 0.0)
            shifts = {} if layer is None else {(layer, place): shift[None]}
            gradients = slow_gradients(patching, measure, x[None], shifts)
            expected += products(patching, gradients, differences) / 3
    assert_same(scores("eap-ig-activations", patching, steps=3), expected)


def readable_logits(patching: Patching, x: Tensor) -> Tensor:
    context = full_context(patching.model, patching.prompts)
    stream = whole_run(patching.model.decomposition, context, x).final_input
    assert stream is not None
    return forward.readout(patching.model.decomposition, context.at_read(stream))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_gradient_path_goes_down_the_distance_to_the_corrupted_logits(family: str) -> None:
    patching, measure = problems.make(family, padding="both")
    clean, corrupted = outputs(patching, corrupted=False), outputs(patching, corrupted=True)
    differences = [corrupted[s] - clean[s] for s in patching.graph.sources]
    target = readable_logits(patching, corrupted["input"][None])
    x, expected = clean["input"][None], np.zeros(patching.graph.valid.shape)
    for _ in range(3):
        x = x.detach().requires_grad_()
        distance = (readable_logits(patching, x) - target).square().sum()
        (g,) = torch.autograd.grad(distance, x)
        x = torch.stack([x[0, b] - 0.5 * g[0, b] / g[0, b].norm() for b in range(x.shape[1])])[None].detach()
        expected += products(patching, slow_gradients(patching, measure, x), differences) / 3
    assert_same(scores("eap-gp", patching, steps=3, length=0.5), expected)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_conductance_multiplies_gradients_by_what_outputs_change_on_each_step(family: str) -> None:
    patching, measure = problems.make(family, padding="both")
    model, graph, prompts = patching.model, patching.graph, patching.prompts
    ends = [outputs(patching, corrupted=c)["input"][None] for c in (True, False)]
    points = [ends[0] + k / 3 * (ends[1] - ends[0]) for k in range(4)]
    context = full_context(model, prompts)
    written = []
    for x in points:
        with torch.no_grad():
            trace = whole_run(model.decomposition, context, x)
            parts = [x[0], *(y[:, 0] for stage in patching.stages for y in [stage.write(stage.output(trace))])]
        written.append(torch.cat([part if part.dim() == 4 else part[None] for part in parts]))
    expected = np.zeros(graph.valid.shape)
    for k in range(3):
        step = list(written[k] - written[k + 1])
        expected += products(patching, slow_gradients(patching, measure, points[k]), step)
    assert_same(scores("conductance", patching, steps=3), expected)


def test_conductance_of_what_enters_the_logits_adds_up_to_what_separates_the_prompts() -> None:
    patching, measure = problems.make("llama")
    apart = measure.value(patching.corrupted_logits(measure.rows)) - measure.value(
        patching.clean_logits(measure.rows)
    )
    found = scores("conductance", patching, steps=400)[-1].sum()
    assert abs(found - float(apart.sum())) < 0.02 * abs(float(apart.sum()))


def test_conductance_needs_the_corrupted_prompt() -> None:
    patching, _ = problems.make("gpt2")
    with pytest.raises(AcdcError, match="ablation 'resample'"):
        scores("conductance", patching, "mean")


@pytest.mark.parametrize("name", ["eap-ig", "eap-ig-activations", "eap-gp", "conductance"])
def test_no_steps_are_refused(name: str) -> None:
    patching, _ = problems.make("gpt2")
    with pytest.raises(AcdcError, match="steps of at least 1"):
        scores(name, patching, steps=0)
    if name == "eap-gp":
        with pytest.raises(AcdcError, match="length"):
            scores(name, patching, length=0.0)


@pytest.mark.parametrize("name", ["eap-ig-activations", "eap-gp", "relp", "gim"])
@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_every_ablation_is_taken_and_batches_do_not_matter(name: str, ablation: Any) -> None:
    model, prompts = problems.tiny("llama"), problems.make_prompts(size=4, padding="both")
    score = METHODS[name].score
    assert score is not None
    found = [
        score(
            Problem(model, model.graph(), prompts, OUTCOMES["logit-difference"], ablation, batch_size=size)
        ).values
        for size in (None, 1)
    ]
    assert_same(found[1], found[0])


def test_the_corrupted_end_alone_follows_a_distance() -> None:
    model, prompts = problems.tiny("gpt2"), problems.make_prompts()
    score = METHODS["clean-corrupted"].score
    assert score is not None
    problem = Problem(model, model.graph(), prompts, OUTCOMES["kl"])
    assert np.abs(score(problem, ends="corrupted").values).max() > 0
