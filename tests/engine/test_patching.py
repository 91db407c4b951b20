"""The patched forward equals the naive one with hooks on the plain module, for every family and option."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families
import oracle
from acdc.engine.patching import Patching
from acdc.engine.references import NOT_LEARNED, mean_references
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.model import forward
from acdc.model.load import load
from acdc.model.model import Model
from acdc.model.trace import whole_run
from acdc.tasks.prompts import Prompts

BOUND = 1e-10
"""Of the logits' scale (or of 1 where they are smaller), in float64."""


@functools.cache
def tiny(name: str) -> Model:
    return families.tiny(name, torch.float64)


def make_prompts(*, padding: str = "both", shared: int = 1, seed: int = 0) -> Prompts:
    """Three pairs of 7 positions and unequal lengths, alike up to position `shared` (relative to the window)."""
    generator = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(families.VOCABULARY, (2, 3, 7), generator=generator)
    corrupted[:, :shared] = clean[:, :shared]
    mask = torch.ones(3, 7, dtype=torch.bool)
    if padding in ("right", "both"):
        mask[1, 5:] = False
    if padding in ("left", "both"):
        mask[2, :3] = False
    last = mask.long().cumsum(-1).argmax(-1)
    return Prompts(clean=clean, corrupted=corrupted, mask=mask, positions=last[:, None])


def random_circuits(graph: Graph, *, seed: int = 0) -> np.ndarray:
    """Circuits of several densities, the empty and the full one among them: `[C, N, S]`."""
    rng = np.random.default_rng(seed)
    densities = (0.0, 0.1, 0.5, 0.9, 1.0)
    return np.stack([graph.valid & (rng.random(graph.valid.shape) < density) for density in densities])


def references(model: Model, graph: Graph, prompts: Prompts, ablation: str) -> oracle.Outputs:
    """What removed edges carry, made from the oracle's own runs."""
    clean = oracle.source_outputs(model.module, graph, prompts.clean, prompts.mask, prompts.position_ids)
    weight = prompts.mask[..., None].double()
    if ablation == "zero":
        return {source: torch.zeros_like(x) for source, x in clean.items()}
    if ablation == "mean":
        return {s: ((x * weight).sum((0, 1)) / weight.sum()).expand_as(x) for s, x in clean.items()}
    if ablation == "mean-position":
        means = {}
        for source, x in clean.items():
            means[source] = torch.zeros_like(x)
            rows = [row[real] for row, real in zip(x, prompts.mask, strict=True)]  # each prompt's own tokens
            for i in range(max(map(len, rows))):
                mean = torch.stack([row[i] for row in rows if len(row) > i]).mean(0)
                for prompt, real in enumerate(prompts.mask):
                    if int(real.sum()) > i:
                        means[source][prompt, real.nonzero()[i, 0]] = mean
        return means
    mask = prompts.mask if prompts.corrupted_mask is None else prompts.corrupted_mask
    position_ids = prompts.position_ids
    if prompts.corrupted_position_ids is not None:
        position_ids = prompts.corrupted_position_ids
    return oracle.source_outputs(model.module, graph, prompts.corrupted, mask, position_ids)


def at(positions: Tensor, logits: Tensor) -> Tensor:
    """`[B, T, V] -> [B, P, V]`."""
    return logits.gather(1, positions.clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1]))


def assert_same(ours: Tensor, theirs: Tensor, mask: Tensor | None = None) -> None:
    """Equal within the bound, at the read positions that exist."""
    difference = (ours - theirs).abs()
    if mask is not None:
        difference = difference[mask]
    error = float(difference.max() / theirs.abs().max().clamp(min=1))
    assert error < BOUND, f"differs by {error:.1e} of the logits' scale"


def check(
    model: Model, graph: Graph, prompts: Prompts, *, ablation: str = "resample", circuits: np.ndarray | None = None
) -> None:
    circuits = random_circuits(graph) if circuits is None else circuits
    reference = references(model, graph, prompts, ablation)
    with torch.no_grad():
        logits = Patching(model, graph, prompts, ablation=ablation).logits(circuits)  # [C, B, P, V]
    assert logits.shape == (len(circuits), *prompts.positions.shape, model.vocabulary_size)
    for circuit, ours in zip(circuits, logits, strict=True):
        theirs = oracle.patched_logits(
            model.module, graph, circuit, prompts.clean, prompts.mask, prompts.position_ids, reference
        )
        assert_same(ours, at(prompts.positions, theirs), prompts.positions >= 0)


@pytest.mark.parametrize("ablation", NOT_LEARNED)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_equals_the_naive_forward(family: str, ablation: str) -> None:
    model = tiny(family)
    check(model, model.graph(), make_prompts(), ablation=ablation)


@pytest.mark.parametrize("options", [{"qkv": "merged"}, {"group_kv": True}], ids=str)
@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2", "phi3", "olmo2"])
def test_coarser_graphs_equal_the_naive_forward(family: str, options: dict[str, Any]) -> None:
    model = tiny(family)
    check(model, model.graph(**options), make_prompts())


@pytest.mark.parametrize("ablation", NOT_LEARNED)
@pytest.mark.parametrize("inputs", ["split", "token"])
def test_input_options_equal_the_naive_forward(inputs: Any, ablation: str) -> None:
    model = tiny("gpt2")
    check(model, model.graph(inputs=inputs), make_prompts(), ablation=ablation)


@pytest.mark.parametrize("shared", [0, 4])
@pytest.mark.parametrize("padding", ["none", "left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "olmo2"])
def test_padding_and_shared_beginnings(family: str, padding: str, shared: int) -> None:
    model = tiny(family)
    check(model, model.graph(), make_prompts(padding=padding, shared=shared))


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-sequential", "gemma3"])
def test_several_read_positions_some_of_them_padding(family: str) -> None:
    prompts = make_prompts(padding="none", shared=2)
    positions = torch.tensor([[2, 5, 6], [3, 4, -1], [6, -1, -1]])
    model = tiny(family)
    check(model, model.graph(), Prompts(prompts.clean, prompts.corrupted, prompts.mask, positions))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_every_position_read(family: str) -> None:
    prompts = make_prompts(padding="none", shared=0)
    model = tiny(family)
    everywhere = torch.arange(7).expand(3, 7)
    check(model, model.graph(), Prompts(prompts.clean, prompts.corrupted, prompts.mask, everywhere))


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("family", ["gpt2", "gemma3", "olmo2"])
def test_positions_read_before_the_first_difference(family: str, padding: str) -> None:
    prompts = make_prompts(padding=padding, shared=5)
    positions = torch.tensor([[2, 6], [3, 4], [4, -1]])
    model = tiny(family)
    check(model, model.graph(), Prompts(prompts.clean, prompts.corrupted, prompts.mask, positions))


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_explicit_position_ids(family: str) -> None:
    prompts = make_prompts()
    position_ids = torch.arange(7).expand(3, 7) + torch.tensor([[3], [0], [1]])
    prompts = Prompts(prompts.clean, prompts.corrupted, prompts.mask, prompts.positions, position_ids=position_ids)
    model = tiny(family)
    check(model, model.graph(), prompts)


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_corrupted_prompts_with_their_own_mask_and_positions(family: str) -> None:
    prompts = make_prompts(padding="none")
    corrupted_mask = prompts.mask.clone()
    corrupted_mask[0, :2] = False
    prompts = Prompts(
        prompts.clean, prompts.corrupted, prompts.mask, prompts.positions,
        position_ids=torch.arange(7).expand(3, 7), corrupted_mask=corrupted_mask,
        corrupted_position_ids=torch.arange(7).flip(0).expand(3, 7),
    )  # fmt: skip
    model = tiny(family)
    check(model, model.graph(), prompts)


@pytest.mark.parametrize("port", "qkv")
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "olmo2"])
def test_circuits_that_touch_one_port_only(family: str, port: str) -> None:
    """Queries, keys and values that are the same in every circuit of the batch meet ones that differ."""
    model = tiny(family)
    graph = model.graph()
    circuits = np.zeros((3, *graph.valid.shape), dtype=bool)
    last = graph.n_layers - 1
    for i, source in enumerate(("input", "a0.h0", "m0")):
        circuits[i] = graph.edges_from_names([f"{source}->a{last}.h1<{port}>", f"a{last}.h1->logits", "input->m0"])
    check(model, graph, make_prompts(), circuits=circuits)


@pytest.mark.parametrize("family", families.FAMILIES)
def test_empty_and_full_circuits_are_the_plain_runs(family: str) -> None:
    model, prompts = tiny(family), make_prompts()
    graph = model.graph()
    patching = Patching(model, graph, prompts)
    with torch.no_grad():
        empty, full = patching.logits(np.stack([np.zeros_like(graph.valid), graph.valid]))
        assert_same(empty, at(prompts.positions, model.plain_logits(prompts.corrupted, prompts.mask)))
        assert_same(full, at(prompts.positions, model.plain_logits(prompts.clean, prompts.mask)))
        assert_same(patching.clean_logits(), full)
        assert_same(patching.corrupted_logits(), empty)


@pytest.mark.parametrize("own_positions", [False, True])
@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "gemma3"])
def test_denoising_restores_the_circuits_edges_in_the_corrupted_run(family: str, own_positions: bool) -> None:
    model, prompts = tiny(family), make_prompts()
    graph = model.graph()
    circuits = random_circuits(graph)
    ids = torch.arange(7).flip(0).expand(3, 7) if own_positions else None
    prompts = dataclasses.replace(prompts, corrupted_position_ids=ids)
    clean = oracle.source_outputs(model.module, graph, prompts.clean, prompts.mask)
    with torch.no_grad():
        logits = Patching(model, graph, prompts, direction="denoise").logits(circuits)
    for circuit, ours in zip(circuits, logits, strict=True):
        theirs = oracle.patched_logits(
            model.module, graph, graph.valid & ~circuit, prompts.corrupted, prompts.mask, ids, clean
        )
        assert_same(ours, at(prompts.positions, theirs))


@pytest.mark.parametrize("inputs", ["single", "split"])
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-proportion", "tracr-hist", "tracr-sort"])
def test_compiled_programs_equal_the_naive_forward(name: str, inputs: Any) -> None:
    """Attention in both directions, no norms, outputs that are numbers, several positions read."""
    model = load(name, dtype="float64")
    assert model.program is not None
    graph = model.graph(inputs=inputs)
    tokens = model.program.program.tokens
    rng = np.random.default_rng(0)
    clean, corrupted = (
        model.program.encode([[tokens[i] for i in rng.integers(len(tokens), size=n)] for n in (5, 3, 4)])
        for _ in range(2)
    )
    mask = clean[1]
    positions = torch.where(mask, torch.arange(mask.shape[1]), -1)[:, 1:]
    prompts = Prompts(clean[0], corrupted[0], mask, positions)
    circuits = random_circuits(graph)
    reference = oracle.tracr_run(model.program, graph, graph.valid, prompts.corrupted, mask, {})[1]
    with torch.no_grad():
        logits = Patching(model, graph, prompts).logits(circuits)
    for circuit, ours in zip(circuits, logits, strict=True):
        theirs = oracle.tracr_run(model.program, graph, circuit, prompts.clean, mask, reference)[0]
        assert_same(ours, at(positions, theirs), positions >= 0)


def test_denoising_needs_a_corrupted_run() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    with pytest.raises(AcdcError, match="denoising runs the corrupted prompts, so it needs ablation 'resample'"):
        Patching(model, model.graph(), prompts, ablation="zero", direction="denoise")


def test_rows_are_the_same_logits() -> None:
    model, prompts = tiny("gemma2"), make_prompts()
    graph = model.graph()
    rows = torch.tensor([7, 3, 40])
    patching = Patching(model, graph, prompts)
    circuits = random_circuits(graph)
    with torch.no_grad():
        assert_same(patching.logits(circuits, rows=rows), patching.logits(circuits)[..., rows])


@pytest.mark.parametrize("ablation", ["resample", "mean"])
@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2", "olmo2"])
def test_float_masks_mix_run_and_reference(family: str, ablation: str) -> None:
    model, prompts = tiny(family), make_prompts()
    graph = model.graph()
    shares = np.random.default_rng(0).random((2, *graph.valid.shape)) * graph.valid
    check(model, graph, prompts, ablation=ablation, circuits=shares)


@pytest.mark.parametrize("family", ["gpt2", "gpt-neox-parallel", "llama", "gemma2", "olmo2"])
def test_gradient_of_a_float_mask_is_its_finite_difference(family: str) -> None:
    model, prompts = tiny(family), make_prompts()
    graph = model.graph()
    rng = np.random.default_rng(1)
    patching = Patching(model, graph, prompts)
    target = torch.from_numpy(rng.normal(size=model.vocabulary_size))
    edges = torch.from_numpy(rng.random((2, *graph.valid.shape)) * graph.valid)
    direction = torch.from_numpy(rng.normal(size=edges.shape)) * torch.from_numpy(graph.valid)

    def objective(edges: Tensor) -> Tensor:
        return (patching.logits(edges) @ target).sin().sum()

    leaf = edges.clone().requires_grad_()
    with model.frozen():
        objective(leaf).backward()
    assert leaf.grad is not None
    step = 1e-5
    with torch.no_grad():
        numerical = (objective(edges + step * direction) - objective(edges - step * direction)) / (2 * step)
    analytic = (leaf.grad * direction).sum()
    assert float((analytic - numerical).abs()) < 1e-6 * float(leaf.grad.abs().max() * direction.abs().max())
    assert not leaf.grad[:, ~torch.from_numpy(graph.valid)].any()


def test_gradients_do_not_change_the_answer() -> None:
    model, prompts = tiny("llama"), make_prompts()
    graph = model.graph()
    circuits = torch.from_numpy(random_circuits(graph)).double()
    patching = Patching(model, graph, prompts)
    with torch.no_grad():
        without = patching.logits(circuits)
    assert_same(patching.logits(circuits.requires_grad_()).detach(), without)


def test_a_batch_of_circuits_is_each_circuit_on_its_own() -> None:
    model, prompts = tiny("gpt-neox-parallel"), make_prompts()
    graph = model.graph()
    circuits = random_circuits(graph)
    patching = Patching(model, graph, prompts)
    with torch.no_grad():
        alone = torch.cat([patching.logits(circuit) for circuit in circuits])
        assert_same(patching.logits(circuits), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", families.FAMILIES)
def test_lower_precision_stays_close(family: str, dtype: torch.dtype) -> None:
    """The same weights and circuits in float64 are the truth."""
    model, prompts = families.tiny(family, dtype), make_prompts()
    exact = families.load(families.module(family, dtype=dtype).double())
    families.make_exact(exact.module)
    graph = model.graph()
    circuits = random_circuits(graph)
    with torch.no_grad():
        ours = Patching(model, graph, prompts).logits(circuits)
        theirs = Patching(exact, graph, prompts).logits(circuits)
    assert ours.dtype == torch.float32
    error = float((ours.double() - theirs).abs().max() / theirs.abs().max())
    assert error < {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 0.1}[dtype]


@pytest.mark.parametrize("per_position", [False, True])
def test_means_over_batches_are_means_over_all(per_position: bool) -> None:
    model, prompts = tiny("gemma2"), make_prompts()
    graph = model.graph()
    whole = mean_references(model, graph, prompts, per_position=per_position)
    parts = mean_references(model, graph, prompts, per_position=per_position, batch_size=2)
    for ours, theirs in zip((*parts.inputs, *parts.outputs), (*whole.inputs, *whole.outputs), strict=True):
        assert_same(ours, theirs)
    ablation = "mean-position" if per_position else "mean"
    circuits = random_circuits(graph)
    with torch.no_grad():
        given = Patching(model, graph, prompts, ablation=ablation, references=parts).logits(circuits)
        assert_same(given, Patching(model, graph, prompts, ablation=ablation).logits(circuits))


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_input_scale_moves_along_the_line_between_the_two_inputs(family: str) -> None:
    model, prompts = tiny(family), make_prompts(padding="none")
    graph = model.graph()
    clean, corrupted = (
        oracle.source_outputs(model.module, graph, tokens, prompts.mask)["input"]
        for tokens in (prompts.clean, prompts.corrupted)
    )
    everywhere = torch.arange(7).expand(3, 7)
    context = forward.make_context(model.decomposition, prompts.clean, prompts.mask, None, read=everywhere)
    with torch.no_grad():
        ours = Patching(model, graph, prompts).logits(graph.valid, input_scale=0.3)
        final = whole_run(model.decomposition, context, (corrupted + 0.3 * (clean - corrupted))[None]).final_input
        assert final is not None
        assert_same(ours[0], at(prompts.positions, forward.readout(model.decomposition, final[0])))


def test_unknown_options_name_near_misses() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    with pytest.raises(AcdcError, match="did you mean resample"):
        Patching(model, model.graph(), prompts, ablation="resampel")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="did you mean denoise"):
        Patching(model, model.graph(), prompts, direction="denois")  # type: ignore[arg-type]
    with pytest.raises(AcdcError, match="needs position embeddings"):
        Patching(tiny("llama"), tiny("llama").graph(inputs="split"), prompts)
