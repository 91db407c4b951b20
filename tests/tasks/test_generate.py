"""Properties of every built-in task on tokenizers of every style."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

import acdc.tasks
from acdc.errors import AcdcError, TaskError
from acdc.tasks.prompts import Prompts
from acdc.tasks.registry import GENERATORS
from acdc.tasks.tokenise import Encoder, TextPair
from tiny_tokenizers import StandIn, stand_in, wrap

SIZE = 12


def _rows(prompts: Prompts) -> set[tuple[int, ...]]:
    return {tuple(row[mask].tolist()) for row, mask in zip(prompts.clean, prompts.mask, strict=True)}


@pytest.mark.parametrize("name", GENERATORS)
def test_prompts_fit_every_tokenizer(name: str, model: StandIn) -> None:
    dataset = acdc.tasks.load(name, size=SIZE, seed=3).prepare(model)
    assert dataset.held_out is not None
    assert len(dataset.discovery) == len(dataset.held_out) == SIZE
    assert not dataset.warnings
    tokenizer = model.tokenizer
    prefix = tokenizer("")["input_ids"]
    whole = _tokenised_whole(name, model)
    for prompts in (dataset.discovery, dataset.held_out):
        assert prompts.answers is not None
        assert prompts.wrong is not None
        for i in range(SIZE):
            clean, corrupted = (x[i][prompts.mask[i]].tolist() for x in (prompts.clean, prompts.corrupted))
            assert clean != corrupted
            assert clean[: len(prefix)] == corrupted[: len(prefix)] == prefix
            assert int(prompts.positions[i, 0]) == len(clean) - 1
            answers, wrong = ({*x[i, 0].tolist()} - {-1} for x in (prompts.answers, prompts.wrong))
            assert answers
            assert wrong
            assert not answers & wrong
            if whole is not None:
                assert tokenizer.unk_token_id not in {*clean, *corrupted, *answers, *wrong}
                assert all((*clean, answer) in whole for answer in answers | wrong)


def _tokenised_whole(name: str, model: StandIn) -> set[tuple[int, ...]] | None:
    """Every prompt with every answer behind it, tokenised as one text; None for tasks that are no text."""
    stream = GENERATORS[name].pairs(model, random.Random(f"{name}/3"))
    pairs = [pair for pair in itertools.islice(stream, 64) if isinstance(pair, TextPair)]
    texts = [pair.clean + answer for pair in pairs for answer in (*pair.answers, *pair.wrong)]
    return {tuple(row) for row in model.tokenizer(texts)["input_ids"]} if texts else None


@pytest.mark.parametrize("name", GENERATORS)
def test_a_seed_gives_the_same_prompts_and_another_seed_others(name: str, gpt2_like: StandIn) -> None:
    first, again, other = (acdc.tasks.load(name, size=SIZE, seed=s).prepare(gpt2_like) for s in (5, 5, 6))
    assert first.held_out is not None
    assert again.held_out is not None
    for a, b in ((first.discovery, again.discovery), (first.held_out, again.held_out)):
        for field in ("clean", "corrupted", "mask", "positions", "answers", "wrong"):
            assert torch.equal(getattr(a, field), getattr(b, field))
    assert _rows(first.discovery) != _rows(other.discovery)


@pytest.mark.parametrize("name", GENERATORS)
def test_no_prompt_is_in_both_splits_or_twice_in_one(name: str, gpt2_like: StandIn) -> None:
    dataset = acdc.tasks.load(name, size=40).prepare(gpt2_like)
    assert dataset.held_out is not None
    discovery, held_out = _rows(dataset.discovery), _rows(dataset.held_out)
    assert len(discovery) == len(held_out) == 40
    assert not discovery & held_out


@pytest.mark.parametrize("name", sorted({*GENERATORS} - {"induction", "ioi", "docstring"}))
def test_corruption_changes_one_place_a_word_long(name: str, gpt2_like: StandIn) -> None:
    prompts = acdc.tasks.load(name, size=SIZE).prepare(gpt2_like).discovery
    changed = (prompts.clean != prompts.corrupted).sum(1)
    assert int(changed.max()) <= (4 if name in ("mcqa", "arc") else 1)


def test_left_padding_reads_the_last_column(gpt2_like: StandIn) -> None:
    prompts = acdc.tasks.load("ioi", size=SIZE, padding="left").prepare(gpt2_like).discovery
    width = prompts.clean.shape[1]
    assert not bool(prompts.mask.all())
    assert prompts.mask[:, -1].all()
    assert (prompts.positions == width - 1).all()
    assert _rows(prompts) == _rows(acdc.tasks.load("ioi", size=SIZE).prepare(gpt2_like).discovery)


def test_texts_of_tokens_read_as_the_prompt(gpt2_like: StandIn) -> None:
    dataset = acdc.tasks.load("gendered-pronoun", size=SIZE).prepare(gpt2_like)
    assert dataset.tokens is not None
    text = "".join(dataset.tokens[0])
    assert text.startswith("So ")
    assert text.endswith("isn't")


def test_a_small_tokenizer_says_which_words_it_lacks() -> None:
    characters = Tokenizer(
        models.WordLevel({c: i for i, c in enumerate(["<unk>", *"abcdefgh "])}, unk_token="<unk>")
    )
    characters.pre_tokenizer = pre_tokenizers.Split("", behavior="isolated")
    model = stand_in(wrap(characters, bos=False))
    with pytest.raises(TaskError, match=r"only 0 of 9\d names are single tokens"):
        acdc.tasks.load("ioi").prepare(model)
    with pytest.raises(TaskError, match="nouns are single tokens"):
        acdc.tasks.load("sva").prepare(model)
    with pytest.raises(TaskError, match="at most 0 of the 100 years"):
        acdc.tasks.load("greater-than").prepare(model)
    with pytest.raises(TaskError, match=r"task 'mcqa': only 0 of \d+ prompts .* unknown to the tokenizer"):
        acdc.tasks.load("mcqa").prepare(model)


def test_a_short_context_is_said(gpt2_like: StandIn) -> None:
    model = StandIn(tokenizer=gpt2_like.tokenizer, vocabulary_size=gpt2_like.vocabulary_size, context_length=6)
    with pytest.raises(TaskError, match="more than the model's context of 6"):
        acdc.tasks.load("gendered-pronoun").prepare(model)


def test_too_few_different_prompts_is_a_warning(gpt2_like: StandIn) -> None:
    dataset = acdc.tasks.load("gendered-pronoun", size=3_100).prepare(gpt2_like)
    assert dataset.held_out is not None
    assert len(dataset.discovery) == len(dataset.held_out) < 3_100
    assert "different prompts fit" in dataset.warnings[0]


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(TaskError, match=r"stand-in has no tokenizer.*induction.*clean_tokens"):
        acdc.tasks.load("ioi").prepare(StandIn())


def test_unknown_options_name_the_nearest(gpt2_like: StandIn) -> None:
    with pytest.raises(AcdcError, match="option of task 'ioi' 'corruptoin': did you mean corruption"):
        acdc.tasks.load("ioi", corruptoin="abc")
    with pytest.raises(AcdcError, match="corruption 'swapp': did you mean swap"):
        acdc.tasks.load("ioi", corruption="swapp").prepare(gpt2_like)


def test_encoder_words_are_single_tokens(model: StandIn) -> None:
    encoder = Encoder(model)
    words = encoder.words(["Mary", "John", "Xyzzyx", "Mary"], what="names", at_least=1)
    assert words == ["Mary", "John"]
