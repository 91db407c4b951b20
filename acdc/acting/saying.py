"""What a circuit, all that is outside of it, and the full model say on a text: the likeliest next tokens of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from acdc.acting.circuit_model import CircuitModel
from acdc.errors import AcdcError
from acdc.inspection.runs import output_texts
from acdc.tasks.tokenise import Encoder


@dataclasses.dataclass(frozen=True)
class Said:
    """The likeliest next tokens: texts and probabilities, the likeliest first, and how far from the full model's.

    Attributes:
        kl: divergence of the whole distribution from the full model's, in nats.
    """

    tokens: tuple[str, ...]
    probabilities: tuple[float, ...]
    kl: float


@dataclasses.dataclass(frozen=True)
class Sayings:
    """What is said after a text.

    Attributes:
        text: the prompt; corrupted: what was resampled from, "" with another ablation.
        circuit, complement, model: of the circuit, of all edges outside it, and of the full model.
    """

    text: str
    corrupted: str
    circuit: Said
    complement: Said
    model: Said


@torch.no_grad()
def say(circuit: CircuitModel, text: str, *, corrupted: str | None = None, top: int = 10) -> Sayings:
    """What a circuit, its complement and the full model say after a text.

    Args:
        corrupted: what edges that are left out are resampled from, of as many tokens; None: a corrupted prompt of the
            task. Only with the ablation "resample".
        top: how many tokens.

    Raises:
        AcdcError: the model has no tokenizer, or the two texts have different numbers of tokens.
    """
    model, graph = circuit.model, circuit.circuit.graph
    if top < 1:
        raise AcdcError(f"expected at least 1 token to show, got {top}")
    if corrupted is not None and circuit.ablation != "resample":
        raise AcdcError(f"a corrupted text is for resampling, and removed edges carry {circuit.ablation} here")
    ids, other = _tokens(circuit, text), None
    if corrupted is not None:
        other = _tokens(circuit, corrupted)
        if len(other) != len(ids):
            raise AcdcError(
                f"the text has {len(ids)} tokens and the corrupted one {len(other)}; expected equally many, position "
                "by position"
            )
    elif circuit.ablation == "resample":
        other = circuit.donor(len(ids)).tolist()
    rows = torch.tensor([ids])
    donor = None if other is None else torch.tensor([other])
    masks = {
        "circuit": circuit.circuit.edges,
        "complement": graph.valid & ~circuit.circuit.edges,
        "model": graph.valid,
    }
    logits = {
        name: circuit(rows, corrupted_ids=donor, edges=edges)[0, -1].double() for name, edges in masks.items()
    }
    full = logits["model"].log_softmax(-1)
    said = {name: _said(x, full, min(top, len(x)), output_texts(model)) for name, x in logits.items()}
    return Sayings(text, "" if other is None else _written(circuit, other, special=False), **said)


@torch.no_grad()
def go_on(circuit: CircuitModel, text: str, tokens: int, *, corrupted: str | None = None) -> dict[str, str]:
    """What the circuit and the full model go on with, the likeliest token each time; arguments as for `say`."""
    ids = torch.tensor([_tokens(circuit, text)])
    donor = None if corrupted is None else torch.tensor([_tokens(circuit, corrupted)])
    found = {}
    for name, edges in (("circuit", circuit.circuit.edges), ("full model", circuit.circuit.graph.valid)):
        whole = circuit.generate(ids, corrupted_ids=donor, max_new_tokens=tokens, edges=edges)
        found[name] = _written(circuit, whole[0].tolist(), after=ids[0].tolist())
    return found


def _said(logits: Tensor, full: Tensor, top: int, text: Any) -> Said:
    own = logits.log_softmax(-1)
    values, tokens = own.exp().topk(top)
    kl = float((full.exp() * (full - own)).sum())
    return Said(tuple(text(int(t)) for t in tokens), tuple(values.tolist()), max(0.0, kl))


def _tokens(circuit: CircuitModel, text: str) -> list[int]:
    model = circuit.model
    if model.tokenizer is None:
        try:  # token ids, for models that have no words
            found = [int(part) for part in text.split()]
        except ValueError:
            raise AcdcError(
                f"{model.name} has no tokenizer: give token ids, parted by spaces, not {text!r:.40}"
            ) from None
    else:
        found = list(Encoder(model).encode([text])[0])
    size = getattr(model, "input_vocabulary_size", model.vocabulary_size)
    if not found or not all(0 <= token < size for token in found):
        raise AcdcError(f"expected a text of at least one token, all below {size}, got {text!r:.40}")
    return found


def _written(
    circuit: CircuitModel, tokens: Sequence[int], *, after: Sequence[int] = (), special: bool = True
) -> str:
    """Tokens as the text that they are, or what of it comes after some of them."""
    tokenizer = circuit.model.tokenizer
    if tokenizer is None:
        return " ".join(map(str, tokens[len(after) :]))
    whole, start = (str(tokenizer.decode(list(ids), skip_special_tokens=not special)) for ids in (tokens, after))
    if after and whole.startswith(start):
        return whole[len(start) :]
    return str(tokenizer.decode(list(tokens[len(after) :]), skip_special_tokens=not special)) if after else whole
