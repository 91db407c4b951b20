"""docs/real/ioi.md says what the commands that it names find; run with `-m real`, where SmolLM2 is in the cache."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import acdc
from acdc.inspection import head_roles
from acdc.model.pretrained import fetched_folder

NAME = "smollm2-135m-q4"
PAGE = Path(__file__).parent.parent / "docs" / "real" / "ioi.md"
TEXT = PAGE.read_text(encoding="utf-8")
CHAIN, REMOVED = TEXT.split("## Movers stand in for each other")
FOUR = "`a23.h0` `a23.h1` `a23.h7` `a23.h2`"
pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(fetched_folder(NAME) is None, reason=f"acdc models fetch {NAME}"),
]


@pytest.fixture(scope="module")
def model() -> acdc.Model:
    return acdc.load(NAME)


@pytest.fixture(scope="module")
def data(model: acdc.Model) -> acdc.tasks.Dataset:
    return acdc.tasks.load("ioi", size=16).prepare(model)


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d*\.?\d+", text.replace("−", "-"))]


def test_what_is_lost_without_heads(model: acdc.Model, data: acdc.tasks.Dataset) -> None:
    rows = [row for row in map(cells, REMOVED.splitlines()) if len(row) == 5 and "`" in row[0]]
    assert len(rows) == 11
    for row in rows:
        named = FOUR if row[0].startswith("all three") else row[0].replace("these and", FOUR)
        found = acdc.ablate(model, data, re.findall(r"`([^`]+)`", named))
        shown = [numbers(cell)[0] for cell in row[1:]]
        measured = [found.changed, found.faithfulness, found.kl, found.exact_match]
        assert measured == pytest.approx(shown, abs=0.0051), row[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_what_the_path_carries(model: acdc.Model, data: acdc.tasks.Dataset) -> None:
    found = acdc.patch_path(model, data, ["a20.h0", "a23.h0<q>", "logits"])
    assert f"from {found.full:.2f} to {found.changed:.2f}." in " ".join(CHAIN.split())


def test_what_the_heads_are(model: acdc.Model, data: acdc.tasks.Dataset) -> None:
    roles = head_roles(model, data)
    labels = {role.head: {r.label for r in roles.roles if r.head == role.head} for role in roles.roles}
    lost = dict(zip(roles.heads, roles.effect, strict=True))
    rows = [row for row in map(cells, CHAIN.splitlines()) if len(row) == 5 and row[0].startswith("`")]
    assert len(rows) == 10
    for row in rows:
        heads, role = re.findall(r"`([^`]+)`", row[0]), row[2]
        for head, alone in zip(heads, numbers(row[4]), strict=True):
            assert lost[head] == pytest.approx(alone, abs=0.0051), head
            first = re.split("[;,]", role)[0]
            assert first in labels[head] if first != "none" else head not in labels, head
