from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import acdc.tasks
from acdc.errors import AcdcError
from acdc.metrics import OUTCOMES
from acdc.tasks.registry import GENERATORS


def test_every_task_has_a_name_a_description_and_a_metric() -> None:
    listed = acdc.tasks.names()
    assert {"ioi", "greater-than", "docstring", "gendered-pronoun", "sva", "induction", "tracr-reverse"} <= {
        name for name, _ in listed
    }
    for name, description in listed:
        assert description
        assert "\n" not in description
        task = acdc.tasks.load(name)
        assert task.name == name
        assert task.metric in OUTCOMES


def test_published_metrics_are_the_defaults() -> None:
    others = {
        "greater-than": "probability-difference",
        "sva": "probability-difference",
        "docstring": "logit-margin",
    }
    for name in GENERATORS:
        assert acdc.tasks.load(name).metric == others.get(name, "logit-difference")
    assert acdc.tasks.load("ioi", metric="kl").metric == "kl"


def test_near_misses_are_named(tmp_path: Path) -> None:
    with pytest.raises(AcdcError, match="unknown task 'greater_than': did you mean greater-than"):
        acdc.tasks.load("greater_than")
    with pytest.raises(AcdcError, match="option of task 'tracr-reverse' 'distributoin': did you mean distribution"):
        acdc.tasks.load("tracr-reverse", distributoin="fixed")
    with pytest.raises(AcdcError, match="unknown padding 'up'"):
        acdc.tasks.load("ioi", padding="up")
    with pytest.raises(AcdcError, match="size of at least 1"):
        acdc.tasks.load("ioi", size=0)
    with pytest.raises(AcdcError, match="split is for a file of your own; task 'ioi' brings its own"):
        acdc.tasks.load("ioi", split=0.2)
    path = tmp_path / "mine.jsonl"
    path.write_text('{"clean": "a", "corrupted": "b"}')
    with pytest.raises(AcdcError, match=r"mine.jsonl: a file has no option 'corruption'"):
        acdc.tasks.load(path, corruption="swap")


def test_built_in_models_have_a_default_task() -> None:
    assert acdc.tasks.default_task("tracr-reverse") == "tracr-reverse"
    assert acdc.tasks.default_task("induction-2l") == "induction"
    assert acdc.tasks.default_task("gpt2") is None


@pytest.mark.parametrize(
    "name", [3, None, ["ioi"], "x" * 5000 + ".csv", "x" * 300, "a\0.csv", "/dev/null", "/nowhere/a.csv"]
)
def test_what_is_neither_a_task_nor_a_file_is_refused(name: Any) -> None:
    with pytest.raises(AcdcError) as error:
        acdc.tasks.load(name)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
