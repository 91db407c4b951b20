from __future__ import annotations

import pytest

from acdc.evaluation.published import PUBLISHED, PublishedCircuit, published
from acdc.graph import Graph

SHAPES = {"gpt2": Graph(12, 12), "attn-only-4l": Graph(4, 8, mlp=False)}


@pytest.mark.parametrize("circuit", PUBLISHED, ids=lambda circuit: circuit.task)
def test_components_exist_in_the_model_and_have_one_role(circuit: PublishedCircuit) -> None:
    graph = SHAPES[circuit.models[0]]
    assert circuit.components <= set(graph.sources)
    assert sum(map(len, circuit.roles.values())) == len(circuit.components)
    for role, names in circuit.roles.items():
        assert all(circuit.role_of(name) == role for name in names)


def test_circuits_are_found_by_any_spelling_of_the_model() -> None:
    ioi = published("openai-community/gpt2", "ioi")
    assert ioi is not None
    assert ioi is published("/models/GPT2/", "ioi")
    assert ioi.roles["name mover"] == ("a9.h9", "a10.h0", "a9.h6")
    assert sum(map(len, ioi.roles.values())) == 26
    assert published("gpt2", "arithmetic") is None
    assert published("gpt2-medium", "ioi") is None


def test_what_a_circuit_recovers_is_listed_by_role() -> None:
    ioi = published("gpt2", "ioi")
    assert ioi is not None
    found = ioi.recovered({"a9.h9", "a2.h2", "m0"})
    assert found["name mover"] == ("a9.h9",)
    assert found["previous token"] == ("a2.h2",)
    assert found["induction"] == ()
    assert ioi.role_of("m0") is None
