"""Train the built-in model `induction-2l`: a 2-layer GPT-2 that completes repeated random sequences.

The data leave one way to do the job. A block of distinct random tokens is repeated once, at a random place, after a
random gap, with a random length, so neither positions nor token statistics tell the next token: the model has to
find the earlier copy of the current token and copy what came after it. With two layers that takes a previous-token
head whose output an induction head reads through its keys. A penalty on the heads, switched on once they have found
their roles, silences those that are not needed.

    python -m acdc.benchmarks.training.train_induction
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from acdc.model.load import BUILTIN

BOS = 0
DESCRIPTION = (
    "GPT-2 architecture, 2 layers of 4 heads, trained on repeated random sequences until it does induction"
)


def repeated_blocks(
    n_prompts: int, *, vocabulary_size: int, context_length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Sequences `filler, block, gap, block, filler`, half of them after a BOS token.

    Returns:
        tokens `[B, T]`, and a mask `[B, T]` that is True where the next token follows from the first copy.
    """

    def uniform(low: int | Tensor, high: int | Tensor) -> Tensor:
        """Integers `[B, 1]` between low and high, both included."""
        return low + (torch.rand(n_prompts, 1, generator=generator) * (high - low + 1)).long()

    b, t = n_prompts, context_length
    block = uniform(2, t // 2 - 1)  # length
    gap = uniform(0, (t - 1 - 2 * block).clamp(max=t // 4)) * uniform(0, 1)
    start = uniform(1, t - 2 * block - gap)
    # The block is the first tokens of a permutation of the vocabulary without BOS; fillers are any of the others.
    permutation = 1 + torch.rand(b, vocabulary_size - 1, generator=generator).argsort(dim=1)  # [B, vocabulary - 1]
    filler = block + (torch.rand(b, t, generator=generator) * (vocabulary_size - 1 - block)).long()
    position = torch.arange(t)
    first, second = position - start, position - start - block - gap  # [B, T] place in each copy
    in_first, in_second = (first >= 0) & (first < block), (second >= 0) & (second < block)
    index = torch.where(in_first, first, torch.where(in_second, second, filler))
    tokens = permutation.gather(1, index)
    tokens[::2, 0] = BOS
    return tokens, (second >= 0) & (second < block - 1)


def repeat_accuracy(model: GPT2LMHeadModel, tokens: Tensor, predictable: Tensor) -> float:
    """Fraction of the predictable next tokens that are the model's first choice."""
    with torch.no_grad():
        guess = model(input_ids=tokens, use_cache=False).logits.argmax(-1)  # [B, T]
    return float((guess[:, :-1] == tokens[:, 1:])[predictable[:, :-1]].float().mean())


def attention_to(model: GPT2LMHeadModel, tokens: Tensor, predictable: Tensor) -> dict[str, list[list[float]]]:
    """Mean attention of each head, `[layer][head]`: to the token before, and to what followed the first copy."""
    earlier = (tokens[:, :, None] == tokens[:, None, :]).tril(-1)  # [B, T, T] the first copy of the current token
    followed = earlier.roll(1, dims=-1)  # [B, T, T] the place after it
    model.set_attn_implementation("eager")
    with torch.no_grad():
        patterns = model(
            input_ids=tokens, output_attentions=True, use_cache=False
        ).attentions  # layers of [B, H, T, T]
    previous = [pattern.diagonal(-1, dim1=-2, dim2=-1).mean(dim=(0, 2)) for pattern in patterns]
    induction = [
        (pattern * followed[:, None]).sum(-1).movedim(1, 0)[:, predictable].mean(1) for pattern in patterns
    ]
    return {
        name: [[round(value, 3) for value in heads.tolist()] for heads in layers]
        for name, layers in (("previous token", previous), ("after the earlier copy", induction))
    }


def head_norms(model: GPT2LMHeadModel) -> Tensor:
    """`[layer, head]`: norm of each head's output weights. As a penalty, their sum lets idle heads die."""
    layers: list[Any] = [block.attn for block in model.transformer.h]
    weights = torch.stack([attn.c_proj.weight.view(attn.num_heads, -1) for attn in layers])  # [L, H, d_head * D]
    return weights.norm(dim=-1)


def train(
    *,
    seed: int = 0,
    steps: int = 2400,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    head_penalty: float = 0.01,
    vocabulary_size: int = 96,
    context_length: int = 64,
    d_model: int = 96,
    n_heads: int = 4,
    report_every: int = 100,
) -> tuple[GPT2LMHeadModel, dict[str, object]]:
    """Train a model; the same seed gives the same model on the same machine.

    Returns:
        the model, and a record of the settings, the curve and what the heads attend to.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    settings: dict[str, Any] = {
        "vocab_size": vocabulary_size, "n_positions": context_length, "n_embd": d_model, "n_layer": 2,
        "n_head": n_heads, "n_inner": d_model, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
        "bos_token_id": BOS, "eos_token_id": None, "tie_word_embeddings": False,
        "description": DESCRIPTION,
    }  # fmt: skip
    model = GPT2LMHeadModel(GPT2Config(**settings))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)

    def sample(n_prompts: int) -> tuple[Tensor, Tensor]:
        return repeated_blocks(
            n_prompts, vocabulary_size=vocabulary_size, context_length=context_length, generator=generator
        )

    held_out = sample(512)
    curve = []
    started = time.perf_counter()
    for step in range(1, steps + 1):
        tokens, predictable = sample(batch_size)
        logits = model(input_ids=tokens, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1][predictable[:, :-1]], tokens[:, 1:][predictable[:, :-1]]
        )
        optimizer.zero_grad()
        pressure = head_penalty * min(1.0, max(0.0, 4 * step / steps - 1))  # from a quarter to half of the steps
        (loss + pressure * head_norms(model).sum()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        if step % report_every == 0 or step == steps:
            accuracy = repeat_accuracy(model, *held_out)
            curve.append({"step": step, "loss": round(float(loss.detach()), 5), "accuracy": round(accuracy, 5)})
            seconds = time.perf_counter() - started
            print(f"step {step:5d}  loss {float(loss.detach()):.4f}  accuracy {accuracy:.4f}  {seconds:.0f} s")
    record: dict[str, object] = {
        "seed": seed, "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate,
        "weight_decay": weight_decay, "head_penalty": head_penalty,
        "accuracy": repeat_accuracy(model, *sample(2048)),
        "head_norms": [[round(norm, 3) for norm in layer] for layer in head_norms(model).tolist()],
        "attention": attention_to(model, *sample(256)), "curve": curve,
    }  # fmt: skip
    return model.eval(), record


def main(
    out: Annotated[Path, typer.Option(help="Folder to write.")] = BUILTIN / "induction-2l",
    seed: int = 0,
    steps: int = 2400,
) -> None:
    """Train, print the curve, and save with save_pretrained; training.json beside it holds the record."""
    torch.set_num_threads(1)
    model, record = train(seed=seed, steps=steps)
    print(f"accuracy {record['accuracy']:.4f}")
    for name, heads in record["attention"].items():  # type: ignore[attr-defined]
        print(f"attention to {name}: {heads}")
    if float(record["accuracy"]) < 0.99:  # type: ignore[arg-type]
        raise SystemExit("not saved: expected an accuracy above 0.99 on the repeat; try more steps or another seed")
    model.save_pretrained(out)
    (out / "training.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
