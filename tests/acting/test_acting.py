"""A circuit that acts: alone as a model, on any text, and as a checkpoint that transformers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import acdc
import families
from acdc.acting import save_checkpoint
from acdc.acting.lists import lists
from acdc.circuit import Circuit
from acdc.engine.patching import Patching
from acdc.errors import AcdcError
from acdc.graph import units_of
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts
from command_line import Command
from problems import make_prompts, tiny

ABLATIONS = ("resample", "zero", "mean", "mean-position")


def some_edges(model: Model, share: float = 0.7) -> Circuit:
    graph = model.graph()
    return Circuit(graph, graph.valid & (np.random.default_rng(0).random(graph.valid.shape) < share))


def whole_nodes(model: Model, gone: tuple[str, ...]) -> Circuit:
    graph = model.graph()
    kept = np.array([name not in gone for name in graph.sources])
    return Circuit(graph, graph.prune(units_of(graph, "node").mask(kept)), unit="node")


def patched(model: Model, circuit: Circuit, prompts: Prompts, ablation: Any) -> torch.Tensor:
    with torch.no_grad():
        return Patching(model, circuit.graph, prompts, ablation=ablation).logits(circuit.edges)[0]


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_circuits_model_gives_what_the_patched_model_does(family: str, ablation: str, tmp_path: Path) -> None:
    model, prompts = tiny(family), make_prompts()
    circuit = some_edges(model)
    subject = acdc.CircuitModel.of(model, prompts, circuit, ablation=ablation)
    corrupted = prompts.corrupted if ablation == "resample" else None
    found = subject(prompts.clean, corrupted_ids=corrupted).gather(
        1, prompts.positions[..., None].expand(-1, -1, families.VOCABULARY)
    )
    expected = patched(model, circuit, prompts, ablation)
    assert torch.allclose(found, expected, atol=1e-9)
    again = acdc.CircuitModel.load(subject.save(tmp_path / "m"), model=model)
    assert torch.equal(
        again(prompts.clean, corrupted_ids=corrupted), subject(prompts.clean, corrupted_ids=corrupted)
    )
    assert not list((tmp_path / "m").glob("*.py"))


@pytest.mark.parametrize("ablation", ["resample", "zero"])
def test_generation_goes_on_with_the_likeliest_token(ablation: str) -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    subject = acdc.CircuitModel.of(model, prompts, some_edges(model), ablation=ablation)
    start = prompts.clean[:2, :4]
    donor = prompts.corrupted[:2, :4] if ablation == "resample" else None
    found = subject.generate(start, corrupted_ids=donor, max_new_tokens=3)
    assert found[:, :4].equal(start)
    for n in range(4, 7):
        other = None if donor is None else torch.cat((donor, found[:, 4:n]), 1)
        assert found[:, n].equal(subject(found[:, :n], corrupted_ids=other)[:, -1].argmax(-1))


def test_a_model_without_a_fitting_donor_says_which_lengths_there_are(tmp_path: Path) -> None:
    model = tiny("gpt2")
    subject = acdc.CircuitModel.of(model, make_prompts(), some_edges(model))
    with pytest.raises(AcdcError, match=r"no corrupted prompt of the task has 3 tokens .*they have 6"):
        subject(torch.tensor([[1, 2, 3]]))
    with pytest.raises(AcdcError, match="corrupted tokens of shape"):
        subject(torch.tensor([[1, 2, 3]]), corrupted_ids=torch.tensor([[1, 2]]))
    by_place = acdc.CircuitModel.of(model, make_prompts(), some_edges(model), ablation="mean-position")
    with pytest.raises(AcdcError, match="means by position are of 6 positions"):
        by_place(torch.ones(1, 7, dtype=torch.long))
    folder = subject.save(tmp_path / "m")
    with pytest.raises(AcdcError, match="are not those"):
        acdc.CircuitModel.load(folder, model=families.tiny("gpt2", torch.float64, seed=1))
    with pytest.raises(AcdcError, match=r"cannot be loaded by that name: give it with CircuitModel\.load"):
        acdc.load(str(folder))  # a model that was made in memory
    record = json.loads((folder / "circuit-model.json").read_text())
    for change, wrong in (
        ({"version": "2.0"}, "is of version '2.0'; .* reads 1.0"),
        ({"ablation": "zero"}, "no values"),
    ):
        (folder / "circuit-model.json").write_text(json.dumps(record | change))
        with pytest.raises(AcdcError, match=wrong):
            acdc.CircuitModel.load(folder, model=model)
    (folder / "circuit-model.json").write_text('{"format": "acdc-circuit-model"}')
    with pytest.raises(AcdcError, match="damaged"):
        acdc.CircuitModel.load(folder, model=model)


def test_a_model_goes_on_within_its_context_and_stays_in_its_dtype() -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    subject = acdc.CircuitModel.of(model, prompts, some_edges(model), ablation="zero")
    context = model.context_length
    assert context is not None
    with pytest.raises(AcdcError, match=rf"after 6 tokens the circuit can go on by {context - 5} tokens"):
        subject.generate(prompts.clean, max_new_tokens=context - 4)
    assert subject.generate(prompts.clean, max_new_tokens=context - 5).shape[1] == context + 1
    for change in (subject.half, lambda: subject.to(torch.bfloat16), lambda: subject.to("cpu")):
        with pytest.raises(AcdcError, match="stays in the dtype"):
            change()
    half = acdc.load(families.tiny("gpt2", torch.float32).module.to(torch.bfloat16))
    with pytest.raises(AcdcError, match=r"float32 or float64, and .* is in bfloat16"):
        save_checkpoint(half, prompts, whole_nodes(half, ("m0",)), "never", ablation="zero")


HOLDS = {  # families whose checkpoints hold a circuit of nodes, by ablation
    "gpt2": ("zero", "mean"),
    "gpt-neox-parallel": ("zero", "mean"),
    "llama": ("zero", "mean"),
    "mistral": ("zero",),
    "qwen2": ("zero",),
    "qwen3": ("zero",),
    "phi3": ("zero",),
    "gemma3": (),
    "olmo2": (),
}


@pytest.mark.parametrize("ablation", ["zero", "mean"])
@pytest.mark.parametrize("family", HOLDS)
def test_a_checkpoint_is_the_patched_model_or_is_refused(family: str, ablation: str, tmp_path: Path) -> None:
    model = families.tiny(family)
    prompts = make_prompts()
    circuit = whole_nodes(model, ("a0.h1", "m1", "a1.h0"))
    if ablation not in HOLDS[family]:
        with pytest.raises(AcdcError, match="CircuitModel runs any circuit"):
            save_checkpoint(model, prompts, circuit, tmp_path / "m", ablation=ablation)
        assert not (tmp_path / "m").exists()
        return
    before = acdc.engine.belonging.weights_digest(model)
    folder = save_checkpoint(model, prompts, circuit, tmp_path / "m", ablation=ablation)
    assert acdc.engine.belonging.weights_digest(model) == before
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = opened(input_ids=prompts.clean, use_cache=False).logits
    read = logits.gather(1, prompts.positions[..., None].expand(-1, -1, logits.shape[-1]))
    expected = patched(model, circuit, prompts, ablation)
    assert torch.allclose(read, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


def test_a_layer_of_a_parallel_model_may_lose_all_heads(tmp_path: Path) -> None:
    """Silent heads do not tell whether they stand beside the MLP or before it."""
    torch.manual_seed(0)
    config = transformers.GPTJConfig(
        vocab_size=families.VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=4, rotary_dim=4
    )
    model, prompts = acdc.load(transformers.GPTJForCausalLM(config).eval()), make_prompts()
    for missing in (("a0.h0", "a0.h1", "a0.h2", "a0.h3"), ("m1",)):
        circuit = whole_nodes(model, missing)
        folder = save_checkpoint(model, prompts, circuit, tmp_path / missing[0], ablation="zero")
        opened = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        with torch.no_grad():
            logits = opened(input_ids=prompts.clean, use_cache=False).logits
        read = logits.gather(1, prompts.positions[..., None].expand(-1, -1, logits.shape[-1]))
        assert torch.allclose(read, patched(model, circuit, prompts, "zero"), atol=1e-5)


def test_circuits_that_no_checkpoint_holds_are_refused(tmp_path: Path) -> None:
    model, prompts = tiny("gpt2"), make_prompts()
    for ablation in ("zero", "resample"):  # another ablation would not help
        with pytest.raises(AcdcError, match="single edges: find one with --units node"):
            save_checkpoint(model, prompts, some_edges(model), tmp_path / "m", ablation=ablation)
    with pytest.raises(AcdcError, match="differs from prompt to prompt"):
        save_checkpoint(model, prompts, whole_nodes(model, ("m0",)), tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_lists_are_of_the_models_own_names() -> None:
    model = tiny("gpt2")
    found = lists(model, whole_nodes(model, ("a0.h1", "m1")))
    assert found["heads_to_prune"] == {0: [1]}
    assert found["mlps"] == [layer for layer in range(model.n_layers) if layer != 1]
    names = dict(model.module.named_modules())
    assert set(found["target_modules"]) <= set(names)
    assert "transformer.h.0.mlp.c_proj" in found["target_modules"]
    assert "transformer.h.1.mlp" not in found["keep_in_high_precision"]


# ---- the command line -------------------------------------------------------------------------------------------


def test_run_shows_circuit_complement_and_model_side_by_side(command: Command) -> None:
    model, task = acdc.load("tiny-tasks"), acdc.tasks.load("ioi", size=8)
    data = task.prepare(model)
    circuit = acdc.score(model, data, "eap").top(100)
    made = circuit.provenance.having(task="ioi", task_options={"size": 8})
    Circuit(circuit.graph, circuit.edges, circuit.scores, made).save("run")
    prompts = data.discovery[:1]
    text, corrupted = (
        model.tokenizer.decode(rows[0, prompts.mask[0]]) for rows in (prompts.clean, prompts.corrupted)
    )
    shown = command("run", "run", text, "--corrupted", corrupted, "--json", "--generate", 2)
    assert shown.status == 0, shown.err
    found = json.loads(shown.out)
    logits = patched(model, circuit, prompts, "resample")[0, 0]
    assert found["circuit"]["probabilities"][0] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)
    assert found["model"]["kl"] == 0
    assert found["complement"]["kl"] > 0
    assert set(found["generated"]) == {"circuit", "full model"}
    assert found["generated"]["full model"].startswith(" ")  # goes on where the text ends
    assert found["corrupted"] == model.tokenizer.decode(
        prompts.corrupted[0, prompts.mask[0]], skip_special_tokens=True
    )
    assert "complement" in command("run", "run", text, "--top", 3).out
    assert "does not know part" in command("run", "run", text.replace(text.split()[1], "Zyx", 1)).err
    assert command("run", "run", text, "--corrupted", "one").status == 2
    assert command("run", "run", text, "--ablation", "zero", "--corrupted", text).status == 2
    assert command("run", "run", "").status == 2
    assert "no corrupted prompt" in command("run", "run", text + " and").err


def test_exports_that_take_the_model(command: Command) -> None:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=4, ablation="zero")
    circuit = whole_nodes(model, ("a0.h0",))
    made = acdc.Provenance(
        model="induction-2l", task="induction", task_options={"size": 4}, ablation="zero", seed=0
    )
    Circuit(circuit.graph, circuit.edges, None, made, "node").save("run")
    assert command("export", "run", "--to", "checkpoint", "-o", "out").status == 0
    transformers.AutoModelForCausalLM.from_pretrained("out")
    assert command("export", "run", "--to", "checkpoint", "-o", "out").status == 2  # it is there
    assert command("export", "run", "--to", "circuit-model", "-o", "wrapped").status == 0
    opened = acdc.load("wrapped")
    assert isinstance(opened, acdc.CircuitModel)
    tokens = acdc.tasks.load("induction", size=4).prepare(model).discovery.clean
    assert opened(tokens).equal(acdc.CircuitModel.of(model, task, circuit)(tokens))
    assert acdc.load("wrapped", dtype="float32").model.name == "induction-2l"
    with pytest.raises(AcdcError, match="on the disk has no revision"):
        acdc.load("wrapped", revision="main")
    with pytest.raises(AcdcError, match="expected a model"):
        acdc.discover(opened, task)
    refused = command("discover", "wrapped", "--task", "induction")
    assert refused.status == 2
    assert "is a circuit as a model, not a decoder" in refused.err
    assert json.loads(command("export", "run", "--to", "lists").out)["heads_to_prune"] == {"0": [0]}
    assert "say where with -o" in command("export", "run", "--to", "checkpoint").err
    assert (
        "differs from prompt"
        in command("export", "run", "--to", "checkpoint", "-o", "x", "--ablation", "resample").err
    )
    assert command("export", "run", "--to", "csv", "--ablation", "zero").status == 2
    assert task.name == "induction"


def test_what_a_circuit_cannot_run_is_refused() -> None:
    model, prompts = tiny("gpt2"), make_prompts(size=3)
    graph = model.graph()
    whole = acdc.CircuitModel.of(model, prompts, acdc.Circuit(graph, graph.valid), ablation="zero")
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(whole(ids, edges=acdc.Circuit(graph, graph.valid)), whole(ids))
    for given, expected in (
        ({"input_ids": ids + 10**6}, "expected tokens between 0 and"),
        ({"input_ids": -ids}, "expected tokens between 0 and"),
        ({"input_ids": ids, "corrupted_ids": ids}, "corrupted tokens are for resampling"),
        ({"input_ids": ids, "edges": np.ones((3, 3), bool)}, "expected edges of shape"),
    ):
        with pytest.raises(AcdcError, match=expected):
            whole(**given)
    with pytest.raises(AcdcError, match="a number of new tokens as a whole number"):
        whole.generate(ids, max_new_tokens=2.0)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(AcdcError, match="outside of it"):
        whole(ids)


def test_a_module_that_was_changed_makes_no_circuit_model() -> None:
    model, prompts = tiny("gpt2"), make_prompts(size=3)
    graph = model.graph()
    handle = model.module.transformer.h[0].mlp.register_forward_hook(lambda *x: x[2] * 2)
    with pytest.raises(AcdcError, match=r"changed|hook"):
        acdc.CircuitModel.of(model, prompts, acdc.Circuit(graph, graph.valid), ablation="zero")
    handle.remove()
