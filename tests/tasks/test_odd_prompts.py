# ruff: noqa: E501
"""Files and tensors that no one would write, drawn at random: each is prompts, or one clear error.

The whole sweep carries the slow marker. Run once with 20,000 inputs of each kind, it found no other outcome.
"""

from __future__ import annotations

import collections
import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BatchEncoding

from acdc.errors import AcdcError
from acdc.tasks import Prompts, as_dataset
from acdc.tasks.file_task import load_file
from tiny_tokenizers import StandIn, stand_in, wrap

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

# ---- files ------------------------------------------------------------------------------------------------------

_ODD: list[Any] = [
    None, True, False, 0, -1, 7, 10**30, 1.0, 1.5, "", " ", "a", " Mary", "\x00", "\x1b[2J", "<s>", "<s><s>", "日本",
    "\u202e", "'", "x" * 5000, [], [[]], {}, [None], [1], [1, 2, 3], [-1], [1.5], ["a"], [["a"]], {"role": "user"},
    [{"role": "user", "content": "When Mary and John"}], [{"role": "assistant", "content": ""}], "\ud83d", "[", "[]",
]  # fmt: skip
_KEYS = ["clean", "corrupted", "answers", "wrong_answers", "clean_tokens", "corrupted_tokens", "answer_tokens",
         "wrong_tokens", "correct_idx", "incorrect_idx", "corrupt", "clean_prefix", "patch_answer", "case", "corupted",
         "", "prompts", "\x1b", "\ud83d", "label"]  # fmt: skip
_ENCODINGS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1", "utf-32"]


def _record(rng: random.Random) -> Any:
    name = rng.choice([" Mary", " John", " Paul"])
    tokens = {"clean_tokens": [1, 2, 3], "corrupted_tokens": [1, 4, 3], "answer_tokens": 5, "wrong_tokens": [6]}
    text = {"clean": f"When{name} and", "corrupted": "When Anna and", "answers": name, "wrong_answers": " Anna"}
    chat = text | {k: [{"role": "user", "content": text[k]}] for k in ("clean", "corrupted")}
    record: dict[str, Any] = dict(rng.choice([tokens, text, text, chat]))
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        change = rng.randrange(4)
        if change == 0:
            record[rng.choice(list(record))] = rng.choice(_ODD)
        elif change == 1:
            record.pop(rng.choice(list(record)), None)
        elif change == 2:
            record[rng.choice(_KEYS)] = rng.choice(_ODD)
        else:
            return rng.choice(_ODD)
        if not record:
            break
    return record


def _odd_file(rng: random.Random) -> bytes:
    records = [_record(rng) for _ in range(rng.choice([0, 1, 1, 2, 3, 30]))]
    form = rng.randrange(6)
    if form == 0:
        text = "\n".join(map(json.dumps, records))
    elif form == 1:
        text = json.dumps(records, indent=rng.choice([None, 1]))
    elif form == 2:
        text = json.dumps({"prompts": records} | rng.choice([{}, {"word_idxs": {}}, {"more": 1}]))
    elif form == 3:
        text = "\r\n".join(json.dumps(x, indent=rng.choice([None, None, 2])) for x in records)
    else:
        out = io.StringIO()
        rows = [x if isinstance(x, dict) else {} for x in records]
        header = rng.choice([list(rows[0]) if rows else [], rng.sample(_KEYS, rng.randint(1, 5))])
        writer = csv.writer(
            out, delimiter=rng.choice(",,,;\t"), quoting=rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        )
        writer.writerows([header, *([str(row.get(key, "")) for key in header] for row in rows)])
        text = out.getvalue()
    content = bytearray(text.encode(rng.choice(_ENCODINGS), "backslashreplace"))
    for _ in range(rng.choice([0, 0, 0, 1, 3])):
        where = rng.randrange(len(content) + 1)
        damage = rng.randrange(4)
        if damage == 0:
            content[where:where] = rng.choice(
                [b"\x00", b"\xff", b",", b'"', b"\n", b"[", b"{", b"\r", b"\x1b", b"]" * 9]
            )
        elif damage == 1:
            del content[where : where + rng.choice([1, 2, 40])]
        elif damage == 2:
            del content[where:]
        elif content:
            content[where % len(content)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _sweep_files(folder: Path, model: StandIn, seeds: range) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        rng = random.Random(f"file/{seed}")
        path = folder / rng.choice(["a.jsonl", "a.json", "a.csv", "a.txt", "a"])
        path.write_bytes(_odd_file(rng))
        settings = rng.choice([{}, {}, {"split": 0.5}, {"size": 1}, {"metric": "kl"}, {"held_out": path}])
        try:
            dataset = load_file(path, **settings).prepare(model)
        except AcdcError as error:
            _check_message(str(error), seed)
            outcomes["refused"] += 1
        else:
            _check_prompts(dataset.discovery, model)
            outcomes["read"] += 1
        path.unlink()
    return outcomes


# ---- tensors ----------------------------------------------------------------------------------------------------

_WRAPPERS: list[Any] = [
    list, tuple, torch.tensor, np.array, lambda x: [torch.tensor(r) for r in x], lambda x: [np.array(r) for r in x],
    lambda x: torch.tensor(x, dtype=torch.int32), lambda x: torch.tensor(x, dtype=torch.uint8), iter,
    lambda x: torch.tensor(x, dtype=torch.float32), lambda x: torch.tensor(x, dtype=torch.bool),
    lambda x: np.array(x, dtype=object), lambda x: np.array(x, dtype=np.float16), lambda x: np.array(x, dtype=str),
    lambda x: BatchEncoding({"input_ids": x}), lambda x: {"input_ids": torch.tensor(x)},
    lambda x: BatchEncoding({"input_ids": x, "attention_mask": [[1] * len(r) for r in x]}),
    lambda x: {"input_ids": x, "attention_mask": [[0] * len(r) for r in x]}, lambda x: [{"input_ids": r} for r in x],
    lambda x: torch.tensor(x).to_sparse(), lambda x: torch.tensor(x, device="meta"), lambda x: torch.tensor([x]),
    lambda x: x[0], lambda x: x[0][0], lambda x: [x], lambda x: set(map(tuple, x)), lambda x: str(x), lambda x: None,
    lambda x: torch.nested.nested_tensor([torch.tensor(r) for r in x]), lambda x: {i: r for i, r in enumerate(x)},
    lambda x: [[torch.tensor(t) for t in r] for r in x], lambda x: [np.array([r]) for r in x], lambda x: memoryview(b"ab"),
]  # fmt: skip
_ODD_TOKENS: list[Any] = [-1, -100, 10**6, 2**63, 2**70, 1.0, 1.5, float("nan"), True, None, "a", b"a", [1], [], {}, 1j,
                          np.float32(1), np.bool_(True), np.int8(3), torch.tensor(4), torch.tensor(4.0), object()]  # fmt: skip


def _odd_rows(rng: random.Random, shape: list[int]) -> Any:
    rows: list[Any] = [[rng.randrange(9) for _ in range(n)] for n in shape]
    for _ in range(rng.choice([0, 0, 1, 2])):
        row = rng.choice(rows) if rows else []
        change = rng.randrange(3)
        if change == 0 and row:
            row[rng.randrange(len(row))] = rng.choice(_ODD_TOKENS)
        elif change == 1:
            row.append(5)
        elif rows:
            rows.pop()
    try:
        return rng.choice(_WRAPPERS[:4] if rng.random() < 0.5 else _WRAPPERS)(rows)
    except Exception:  # torch and numpy refuse these rows
        return rows


def _sweep_tensors(model: StandIn, seeds: range) -> collections.Counter[str]:
    outcomes: collections.Counter[str] = collections.Counter()
    for seed in seeds:
        rng = random.Random(f"tensors/{seed}")
        shape = [rng.choice([3, 3, 3, 1, 4, 0])] * rng.choice([1, 2, 3]) if rng.random() < 0.7 else [2, 3]
        given = [_odd_rows(rng, shape), _odd_rows(rng, shape)]
        for _ in range(rng.randrange(3)):
            answers = [rng.choice([1, 2, [3], [4, 5], *_ODD_TOKENS[:3]]) for _ in shape]
            given.append(rng.choice([answers, _odd_rows(rng, [1] * len(shape)), np.array([1] * len(shape))]))
        try:
            with torch.inference_mode(rng.random() < 0.2):
                prompts = Prompts.from_tokens(*given, padding=rng.choice(["left", "right"]))
            dataset = as_dataset(prompts, model)
        except AcdcError as error:
            _check_message(str(error), seed)
            outcomes["refused"] += 1
        else:
            _check_prompts(dataset.discovery, model)
            outcomes["read"] += 1
    return outcomes


# ---- both -------------------------------------------------------------------------------------------------------


def _check_message(message: str, seed: int) -> None:
    assert message, seed
    assert message.replace("\n", "").isprintable(), (seed, message)
    assert len(message.splitlines()) <= 50, seed
    assert max(map(len, message.splitlines())) < 2000, seed


def _check_prompts(prompts: Prompts, model: StandIn) -> None:
    for name in ("clean", "corrupted"):
        ids = getattr(prompts, name)
        assert ids.dtype == torch.int64
        assert not ids.is_inference()
        assert int(ids.min()) >= 0
        assert int(ids.max()) < model.vocabulary_size
    assert bool(prompts.mask.any(1).all())


@pytest.fixture(scope="module")
def chatty(trained: Any) -> StandIn:
    tokenizer = wrap(Tokenizer.from_str(trained("byte-bpe").to_str()), bos=True)
    tokenizer.chat_template = TEMPLATE
    return stand_in(tokenizer)


@pytest.mark.parametrize(
    "seeds", [range(1000), pytest.param(range(1000, 20_000), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_an_odd_file_is_prompts_or_one_clear_error(seeds: range, tmp_path: Path, chatty: StandIn) -> None:
    outcomes = _sweep_files(tmp_path, chatty, seeds)
    assert outcomes["read"] > len(seeds) / 20
    assert outcomes["refused"] > len(seeds) / 2


@pytest.mark.parametrize(
    "seeds", [range(1000), pytest.param(range(1000, 20_000), marks=pytest.mark.slow)], ids=["some", "all"]
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors", "ignore:Sparse", "ignore:.*repeat")
def test_odd_tensors_are_prompts_or_one_clear_error(seeds: range) -> None:
    outcomes = _sweep_tensors(StandIn(vocabulary_size=50), seeds)
    assert outcomes["read"] > len(seeds) / 20
    assert outcomes["refused"] > len(seeds) / 2
