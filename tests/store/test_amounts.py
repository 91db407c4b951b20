"""Amounts of memory are read as people write them, and nothing else is."""

from __future__ import annotations

import pytest

from acdc.errors import AcdcError
from acdc.store.amounts import bytes_of, size


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4e9), ("512 MB", 512e6), ("1.5gib", 1.5 * 2**30), (" 7kB ", 7e3), ("0.25TB", 0.25e12)],
)
def test_amounts_are_read(text: str, expected: float) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "4", "", "GB", "-1GB", "0GB", "0.0MB", "4 parsecs", "4G", "4GB2", "nan GB", "infGB", "1e3GB", "4,5GB", "٤GB",
        "9" * 400 + "GB", 4, 4e9, True, b"4GB", ["4GB"],
    ],
)  # fmt: skip
def test_nothing_else_is_an_amount(text: object) -> None:
    with pytest.raises(AcdcError, match="expected an amount of memory like 4GB or 512MB, got"):
        bytes_of(text)


def test_sizes_are_read_again() -> None:
    assert [size(bytes_of(text)) for text in ("4GB", "12MB", "3kB")] == ["4 GB", "12 MB", "3 kB"]
