from __future__ import annotations

import json
import math
import os
import socket
from pathlib import Path

import pydantic
import pytest

from acdc.errors import AcdcError
from acdc.store.reading import check_file, parse_json, read, read_json, read_record, read_text, spreadsheet_cell


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def test_only_regular_files_are_read(tmp_path: Path, pipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of these would ever answer, or end."""
    monkeypatch.chdir(tmp_path)  # a socket's path may have but some hundred letters
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        for path, kind in (
            (pipe, "a pipe"),
            ("/dev/zero", "a device"),
            (tmp_path, "a folder"),
            ("socket", "a socket"),
        ):
            for reader in (read, read_text, read_json, check_file):
                with pytest.raises(AcdcError, match=f"expected a file, got {kind}"):
                    reader(path)


def test_a_link_to_a_file_is_read_and_one_to_a_pipe_is_not(tmp_path: Path, pipe: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "good").symlink_to("file")
    (tmp_path / "bad").symlink_to("pipe")
    assert read(tmp_path / "good") == b"content"
    with pytest.raises(AcdcError, match="a pipe"):
        read(tmp_path / "bad")


@pytest.mark.parametrize("name", ["missing", "a\0b", "x" * 300, "file/below"])
def test_what_cannot_be_opened_is_one_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AcdcError, match="cannot read"):
        read(tmp_path / name)


def test_the_size_is_limited_and_the_message_says_both_numbers(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(b"x" * 1001)
    assert len(read(path, largest=1001)) == 1001
    with pytest.raises(AcdcError, match=r"1,001 bytes, and at most 1,000 are read"):
        read(path, largest=1000)
    if Path("/proc/self/status").exists():  # which says that it has no bytes
        with pytest.raises(AcdcError, match="more than 10 bytes"):
            read("/proc/self/status", largest=10)


def test_text_is_strict_utf8_with_or_without_mark(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfna\xc3\xafve")
    assert read_text(path) == "naïve"
    for content in (b"\xff\xfe{\0}\0", b"caf\xe9", b"\xed\xa0\xbd", b"\xc0\x80"):
        path.write_bytes(content)
        with pytest.raises(AcdcError, match="not UTF-8"):
            read_text(path)
        with pytest.raises(AcdcError, match="not UTF-8"):
            read_json(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' occurs twice"),
        ('{"a": 1, "\\u0061": 2}', "the key 'a' occurs twice"),
        ("[NaN]", "NaN is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "1e999 is too large"),
        ("[-1e999]", "too large"),
        ("9" * 1001, "1,001 digits"),
        ("9" * 10_000, "10,000 digits"),
        ("[" * 101 + "]" * 101, "nested"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested"),
        ("[" * 100_000, "nested"),
        ('"\\ud83d"', "surrogate"),
        ('{"\\udc00 key": 1}', "surrogate"),
        ('"' + '\\"' * 100_000 + "[" * 101, "Unterminated"),
        ("", "Expecting value"),
        ("[1] [2]", "Extra data"),
        ("{'a': 1}", "Expecting property name"),
        ("[01]", "Expecting"),
        ("[1,]", "Expecting value|trailing comma"),
    ],
)
def test_json_that_two_programs_could_read_in_two_ways_is_refused(text: str, reason: str) -> None:
    with pytest.raises(AcdcError, match=reason) as caught:
        parse_json(text, "the file")
    assert str(caught.value).startswith("the file is not valid JSON: ")
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, -2.5, 1e300, '\n\t"\\', None, True], "b": {}},
        "a clef 𝄞 and an emoji \U0001f600",
        [[]] * 200,
        "[" * 500,
        10**999,
    ],
)
def test_json_that_can_be_read_one_way_is_read_that_way(value: object) -> None:
    for ascii in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii), "it") == value


def test_python_s_constants_are_read_where_they_are_expected() -> None:
    found = parse_json("[NaN, -Infinity]", "it", constants=True)
    assert math.isnan(found[0])
    assert found[1] == -math.inf
    with pytest.raises(AcdcError, match="too large"):
        parse_json("1e999", "it", constants=True)


class _Record(pydantic.BaseModel, frozen=True, extra="forbid"):
    count: int
    share: float = 0.0
    names: tuple[str, ...] = ()


def test_a_record_takes_the_types_it_says_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text('{"count": 3, "share": 1, "names": ["a"]}')
    assert read_record(path, _Record) == _Record(count=3, share=1.0, names=("a",))
    for text in (
        '{"count": "3"}',
        '{"count": true}',
        '{"count": 3.5}',
        '{"count": 3, "share": "1"}',
        "[]",
        "{}",
        '{"count": 3, "names": "a"}',
        '{"count": 3, "other": 1}',
    ):
        path.write_text(text)
        with pytest.raises(AcdcError, match=r"record\.json"):
            read_record(path, _Record)


@pytest.mark.parametrize("text", ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_text_that_starts_a_formula_is_quoted(text: str) -> None:
    assert spreadsheet_cell(text) == "'" + text
    assert [spreadsheet_cell(value) for value in ("a=1", -2.5, None, "")] == ["a=1", -2.5, None, ""]
