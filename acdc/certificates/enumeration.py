"""Proof by enumeration: a compiled program has finitely many inputs, so that "always" can be tried.

A resample claim is about pairs, a clean input and the one whose activations replace what is removed, the donor.
Donors that the circuit cannot tell apart are one (`brought`): all clean inputs are run with one donor of each class,
and each run counts for as many pairs as the class has donors. Where that is too much, all clean inputs (or as many as
fit) are run with donors drawn at random, and that is no proof. Where positions are permuted, a donor is an input in
one order of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
import torch

from acdc.certificates.donors import brought
from acdc.certificates.record import Enumeration
from acdc.certificates.smoothing import OF_EACH_PROMPT
from acdc.engine.circuits import measure_prompts
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import AcdcError
from acdc.evaluation.reproduction import SAME_OUTPUT
from acdc.graph import BoolArray, FloatArray, Graph
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.model.programs.tracr import TracrModel, Value
from acdc.tasks.programs.inputs import Pairs, lengths_of, pairs_of_inputs, random_inputs
from acdc.tasks.programs.interp import InterpRecord, InterpTask, with_answers
from acdc.tasks.programs.program_task import ProgramTask
from acdc.tasks.programs.rare_inputs import all_inputs, number_of_inputs
from acdc.tasks.programs.tracr import to_prompts
from acdc.tasks.prompts import Prompts

MOST_PAIRS = 2**20
"""Runs of the circuit on one pair, at most."""
MOST_DONORS = 1_000_000
"""Donors that are compared, at most."""
AT_ONCE = 2048
SHOWN = 20
Ids = tuple[int, ...]
Input = tuple[Value, ...]
Donor = tuple[Input, tuple[int, ...]]
"""An input and its position ids."""
Pair = tuple[Input, Donor, int]
"""A clean input, its donor, and how many donors that one stands for."""


def check_enumerable(model: Model, task: object, ablation: str) -> tuple[TracrModel, InterpRecord | None]:
    """The program whose inputs can be enumerated, and the record of the network that was trained on it, if one was.

    Raises:
        AcdcError: the task is not a program's, or the ablation is by what many prompts have in common.
    """
    if ablation not in OF_EACH_PROMPT:
        raise AcdcError(
            f"inputs are enumerated under {' and '.join(OF_EACH_PROMPT)} ablation, not {ablation}, where what "
            "removed edges carry is taken from many prompts together: certify without --enumerate"
        )
    if isinstance(task, InterpTask):
        record = InterpRecord.load(task.name)
        return TracrModel.load(record.program), record
    if isinstance(task, ProgramTask) and model.program is not None:
        return model.program, None
    raise AcdcError("enumeration needs a program's task (tracr-*, interp-*), whose inputs are finitely many")


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
        most: runs of the circuit on one pair.

    Raises:
        AcdcError: as `check_enumerable`.
    """
    program, record = check_enumerable(model, task, task.ablation)
    inputs = _inputs(program, task)
    rng = np.random.default_rng(seed)
    pairs, what, proof = _pairs(model, inputs, task.ablation, graph, edges, most=most, rng=rng)
    total = changed = 0
    share, worst = 0.0, 0.0
    clean: set[Input] = set()
    refutations: list[tuple[Ids, Ids]] = []
    while some := list(itertools.islice(pairs, AT_ONCE)):
        tensors = inputs.tensors([(x, donor) for x, donor, _ in some])
        moved = _moved(model, graph, edges, task.ablation, tensors, program, record)
        counts = np.array([count for _, _, count in some])
        total += int(counts.sum())
        share, worst = share + float(moved @ counts), max(worst, float(moved.max()))
        clean.update(x for x, _, _ in some)
        for i in np.flatnonzero(moved > 0).tolist():
            changed += int(counts[i])
            if len(refutations) < SHOWN:
                rows = ((tensors.clean, tensors.clean_mask), (tensors.corrupted, tensors.corrupted_mask))
                a, b = (tuple(ids[i][mask[i]].tolist()) for ids, mask in rows)
                refutations.append((a, b))
        progress(total, None, "pairs of inputs")
    return Enumeration(
        what=what, proof=proof, pairs=total, inputs=len(clean), changed=changed, mean=share / max(total, 1),
        worst=worst, refutations=tuple(refutations),
    )  # fmt: skip


def count_pairs(model: Model, task: ProgramTask) -> tuple[int, int]:
    """How many inputs a program has, and how many pairs of them there are under the task's ablation.

    Raises:
        AcdcError: as `check_enumerable`.
    """
    program, _ = check_enumerable(model, task, task.ablation)
    inputs = _inputs(program, task)
    return inputs.n, inputs.n if task.ablation == "zero" else inputs.n**2 * inputs.n_orders


def change_outputs(
    model: Model, task: ProgramTask, graph: Graph, edges: BoolArray, pairs: Sequence[tuple[Ids, Ids]]
) -> bool | None:
    """Whether each of these pairs, clean and corrupted as token ids, changes an output.

    None where corrupted positions come in every order: token ids do not say which.

    Raises:
        AcdcError: as `check_enumerable`, or a pair is not of inputs of the program.
    """
    program, record = check_enumerable(model, task, task.ablation)
    inputs = _inputs(program, task)
    if inputs.permuted:
        return None
    tensors = inputs.tensors([(_read(program, a), (_read(program, b), inputs.positions)) for a, b in pairs])
    return bool((_moved(model, graph, edges, task.ablation, tensors, program, record) > 0).all())


def _read(program: TracrModel, ids: Ids) -> Input:
    """The input that these token ids encode."""
    vocabulary = program.program.vocabulary
    values = tuple(vocabulary[i] for i in ids if i in range(len(vocabulary)))
    start = program.program.bos is not None
    if len(values) < len(ids) or program.encode([values[start:]])[0].tolist() != [list(ids)]:
        raise AcdcError(f"{list(ids)} are not the token ids of an input of {program.program.name}")
    return values[start:]


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The inputs of a program.

    Attributes:
        mixed: of every length, or of the greatest alone; permuted: donors' positions come in every order.
    """

    program: TracrModel
    mixed: bool
    permuted: bool

    @property
    def n(self) -> int:
        return number_of_inputs(self.program.program, mixed=self.mixed)

    @cached_property
    def every(self) -> list[Input]:
        return list(all_inputs(self.program.program, mixed=self.mixed))

    @property
    def positions(self) -> tuple[int, ...]:
        """Of an input, and of PAD after it."""
        program = self.program.program
        return tuple(range(lengths_of(program)[-1] + (program.bos is not None)))

    @property
    def fixed(self) -> int:
        """Positions that stay: BOS is first in every order."""
        return int(self.program.program.bos is not None) if self.permuted else len(self.positions)

    @property
    def n_orders(self) -> int:
        return math.factorial(len(self.positions) - self.fixed)

    def orders(self) -> Iterator[tuple[int, ...]]:
        """Position ids of donors."""
        stay, move = self.positions[: self.fixed], self.positions[self.fixed :]
        return ((*stay, *order) for order in itertools.permutations(move))

    def drawn_order(self, rng: np.random.Generator) -> tuple[int, ...]:
        return (*self.positions[: self.fixed], *rng.permutation(self.positions[self.fixed :]).tolist())

    def tensors(self, pairs: Sequence[tuple[Input, Donor]]) -> Pairs:
        """Pairs as tensors; an input that comes in many is encoded once."""
        sides = [x for x, _ in pairs], [x for _, (x, _) in pairs]
        different = list(dict.fromkeys(itertools.chain(*sides)))
        place = {x: i for i, x in enumerate(different)}
        nothing = np.random.default_rng(0)
        once = pairs_of_inputs(self.program, [(x, x) for x in different], distribution="mixed", rng=nothing)
        clean, corrupted = (torch.tensor([place[x] for x in side]) for side in sides)
        return Pairs(
            once.clean[clean], once.clean_mask[clean], once.clean_positions[clean],
            once.clean[corrupted], once.clean_mask[corrupted], torch.tensor([order for _, (_, order) in pairs]),
        )  # fmt: skip


def _inputs(program: TracrModel, task: ProgramTask) -> _Inputs:
    return _Inputs(program, *(task.distribution in (kind, "varied") for kind in ("mixed", "permuted")))


def _pairs(
    model: Model, inputs: _Inputs, ablation: str, graph: Graph, edges: BoolArray, *, most: int,
    rng: np.random.Generator,
) -> tuple[Iterator[Pair], str, bool]:  # fmt: skip
    """The pairs to run, what they are in words, and whether they stand for all."""
    n, usual = inputs.n, inputs.positions
    if ablation == "zero":  # the donor does not matter
        if n <= most:
            return ((x, (x, usual), 1) for x in inputs.every), f"all {n:,} inputs, with zeros", True
    elif n * inputs.n_orders <= MOST_DONORS:
        donors = _classes(model, inputs, graph, edges, most=most // n)
        if donors is not None:
            text = f"all pairs of {n:,} inputs{' in every order' if inputs.permuted else ''}"
            if len(donors) < n * inputs.n_orders:
                text += f", donors of {len(donors):,} {'class' if len(donors) == 1 else 'classes'}"
            return ((x, donor, count) for x in inputs.every for donor, count in donors), text, True
    if n > most:
        drawn = most // 10
        if n <= MOST_PAIRS:  # of these each is as likely as another, as where all are run
            sides: list[Sequence[Sequence[Value]]] = [
                [inputs.every[i] for i in rng.integers(n, size=drawn)] for _ in range(2)
            ]
        else:
            sides = [random_inputs(inputs.program.program, drawn, rng=rng, mixed=inputs.mixed) for _ in range(2)]
        pairs = ((tuple(x), (tuple(y), inputs.drawn_order(rng)), 1) for x, y in zip(*sides, strict=True))
        return pairs, f"{drawn:,} pairs drawn from {n:.2g} inputs", False
    each = max(1, min(20, most // n))
    places = ((x, j) for x in inputs.every for j in rng.integers(n, size=each))
    with_donors = ((x, (inputs.every[j], inputs.drawn_order(rng)), 1) for x, j in places)
    return (
        with_donors,
        f"all {n:,} inputs with {each} donors{' and orders' * inputs.permuted} drawn for each",
        False,
    )


def _classes(
    model: Model, inputs: _Inputs, graph: Graph, edges: BoolArray, *, most: int
) -> list[tuple[Donor, int]] | None:
    """A donor of each class of those that the circuit cannot tell apart, and how many there are of it.

    None if there are more than `most` classes.
    """
    found: dict[bytes, tuple[Donor, int]] = {}
    donors = itertools.product(inputs.every, inputs.orders())
    while some := list(itertools.islice(donors, AT_ONCE)):
        tensors = inputs.tensors([(x, (x, order)) for x, order in some])
        as_clean = dataclasses.replace(tensors, clean_positions=tensors.corrupted_positions)
        rows = brought(model, graph, edges, to_prompts(inputs.program, as_clean))
        digits = rows.mul(1e4).round().to(torch.int64).numpy()
        for donor, row, mask in zip(some, digits, tensors.clean_mask.numpy(), strict=True):
            key = hashlib.sha256(row.tobytes() + mask.tobytes()).digest()
            first, count = found.get(key, (donor, 0))
            found[key] = first, count + 1
        if len(found) > most:
            return None
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
