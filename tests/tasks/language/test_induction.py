from __future__ import annotations

import pytest

import acdc.tasks
from acdc.errors import TaskError
from acdc.tasks import Prompts
from tiny_tokenizers import StandIn


def _follows(row: list[int]) -> int:
    """What came after the earlier occurrence of the last token."""
    return row[row.index(row[-1]) + 1]


@pytest.mark.parametrize("bos", [None, 0])
def test_the_answer_follows_the_earlier_copy_in_each_prompt(bos: int | None) -> None:
    dataset = acdc.tasks.load("induction", size=50).prepare(StandIn(vocabulary_size=60, bos_token_id=bos))
    prompts: Prompts = dataset.discovery
    assert bool(prompts.mask.all())
    assert prompts.clean.shape[1] == 24 + (bos is not None)
    assert prompts.answers is not None
    assert prompts.wrong is not None
    for i in range(len(prompts)):
        clean, corrupted = prompts.clean[i].tolist(), prompts.corrupted[i].tolist()
        assert clean.count(clean[-1]) == corrupted.count(clean[-1]) == 2
        assert _follows(clean) == prompts.answers[i, 0, 0]
        assert _follows(corrupted) == prompts.wrong[i, 0, 0]
        assert sorted(clean) == sorted(corrupted)
        if bos is not None:
            assert clean[0] == bos
            assert bos not in clean[1:]


def test_the_distance_between_the_copies_varies() -> None:
    clean = acdc.tasks.load("induction", size=50).prepare(StandIn(vocabulary_size=60)).discovery.clean.tolist()
    assert len({len(row) - 1 - row.index(row[-1]) for row in clean}) > 3


def test_special_tokens_do_not_occur(model: StandIn) -> None:
    prompts = acdc.tasks.load("induction", size=200).prepare(model).discovery
    special = {*model.tokenizer.all_special_ids}
    start = len(model.tokenizer("")["input_ids"])
    assert not special & {*prompts.clean[:, start:].flatten().tolist()}
    assert prompts.clean[:, :start].unique().tolist() == model.tokenizer("")["input_ids"]


def test_small_contexts_and_vocabularies() -> None:
    assert acdc.tasks.load("induction").prepare(StandIn(context_length=16)).discovery.clean.shape[1] == 16
    with pytest.raises(TaskError, match="at least 8 tokens, got 5"):
        acdc.tasks.load("induction").prepare(StandIn(context_length=5))
    with pytest.raises(TaskError, match="has 10 ordinary tokens, and 24 are needed"):
        acdc.tasks.load("induction").prepare(StandIn(vocabulary_size=10))


def test_a_length_that_was_asked_for_is_not_cut() -> None:
    with pytest.raises(TaskError, match="prompts of 40 tokens do not fit the model's context: at most 16 do"):
        acdc.tasks.load("induction", length=40).prepare(StandIn(context_length=16))
