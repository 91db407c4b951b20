"""Train the built-in models `tiny-tasks` (GPT-2 architecture) and `tiny-tasks-gqa` (Qwen2 architecture).

Models of less than a million parameters that do seven tasks people study circuits of, on text: every line of
`acdc.benchmarks.training.tiny_corpus` counts by its predictable words, and a little by all others. How well they do
is measured on lines whose names, templates and combinations are held out. Training goes on from its resume file if it
was cut off, as if it had not been.

    python -m acdc.benchmarks.training.train_tiny_tasks tiny-tasks
"""

from __future__ import annotations

import dataclasses
import json
import math
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from acdc.benchmarks.training.tiny_corpus import (
    ARROW,
    TASKS,
    WORD,
    Line,
    induction_line,
    linked_line,
    never_held_out,
    plain_line,
    vocabulary,
)
from acdc.errors import unknown
from acdc.model.load import BUILTIN
from acdc.store.writing import write_atomically

SPECIAL = {"unk_token": "<unk>", "bos_token": "<s>", "pad_token": "<pad>"}
CONTEXT = 64


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a model is trained on.

    The first three are enough with rotary positions, which tell how far away a word is. With learned ones it is easier
    to learn by heart which word stands at which place of which template; the others keep a model from that.

    Attributes:
        steps: of the optimizer.
        shares: lines of each kind among the lines of the corpus.
        background: weight of the words that cannot be told.
        induction_steps: first steps on nothing but induction with few words, every word known. Heads learn late to
            look a fixed number of words back; induction alone teaches it soon, and the other tasks use it.
        shifted: each line begins at a random position, so that a word's place means nothing.
        misread: share of the words that are read as others, so that no single word gives a template away. It grows
            from none to this; the others are drawn from those that no task holds out.
    """

    steps: int
    shares: dict[str, int]
    background: float = 0.1
    induction_steps: int = 0
    shifted: bool = False
    misread: float = 0.0

    def record(self) -> dict[str, Any]:
        """The settings, without those that are off."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value}


RECIPES = {
    "tiny-tasks": Recipe(
        steps=5000,
        shares={
            "ioi": 4, "greater-than": 4, "gendered-pronoun": 2, "sva": 2, "linked": 2, "docstring": 2, "induction": 5,
            "fact-recall": 2, "plain": 4,
        },
        background=0.02,
        induction_steps=800,
        shifted=True,
        misread=0.1,
    ),
    "tiny-tasks-gqa": Recipe(
        steps=2200,
        shares={
            "ioi": 4, "greater-than": 2, "gendered-pronoun": 1, "sva": 2, "docstring": 2, "induction": 6,
            "fact-recall": 2, "plain": 4,
        },
    ),
}  # fmt: skip


MODELS = tuple(RECIPES)


# ---- model and tokenizer ----------------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Words, two-digit numbers and punctuation marks, after a BOS token."""
    words = {word: i for i, word in enumerate((*SPECIAL.values(), *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token=SPECIAL["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD.pattern), behavior="isolated")]
    )
    bos = SPECIAL["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, words[bos])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=CONTEXT, **SPECIAL)


def waves(n_positions: int, width: int) -> Tensor:
    """Orthogonal position embeddings `[T, D]` of size 1, made of waves: to look at the word before is one rotation."""
    angles = torch.arange(n_positions)[:, None] * math.pi * (torch.arange(width // 2) + 0.5) / (width // 2)
    return torch.cat((angles.sin(), angles.cos()), dim=1) * math.sqrt(2)


def make_model(name: str, vocabulary_size: int) -> PreTrainedModel:
    """An untrained model."""
    if name not in MODELS:
        raise unknown("model to train", name, MODELS)
    kind = "Qwen2 architecture, 4 layers of 4 heads in 2 groups" if name.endswith("gqa") else (
        "GPT-2 architecture, 4 layers of 4 heads"
    )  # fmt: skip
    common: dict[str, Any] = {
        "vocab_size": vocabulary_size, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": None,
        "tie_word_embeddings": True, "description": f"{kind}, trained on seven tasks: {', '.join(TASKS)}",
    }  # fmt: skip
    if name == "tiny-tasks":
        config = GPT2Config(
            **common, n_layer=4, n_embd=128, n_head=4, n_inner=256, n_positions=CONTEXT, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.08,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
        with torch.no_grad():
            model.transformer.wpe.weight.copy_(config.initializer_range * waves(CONTEXT, 128))
        return model
    return Qwen2ForCausalLM(
        Qwen2Config(
            **common, num_hidden_layers=4, hidden_size=128, num_attention_heads=4, num_key_value_heads=2,
            intermediate_size=208, max_position_embeddings=CONTEXT,
        )
    )  # fmt: skip


# ---- lines as tensors -------------------------------------------------------------------------------------------


LEAST_ACCURACY = 0.95
"""At each task, on held-out lines, for a model to be saved."""


def draw(rng: random.Random, count: int, shares: Mapping[str, int]) -> list[Line]:
    """Lines of the corpus, of all tasks and plain ones."""
    kinds = {**TASKS, "linked": linked_line, "plain": plain_line}
    chosen = rng.choices(list(shares), list(shares.values()), k=count)
    return [kinds[name](rng, False) for name in chosen]


def encode(tokenizer: PreTrainedTokenizerFast, lines: Sequence[Line]) -> list[tuple[list[int], list[int]]]:
    """For each line its token ids, BOS first, and at which of them stands a predictable word."""
    parts = [part for line in lines for part in line.text.split(ARROW)]
    rows = iter(tokenizer(parts, add_special_tokens=False)["input_ids"])
    encoded = []
    for line in lines:
        ids, predictable = [tokenizer.bos_token_id], []
        for i in range(line.text.count(ARROW) + 1):
            if i:
                predictable.append(len(ids))
            ids += next(rows)
        encoded.append((ids, predictable))
    return encoded


def collate(encoded: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens `[B, T]`, padded on the right, and the weight `[B, T]` of each as something to predict.

    A line with n predictable words weighs √n.
    """
    width = max(len(ids) for ids, _ in encoded)
    tokens = torch.full((len(encoded), width), pad)
    weights = torch.zeros(len(encoded), width)
    for i, (ids, predictable) in enumerate(encoded):
        tokens[i, : len(ids)] = torch.tensor(ids)
        weights[i, predictable] = 1 / math.sqrt(max(1, len(predictable)))
    return tokens, weights


def read_as(tokens: Tensor, share: float, others: Tensor) -> Tensor:
    """Tokens `[B, T]` of which a share, special tokens aside, is replaced by others drawn at random."""
    misread = (torch.rand(tokens.shape) < share) & (tokens >= len(SPECIAL))
    return torch.where(misread, others[torch.randint(len(others), tokens.shape)], tokens)


def shifted_positions(tokens: Tensor) -> Tensor:
    """Positions `[B, T]` of lines that begin anywhere in the context."""
    batch, width = tokens.shape
    return torch.arange(width) + torch.randint(CONTEXT - width + 1, (batch, 1))


def loss_of(
    model: PreTrainedModel,
    tokens: Tensor,
    weights: Tensor,
    *,
    pad: int,
    background: float,
    read: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Weighted cross-entropy of the predictable words, and a little of each line's mean over all its words.

    The model sees the tokens `read` at `positions`; by default the tokens themselves, from position 0.
    """
    seen = tokens if read is None else read
    logits = model(input_ids=seen, position_ids=positions, use_cache=False).logits[:, :-1]
    targets = tokens[:, 1:]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
    present = (targets != pad).float()
    every = background * present / present.sum(1, keepdim=True)
    return (losses * (weights[:, 1:] + every)).sum()


# ---- how well it does -------------------------------------------------------------------------------------------


@torch.no_grad()
def accuracy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, lines: Sequence[Line]) -> float:
    """Share of the lines after whose prompt the model's first choice is right.

    Where a line has wrong answers, the right ones must also be more likely in sum.
    """
    right, ids = 0, tokenizer.get_vocab()
    for start in range(0, len(lines), 128):
        some = lines[start : start + 128]
        rows = tokenizer([line.prompt for line in some])["input_ids"]
        tokens, _ = collate([(row, []) for row in rows], tokenizer.pad_token_id)
        last = torch.tensor([len(row) - 1 for row in rows])
        logits = model(input_ids=tokens, use_cache=False).logits[torch.arange(len(rows)), last]
        for line, chances in zip(some, logits.softmax(-1), strict=True):
            answers, wrong = ([ids[word] for word in words] for words in (line.answers, line.wrong))
            likelier = not wrong or bool(chances[answers].sum() > chances[wrong].sum())
            right += likelier and int(chances.argmax()) in answers
    return right / len(lines)


def held_out_lines(name: str, count: int, *, seed: int = 0) -> list[Line]:
    """Held-out lines of a task. Seed 0 makes those of the curves, 1 those of the accuracy that is reported."""
    rng = random.Random(f"held out/{name}/{seed}")
    return [TASKS[name](rng, True) for _ in range(count)]


# ---- training ---------------------------------------------------------------------------------------------------


def train(
    name: str,
    *,
    resume: Path | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    batch_size: int = 80,
    learning_rate: float = 2e-3,
    weight_decay: float = 0.1,
    report_every: int = 250,
    curve_lines: int = 100,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, dict[str, Any]]:
    """Train a model; the same seed gives the same model on the same machine.

    Args:
        resume: file written at every report; if it exists, training goes on from there.
        recipe: None: that of the built-in model.
        batch_size: lines in a step.
        curve_lines: held-out lines of each task that the curves are measured on.

    Returns:
        the model, its tokenizer, and a record of the settings and the curves.
    """
    recipe = recipe or RECIPES[name]
    steps = recipe.steps
    torch.manual_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(name, len(tokenizer))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    settings = {
        "model": name, "seed": seed, "batch_size": batch_size, "learning_rate": learning_rate,
        "weight_decay": weight_decay, **recipe.record(),
    }  # fmt: skip
    record: dict[str, Any] = {**settings, "step": 0, "seconds": 0.0, "curve": []}
    if resume is not None and resume.exists():
        record = _resume(resume, model, optimizer, settings)
    held_out = {task: held_out_lines(task, curve_lines) for task in TASKS}
    pad, known = tokenizer.pad_token_id, torch.tensor(tokenizer.convert_tokens_to_ids(never_held_out()))
    started = time.perf_counter() - record["seconds"]
    total, seen = 0.0, 0
    for step in range(record["step"] + 1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = (
                learning_rate * min(1.0, step / 200) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.01)
            )
        rng = random.Random(f"{seed}/{step}")
        alone = step <= recipe.induction_steps
        if alone:
            lines = [induction_line(rng, False, short=1) for _ in range(batch_size)]
        else:
            lines = draw(rng, batch_size, recipe.shares)
        torch.manual_seed(rng.getrandbits(63))
        encoded = encode(tokenizer, lines)
        encoded.sort(key=lambda row: len(row[0]))  # so that few places are padding
        optimizer.zero_grad()
        for start in range(0, batch_size, 20):
            tokens, weights = collate(encoded[start : start + 20], pad)
            read = None if alone or not recipe.misread else read_as(tokens, recipe.misread * step / steps, known)
            positions = shifted_positions(tokens) if recipe.shifted else None
            loss = loss_of(
                model, tokens, weights, pad=pad, background=recipe.background, read=read, positions=positions
            )
            loss = loss / batch_size
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        seen += 1
        if step % report_every == 0 or step == steps:
            model.eval()
            scores = {task: round(accuracy(model, tokenizer, lines), 3) for task, lines in held_out.items()}
            model.train()
            record["curve"].append({"step": step, "loss": round(total / seen, 4), **scores})
            record |= {"step": step, "seconds": round(time.perf_counter() - started, 1)}
            total, seen = 0.0, 0
            shown = "  ".join(f"{task} {score:.2f}" for task, score in scores.items())
            print(
                f"step {step:5d}  loss {record['curve'][-1]['loss']:.3f}  {shown}  {record['seconds']:.0f} s",
                flush=True,
            )
            if resume is not None:
                _save_progress(resume, model, optimizer, record)
    return model.eval(), tokenizer, record


def _save_progress(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Weights and the optimizer's state as safetensors, the record as JSON in its header."""
    tensors = {f"model.{key}": value.detach().clone() for key, value in model.named_parameters()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{key}": value.clone() for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, to_safetensors(tensors, metadata={"record": json.dumps(record)}))


def _resume(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, settings: dict[str, Any]
) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        record: dict[str, Any] = json.loads(file.metadata()["record"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    other = next((key for key, value in settings.items() if record.get(key) != value), None)
    if other is not None:
        raise SystemExit(
            f"{path} is of a training with {other} {record.get(other)!r}, not {settings[other]!r}: remove it, or "
            "train as it says"
        )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{key}"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, what = key.split(".")
            state.setdefault(int(i), {})[what] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return record


def main(
    name: Annotated[str, typer.Argument(help=" or ".join(MODELS))] = MODELS[0],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; by default that of the built-in model.")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on from, and save to, this file.")] = None,
    seed: int = 0,
    steps: Annotated[int | None, typer.Option(help="By default those of the built-in model.")] = None,
) -> None:
    """Train, print the curves, and save with save_pretrained; training.json beside it holds the record."""
    torch.set_num_threads(1)
    if name not in MODELS:
        raise SystemExit(str(unknown("model to train", name, MODELS)))
    folder = out or BUILTIN / name
    state = resume or Path("runs") / "training" / f"{name}.safetensors"
    recipe = dataclasses.replace(RECIPES[name], steps=steps or RECIPES[name].steps)
    model, tokenizer, record = train(name, resume=state, seed=seed, recipe=recipe)
    record["accuracy"] = {
        task: round(accuracy(model, tokenizer, held_out_lines(task, 1000, seed=1)), 4) for task in TASKS
    }
    for task, score in record["accuracy"].items():
        print(f"{task:18} {score:.3f}")
    if min(record["accuracy"].values()) < LEAST_ACCURACY:
        raise SystemExit(f"not saved: expected an accuracy of {LEAST_ACCURACY} at each task; try more steps")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_atomically(folder / "training.json", json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
