"""The annotations of public arrays (dtype, axes) hold for what the API gives, and axes of one name agree."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any

import jaxtyping
import numpy as np
import pytest

import acdc
from acdc.circuit import Scores
from acdc.engine.measure import bind
from acdc.engine.patching import Patching
from acdc.methods.method import Found
from acdc.metrics import Targets, precision_recall_curve, roc_curve
from acdc.tasks.prompts import Prompts


def holds(record: Any) -> bool:
    """Whether every annotated array is of its dtype and axes, the same size for an axis of the same name."""
    hints = typing.get_type_hints(type(record))
    arrays = 0
    with jaxtyping.jaxtyped("context"):
        for field in dataclasses.fields(record):
            options = typing.get_args(hints[field.name]) or (hints[field.name],)
            kinds = [o for o in options if isinstance(o, type) and issubclass(o, jaxtyping.AbstractArray)]
            value = getattr(record, field.name)
            if kinds and value is not None:
                arrays += 1
                each = value.values() if isinstance(value, Mapping) else [value]
                if not all(isinstance(array, kinds[0]) for array in each):
                    return False
    assert arrays, "no annotated arrays"
    return True


@pytest.fixture(scope="module")
def records() -> list[Any]:
    model, task = acdc.load("induction-2l"), acdc.tasks.load("induction", size=8)
    data = task.prepare(model)
    scores = acdc.score(model, data, method="eap")
    circuit = acdc.discover(model, data, method="acdc", threshold=1.0)
    valid = scores.graph.valid
    patching = Patching(model, scores.graph, data.discovery, ablation=data.ablation)
    return [
        data.discovery,
        scores,
        acdc.score(model, data, method="eap", units="node"),
        circuit,
        circuit.scores,
        bind(data.metric, patching).targets,
        roc_curve(scores.values[valid], circuit.edges[valid]),
        precision_recall_curve(scores.values[valid], circuit.edges[valid]),
        acdc.inspection.attention_patterns(model, data),
        acdc.inspection.direct_effects(model, data),
        acdc.inspection.logit_lens(model, data),
    ]


def test_what_the_api_gives_is_of_the_annotated_types(records: list[Any]) -> None:
    assert [type(record).__name__ for record in records if not holds(record)] == []


def test_another_dtype_or_size_is_noticed(records: list[Any]) -> None:
    prompts, scores = records[0], records[1]
    assert isinstance(prompts, Prompts)
    assert isinstance(scores, Scores)
    shorter, numbers = prompts.to("cpu"), prompts.to("cpu")
    object.__setattr__(shorter, "mask", prompts.mask[:, 1:])
    object.__setattr__(numbers, "mask", prompts.mask.long())
    assert not holds(shorter)
    assert not holds(numbers)
    assert not holds(Found(np.zeros((3, 2), dtype=bool), np.zeros((2, 3)), {}))
    assert not holds(Targets(prompts.mask, prompts.mask))
