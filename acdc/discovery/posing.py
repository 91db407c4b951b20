"""A question as a method gets it: the problem, the file it goes on from, and what the answer says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.circuit import Provenance
from acdc.circuit.constants import Constants
from acdc.engine import ranks
from acdc.engine.belonging import belonging, weights_digest
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.errors import check_path
from acdc.graph import Graph, Unit
from acdc.model.model import Model
from acdc.store.amounts import bytes_of
from acdc.store.resume import ResumeFile, digest

if TYPE_CHECKING:
    from acdc.tasks.task import Dataset


def problem_of(
    model: Model,
    dataset: Dataset,
    graph: Graph | None,
    units: Unit,
    batch_size: int | None,
    memory: str | None,
    seed: int | None,
    progress: Progress | None,
    constants: Constants | None = None,
) -> Problem:
    return Problem(
        model,
        model.graph() if graph is None else graph,
        dataset.discovery,
        dataset.metric,
        dataset.ablation,
        batch_size,
        dataset.seed if seed is None else seed,
        progress or no_progress,
        unit=units,
        memory_limit=None if memory is None else bytes_of(memory),
        constants=constants,
    )


def resumable(problem: Problem, file: str | Path | ResumeFile | None, what: Iterable[object]) -> Problem:
    """The problem with a resume file that belongs to it, to `what` is done with it, and to nothing else.

    Raises:
        AcdcError: processes that are to work together have different problems.
    """
    if file is not None and not isinstance(file, ResumeFile):
        check_path(file)
    together = ranks.current()
    if file is None and together.count == 1:
        return problem
    values: list[object] = [
        *what,
        problem.graph,
        problem.outcome.name,
        problem.ablation,
        problem.batch_size,
        problem.unit,
    ]
    values += [problem.seed, *vars(problem.prompts).values(), weights_digest(problem.model)]
    together.agree(values)
    if file is None:
        return problem
    resume = file if isinstance(file, ResumeFile) else ResumeFile(Path(file))
    if together.count > 1:
        resume = ranks.SharedResume(resume.path, stays=resume.stays)
    return dataclasses.replace(problem, resume=dataclasses.replace(resume, key=digest(values)))


def provenance_of(problem: Problem, dataset: Dataset, method: str, options: dict[str, Any]) -> Provenance:
    return Provenance(
        model=problem.model.name,
        revision=problem.model.revision,
        tokenizer=problem.model.tokenizer_name,
        config_hash=problem.model.config_hash(),
        d_model=problem.model.d_model,
        task=dataset.name,
        method=method,
        options=options,
        ablation=problem.ablation,
        metric=problem.outcome.name,
        seed=problem.seed,
    ).having(**belonging(problem.model, dataset))
