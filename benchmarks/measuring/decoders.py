"""Which decoders can be read: every causal type of the installed `transformers`, from a tiny random configuration.

A type counts as read only if what was read is right by more than acdc's own comparison on loading: in float64, on
prompts with padding on either side, on prompts longer than every window, and with gradients that are the plain
module's, by autograd and by finite differences. `python -m acdc.benchmarks.measuring.decoders` writes docs/models.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

import acdc
from acdc.benchmarks.measuring.tiny_decoders import causal_types, tiny_decoder
from acdc.errors import AcdcError
from acdc.model import forward
from acdc.model.load import load
from acdc.model.model import Model
from acdc.model.trace import whole_run
from acdc.store.writing import write_atomically

PAGE = Path(acdc.__file__).resolve().parents[1] / "docs" / "models.md"

_IN_FLOAT32 = ("xglm", "inkling2_text")
"""Types whose class cannot be run in float64."""

_FINITE = 5e-3
"""How far a finite difference may be from the derivative, of its scale."""

_STEPS = (1e-2, 1e-3, 1e-4, 1e-5)
"""Steps of finite differences, of which the best counts: large ones bend, and with small ones what norms and softmaxes
compute in float32 drowns the difference."""

_LONG = 24
"""Tokens of the longest prompt: more than every window of the tiny configurations, and than two of their chunks."""


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of a type.

    Attributes:
        outcome: "read"; "refused" by acdc; "wrong": it was read and is not right; "not built": there is no tiny one.
        says: how it computes, where it was read; else why not.
    """

    kind: str
    outcome: Literal["read", "refused", "wrong", "not built"]
    says: str


def judge(kind: str) -> Verdict:
    """Build, read and judge one type."""
    try:
        module = tiny_decoder(kind, dtype=torch.float32 if kind in _IN_FLOAT32 else torch.float64)
    except AcdcError as error:
        return Verdict(kind, "not built", str(error).partition(": ")[2])
    try:
        model = load(module)
    except AcdcError as error:
        reason = str(error).replace(f"{type(module).__name__}: ", "", 1)
        return Verdict(kind, "refused", reason)
    wrong = faults(model) + _faults_of_folder(module, model)
    return Verdict(kind, "wrong" if wrong else "read", "; ".join(wrong) if wrong else mechanisms(model))


# ---- is it right? -------------------------------------------------------------------------------------------------


def faults(model: Model) -> list[str]:
    """What is not as in the plain module, in words."""
    generator = torch.Generator().manual_seed(11)
    size = min(59, model.input_vocabulary_size)
    limit = min(_LONG, model.context_length or _LONG)
    short, long = (torch.randint(1, size, (2, T), generator=generator) for T in (7, limit))
    checks = {
        "without padding": _differs(model, short, torch.ones_like(short).bool()),
        "with padding on the left": _differs(model, short, torch.tensor([[0] * 3 + [1] * 4, [1] * 7]).bool()),
        "with padding on the right": _differs(model, short, torch.tensor([[1] * 4 + [0] * 3, [1] * 7]).bool()),
        "on long prompts": _differs(model, long, torch.ones_like(long).bool()),
    }
    checks["in a gradient"], finite = _gradients_differ(model, short)
    bound = 1e-3 if model.dtype == torch.float32 else 2e-6
    wrong = [f"differs {where} by {by:.1e}" for where, by in checks.items() if not by <= bound]
    return wrong if finite <= _FINITE else [*wrong, f"differs from a finite difference by {finite:.1e}"]


@torch.no_grad()
def _faults_of_folder(module: Any, model: Model) -> list[str]:
    """What differs when the module is saved and loaded again in float32; nothing where transformers cannot either."""
    token_ids = torch.arange(1, 8)[None]
    mask = torch.ones_like(token_ids).bool()
    with TemporaryDirectory() as folder:
        module.save_pretrained(folder)
        try:
            again = load(folder)
        except AcdcError as error:
            try:
                transformers.AutoModelForCausalLM.from_pretrained(folder)
            except Exception:  # whatever it stumbles over
                return []
            return [f"is not read from a folder: {error}"]
    here = model.plain_logits(token_ids, mask)
    by = float((again.plain_logits(token_ids, mask) - here).abs().max() / here.abs().max())
    return [f"differs by {by:.1e} from a folder"] if not by <= 1e-3 else []


@torch.no_grad()
def _differs(model: Model, token_ids: Tensor, mask: Tensor) -> float:
    """Largest difference of the logits at real tokens, of their scale, from those of each prompt alone."""
    ours = model.decomposed_logits(token_ids, mask)
    worst = 0.0
    for row in range(len(token_ids)):
        real = mask[row].nonzero().flatten()
        alone = token_ids[row : row + 1, real]
        theirs = model.plain_logits(alone, torch.ones_like(alone).bool())[0]
        worst = max(worst, float((ours[row, real] - theirs).abs().max() / theirs.abs().max()))
    return worst


def _gradients_differ(model: Model, token_ids: Tensor) -> tuple[float, float]:
    """Differences of a directional derivative from that of the plain module, of its scale.

    By autograd, and by a finite difference (0 where there are experts: a router's choice is a step).
    The output is a random sum of logits; the stream before the first block is what is changed.
    """
    generator = torch.Generator().manual_seed(5)
    mask = torch.ones_like(token_ids).bool()
    everywhere = torch.arange(token_ids.shape[1]).expand_as(token_ids)
    context = forward.make_context(model.decomposition, token_ids, mask, None, read=everywhere)
    with torch.no_grad():
        x = torch.stack(forward.embed(model.decomposition, context)).sum(0)
    direction = torch.randn(x.shape[1:], generator=generator).to(x)
    weights = torch.randn(*token_ids.shape, model.vocabulary_size, generator=generator).to(x)
    with model.frozen(), torch.enable_grad():
        start = x.clone().requires_grad_()
        final = whole_run(model.decomposition, context, start).final_input
        assert final is not None
        value = (forward.readout(model.decomposition, final[0]) * weights).sum()
        (gradient,) = torch.autograd.grad(value, start)
        step = torch.zeros((), dtype=x.dtype, requires_grad=True)
        value = (_shifted(model, token_ids, mask, step * direction) * weights).sum()
        (theirs,) = torch.autograd.grad(value, step)
    ours = float((gradient[0] * direction).sum())
    size = float(gradient.norm() * direction.norm() / direction.numel() ** 0.5)
    if _has_experts(model):
        return abs(ours - float(theirs)) / size, 0.0
    finite = min(abs(ours - _slope(model, token_ids, mask, direction, weights, h)) for h in _STEPS)
    return abs(ours - float(theirs)) / size, finite / size


@torch.no_grad()
def _slope(model: Model, token_ids: Tensor, mask: Tensor, direction: Tensor, weights: Tensor, step: float) -> float:
    """The plain module's finite difference."""
    values = [float((_shifted(model, token_ids, mask, h * direction) * weights).sum()) for h in (step, -step)]
    return (values[0] - values[1]) / (2 * step)


def _has_experts(model: Model) -> bool:
    return any(re.search("expert|moe", type(part).__name__.lower()) for part in model.module.modules())


def _shifted(model: Model, token_ids: Tensor, mask: Tensor, by: Tensor) -> Tensor:
    """The plain logits when something is added to the stream before the first block."""
    block = model.decomposition.layers[0].parts.block

    def add(part: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return (args[0] + by, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": kwargs["hidden_states"] + by}

    handle = block.register_forward_pre_hook(add, with_kwargs=True)
    try:
        return model.plain_logits(token_ids, mask)
    finally:
        handle.remove()


# ---- in words -----------------------------------------------------------------------------------------------------


def mechanisms(model: Model) -> str:
    """How a model computes, as far as decoders differ in it."""
    decomposition = model.decomposition
    attentions = decomposition.attentions
    first = attentions[0]
    norms = [a.norm for a in attentions if a.norm is not None]
    parts = {
        "parallel blocks": decomposition.parallel,
        "no norm before attention": not norms,
        "LayerNorm": any(norm.centred for norm in norms),
        "post-norms": any(a.post_norm for a in attentions),
        "learned positions": decomposition.position_embedding is not None,
        "ALiBi": any(a.slopes is not None for a in attentions),
        "rotary": any(a.rotary and not a.rotary.interleaved for a in attentions),
        "interleaved rotary": any(a.rotary and a.rotary.interleaved for a in attentions),
        "layers without positions": decomposition.rotary is not None and any(a.rotary is None for a in attentions),
        "latent attention": first.k.latent is not None,
        "grouped queries": first.k.latent is None and first.k.n_heads < first.n_heads,
        "q/k norms": any(a.q.norm is not None and not a.q.norm_after_rotary for a in attentions),
        "q/k norms after the rotation": any(a.q.norm_after_rotary for a in attentions),
        "value norms": any(a.v.norm is not None for a in attentions),
        "clipped projections": first.q.clip is not None,
        "windows": any(a.window for a in attentions),
        "chunks": any(a.chunk for a in attentions),
        "sees later tokens": not all(a.causal for a in attentions),
        "attention caps": any(a.softcap for a in attentions),
        "sinks": any(a.sinks is not None for a in attentions),
        "output gates": any(a.gate for a in attentions),
        "mixers": len(attentions) < len(decomposition.layers),
        "norm before the output matrix": any(a.z_norm for a in attentions),
        "residual multipliers": any(a.multiplier != 1 for a in attentions),
        "experts": _has_experts(model),
        "logit multiplier": decomposition.logit_scale != 1,
        "logit cap": decomposition.final_softcap is not None,
    }
    return ", ".join(name for name, there in parts.items() if there)


def page(verdicts: Iterable[Verdict]) -> str:
    """docs/models.md."""
    found = list(verdicts)
    by = {name: [v for v in found if v.outcome == name] for name in ("read", "refused", "wrong", "not built")}
    built = len(found) - len(by["not built"])
    lines = [
        "# Which models",
        "",
        f"Of the {len(found)} causal types of transformers {transformers.__version__}, {built} can be built here from "
        f"a tiny random configuration. {len(by['read'])} of these are read and right, {len(by['refused'])} are "
        f"refused, and {len(by['wrong'])} are wrong. "
        "Made by `python -m acdc.benchmarks.measuring.decoders`; a test compares it.",
        "",
        _INTRODUCTION,
        "## Read",
        "",
        "| type | how it computes |",
        "|---|---|",
        *(f"| `{v.kind}` | {v.says} |" for v in by["read"]),
        "",
        "## Refused",
        "",
        "| type | why |",
        "|---|---|",
        *(f"| `{v.kind}` | {_cell(v.says)} |" for v in (*by["refused"], *by["wrong"])),
        "",
        "## Not built",
        "",
        "| type | why |",
        "|---|---|",
        *(f"| `{v.kind}` | {_cell(v.says)} |" for v in by["not built"]),
        "",
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


_INTRODUCTION = """\
A type is no promise for every checkpoint of it: what counts is the module. Each model is read by watching plain runs of
it, and then compared with itself: when it is loaded, on random tokens (without padding, padded on either side, and
longer than its windows if these are under 512 tokens), and again on the prompts of every measurement. Here, in float64,
it must also be right on prompts with padding on the left, on prompts longer than every window, and in its gradients;
and saved to a folder and loaded from it in float32, where transformers can, it must give the same logits.

## What is a node

| node | what it is |
|---|---|
| `input` | what the first block reads; with `--inputs split`, `input.token` and `input.position` apart |
| `a3.h2` | a head, with what it reads for its query, key and value (`a3.h2<q>`, `<k>`, `<v>`) |
| `x3` | what mixes positions in a layer without heads (a state space, linear attention, a convolution), as one node |
| `m3` | what else a block writes: an MLP; a mixture of experts with its router and shared experts is one node |
| `logits` | the final norm and the unembedding |

## What a model does not define, and what is done

- **Grouped queries.** Every query head has a key and a value destination of its own, computed with the weights of its
  group. A norm over all key heads at once (OLMo-2, MiniMax-M2) is then computed for each set of copies apart: the
  first copies of all groups are one set, the second another. All copies equal, this is the model's own norm.
- **Norms over all heads** (q/k norms of OLMo-2, BitNet's norm of what the heads attended to, post-norms of Gemma and
  OLMo-2). In a circuit run they are computed from what the heads are in that run. What one head writes is its share:
  the scale of the whole is applied to each, so that heads sum to what the layer writes.
- **Output gates.** A gate is computed from what its head reads for its query, and belongs to that destination.
- **Latent attention** (DeepSeek). Each head's key and value destination reads through its own copy of the latent, with
  its norm; the rotated part of the key, which heads share, belongs to each head's key.
- **Attention sinks** take their share of each query's attention and write nothing. They are no nodes.
- **Biases** that belong to no head, and those of norms, are constants: they are always there.
- **Sparse attention** by an index (DeepSeek-V3.2, GLM with DSA) is read as attention to all tokens, which it is up to
  the number of tokens that the index picks; longer prompts are refused when they are compared.
- **The decoder half of an encoder-decoder** is refused, since it is not run as it was made to be.
"""


def verdicts(kinds: Iterable[str]) -> Iterator[Verdict]:
    for kind in kinds:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield judge(kind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", help="types to judge and print; none: all, and write the page")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    found = []
    for verdict in verdicts(given.kinds or causal_types()):
        print(f"{verdict.kind}: {verdict.outcome} ({verdict.says})", flush=True)
        found.append(verdict)
    if not given.kinds:
        write_atomically(given.output, page(found))


if __name__ == "__main__":
    main()
