"""`acdc run`, and the exports that take the model: what a circuit says on a text, and the circuit as a model."""

from __future__ import annotations

import dataclasses
import json as to_json
from pathlib import Path
from typing import Annotated

import typer

from acdc.cli import terminal
from acdc.cli.again import as_found
from acdc.cli.neurons import say_unused
from acdc.cli.options import AblationName, Device, Dtype, Json, Run, Trust
from acdc.errors import AcdcError

EXPORTS = ("checkpoint", "circuit-model", "lists")
"""What `acdc export --to` makes with the model."""


def run(
    run: Run,
    text: Annotated[str, typer.Argument(help="A prompt; token ids for a model without a tokenizer.")],
    corrupted: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="What edges that are left out are resampled from, of as many tokens; otherwise one of the task's.",
        ),
    ] = None,
    top: Annotated[int, typer.Option(min=1, help="How many tokens to show.")] = 10,
    generate: Annotated[
        int, typer.Option(min=0, help="Also go on with the circuit and with the model, by so many tokens.")
    ] = 0,
    ablation: AblationName = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    trust_remote_code: Trust = False,
    json: Json = False,
) -> None:
    """Show what the circuit, everything outside it, and the full model say next on a text.

    Example: acdc run runs/ioi "When Mary and John went to the store, John gave a drink to"
    """
    for what, given in (("the text", text), ("--corrupted", corrupted)):
        if given is not None and not given.strip():
            raise AcdcError(f"{what} is empty: give a prompt, like those of the circuit's task")
    with terminal.quiet_libraries():
        from acdc.acting import CircuitModel, say
        from acdc.acting.saying import go_on
        from acdc.tasks.tokenise import Encoder

        circuit, model, task = as_found(
            run, ablation=ablation, device=device, dtype=dtype, trust_remote_code=trust_remote_code
        )
        say_unused(run)
        subject = CircuitModel.of(model, task, circuit, ablation=ablation)
        said = say(subject, text, corrupted=corrupted, top=top)
        if model.tokenizer is not None:
            encoder = Encoder(model)
            if encoder.is_unknown(encoder.encode([text])[0][len(encoder.prefix) :]):
                terminal.warn("the tokenizer does not know part of the text, so what is said is of something else")
        further = go_on(subject, text, generate, corrupted=corrupted) if generate else {}
    if json:
        terminal.print_json(dataclasses.asdict(said) | ({"generated": further} if further else {}))
        return
    columns = (said.circuit, said.complement, said.model)
    rows = []
    for i in range(len(said.model.tokens)):
        rows.append([cell for each in columns for cell in (repr(each.tokens[i]), f"{each.probabilities[i]:.3f}")])
    rows.append([cell for each in columns for cell in ("KL, nats", f"{each.kl:.3g}")])
    terminal.print_table(("circuit", "", "complement", "", "full model", ""), rows)
    if said.corrupted:
        print()
        terminal.print_line(f"resampled from: {said.corrupted}")
    for name, what in further.items():
        terminal.print_line(f"{name} goes on: {what!r}")


def export_with_model(run: Path, to: str, out: Path | None, force: bool, ablation: str | None) -> str:
    """The exports that need the model, a folder or lists as JSON: what to print of it."""
    from acdc.acting import CircuitModel, save_checkpoint
    from acdc.acting.lists import lists
    from acdc.store.writing import write_atomically

    if to != "lists" and out is None:
        raise AcdcError(f"{to} is a folder: say where with -o/--out")
    circuit, model, task = as_found(run, ablation=ablation, device="cpu", dtype="float32")
    if to == "lists":
        text = to_json.dumps(lists(model, circuit), indent=1) + "\n"
        if out is None:
            return text
        terminal.check_new_file(out, force=force)
        write_atomically(out, text, replace=force)
    elif to == "checkpoint":
        assert out is not None
        save_checkpoint(model, task, circuit, out, ablation=ablation, force=force)
    else:
        assert out is not None
        CircuitModel.of(model, task, circuit, ablation=ablation).save(out, force=force)
    return f"{out}\n"
