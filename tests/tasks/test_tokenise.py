from __future__ import annotations

from tokenizers import processors

from acdc.tasks.tokenise import UNKNOWN, Checked, Encoder, TextPair, TokenPair, check, tokenise
from tiny_tokenizers import StandIn


def _one(pair: TextPair, model: StandIn, *, move_space: bool = False) -> Checked:
    (row,) = tokenise([pair], Encoder(model), move_space=move_space)
    return check(row, model)


PROMPT = "When Mary and John went to the store, John gave a drink to"
OTHER = "When Anna and Paul went to the store, Paul gave a drink to"


def test_the_tokens_are_those_of_the_default_tokenisation(model: StandIn) -> None:
    pair = _one(TextPair(PROMPT, OTHER, (" Mary",), (" John",)), model, move_space=True).pair
    whole = model.tokenizer(PROMPT + " Mary")["input_ids"]
    assert (*pair.clean, *pair.answers) == tuple(whole)
    assert len(pair.clean) == len(pair.corrupted)


def test_an_end_token_of_the_tokenizer_is_never_part_of_a_prompt(gpt2_like: StandIn) -> None:
    tokenizer = gpt2_like.tokenizer
    backend = tokenizer.backend_tokenizer
    before = backend.post_processor
    plain = tokenizer(PROMPT)["input_ids"]
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A <pad>", special_tokens=[("<s>", 1), ("<pad>", 2)]
    )
    try:
        assert Encoder(gpt2_like).encode([PROMPT]) == [(1, *plain)]
    finally:
        backend.post_processor = before or processors.TemplateProcessing(single="$A")


def test_an_answer_of_several_tokens_shows_its_tokens(gpt2_like: StandIn) -> None:
    row = _one(TextPair(PROMPT, OTHER, (" Marymarket",)), gpt2_like)
    assert row.problems[0].startswith("answer ' Marymarket' is ")
    assert "' Mary' + " in row.problems[0]


def test_an_answer_without_its_space_merges_or_is_taken_as_given(gpt2_like: StandIn) -> None:
    pair = TextPair("When Mary went to the stor", "When John went to the stor", ("e",))
    assert "answer 'e' merges with the end of the prompt" in _one(pair, gpt2_like).problems[0]
    assert not _one(TextPair("Then, Mary", "Then, John", (",",)), gpt2_like).problems
    trailing = _one(TextPair("When Mary and ", "When John and ", ("Paul",)), gpt2_like)
    assert "end the prompt without one" in trailing.problems[0]


def test_a_space_that_is_a_token_moves_to_the_prompt_only_if_asked(model: StandIn) -> None:
    pair = TextPair(PROMPT, OTHER, (" Mary",), (" John",))
    asked, unasked = _one(pair, model, move_space=True), _one(pair, model)
    assert not asked.problems
    if len(asked.pair.clean) > len(unasked.pair.clean):
        assert all("end the prompt with that space" in x for x in unasked.problems)
    else:
        assert asked == unasked


def test_unknown_answers_are_refused_and_unknown_prompts_marked(model: StandIn) -> None:
    row = _one(TextPair(PROMPT, PROMPT.replace("Mary", "日本"), (" Mary",), (" 日本",)), model, move_space=True)
    assert row.problems
    if "word-level" in str(type(model.tokenizer.backend_tokenizer.model)).lower():
        assert UNKNOWN in row.remarks


def test_lengths_context_equality_and_ids_are_checked() -> None:
    model = StandIn(vocabulary_size=10, context_length=3)
    assert "clean is 2 tokens and corrupted 3" in check(Checked(TokenPair((1, 2), (1, 2, 3))), model).problems[0]
    assert "more than the model's context of 3" in check(Checked(TokenPair((1,) * 4, (2,) * 4)), model).problems[0]
    assert check(Checked(TokenPair((1, 2), (1, 2))), model).problems == (
        "the corrupted prompt equals the clean one",
    )
    assert "token id 10 is outside" in check(Checked(TokenPair((1, 2), (1, 3), (10,))), model).problems[0]
    assert (
        "both an answer and a wrong" in check(Checked(TokenPair((1, 2), (1, 3), (5,), (5, 6))), model).problems[0]
    )
    assert not check(Checked(TokenPair((1, 2), (1, 3), (5,), (6,))), model).problems
