"""Files that are whole or as they were, whatever happens while they are written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from acdc.errors import AcdcError, WriteError
from acdc.store.writing import clear_leftovers, move_to_new, temporary_file, temporary_folder, write_atomically


def test_a_file_is_replaced_only_if_that_is_allowed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, "one", replace=False)
    with pytest.raises(AcdcError, match="exists"):
        write_atomically(file, "two", replace=False)
    assert file.read_text() == "one"
    write_atomically(file, "two")
    assert file.read_text() == "two"
    assert os.listdir(tmp_path) == ["file"]


def test_without_hard_links_a_new_file_is_new_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "source").write_text("one")
    move_to_new(tmp_path / "source", tmp_path / "target")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"target": "one"}
    (tmp_path / "source").write_text("two")
    with pytest.raises(FileExistsError):
        move_to_new(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_text() == "one"


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "file")
    for text in ("made", "replaced"):
        write_atomically(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "disk" / "file").read_text() == text


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/null")):
        with pytest.raises(AcdcError, match="not a regular file"):
            write_atomically(path, "text")


def test_a_folder_that_is_gone_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match=r"cannot write .*No such file"):
        write_atomically(tmp_path / "gone" / "file", "text")


def test_leftovers_go_unless_somebody_holds_them(tmp_path: Path) -> None:
    (tmp_path / ".acdc-0123.tmp").write_text("left by a process that was killed")
    (tmp_path / ".acdc-4567.tmp").mkdir()
    (tmp_path / ".acdc-4567.tmp" / "file").write_text("this too")
    for name in (".acdc-notes", "other.tmp", "notes.txt"):
        (tmp_path / name).write_text("somebody's own")
    with temporary_folder(tmp_path) as held, temporary_file(tmp_path, b"held") as file:
        clear_leftovers(tmp_path)
        own = {".acdc-notes", "other.tmp", "notes.txt"}
        assert set(os.listdir(tmp_path)) == own | {held.name, file.name}
    assert set(os.listdir(tmp_path)) == own
