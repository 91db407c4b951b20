"""Neurons: each number is that of hooks on the plain module, and a circuit with some neurons is the slow oracle's."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import acdc
import hook_loop
import oracle
from acdc.engine.neurons import NeuronReferences
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.metrics import OUTCOMES
from acdc.model.hidden import hidden_layers
from acdc.neurons import NeuronCircuit, discover_neurons, evaluate_neurons, score_neurons
from problems import make_prompts, tiny

FAMILIES = ["gpt2", "llama", "gemma2"]


def down(module: Any, layer: int) -> torch.nn.Module:
    """The last matrix of an MLP, by name."""
    block = oracle._blocks(module.config.model_type, module)[layer]
    return block.mlp.c_proj if module.config.model_type == "gpt2" else block.mlp.down_proj


def inner(model: acdc.Model) -> dict[str, Any]:
    """Where the plain module holds the units of each node, by name."""
    heads = [model.graph().component(name) for name in model.graph().names("head")]
    points = {head.name: hook_loop.point(model.module, "head", head.layer, head.number) for head in heads}
    return points | {
        f"m{i}": hook_loop.Point(down(model.module, i), True, slice(None)) for i in range(model.n_layers)
    }


def values_at(module: Any, prompts: acdc.Prompts, at: Any, ablation: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Units of a node on the clean prompts, and what removed ones carry, `[B, T, X]`."""
    clean = hook_loop.run(module, prompts, at)[1]
    if ablation == "resample":
        return clean, hook_loop.run(module, prompts.swapped(), at)[1]
    return clean, torch.zeros_like(clean) if ablation == "zero" else clean[prompts.mask].mean(0).expand_as(clean)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_a_neuron_alone_is_replaced_as_by_a_hook(family: str, ablation: str) -> None:
    model, prompts = tiny(family), make_prompts(padding="left", reads=2, shared=2)
    module = model.module
    found = score_neurons(model, prompts, "exact", inside="both", ablation=ablation, batch_size=2)
    slope = score_neurons(model, prompts, "nap", inside="both", ablation=ablation)
    everywhere = torch.ones_like(prompts.mask)
    whole = hook_loop.logit_difference(hook_loop.run(module, prompts)[0], prompts)
    rng, points = np.random.default_rng(0), inner(model)
    assert set(found.values) == set(points)
    for name, place in points.items():
        clean, new = values_at(module, prompts, place, ablation)
        assert len(found.values[name]) == clean.shape[-1]
        for i in rng.choice(clean.shape[-1], 2, replace=False).tolist():
            first = place.part.start or 0
            at = place._replace(part=slice(first + i, first + i + 1))

            def value(share: float, at: Any = at, i: int = i, clean: Any = clean, new: Any = new) -> torch.Tensor:
                own, other = clean[..., i : i + 1], new[..., i : i + 1]
                logits, _ = hook_loop.run(module, prompts, at, own + share * (other - own), everywhere)
                return hook_loop.logit_difference(logits, prompts)

            change = value(1.0) - whole
            assert found.values[name][i] == pytest.approx(-float(change.mean()), abs=1e-9)
            assert found.absolute[name][i] == pytest.approx(float(change.abs().mean()), abs=1e-9)
            first_order = (value(1e-5) - value(-1e-5)) / 2e-5
            assert slope.values[name][i] == pytest.approx(-float(first_order.mean()), rel=1e-4, abs=1e-8)
            assert slope.absolute[name][i] == pytest.approx(float(first_order.abs().mean()), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("ablation", ["resample", "zero", "mean"])
def test_a_circuit_with_some_neurons_is_the_slow_one(family: str, ablation: Any) -> None:
    model, prompts = tiny(family), make_prompts(padding="left", reads=2, shared=2)
    module, graph, rng = model.module, model.graph(), np.random.default_rng(1)
    problem = Problem(model, graph, prompts, OUTCOMES["logit-difference"], ablation)
    patching = Patching(model, graph, prompts, ablation=ablation)
    references = NeuronReferences(problem, "both")
    edges = graph.valid & (rng.random(graph.valid.shape) < 0.7)
    some = [name for name in references.widths if name not in ("m0", "a1.h0")]
    kept = {name: rng.random((3, references.widths[name])) < 0.5 for name in some}
    with torch.no_grad():
        found = patching.logits(edges, neurons=references.keeping(patching, kept))
    other = prompts.swapped()
    sources = oracle.source_outputs(module, graph, other.clean, other.mask)
    clean = oracle.source_outputs(module, graph, prompts.clean, prompts.mask)
    if ablation != "resample":
        means = {s: x[prompts.mask].mean(0).expand_as(x) for s, x in clean.items()}
        sources = means if ablation == "mean" else {s: torch.zeros_like(x) for s, x in clean.items()}
    points = inner(model)
    carried = {name: values_at(module, prompts, points[name], ablation)[1] for name in kept}
    for c in range(3):
        with contextlib.ExitStack() as stack:
            for name, chosen in kept.items():
                own, part = torch.as_tensor(chosen[c]), points[name].part

                def instead(x: torch.Tensor, own: Any = own, part: slice = part, name: str = name) -> torch.Tensor:
                    x = x.clone()
                    x[..., part] = torch.where(own, x[..., part], carried[name])
                    return x

                oracle._pre_hook(stack, points[name].module, instead)
            slow = oracle.patched_logits(module, graph, edges, prompts.clean, prompts.mask, None, sources)
        read = prompts.positions.clamp(min=0)
        slow = slow.gather(1, read[..., None].expand(-1, -1, slow.shape[-1]))
        real = prompts.positions >= 0
        torch.testing.assert_close(found[c][real], slow[real], atol=1e-9, rtol=1e-9)


def test_all_neurons_are_the_circuit_and_none_the_circuit_without_the_mlp() -> None:
    model, prompts = tiny("llama"), make_prompts()
    graph = model.graph()
    patching = Patching(model, graph, prompts)
    references = NeuronReferences(Problem(model, graph, prompts, OUTCOMES["logit-difference"]))
    width = references.widths["m0"]
    sets = {"m0": np.stack([np.ones(width, bool), np.zeros(width, bool)])}
    without = graph.valid.copy()
    without[:, graph.source_index["m0"]] = False
    with torch.no_grad():
        every, none = patching.logits(graph.valid, neurons=references.keeping(patching, sets))
        torch.testing.assert_close(every, patching.logits(graph.valid)[0])
        torch.testing.assert_close(none, patching.logits(without)[0])


@pytest.mark.parametrize("family", ["gpt-neox-parallel", "phi3", "qwen3", "olmo2"])
def test_hidden_layers_are_found_whatever_the_family(family: str) -> None:
    model = tiny(family)
    found = hidden_layers(model)
    width = model.module.config.intermediate_size
    assert [each.width for each in found] == [width] * model.n_layers


def test_experts_are_refused_by_name_and_reason() -> None:
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=32,
    )  # fmt: skip
    torch.manual_seed(0)
    model = acdc.load(transformers.MixtralForCausalLM(config).eval())
    with pytest.raises(UnsupportedModelError, match=r"hidden units of m0 \(Mixtral.*\) were not found: .*experts"):
        score_neurons(model, make_prompts(), "nap")


def test_score_takes_neurons_and_discover_says_where_they_are_found() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    found = acdc.score(model, prompts, "nap-ig", units="neuron", steps=3)
    same = score_neurons(model, prompts, "nap-ig", steps=3)
    for mlp, values in same.values.items():
        np.testing.assert_array_equal(found.values[mlp], values)
    assert sum(x.sum() for x in found.top(7).values()) == 7
    assert found.rows()[0]["absolute"] == max(x.max() for x in found.absolute.values())
    with pytest.raises(AcdcError, match="discover_neurons"):
        acdc.discover(model, prompts, units="neuron")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="unknown method for neurons 'eap'"):
        acdc.score(model, prompts, "eap", units="neuron")
    with pytest.raises(AcdcError, match="unknown option"):
        acdc.score(model, prompts, "nap-ig", units="neuron", step=3)
    with pytest.raises(AcdcError, match="where nap takes it; use nap-ig or exact"):
        score_neurons(model, prompts, "nap", metric="kl")
    with pytest.raises(AcdcError, match="corrupted prompts are the clean"):
        score_neurons(model, acdc.Prompts.from_tokens(prompts.clean, prompts.clean, prompts.answers[:, 0, 0]))


def test_what_is_pruned_stays_within_the_budget_and_needs_each_neuron() -> None:
    model, prompts = tiny("gpt2-scaled-by-layer"), make_prompts(size=4)
    circuit = acdc.Circuit(model.graph(), model.graph().valid)
    found = discover_neurons(model, prompts, circuit, faithfulness=0.8, runs=5000)
    assert found.tested_alone
    assert found.distance <= found.budget
    assert 0 < found.n_neurons < found.n_whole

    patching = Patching(model, circuit.graph, prompts)
    references = NeuronReferences(Problem(model, circuit.graph, prompts, OUTCOMES["logit-difference"]))

    def distance(kept: dict[str, Any]) -> float:
        with torch.no_grad():
            logits = patching.logits(circuit.edges, neurons=references.keeping(patching, kept))[0]
            full = patching.clean_logits()
        gap = hook_loop.logit_difference(logits, prompts) - hook_loop.logit_difference(full, prompts)
        return float(gap.abs().mean())

    assert distance(dict(found.kept)) == pytest.approx(found.distance)
    for mlp, chosen in found.kept.items():
        for neuron in np.flatnonzero(chosen):
            fewer = {name: x.copy() for name, x in found.kept.items()}
            fewer[mlp][neuron] = False
            assert distance(fewer) > found.budget
    one_by_one = discover_neurons(model, prompts, circuit, faithfulness=0.8, runs=5000, one_by_one=True)
    scores = score_neurons(model, prompts, "nap-ig")
    kept = {mlp: np.ones(len(x), dtype=bool) for mlp, x in scores.values.items()}
    before = None
    while before != (before := sum(int(x.sum()) for x in kept.values())):
        for row in reversed(scores.rows()):  # a plain loop, the weakest first, until none can go
            was = kept[row["node"]][row["neuron"]]
            kept[row["node"]][row["neuron"]] = False
            if was and distance(kept) > one_by_one.budget:
                kept[row["node"]][row["neuron"]] = True
    for mlp, chosen in kept.items():
        np.testing.assert_array_equal(one_by_one.kept[mlp], chosen)
    judged = evaluate_neurons(model, prompts, one_by_one, random_neurons=3)
    assert judged.whole_faithfulness == pytest.approx(1)
    assert len(judged.random_faithfulness) == 3


def test_dimensions_of_heads_are_pruned_and_kept_in_the_file(tmp_path: Any) -> None:
    model, prompts = tiny("llama"), make_prompts(size=4)
    circuit = acdc.Circuit(model.graph(), model.graph().valid)
    found = discover_neurons(model, prompts, circuit, inside="both", faithfulness=0.7, runs=100)
    heads = model.graph().names("head")
    assert {*found.kept} == {*heads, *model.graph().names("mlp")}
    assert 0 < sum(found.kept[head].sum() for head in heads) < sum(len(found.kept[head]) for head in heads)
    assert any(name.startswith(f"{heads[0]}.d") for name in found.names())
    assert f"in {model.n_layers} MLPs and {len(heads)} heads" in found.facts()["neurons kept"]
    circuit.save(tmp_path / "run")
    found.save(tmp_path / "run")
    again = NeuronCircuit.load(tmp_path / "run")
    assert again.names() == found.names()
    judged, same = (evaluate_neurons(model, prompts, each, random_neurons=2) for each in (found, again))
    assert judged.faithfulness == same.faithfulness
    alone = discover_neurons(model, prompts, circuit, inside="heads", faithfulness=0.7, runs=0)
    assert {*alone.kept} == {*heads}
    assert evaluate_neurons(model, prompts, alone).circuit != judged.circuit
    with pytest.raises(AcdcError, match="unknown choice of nodes to look inside of 'head': did you mean heads"):
        score_neurons(model, prompts, "nap", inside="head")  # type: ignore[arg-type]
    assert acdc.score(model, prompts, "nap", units="neuron", inside="heads").values.keys() == {*heads}


def test_all_dimensions_are_the_circuit_and_none_the_circuit_without_heads() -> None:
    model, prompts = tiny("llama"), make_prompts()
    graph = model.graph()
    patching = Patching(model, graph, prompts)
    references = NeuronReferences(Problem(model, graph, prompts, OUTCOMES["logit-difference"]), "heads")
    kept = {head: np.stack([np.ones(n, bool), np.zeros(n, bool)]) for head, n in references.widths.items()}
    without = graph.valid.copy()
    without[:, [graph.source_index[head] for head in kept]] = False
    with torch.no_grad():
        every, none = patching.logits(graph.valid, neurons=references.keeping(patching, kept))
        torch.testing.assert_close(every, patching.logits(graph.valid)[0])
        torch.testing.assert_close(none, patching.logits(without)[0])


def test_a_circuit_that_is_past_what_is_asked_of_its_neurons_says_so() -> None:
    model, task = acdc.load("tiny-tasks"), acdc.tasks.load("ioi", size=16)
    circuit = acdc.Circuit.from_names(model.graph(), ["input->m0", "m0->logits"])
    with pytest.warns(UserWarning, match=r"with all its neurons the circuit is .* past the .* asked for"):
        found = discover_neurons(model, task, circuit, faithfulness=0.99)
    assert found.distance <= found.budget
    none = dataclasses.replace(found, kept={name: x & False for name, x in found.kept.items()})
    assert "can go alone" not in none.facts()["neurons kept"]


def test_circuits_without_an_mlp_and_numbers_that_cannot_be_are_refused() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    graph = model.graph()
    heads = acdc.Circuit.from_names(graph, ["input->a0.h0<v>", "a0.h0->logits"])
    with pytest.raises(AcdcError, match="keeps no MLP"):
        discover_neurons(model, prompts, heads)
    mlps = acdc.Circuit.from_names(graph, ["input->m0", "m0->logits"])
    with pytest.raises(AcdcError, match="keeps no head"):
        discover_neurons(model, prompts, mlps, inside="heads")
    whole = acdc.Circuit(graph, graph.valid)
    with pytest.raises(AcdcError, match="faithfulness above 0"):
        discover_neurons(model, prompts, whole, faithfulness=0)
    with pytest.raises(AcdcError, match="number of runs"):
        discover_neurons(model, prompts, whole, runs=-1)


def test_neurons_are_kept_in_a_file_beside_the_circuit(tmp_path: Any) -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    circuit = acdc.Circuit(model.graph(), model.graph().valid)
    found = discover_neurons(model, prompts, circuit, faithfulness=0.5, runs=0)
    circuit.save(tmp_path / "run")
    path = found.save(tmp_path / "run")
    again = NeuronCircuit.load(tmp_path / "run")
    assert again.names() == found.names()
    assert (again.budget, again.method) == (found.budget, "nap-ig")
    with pytest.raises(AcdcError, match="exists"):
        found.save(tmp_path / "run")
    wider = dataclasses.replace(again, kept={"m0": np.ones(7, dtype=bool)})
    with pytest.raises(AcdcError, match="of 7 in m0, and there are 96"):
        evaluate_neurons(model, prompts, wider)
    other = acdc.Circuit.from_names(circuit.graph, ["input->m0", "m0->logits"])
    with pytest.raises(AcdcError, match="another circuit"):
        NeuronCircuit.load(tmp_path / "run", other)
    text = path.read_text()
    path.write_text(text.replace('"m0"', '"m9"'))
    with pytest.raises(AcdcError, match="there are not"):
        NeuronCircuit.load(tmp_path / "run")
    path.write_text(text.replace('"hidden": 96', '"hidden": 96000000000'))
    with pytest.raises(AcdcError, match="hidden"):
        NeuronCircuit.load(tmp_path / "run")
    path.write_text(text.replace("acdc-neurons", "neurons"))
    with pytest.raises(AcdcError, match="format"):
        NeuronCircuit.load(tmp_path / "run")
