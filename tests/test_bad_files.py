"""No bad input ends in a traceback: it is refused in one line with status 2, or it was not so bad.

A sample runs always. The full sweep is slow, and prints its counts: `pytest -m slow -s tests/test_bad_files.py`.
"""

from __future__ import annotations

import collections
import warnings
from pathlib import Path

import pytest

from acdc.formats import import_circuit
from bad_files import QUICK, Good, bad_inputs, makers, outcome

SWEEP = {
    "circuit.json": 450,
    "scores.safetensors": 150,
    "prompts": 300,
    "model folders": 200,
    "pickles and torch files": 200,
    "imports": 300,
    "options": 250,
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Good:
    return Good(tmp_path_factory.mktemp("good"))


def _sweep(good: Good, kind: str, count: int, seed: str, folder: Path) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    failed = []
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for number, given in enumerate(bad_inputs(makers(good)[kind], count, f"{seed}/{kind}", folder)):
            result, message = outcome(given)
            counts[result] += 1
            if result == "failed":
                failed.append(f"{kind} {number}: {given if isinstance(given, list) else 'import'}: {message}")
    if failed:
        pytest.fail(f"{dict(counts)}\n" + "\n\n".join(failed))
    return counts


def test_what_is_spoiled_was_good(good: Good, tmp_path: Path) -> None:
    """Otherwise all would be refused for one and the same reason."""
    out = ["-o", str(tmp_path / "out")]
    commands = [["discover", str(good.model), "--task", str(good.prompts), *QUICK, *out]]
    commands += [["discover", str(good.hooked), "--qkv", "merged", "--inputs", "split", *QUICK, *out]]
    commands += [["evaluate", str(good.run), "--random-circuits", "0"]]
    for name, text in good.files.items():
        (tmp_path / name).write_text(text)
        commands += [["discover", "tiny-tasks", "--task", str(tmp_path / name), *QUICK, *out]]
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        for command in commands:
            assert outcome([*command, *(["--force"] if "-o" in command else [])])[0] == "accepted", command
    for name, content in good.exports.items():
        assert import_circuit(content, name) == good.circuit


@pytest.mark.parametrize("kind", SWEEP)
def test_a_sample_of_bad_inputs(good: Good, kind: str, tmp_path: Path) -> None:
    counts = _sweep(good, kind, 8, "sample", tmp_path)
    assert counts.total() == 8
    assert counts["refused"] >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", SWEEP)
def test_the_full_sweep(good: Good, kind: str, tmp_path: Path) -> None:
    counts = _sweep(good, kind, SWEEP[kind], "sweep", tmp_path)
    print(f"\n{kind}: {counts.total()} inputs, {dict(counts)}")
    assert counts["refused"] > counts["accepted"]
