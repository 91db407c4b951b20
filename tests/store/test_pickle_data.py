"""Reading pickles as data: plain data comes back as it was, and nothing is ever imported or called."""

from __future__ import annotations

import contextlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.errors import AcdcError
from acdc.store.pickle_data import Made, Named, read_pickle

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
numbers = st.integers(-(2**63), 2**64) | st.floats(allow_nan=False)
flat = st.none() | st.booleans() | numbers | st.text() | st.binary()
hashable = flat | st.tuples(flat, flat)
data = st.recursive(
    scalars,
    lambda items: (
        st.lists(items)
        | st.tuples(items, items, items, items)
        | st.dictionaries(hashable, items)
        | st.sets(hashable)
        | st.frozensets(hashable)
    ),
)


@settings(max_examples=40)
@given(data, st.integers(min_value=3, max_value=pickle.HIGHEST_PROTOCOL))
def test_plain_data_comes_back_as_it_was(value: Any, protocol: int) -> None:
    content = pickle.dumps(value, protocol=protocol)
    if any(op in content for op in (b"cbuiltins\nset\n", b"cbuiltins\nfrozenset\n")):
        return  # before protocol 4 sets are made by a call
    assert read_pickle(content, "it") == value


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_old_protocols(protocol: int) -> None:
    value = {"a": [1, -2, 10**20, 1.5, True, None, "é"], "b": (1, (2,), ()), 3: {"x": []}}
    assert read_pickle(pickle.dumps(value, protocol=protocol), "it") == value


def test_shared_parts_stay_shared() -> None:
    part = [1]
    read = read_pickle(pickle.dumps([part, part]), "it")
    assert read[0] is read[1]


class Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_nothing_is_called(tmp_path: Path) -> None:
    read = read_pickle(pickle.dumps({"x": Evil(tmp_path / "made")}), "it")
    assert isinstance(read["x"], Made)
    assert not (tmp_path / "made").exists()


def test_nothing_is_imported() -> None:
    assert read_pickle(b"cthis\nthat\n.", "it") == Named("this", "that")
    assert str(read_pickle(pickle.dumps(torch.float32, protocol=2), "it")) == "torch.float32"


class Point:
    def __init__(self) -> None:
        self.x = 1


def test_an_object_is_its_class_and_its_attributes() -> None:
    read = read_pickle(pickle.dumps(Point()), "it")
    assert isinstance(read, Made)
    assert (read.what.name, read.state) == ("Point", {"x": 1})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is not a pickle that can be read"),
        (b"hello", "it is not a pickle that can be read"),
        (pickle.dumps([1, 2, 3])[:-3], "it is not a pickle that can be read"),
        (b"\x80\x02]K\x01K\x02s.", "it is not a pickle that can be read"),
        (b"Pid\n.", r"it holds more than data \(pickle instruction PERSID\); only plain data is read"),
        (b"\x82\x01.", r"pickle instruction EXT1"),
    ],
)
def test_what_is_no_data_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        read_pickle(content, "it")


def _doubled(times: int) -> bytes:
    """Pickle instructions for a tuple of the tuple before it, twice, so many times over."""
    pairs = (b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) + b"0" for i in range(times))
    return b")q\x000" + b"".join(pairs) + b"h" + bytes([times])


_WIDE = b"(" + b"N" * 4000 + b"tq\x00"
_ANY, _FLAT = "more than 10,000,000 parts", "not texts, numbers or flat tuples"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_doubled(60) + b".", _ANY),
        (_doubled(30) + b".", _ANY),
        (b"\x8f(" + _doubled(60) + b"\x90.", _FLAT),
        (b"}(" + _doubled(60) + b"Nu.", _FLAT),
        (b"(" + _doubled(60) + b"Nd.", _FLAT),
        (b"}" + _doubled(60) + b"Ns.", _FLAT),
        (b"(" + _doubled(60) + b"\x91.", _FLAT),
        (_doubled(60) + b"h\x01\x93.", "is not a text"),
        (b"ca\nb\n" + _doubled(60) + b"R.", _ANY),
        (b"ca\nb\n)R" + _doubled(60) + b"b.", _ANY),
        (b"ca\nb\n)RX\x01\0\0\0k" + _doubled(60) + b"s.", _ANY),
        (b"ca\nb\n)R(" + _doubled(60) + b"Nu.", _FLAT),
        (b"]" * 5000 + b"a" * 4999 + b".", "nested more than 100 deep"),
        (b"]q\x00h\x00a.", "holds itself"),
        (b"}q\x00K\x01h\x00s.", "holds itself"),
        (_WIDE + b"0\x8f(" + b"h\x00" * 3000 + b"\x90.", "10,000,000 parts of keys"),
        (b"X\x40\x42\x0f\0" + b"x" * 10**6 + b"q\x000(" + b"h\x00" * 2000 + b"t.", _ANY),
        (b"\x8f(\x8a\x10" + b"\x7f" * 16 + b"\x90.", "64 bits"),
        (b"N\x86.", "fewer items"),
        (b"(" * 10**5, "cut off|exhausted"),
    ],
)
def test_little_that_stands_for_much_is_refused_at_once(content: bytes, words: str) -> None:
    with pytest.raises(AcdcError, match=words):
        read_pickle(content, "it")


def test_instructions_and_memos_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("acdc.store.pickle_data.MOST_INSTRUCTIONS", 1000)
    monkeypatch.setattr("acdc.store.pickle_data.MOST_MEMOS", 100)
    assert read_pickle(b"N0" * 499 + b"N.", "it") is None
    with pytest.raises(AcdcError, match="more than 1,000 pickle instructions"):
        read_pickle(b"N0" * 500 + b"N.", "it")
    with pytest.raises(AcdcError, match="more than 100 entries"):
        read_pickle(b"N" + b"".join(b"q" + bytes([i]) for i in range(101)) + b".", "it")


def test_what_shares_much_and_stands_for_little_is_read() -> None:
    part = tuple(range(1000))
    assert read_pickle(pickle.dumps([part] * 5000), "it") == [part] * 5000


@given(st.binary(max_size=60))
def test_no_content_makes_it_stumble(content: bytes) -> None:
    with contextlib.suppress(AcdcError):  # anything else fails the test
        read_pickle(content, "it")
