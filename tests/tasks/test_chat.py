"""A chat has the tokens that the tokenizer's own template gives it, and no prompt starts twice."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, processors

import acdc.tasks
from acdc.errors import TaskError
from acdc.tasks import Prompts, as_dataset
from acdc.tasks.tokenise import OWN_START, Encoder
from tiny_tokenizers import STYLES, StandIn, stand_in, wrap

TURNS = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = {
    "with BOS": "{{ bos_token }}" + TURNS,
    "without BOS": TURNS,
    "after a line break": "\n{{ bos_token }}" + TURNS,
    "after a system header": "<|system|>\n{{ bos_token }}" + TURNS,
    "trimming": "{{ bos_token }}" + TURNS.replace("m.content", "m.content | trim"),
}
CLEAN = [
    {"role": "system", "content": "Paul gave a kiss"},
    {"role": "user", "content": "When Mary and John went to the store"},
]
CORRUPTED = [CLEAN[0], {"role": "user", "content": "When Mary and Paul went to the store"}]
STARTED = [{"role": "assistant", "content": "John gave a drink to"}]


@pytest.fixture(scope="module")
def chatting(trained: Callable[[str], Tokenizer]) -> Callable[..., StandIn]:
    def make(style: str, template: str | None = None, *, bos: bool = True) -> StandIn:
        tokenizer = wrap(trained(style), bos=bos)
        roles = [AddedToken(f"<|{role}|>", special=True) for role in ("system", "user", "assistant")]
        tokenizer.add_tokens(roles, special_tokens=True)
        tokenizer.chat_template = template
        return stand_in(tokenizer)

    return make


def _load(folder: Path, *records: Any) -> Any:
    path = folder / "chat.json"
    path.write_text(json.dumps(list(records)))
    return acdc.tasks.load(path)


def _ids(model: StandIn, chat: list[dict[str, str]]) -> list[int]:
    going_on = chat[-1]["role"] == "assistant"
    ids: list[int] = model.tokenizer.apply_chat_template(
        chat, tokenize=True, add_generation_prompt=not going_on, continue_final_message=going_on, return_dict=False
    )
    return ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("style", STYLES)
def test_chats_and_their_text_have_the_tokens_of_the_template(
    style: str, template: str, chatting: Callable[..., StandIn], tmp_path: Path
) -> None:
    model = chatting(style, TEMPLATES[template])
    pairs = [(CLEAN, CORRUPTED), (CLEAN + STARTED, CORRUPTED + STARTED)]
    chats = _load(tmp_path, *({"clean": a, "corrupted": b} for a, b in pairs)).prepare(model)
    rows = [row[mask].tolist() for row, mask in zip(chats.discovery.clean, chats.discovery.mask, strict=True)]
    assert rows == [_ids(model, a) for a, _ in pairs]
    assert not any(OWN_START in warning for warning in chats.warnings)

    if template == "without BOS":  # then its text, like any other, gets the tokenizer's own
        return
    text = [
        model.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        for chat in (CLEAN, CORRUPTED)
    ]
    written = _load(tmp_path, {"clean": text[0], "corrupted": text[1]}).prepare(model)
    assert written.discovery.clean.tolist() == [_ids(model, CLEAN)]
    assert any("BOS" in warning and "record 1" in warning for warning in written.warnings)


@pytest.mark.parametrize("style", STYLES)
def test_an_answer_after_a_chat_is_how_the_text_goes_on(
    style: str, chatting: Callable[..., StandIn], tmp_path: Path
) -> None:
    model = chatting(style, TEMPLATES["with BOS"])
    text = model.tokenizer.apply_chat_template(CLEAN, tokenize=False, add_generation_prompt=True)
    for answer in ("Mary", " Mary", "Marymarket"):
        whole = model.tokenizer(text + answer, add_special_tokens=False)["input_ids"]
        task = _load(tmp_path, {"clean": CLEAN, "corrupted": CORRUPTED, "answers": answer})
        before = _ids(model, CLEAN)
        if whole[:-1] == before and whole[-1] != model.tokenizer.unk_token_id:
            dataset = task.prepare(model)
            assert dataset.discovery.answers is not None
            assert dataset.discovery.answers.tolist() == [[[whole[-1]]]]
            assert any("answers start with a space" in x for x in dataset.warnings) == (answer == " Mary")
        elif (
            len(whole) > len(before) + 1
            and whole[: len(before)] == before
            and model.tokenizer.unk_token_id not in whole
        ):
            assert len(task.prepare(model).discovery) == 1  # an answer of several tokens
        else:
            with pytest.raises(TaskError, match=r"answer ' ?Mary\w*' (is \d tokens|merges|is unknown)"):
                task.prepare(model)


def test_what_is_wrong_with_a_chat_is_said_by_record(chatting: Callable[..., StandIn], tmp_path: Path) -> None:
    strict = (
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    model = chatting("byte-bpe", strict)
    user = [{"role": "user", "content": "Mary and John"}]
    longer = [{"role": "user", "content": "Mary and John and Paul"}]
    with pytest.raises(TaskError) as error:
        _load(
            tmp_path,
            {"clean": user * 2, "corrupted": user},
            {"clean": user, "corrupted": longer},
            {"clean": user, "corrupted": user},
        ).prepare(model)
    said = str(error.value).splitlines()
    assert said[0] == "chat.json: 3 problems"
    assert said[1] == (
        "  record 1: clean: the tokenizer's chat template refuses the messages: 'roles must alternate'"
    )
    assert said[2].startswith("  record 2: clean is 4 tokens and corrupted 6; expected equally many")
    assert said[3] == "  record 3: the corrupted prompt equals the clean one"
    with pytest.raises(TaskError, match=r"the tokenizer of stand-in has no chat template, so it takes no messages"):
        _load(tmp_path, {"clean": user, "corrupted": longer}).prepare(chatting("byte-bpe"))
    with pytest.raises(TaskError, match="stand-in has no tokenizer"):
        _load(tmp_path, {"clean": user, "corrupted": longer}).prepare(StandIn())


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "'clean' is empty"),
        ([{"role": "usr", "content": "a"}], "'clean': message 1: unknown role 'usr', did you mean 'user'?"),
        ([{"role": 3, "content": "a"}], "'clean': message 1: unknown role 3, known: system, developer, user, ass"),
        (
            [{"role": "user"}],
            "'clean': message 1: expected an object with 'role' and 'content', got one with 'role'",
        ),
        ([{"role": "user", "content": ["a"]}], "'clean': message 1: expected 'content' as a string, got a list"),
        (
            [{"role": "user", "content": "a", "name": "b"}],
            "'clean': message 1: unknown key 'name', known: role, con",
        ),
        (["hello"], "'clean': message 1: expected an object with 'role' and 'content', got a string"),
        ([5, 6], "'clean': expected text or messages, got token ids: call it 'clean_tokens'"),
        ({"role": "user", "content": "a"}, "'clean': expected a string or a list of messages, got an object"),
    ],
)
def test_messages_of_another_form_are_refused(messages: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError) as error:
        _load(tmp_path, {"clean": messages, "corrupted": "a"})
    assert message in str(error.value)


def test_what_a_template_does_to_a_chat_is_said(chatting: Callable[..., StandIn], tmp_path: Path) -> None:
    silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    dated = "{{ strftime_now('%Y') }}" + TURNS
    record = {"clean": CLEAN, "corrupted": CORRUPTED}
    (left_out,) = _load(tmp_path, record).prepare(chatting("byte-bpe", silent)).warnings
    assert left_out == "chat.json: the chat template leaves out what a message says (record 1)"
    (today,) = _load(tmp_path, record).prepare(chatting("byte-bpe", dated)).warnings
    assert "today's date" in today


def test_several_tokens_at_the_start_are_put_there_once(chatting: Callable[..., StandIn], tmp_path: Path) -> None:
    model = chatting("byte-bpe", bos=False)
    first, second = model.tokenizer.convert_tokens_to_ids(["<s>", "<|system|>"])
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> <|system|> $A", special_tokens=[("<s>", first), ("<|system|>", second)]
    )
    encoder = Encoder(model)
    assert encoder.prefix == (first, second)
    plain, once, in_part = encoder.encode([" Mary", "<s><|system|> Mary", "<s> Mary"])
    assert plain == once == (first, second, plain[-1])
    assert in_part == (first, plain[-1])
    task = _load(tmp_path, {"clean": "<s> Mary", "corrupted": " Mary"}, {"clean": " John", "corrupted": " Mary"})
    with pytest.raises(TaskError, match="record 1: clean is 2 tokens and corrupted 3"):
        task.prepare(model)


def test_token_ids_that_start_twice_are_warned_of(tmp_path: Path) -> None:
    model = dataclasses.replace(StandIn(), bos_token_id=1)
    warning = "the prompts start with BOS twice"
    dataset = _load(tmp_path, {"clean_tokens": [1, 1, 5], "corrupted_tokens": [1, 1, 6]}).prepare(model)
    assert dataset.warnings == (f"chat.json: {warning} (record 1)",)
    assert dataset.discovery.clean.tolist() == [[1, 1, 5]]
    prompts = Prompts.from_tokens([[1, 1, 5], [1, 5]], [[1, 1, 6], [1, 6]], padding="left")
    assert as_dataset(prompts, model).warnings == (f"1 of 2 prompts: {warning}",)
    assert as_dataset(prompts, StandIn()).warnings == ()
