"""The suite is what it says: as many programs, as many constructs, and compiled again the same weights."""

import numpy as np
import pytest
import torch

from acdc.benchmarks.training.tracr_export import compile_program, main
from acdc.benchmarks.training.tracr_library import LIBRARY
from acdc.benchmarks.training.tracr_own import OWN
from acdc.benchmarks.training.tracr_programs import PROGRAMS
from acdc.model.programs.rasp import rasp_modules
from acdc.model.programs.tracr import BUILTIN, TracrModel, builtin_names


def test_size_of_the_suite() -> None:
    assert len(LIBRARY) >= 15
    assert len(OWN) >= 15
    assert len(PROGRAMS) == len(LIBRARY) + len(OWN)
    layers = {TracrModel.load(name).program.n_layers for name in builtin_names()}
    assert layers >= {1, 2, 3, 4, 5, 6}
    total = sum(path.stat().st_size for name in builtin_names() for path in (BUILTIN / name).iterdir())
    assert total < 5_000_000


def test_unknown_program(capsys) -> None:
    assert main(["--only", "revers"]) == 2
    assert "did you mean reverse" in capsys.readouterr().err


@pytest.mark.tracr
def test_own_programs_and_the_library_use_every_construct() -> None:
    pytest.importorskip("tracr")
    rasp, lib = rasp_modules()
    used: set[object] = set()

    def visit(expression) -> None:
        used.add(type(expression).__name__)
        if isinstance(expression, rasp.SOp):
            used.add((type(expression).__name__, rasp.get_encoding(expression).value))
        if isinstance(expression, rasp.Map):
            used.add((rasp.get_encoding(expression.inner).value, rasp.get_encoding(expression).value))
        if isinstance(expression, rasp.Select) and isinstance(expression.predicate, rasp.Comparison):
            used.add(expression.predicate.name)
        for child in expression.children:
            visit(child)

    for program in PROGRAMS.values():
        visit(program.build(rasp, lib))
    kinds = ("categorical", "numerical")
    assert used >= {"Map", "SequenceMap", "LinearSequenceMap", "Select", "Aggregate", "SelectorWidth"}
    assert used >= {comparison.name for comparison in rasp.Comparison}
    assert used >= {(a, b) for a in kinds for b in kinds}
    assert used >= {(construct, kind) for construct in ("Aggregate", "SelectorWidth") for kind in kinds}


@pytest.mark.tracr
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_again_the_weights_are_the_same(name: str) -> None:
    pytest.importorskip("tracr")
    again, shipped = compile_program(PROGRAMS[name]), TracrModel.load(PROGRAMS[name].model_name)
    assert again.program == shipped.program
    for key, weight in shipped.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], weight, atol=1e-6, rtol=1e-6, msg=key)
    assert np.isfinite([weight.abs().max().item() for weight in shipped.state_dict().values()]).all()
