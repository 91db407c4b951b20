"""Proof by enumeration: a compiled program has finitely many inputs, so that "always" can be tried.

A resample claim is about pairs, a clean input and the one whose activations replace what is removed. Up to a million
pairs all are run. Above, donors that write the same on all removed edges are one: all clean inputs are run with one of
each class. Where that is still too much, all clean inputs (or as many as fit) are run with donors drawn at random, and
that is no proof. Permuted positions have an order each, and are always drawn.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from acdc.certificates.record import Enumeration
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError
from acdc.evaluation.reproduction import SAME_OUTPUT
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.model.programs.tracr import TracrModel, Value
from acdc.tasks.programs.derive import written_values
from acdc.tasks.programs.inputs import Pairs, pairs_of_inputs
from acdc.tasks.programs.interp import InterpRecord, InterpTask, with_answers
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.programs.rare_inputs import all_inputs, number_of_inputs
from acdc.tasks.programs.tracr import to_prompts
from acdc.tasks.prompts import Prompts

MOST_PAIRS = 1_000_000
MOST_DONORS = 20_000
"""Inputs whose activations are compared, at most."""
AT_ONCE = 2048
SHOWN = 20
Input = tuple[Value, ...]


def enumerate_pairs(
    model: Model,
    task: ProgramTask,
    graph: Graph,
    edges: BoolArray,
    *,
    most: int = MOST_PAIRS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Enumeration:
    """Run a circuit on all pairs of inputs of a program, or as many as can be.

    Args:
        task: says the ablation and in what the inputs of a pair differ.
        most: pairs to run.

    Raises:
        AcdcError: the task's inputs are not a program's.
    """
    if task.ablation == "optimal":
        raise AcdcError(
            "all inputs cannot be enumerated under optimal ablation, whose constants are learned on some of them: "
            "certify without --enumerate"
        )
    program, record = _program(model, task)
    mixed, permuted = task.distribution in ("mixed", "varied"), task.distribution in ("permuted", "varied")
    n = number_of_inputs(program.program, mixed=mixed)
    if task.ablation == "zero":
        permuted = False  # the corrupted input does not matter
    rng = np.random.default_rng(seed)
    pairs, what, proof = _pairs(
        program, task.ablation, graph, edges, n, mixed=mixed, permuted=permuted, most=most, rng=rng
    )
    total = changed = 0
    share, worst = 0.0, 0.0
    clean: set[Input] = set()
    refutations: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    while some := list(itertools.islice(pairs, AT_ONCE)):
        tensors = _tensors(program, some, permuted=permuted, rng=rng)
        moved = _moved(model, graph, edges, task.ablation, tensors, program, record)
        total += len(some)
        share, worst = share + float(moved.sum()), max(worst, float(moved.max()))
        clean.update(tuple(pair[0]) for pair in some)
        for i in np.flatnonzero(moved > 0).tolist():
            changed += 1
            if len(refutations) < SHOWN:
                rows = ((tensors.clean, tensors.clean_mask), (tensors.corrupted, tensors.corrupted_mask))
                a, b = (tuple(ids[i][mask[i]].tolist()) for ids, mask in rows)
                refutations.append((a, b))
        progress(total, None, "pairs of inputs")
    return Enumeration(
        what=what, proof=proof, pairs=total, inputs=len(clean), changed=changed, mean=share / max(total, 1),
        worst=worst, refutations=tuple(refutations),
    )  # fmt: skip


def _program(model: Model, task: object) -> tuple[TracrModel, InterpRecord | None]:
    if isinstance(task, InterpTask):
        record = InterpRecord.load(task.name)
        return TracrModel.load(record.program), record
    if isinstance(task, ProgramTask) and model.program is not None:
        return model.program, None
    raise AcdcError("proof by enumeration needs a task with finitely many inputs: a program's (tracr-*, interp-*)")


def _tensors(
    program: TracrModel, pairs: list[tuple[Input, Input]], *, permuted: bool, rng: np.random.Generator
) -> Pairs:
    """Pairs as tensors; an input that comes in many is encoded once."""
    different = list(dict.fromkeys(x for pair in pairs for x in pair))
    place = {x: i for i, x in enumerate(different)}
    once = pairs_of_inputs(program, [(x, x) for x in different], distribution="mixed", rng=rng)
    clean, corrupted = (torch.tensor([place[pair[side]] for pair in pairs]) for side in (0, 1))
    positions = once.clean_positions[corrupted].numpy().copy()
    if permuted:
        first = int(program.program.bos is not None)
        positions[:, first:] = rng.permuted(positions[:, first:], axis=1)
    return Pairs(
        once.clean[clean], once.clean_mask[clean], once.clean_positions[clean],
        once.clean[corrupted], once.clean_mask[corrupted], torch.from_numpy(positions),
    )  # fmt: skip


def _pairs(
    program: TracrModel, ablation: str, graph: Graph, edges: BoolArray, n: int, *, mixed: bool, permuted: bool,
    most: int, rng: np.random.Generator,
) -> tuple[Iterator[tuple[Input, Input]], str, bool]:  # fmt: skip
    """The pairs to run, what they are in words, and whether they stand for all."""
    if ablation in ("zero",):
        if n <= most:
            return ((x, x) for x in all_inputs(program.program, mixed=mixed)), f"all {n:,} inputs, with zeros", True
    elif n * n <= most and not permuted:
        every = list(all_inputs(program.program, mixed=mixed))
        return itertools.product(every, every), f"all pairs of {n:,} inputs", True
    elif n <= MOST_DONORS and not permuted and ablation == "resample":
        every = list(all_inputs(program.program, mixed=mixed))
        donors = _classes(program, every, graph, edges)
        if n * len(donors) <= most:
            text = f"all {n:,} inputs with a donor of each of {len(donors):,} classes"
            return itertools.product(every, donors), text, True
    if n > most:
        return _drawn(program, most // 10, mixed, rng), f"{most // 10:,} pairs drawn from {n:.2g} inputs", False
    every = list(all_inputs(program.program, mixed=mixed))
    each = max(1, min(20, most // n))
    donors_of = ((x, every[j]) for x in every for j in rng.integers(len(every), size=each))
    orders = " and orders" if permuted else ""
    return donors_of, f"all {n:,} inputs with {each} donors{orders} drawn for each", False


def _drawn(program: TracrModel, n: int, mixed: bool, rng: np.random.Generator) -> Iterator[tuple[Input, Input]]:
    from acdc.tasks.programs.inputs import random_inputs

    sides = [random_inputs(program.program, n, rng=rng, mixed=mixed) for _ in range(2)]
    return ((tuple(a), tuple(b)) for a, b in zip(*sides, strict=True))


def _classes(program: TracrModel, every: list[Input], graph: Graph, edges: BoolArray) -> list[Input]:
    """One input of each class of those that write the same wherever an edge is removed."""
    removed = np.asarray((graph.valid & ~edges).any(axis=0))
    finest = ["input.token", "input.position", *graph.sources[graph.n_inputs :]]
    single = graph.n_inputs == 1
    used = [
        i for i, name in enumerate(finest) if removed[0 if single and i < 2 else graph.source_index.get(name, 0)]
    ]
    found: dict[bytes, Input] = {}
    for start in range(0, len(every), AT_ONCE):
        some = every[start : start + AT_ONCE]
        tensors = pairs_of_inputs(
            program, [(x, x) for x in some], distribution="mixed", rng=np.random.default_rng(0)
        )
        written = written_values(program, tensors.clean, tensors.clean_mask)[used]  # [source, B, T, D]
        rows = written.movedim(1, 0).mul(1e4).round().to(torch.int64).flatten(1).numpy()
        for x, row, mask in zip(some, rows, tensors.clean_mask.numpy(), strict=True):
            found.setdefault(row.tobytes() + mask.tobytes(), x)
    return list(found.values())


def _moved(
    model: Model, graph: Graph, edges: BoolArray, ablation: str, pairs: Pairs, program: TracrModel,
    record: InterpRecord | None,
) -> FloatArray:  # fmt: skip
    """`[pair]` share of outputs that are not the full model's."""
    prompts: Prompts = to_prompts(program, pairs)
    if record is not None:
        prompts = with_answers(to_prompts(program, pairs), program, record)
    outcome = OUTCOMES["l2"] if record is None else OUTCOMES["exact-match"]
    problem = Problem(model, graph, prompts, outcome, ablation)  # type: ignore[arg-type]
    (measured,) = measure_prompts(problem, [edges], [outcome])
    values: FloatArray = measured.circuits[0]
    return (values > SAME_OUTPUT).astype(np.float64) if record is None else 1.0 - values
