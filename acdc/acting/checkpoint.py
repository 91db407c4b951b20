"""A circuit of whole nodes as a checkpoint that any program opens: the model with the other nodes silenced.

A head that is left out has zeros where it is read out, an MLP writes nothing; under mean ablation what they write on
average (under optimal, their constant) goes into the bias, where the family has one there. That is exact, and it is
measured to be: the copy's logits are compared with those of the patched model before anything is written.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acdc.acting.circuit_model import CircuitModel, references_on_discovery
from acdc.engine.stages import stages_of
from acdc.errors import AcdcError, UnsupportedModelError
from acdc.graph import BoolArray, units_of
from acdc.model.bars import no_bars
from acdc.model.load import load
from acdc.model.model import Model
from acdc.store.folders import whole_folder
from acdc.tasks import as_dataset

if TYPE_CHECKING:
    from acdc.circuit import Circuit
    from acdc.tasks.prompts import Prompts
    from acdc.tasks.task import Dataset, Task

TOLERANCE = 1e-5
"""How far logits may be from the patched model's, as a share of the largest."""
_INSTEAD = "acdc.CircuitModel runs any circuit of any model"


def nodes_of(circuit: Circuit) -> BoolArray:
    """`[n_sources]`: the nodes that a circuit keeps whole.

    Raises:
        AcdcError: it keeps some of a node's edges and not others.
    """
    graph, nodes = circuit.graph, units_of(circuit.graph, "node")
    kept = np.asarray(nodes.of_edges(circuit.edges))
    if (graph.prune(nodes.mask(kept)) != graph.prune(circuit.edges)).any():
        raise AcdcError(
            f"a checkpoint holds whole nodes, and this circuit has {circuit.n_edges} single edges: find one with "
            f"--units node; {_INSTEAD}"
        )
    return kept


def silenced(
    model: Model, task: Task | Dataset | Prompts, circuit: Circuit, *, ablation: str | None = None
) -> Model:
    """A copy of the model in which all nodes outside the circuit write their reference.

    Args:
        ablation: "zero", "mean" or "optimal"; None: the one that the circuit was found with.

    Raises:
        AcdcError: the circuit is not of whole nodes, the ablation depends on the prompt, the family cannot hold it, or
            the copy's logits are not those of the patched model; the model is in half precision, in which they
            cannot be compared.
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise AcdcError(
            f"a checkpoint is made and compared in float32 or float64, and {model.name} is in "
            f"{str(model.dtype).removeprefix('torch.')}: load it with dtype='float32', and cast the checkpoint"
        )
    kept, graph = nodes_of(circuit), circuit.graph
    dataset = as_dataset(task, model, ablation=ablation or circuit.provenance.ablation or None)
    if dataset.ablation not in ("zero", "mean", "optimal"):
        raise AcdcError(
            f"removed edges carry {dataset.ablation!r}, which differs from prompt to prompt or place to place, and a "
            f"checkpoint holds zero, mean or optimal constants (--ablation mean); {_INSTEAD}"
        )
    if not kept[: graph.n_inputs].all():
        raise AcdcError(f"the circuit leaves an input out, which no checkpoint can hold; {_INSTEAD}")
    if model.program is not None or any(layer.mixer is not None for layer in model.decomposition.layers):
        raise AcdcError(f"{model.name} is no decoder of heads and MLPs that transformers opens; {_INSTEAD}")
    with torch.no_grad():
        references = references_on_discovery(model, dataset, circuit)
        module = copy.deepcopy(model.module)
        made = load(module, tokenizer=model.tokenizer)
        for stage, reference in zip(stages_of(model, graph), references.outputs, strict=True):
            sources = stage.sublayer.outputs
            gone = np.flatnonzero(~kept[sources])
            if not len(gone):
                continue
            written = stage.write(reference[torch.as_tensor(gone)], gone)[:, 0, 0, 0].sum(0)  # [D]
            layer = made.decomposition.layers[stage.sublayer.layer]
            if stage.place == "attention":
                _silence_heads(layer.attention, gone, written, stage.sublayer.layer, bool(written.any()))
            else:
                _silence_mlp(layer.parts.mlp, written, stage.sublayer.layer, bool(written.any()))
    with contextlib.suppress(UnsupportedModelError):  # what is silent may leave open where it stands
        made = load(module, tokenizer=model.tokenizer)
    _compare(made, CircuitModel(model, circuit, dataset.ablation, references, []), dataset)
    return made


def _silence_heads(attention: Any, heads: Any, written: torch.Tensor, layer: int, mean: bool) -> None:
    if attention.post_norm is not None or attention.z_norm is not None:
        raise AcdcError(
            f"layer {layer} normalises the sum of its heads, so that none can be left out alone; {_INSTEAD}"
        )
    if mean and attention.b_o is None:
        raise AcdcError(f"layer {layer} has no bias after its heads to hold their mean: take zeros; {_INSTEAD}")
    for head in heads:
        attention.w_o[int(head)].zero_()
    if mean:
        attention.b_o.add_(written / attention.multiplier)


def _silence_mlp(mlp: torch.nn.Module, written: torch.Tensor, layer: int, mean: bool) -> None:
    last = [part for part in mlp.modules() if isinstance(getattr(part, "weight", None), torch.nn.Parameter)]
    linear = last[-1] if last else None
    for name in ("down_proj", "c_proj", "dense_4h_to_h", "fc2", "fc_out", "w2", "wo", "dense"):
        found = [part for path, part in mlp.named_modules() if path == name]
        linear = found[0] if found else linear
        if found:
            break
    weight: Any = getattr(linear, "weight", None)
    bias: Any = getattr(linear, "bias", None)
    if weight is None or weight.dim() != 2:
        raise AcdcError(f"the MLP of layer {layer} does not end in one matrix; {_INSTEAD}")
    if mean and bias is None:
        raise AcdcError(f"the MLP of layer {layer} has no bias to hold its mean: take zeros; {_INSTEAD}")
    weight.data.zero_()
    if bias is not None:
        bias.data.copy_(written)


@torch.no_grad()
def _compare(made: Model, patched: CircuitModel, dataset: Dataset) -> None:
    """Refuse a copy whose logits are not the patched model's, on up to eight prompts."""
    prompts = dataset.discovery
    for row, real in list(zip(prompts.clean, prompts.mask, strict=True))[:8]:
        tokens = row[real][None]
        ours = patched(tokens)
        theirs = made.plain_logits(tokens, torch.ones_like(tokens, dtype=torch.bool))
        error = float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))
        if not error <= TOLERANCE:
            raise AcdcError(
                f"a checkpoint of {made.name} would differ from the patched model by {error:.1e} of the logits' scale, "
                f"so its family cannot hold this circuit; {_INSTEAD}"
            )


def save_checkpoint(
    model: Model,
    task: Task | Dataset | Prompts,
    circuit: Circuit,
    folder: str | Path,
    *,
    ablation: str | None = None,
    force: bool = False,
) -> Path:
    """Write `silenced` as a folder that `from_pretrained` opens, tokenizer included; arguments as there.

    Raises:
        AcdcError: as `silenced`, or something is there already and `force` is off.
    """
    made = silenced(model, task, circuit, ablation=ablation)
    module: Any = made.module
    with whole_folder(folder, force=force) as place, no_bars():
        module.save_pretrained(place)
        if hasattr(made.tokenizer, "save_pretrained"):
            made.tokenizer.save_pretrained(place)
    return Path(folder)
