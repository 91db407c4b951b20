"""Train the built-in models `interp-*`: GPT-2s whose true circuits are known, since they were trained to have them.

Each runs the program of a compiled Tracr model and is trained by strict interchange intervention training (see
`acdc.benchmarks.training.siit`). A model that is finished is left alone and one that was interrupted
goes on where it was; one that does not reach what is asked of it (`siit_check` beside it) is not written.

    python -m acdc.benchmarks.training.train_interp [NAMES]
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Annotated

import safetensors.torch
import torch
import typer
from transformers import GPT2LMHeadModel

from acdc.benchmarks.training.siit import Recipe, train
from acdc.benchmarks.training.siit_alignment import Alignment
from acdc.benchmarks.training.siit_check import shortcomings, verify
from acdc.errors import AcdcError, unknown
from acdc.model.programs.tracr import BUILTIN, TracrModel
from acdc.store.writing import write_atomically
from acdc.tasks.programs.interp import InterpRecord
from acdc.tasks.programs.truth import TrueCircuits

RECIPES: dict[str, Recipe] = {
    "shift": Recipe(steps=1200, seed=2),
    "hist": Recipe(steps=3000, seed=1),
    "proportion": Recipe(steps=2500, seed=3),
    "detect-ab": Recipe(seed=4),
    "only-unique": Recipe(steps=3000, seed=5),
    "maximum": Recipe(),
    "sort-unique": Recipe(steps=2000),
    "leader": Recipe(d_model=40, d_mlp=80, steps=2000),
    "sort": Recipe(d_model=40, d_mlp=80, steps=3000, seed=6),
    "rotate": Recipe(d_model=40, d_mlp=80, steps=2000),
    "reverse": Recipe(d_model=48, d_mlp=96, steps=1800),
}
"""How the model of each program is trained."""


def make(program: str, folder: Path, recipe: Recipe) -> dict[str, object]:
    """Train, measure and write the model of a program; returns the record of its training.

    Raises:
        AcdcError: the model does not reach what is asked of it.
    """
    started = time.perf_counter()
    compiled = TracrModel.load(f"tracr-{program}")
    alignment = Alignment.draw(compiled, n_heads=recipe.n_heads, seed=recipe.seed)
    record = InterpRecord.of(compiled, alignment.nodes)
    folder.mkdir(parents=True, exist_ok=True)
    resume = folder / "resume.pt"
    description = f"GPT-2 architecture, trained to run a program part for part: {compiled.program.description}"
    model, curve = train(
        alignment, record, recipe, resume=resume, report=lambda line: say(f"  {line}"),
        description=description,
    )  # fmt: skip
    found = verify(model, alignment, record, seed=recipe.seed)
    if wrong := shortcomings(found):
        raise AcdcError(f"interp-{program} is not good enough: {'; '.join(wrong)}")
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    training: dict[str, object] = {
        "recipe": dataclasses.asdict(recipe), "parameters": n_parameters, "held_out": found, "curve": curve,
        "seconds": round(time.perf_counter() - started),
    }  # fmt: skip
    write(folder, model, record, true_circuits(alignment, folder.name), training)
    resume.unlink(missing_ok=True)
    return training


def true_circuits(alignment: Alignment, name: str) -> TrueCircuits:
    """The program's true circuits under resampling, as edges of the network."""
    circuits = [
        circuit.model_copy(update={"edges": tuple(map(alignment.translate, circuit.edges))})
        for circuit in alignment.truth.circuits
        if circuit.ablation == "resample"
    ]
    return TrueCircuits(model=name, circuits=tuple(circuits))


def write(
    folder: Path, model: GPT2LMHeadModel, record: InterpRecord, truth: TrueCircuits, training: dict[str, object]
) -> None:
    """Write the model's files; `training.json`, the last, says that the model is finished."""
    weights = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_atomically(folder / "model.safetensors", safetensors.torch.save(weights, metadata={"format": "pt"}))
    record.save(folder)
    truth.save(folder)
    write_atomically(folder / "training.json", json.dumps(training, indent=1) + "\n")


def summary(folder: Path) -> str:
    """What the finished models are and reach, as a Markdown table."""
    head = (
        "model", "layers × heads", "parameters", "true edges", "accuracy", "interchange", "outside: changed", "KL",
        "true edges: changed", "false edges: changed", "all at once", "KL",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for path in sorted(folder.glob("interp-*/training.json")):
        training, config = json.loads(path.read_text()), json.loads((path.parent / "config.json").read_text())
        found = training["held_out"]
        together, true = found["false_edges_together"], found["true_edges"].values()
        n_edges = len(true) + found["false_edges"]["number"]
        cells = (
            f"`{path.parent.name}`", f"{config['n_layer']} × {config['n_head']}", f"{training['parameters']:,}",
            f"{len(true)} of {n_edges}", f"{found['accuracy']:.2%}", f"{min(found['nodes'].values()):.2%}",
            f"{max(effect['changed'] for effect in found['outside'].values()):.2%}",
            f"{max(effect['kl'] for effect in found['outside'].values()):.1g}",
            f"{min(effect['changed'] for effect in true):.1%} to {max(effect['changed'] for effect in true):.1%}",
            f"{max(effect['changed'] for effect in found['false_edges']['most'].values()):.2%}",
            f"{together['changed']:.2%}", f"{together['kl']:.1g}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Programs, like reverse; otherwise all.")] = None,
    to: Annotated[Path, typer.Option(help="Folder of the models' folders.")] = BUILTIN,
    again: Annotated[bool, typer.Option("--again", help="Train finished models again.")] = False,
    table: Annotated[
        bool, typer.Option("--table", help="Train nothing: print what finished models reach.")
    ] = False,
) -> None:
    """Train the models, measure them on held-out inputs, and write them."""
    if table:
        say(summary(to))
        return
    torch.set_num_threads(1)
    failed = False
    for name in names or RECIPES:
        if name not in RECIPES:
            raise typer.BadParameter(str(unknown("program", name, RECIPES)))
        folder = to / f"interp-{name}"
        if (folder / "training.json").is_file() and not again:
            say(f"interp-{name}: finished already")
            continue
        say(f"interp-{name}")
        try:
            training = make(name, folder, RECIPES[name])
        except AcdcError as error:
            sys.stderr.write(f"{error}\n")
            failed = True
            continue
        say(f"  {json.dumps({key: training[key] for key in ('parameters', 'seconds', 'held_out')})}")
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
