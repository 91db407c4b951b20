"""Compile the Tracr suite and write it where the package looks for built-in models.

    python -m acdc.benchmarks.training.tracr_export [--only NAME] [--to FOLDER]

Needs the extra `[tracr]`. Every model is compared with the RASP evaluation of its program, with the plain Python
reference and with the compiler's own JAX model before it is written; its true circuits are derived and verified.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from acdc.benchmarks.training.tracr_program import Program
from acdc.benchmarks.training.tracr_programs import PROGRAMS
from acdc.errors import AcdcError, unknown
from acdc.model.programs.rasp import rasp_modules
from acdc.model.programs.tracr import BUILTIN, TracrModel
from acdc.tasks.programs.compile import check, compile_model
from acdc.tasks.programs.truth import derive_truth


def compile_program(program: Program) -> TracrModel:
    """The model of a program of the suite, compared with its plain Python reference too."""
    model = compile_model(
        program.build(*rasp_modules()),
        name=program.model_name,
        vocabulary=program.vocabulary,
        max_length=program.max_length,
        description=program.description,
        source=program.source,
        bos=program.bos,
        causal=program.causal,
        distinct=program.distinct,
        mlp_exactness=program.mlp_exactness,
    )
    check(model, program.reference, seed=1)
    return model


def export(program: Program, folder: Path) -> TracrModel:
    """Compile a program and write its model and true circuits."""
    model = compile_program(program)
    truth = derive_truth(model)
    model.save(folder)
    truth.save(folder)
    return model


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compile the Tracr suite of built-in models.")
    parser.add_argument("--only", action="append", metavar="NAME", help="program to export, like reverse")
    parser.add_argument("--to", type=Path, default=BUILTIN, metavar="FOLDER", help="default: the package's models")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        for name in options.only or PROGRAMS:
            if name not in PROGRAMS:
                raise unknown("program", name, PROGRAMS)
            model = export(PROGRAMS[name], options.to / PROGRAMS[name].model_name)
            size = sum(tensor.nbytes for tensor in model.state_dict().values())
            sys.stdout.write(f"{model.program.name}: {model.program.n_layers} layers, {size / 1024:.0f} KB\n")
    except AcdcError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
