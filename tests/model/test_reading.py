"""Methods on decoders that were read: what they compute is what the plain module does when it is changed by hooks."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

import acdc
import acdc.inspection
import acdc.viz
import problems
from acdc.benchmarks.measuring.tiny_decoders import tiny_decoder
from acdc.engine.measure import Measure, Measures, bind
from acdc.engine.patching import Patching
from acdc.errors import UnsupportedModelError
from acdc.methods.attribution import attribute
from acdc.methods.components import Components
from acdc.methods.exact import exact_scores
from acdc.methods.search import Search
from acdc.metrics import OUTCOMES
from acdc.model.load import load
from acdc.model.model import Model

KINDS = (
    "bitnet", "bloom", "cohere2", "deepseek_v3", "falcon", "gemma4_text", "gpt_oss", "gptj", "granitemoeshared",
    "laguna", "lfm2", "llama4_text", "opt", "qwen3_next",
)  # fmt: skip
QUICK = ("bloom", "deepseek_v3", "gpt_oss", "lfm2")


@functools.cache
def tiny(kind: str) -> Model:
    return load(tiny_decoder(kind))


def problem(kind: str, **prompts: Any) -> tuple[Patching, Measure]:
    model = tiny(kind)
    patching = Patching(model, model.graph(), problems.make_prompts(**prompts))
    return patching, bind(OUTCOMES["logit-difference"], patching)


def plain_logits(patching: Patching, tokens: Tensor) -> Tensor:
    return patching.model.plain_logits(tokens, patching.prompts.mask, patching.prompts.position_ids)


@contextlib.contextmanager
def read_by(part: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Change what a module reads."""

    def before(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    handle = part.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def seen_by(patching: Patching, part: nn.Module, tokens: Tensor) -> Tensor:
    """What a module reads in a plain run."""
    seen: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return x

    with read_by(part, note), torch.no_grad():
        plain_logits(patching, tokens)
    return seen[0]


# ---- exact ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_mlp_without_edges_reads_what_it_reads_in_the_corrupted_run(kind: str) -> None:
    patching, _ = problem(kind)
    graph, layer = patching.graph, patching.model.decomposition.layers[2]
    edges = graph.valid.copy()
    edges[graph.destination_index["m2"]] = False
    norm = layer.mlp_norm
    part = layer.parts.mlp if norm is None else norm.module
    if norm is not None and layer.mixes.norm is not None and norm.module is layer.mixes.norm.module:
        part = layer.parts.mlp  # a parallel block with one norm
    first = part.fc1 if kind == "opt" and hasattr(part, "fc1") else part
    corrupted = seen_by(patching, first, patching.prompts.corrupted)
    with read_by(first, lambda x: corrupted), torch.no_grad():
        expected = plain_logits(patching, patching.prompts.clean)
    read = patching.prompts.positions
    rows = torch.arange(len(read))[:, None]
    torch.testing.assert_close(patching.logits(edges[None])[0], expected[rows, read], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("bitnet", "gemma4_text")])
def test_a_head_that_nobody_reads_is_one_whose_result_is_that_of_the_corrupted_run(kind: str) -> None:
    patching, _ = problem(kind)
    graph, layers = patching.graph, patching.model.decomposition.layers
    index = 1 if layers[1].mixer is None else 2
    attention = layers[index].attention
    edges = graph.valid.copy()
    edges[:, graph.source_index[f"a{index}.h2"]] = False
    output = next(
        part
        for part in layers[index].parts.block.modules()
        if getattr(part, "weight", None) is not None and part.weight.data_ptr() == attention.w_o.data_ptr()
    )
    d = attention.w_o.shape[1]
    corrupted = seen_by(patching, output, patching.prompts.corrupted)

    def other_head(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., 2 * d : 3 * d] = corrupted[..., 2 * d : 3 * d]
        return x

    with read_by(output, other_head), torch.no_grad():
        expected = plain_logits(patching, patching.prompts.clean)
    read = patching.prompts.positions
    rows = torch.arange(len(read))[:, None]
    torch.testing.assert_close(patching.logits(edges[None])[0], expected[rows, read], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if k in QUICK else pytest.mark.slow) for k in KINDS])
def test_exact_is_the_metric_without_each_edge_alone(kind: str) -> None:
    patching, measure = problem(kind, padding="both")
    graph = patching.graph
    some = np.random.default_rng(0).permutation(np.argwhere(graph.valid))[:24]
    circuits = np.repeat(graph.valid[None], len(some) + 1, axis=0)
    circuits[np.arange(len(some)), some[:, 0], some[:, 1]] = False
    *without, full = problems.values(patching, measure, circuits)
    found = exact_scores(patching, measure)[0][some[:, 0], some[:, 1]]
    np.testing.assert_allclose(found, np.array(without) - full, atol=1e-6 * np.abs(without).max())


# ---- eap --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_eap_is_the_gradient_of_edge_weights(kind: str) -> None:
    patching, measure = problem(kind, padding="both")
    scores = patching.graph.from_ports(attribute(patching, measure.outcome, alphas=(1.0,)).sum(0).numpy())
    weights = torch.from_numpy(patching.graph.valid).double().requires_grad_()
    with patching.model.frozen():
        value = measure.value(patching.logits(weights, rows=measure.rows)).sum()
    (gradient,) = torch.autograd.grad(value, weights)
    expected = np.where(patching.graph.valid, -gradient.numpy(), 0.0)
    np.testing.assert_allclose(scores, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("gptj", "falcon", "cohere2")])
def test_eap_of_a_layer_is_the_plain_gradient_at_its_norm(kind: str) -> None:
    patching, measure = problem(kind)
    graph, prompts = patching.graph, patching.prompts
    ports = attribute(patching, measure.outcome, alphas=(1.0,)).sum(0)
    norm = patching.model.decomposition.layers[2].mixes.norm
    assert norm is not None
    added = torch.zeros(*prompts.clean.shape, patching.model.d_model, dtype=torch.float64, requires_grad=True)
    with read_by(norm.module, lambda x: x + added), patching.model.frozen():
        logits = plain_logits(patching, prompts.clean)
        rows = torch.arange(len(prompts))[:, None]
        at_read = (
            logits[rows, prompts.positions]
            if measure.rows is None
            else logits[rows, prompts.positions][..., measure.rows]
        )
        (gradient,) = torch.autograd.grad(measure.value(at_read).sum(), added)
    difference = patching.source_differences()  # [S, B, W, D]
    sublayer = graph.sublayers_of(2)[0]
    first = sublayer.outputs.start
    expected = (difference[:first] * gradient[:, patching.start :]).sum((1, 2, 3))
    found = ports[list(sublayer.every_port), :first].sum(0)
    torch.testing.assert_close(found, expected.to(found), rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


# ---- hybrids ----------------------------------------------------------------------------------------------------


def test_a_search_among_mixers_decides_as_the_plain_loop() -> None:
    patching, measure = problem("lfm2", padding="both")
    tau = 0.02 * problems.distance(patching, measure, np.zeros_like(patching.graph.valid))

    def accept(new: float, old: float) -> bool:
        return new - old < tau

    expected, _ = problems.naive_search(
        patching.graph, lambda edges: problems.distance(patching, measure, edges), accept
    )
    search = Search(patching, measure)
    search.sweep(accept)
    assert patching.graph.edge_names(search.kept) == patching.graph.edge_names(expected)
    assert 0 < expected.sum() < patching.graph.n_edges


@pytest.mark.parametrize("shared", [1, 3])
def test_whole_components_among_mixers_are_circuits_without_their_edges(shared: int) -> None:
    patching, measure = problem("lfm2", padding="both", shared=shared)
    graph, rng = patching.graph, np.random.default_rng(0)
    components = Components(Measures.of(patching, measure), graph)
    for _ in range(6):
        fewer = components.kept & (rng.random(graph.n_sources) < 0.8)
        expected = problems.distance(patching, measure, graph.edges_from_sources(fewer))
        assert components.without(fewer) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        components.keep(fewer)


@pytest.mark.parametrize(
    "kind", [kind if kind == "lfm2" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_the_default_search_runs(kind: str) -> None:
    circuit = acdc.discover(tiny(kind), problems.make_prompts(size=4), metric="kl", faithfulness=0.9)
    assert 0 < circuit.n_edges < circuit.graph.n_edges


def test_a_circuit_with_mixers_survives_its_file_and_can_be_drawn(tmp_path: Path) -> None:
    model = tiny("lfm2")
    assert model.graph().names("mixer") == ("x1", "x3")
    prompts = problems.make_prompts()
    circuit = acdc.discover(model, prompts, "eap", edges=30, metric="logit-difference")
    circuit.save(tmp_path / "circuit")
    again = acdc.Circuit.load(tmp_path / "circuit")
    assert again.graph == circuit.graph
    assert (again.edges == circuit.edges).all()
    acdc.viz.draw(circuit, tmp_path / "circuit.svg")
    assert ">x1<" in (tmp_path / "circuit.svg").read_text() or "x1" not in circuit.nodes
    patterns = acdc.inspection.attention_patterns(model, prompts)
    assert {name.split(".")[0] for name in patterns.heads} == {"a0", "a2"}
    ax = acdc.viz.plots.heads(circuit.scores)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "1", "2", "3", "MIXER", "MLP"]
    missing = np.ma.getmaskarray(ax.collections[0].get_array())
    assert missing.tolist() == [[False] * 4 + [True, False], [True] * 4 + [False, False]] * 2


def test_norms_of_images_are_no_hindrance_to_rules_for_norms() -> None:
    prompts = problems.make_prompts()
    found = acdc.score(tiny("got_ocr2"), prompts, "relp", metric="logit-difference")
    assert np.isfinite(found.values).all()
    assert found.values.any()


# ---- reading ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "falcon", "phi3", "gpt_bigcode", "deepseek_v3"])
def test_weights_are_views(kind: str) -> None:
    model = tiny(kind)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.module.parameters()}
    for layer in model.decomposition.layers:
        attention = layer.attention
        for tensor in (attention.q.weight, attention.k.weight, attention.v.weight, attention.w_o):
            assert tensor.untyped_storage().data_ptr() in own


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda m: setattr(m.model.layers[1], "mlp", nn.Sequential(m.model.layers[1].mlp, Mixing())),
            "mixes positions",
        ),
        (lambda m: setattr(m.model, "norm", nn.Sequential(nn.Linear(20, 20))), "unembedding reads is neither"),
        (
            lambda m: m.model.layers[1].self_attn.register_forward_hook(Twice()),
            "layer 1, LlamaAttention: the block",
        ),
        (
            lambda m: setattr(m.model.layers[0], "input_layernorm", nn.Sigmoid()),
            "layer 0, LlamaAttention: what it reads",
        ),
    ],
)
def test_the_first_layer_the_module_and_the_reason_are_named(change: Callable[[Any], Any], words: str) -> None:
    config = transformers.LlamaConfig(
        vocab_size=30, hidden_size=20, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    module = transformers.LlamaForCausalLM(config).eval()
    change(module)
    with pytest.raises(UnsupportedModelError, match=words):
        load(module)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.cumsum(-2)


class Twice:
    def __call__(self, part: nn.Module, args: Any, out: Any) -> Any:
        return (out[0] + out[0].flip(-1), *out[1:])
