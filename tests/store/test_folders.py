"""Folders that a command claims, writes whole, and does not touch otherwise."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import acdc
from acdc.errors import AcdcError
from acdc.store import folders
from acdc.store.folders import READY, claimed, finish

COMMAND = "this command"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(out: str | None, text: str = "{}", *, command: str = COMMAND, force: bool = False) -> Path:
    """What a command does; the folder it went to."""
    with claimed(None if out is None else Path(out), default=Path("runs/x"), command=command, force=force) as claim:
        with claim.whole() as place:
            (place / "circuit.json").write_text(text)
            (place / "circuit.svg").write_text(text)
        return claim.folder


def every_file() -> dict[str, str]:
    return {str(path): path.read_text() for path in Path().rglob("*") if path.is_file()}


def in_a_child(work: Callable[[], object]) -> None:
    """Do something in a process that dies at once."""
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(1)
    os.waitpid(child, 0)


def die_with_progress(out: str | None, *, command: str = COMMAND) -> None:
    """A command is killed after it has noted progress."""

    def work() -> None:
        folder = None if out is None else Path(out)
        with claimed(folder, default=Path("runs/x"), command=command, force=False) as claim:
            claim.progress.write_text("far")
            os._exit(1)

    in_a_child(work)


# ---- claims -----------------------------------------------------------------------------------------------------


def test_two_at_once_do_not_get_one_folder() -> None:
    with claimed(None, default=Path("runs/x"), command=COMMAND, force=False) as first:
        assert run(None, "second") == Path("runs/x-2")
        for force in (False, True):
            with pytest.raises(AcdcError, match=rf"being written by another run \(process {os.getpid()} on "):
                run("runs/x", "third", force=force)
        with first.whole() as place:
            (place / "circuit.json").write_text("first")
    assert Path("runs/x/circuit.json").read_text() == "first"
    assert Path("runs/x-2/circuit.json").read_text() == "second"
    assert set(os.listdir("runs")) == {"x", "x-2"}
    assert run(None) == Path("runs/x-3")


def test_nothing_is_left_of_a_command_that_fails() -> None:
    with (
        pytest.raises(AcdcError, match="too bad"),
        claimed(Path("deep/er/x"), default=Path("x"), command=COMMAND, force=False),
    ):
        raise AcdcError("too bad")
    assert os.listdir() == []


@pytest.mark.parametrize("out", ["out", None])
def test_the_same_command_goes_on_where_a_killed_one_was(out: str | None) -> None:
    die_with_progress(out)
    folder = Path(out or "runs/x")
    with claimed(out and Path(out), default=Path("runs/x"), command=COMMAND, force=False) as claim:  # type: ignore[arg-type]
        assert claim.folder == folder
        assert claim.progress.read_text() == "far"
        with claim.whole() as place:
            (place / "circuit.json").write_text("{}")
    assert every_file() == {str(folder / "circuit.json"): "{}"}


def test_another_command_does_not_lose_the_progress_of_a_killed_one() -> None:
    die_with_progress(None)
    assert run(None, command="another") == Path("runs/x-2")
    with pytest.raises(AcdcError, match="progress of an interrupted command"):
        run("runs/x", command="another")
    with claimed(None, default=Path("runs/x"), command=COMMAND, force=False) as claim:
        assert claim.progress.read_text() == "far"
    with claimed(Path("runs/x"), default=Path("runs/x"), command="another", force=True) as claim:
        assert not claim.progress.exists()  # given up
    assert run("runs/x", command="another", force=True) == Path("runs/x")
    assert set(os.listdir("runs")) == {"x", "x-2"}


def test_a_command_finds_its_progress_at_whatever_number_it_is() -> None:
    run(None)
    die_with_progress(None)
    Path("runs/x").rename("elsewhere")
    assert run(None) == Path("runs/x-2")
    assert set(os.listdir("runs")) == {"x-2"}


def test_a_claim_from_another_machine_is_not_taken_over_unless_forced() -> None:
    record = {"command": COMMAND, "process": 1, "host": "far-away", "boot": "other", "time": "2000-01-01"}
    Path(".x.claim").write_text(json.dumps(record))
    with pytest.raises(AcdcError, match=r"process 1 on far-away, since 2000-01-01.*remove .*\.x\.claim"):
        run("x")
    assert run("x", force=True) == Path("x")
    assert os.listdir() == ["x"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"command": 3}', '{"process": "x"}', "[" * 9000])
def test_a_broken_claim_is_taken_over(content: str) -> None:
    record = json.loads(content) if content.startswith('{"') else None
    if record is not None:
        content = json.dumps(record | {"host": platform.node()})
    Path(".x.claim").write_text(content)
    assert run("x") == Path("x")
    assert os.listdir() == ["x"]


def test_without_locks_a_claim_holds_as_long_as_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "lock", lambda _: None)
    with claimed(Path("x"), default=Path("x"), command=COMMAND, force=False):
        with pytest.raises(AcdcError, match="being written"):
            run("x")
        record = json.loads(Path(".x.claim").read_text())
        Path(".x.claim").write_text(json.dumps(record | {"started": "0"}))  # another process of this number
        assert run("x") == Path("x")


# ---- places -----------------------------------------------------------------------------------------------------


def test_a_linked_folder_stays_a_link() -> None:
    Path("disk").mkdir()
    for name, target in (("link", "disk"), ("dangling", "new")):
        Path(name).symlink_to(target)
        for text, force in (("first", False), ("second", True)):
            assert run(name, text, force=force) == Path(name)
            assert Path(name).is_symlink()
            assert Path(target, "circuit.json").read_text() == text
    assert set(os.listdir()) == {"disk", "link", "new", "dangling"}
    assert set(os.listdir("disk")) == {"circuit.json", "circuit.svg"}


def test_what_is_no_folder_is_refused_before_the_work() -> None:
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    Path("to-file").symlink_to("file")
    for name in ("file", "loop", "to-file", "file/x"):
        with (
            pytest.raises(AcdcError, match=name),
            claimed(Path(name), default=Path("x"), command=COMMAND, force=True),
        ):
            pytest.fail("not refused")
    assert every_file() == {"file": "mine", "to-file": "mine"}


def test_a_path_that_would_not_lead_to_what_is_written_is_refused_before_the_work() -> None:
    with (
        pytest.raises(AcdcError, match="there is no folder missing"),
        claimed(Path("missing/../out"), default=Path("runs/x"), command=COMMAND, force=False),
    ):
        pytest.fail("the work began")
    with pytest.raises(AcdcError, match="there is no folder missing"), folders.whole_folder("missing/../out"):
        pytest.fail("the work began")
    assert not list(Path().iterdir())


def test_a_pipe_in_the_place_of_a_claim_does_not_wait_for_ever() -> None:
    os.mkfifo(".out.claim")
    with (
        pytest.raises(AcdcError, match="cannot write out"),
        claimed(Path("out"), default=Path("runs/x"), command=COMMAND, force=False),
    ):
        pytest.fail("the work began")


def test_the_folder_one_is_in(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("here").mkdir()
    monkeypatch.chdir("here")
    run(".")
    assert set(os.listdir()) == {"circuit.json", "circuit.svg"}
    with pytest.raises(AcdcError, match="exists"):
        run(".")
    run(".", "again", force=True)
    assert set(every_file().values()) == {"again"}
    assert os.listdir("..") == ["here"]


def test_a_folder_beside_which_nothing_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("top/volume").mkdir(parents=True)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: not str(path).endswith("top") and access(path, mode))
    with claimed(Path("top/volume"), default=Path("x"), command=COMMAND, force=False) as claim:
        assert claim.progress.parent == Path("top/volume").resolve()
        with claim.whole() as place:
            (place / "circuit.json").write_text("{}")
    assert every_file() == {"top/volume/circuit.json": "{}"}


def test_force_replaces_the_files_of_a_run_and_no_others() -> None:
    run("x")
    own = {"x/scores.csv", "x/circuit.txt", "x/circuit/file", "x/notes.txt", "x/.acdc-notes"}
    Path("x/circuit").mkdir()
    for name in own:
        Path(name).write_text("mine")
    run("x", "new", force=True)
    assert every_file() == dict.fromkeys(own, "mine") | {"x/circuit.json": "new", "x/circuit.svg": "new"}
    Path("x/circuit.svg").unlink()
    Path("x/circuit.svg").mkdir()
    with pytest.raises(AcdcError, match="folder"):
        run("x", "newer", force=True)
    assert Path("x/circuit.json").read_text() == "new"


def test_what_has_come_to_be_meanwhile_is_not_replaced_and_the_run_not_lost() -> None:
    with claimed(Path("x"), default=Path("x"), command=COMMAND, force=False) as claim:
        Path("x").mkdir()
        Path("x/circuit.json").write_text("mine")
        with claim.whole() as place:
            (place / "circuit.json").write_text("{}")
        assert claim.folder == Path("x-2")
    assert every_file() == {"x/circuit.json": "mine", "x-2/circuit.json": "{}"}


def test_a_folder_that_is_removed_meanwhile_is_made_again() -> None:
    with claimed(None, default=Path("runs/x"), command=COMMAND, force=False) as claim:
        Path("runs/.x.claim").unlink()
        Path("runs").rmdir()
        with claim.whole() as place:
            (place / "circuit.json").write_text("{}")
    assert every_file() == {"runs/x/circuit.json": "{}"}


# ---- a circuit is the old one or the new one --------------------------------------------------------------------


def circuit(scale: float) -> acdc.Circuit:
    graph = acdc.Graph(1, 1)
    return acdc.Scores(graph, graph.valid * scale).top(3)


def test_files_that_are_ready_count_and_are_moved_into_place_by_the_next_writer() -> None:
    circuit(1).save("x")
    Path("x/notes").write_text("mine")
    circuit(2).save("y")
    Path("y").rename(Path("x") / READY)
    waiting = sorted(os.listdir(f"x/{READY}"))
    for name in [*waiting, None]:  # interrupted before each move, and after the last
        loaded = acdc.Circuit.load("x").scores
        assert loaded is not None
        assert np.max(loaded.values) == 2
        if name is not None:
            os.replace(f"x/{READY}/{name}", f"x/{name}")
    finish(Path("x"))
    assert set(os.listdir("x")) == {"notes", *waiting}


def test_a_circuit_without_scores_takes_the_scores_of_the_old_one_away() -> None:
    circuit(1).save("x")
    bare = acdc.Circuit(circuit(1).graph, circuit(1).edges)
    bare.save("x", force=True)
    bare.save("y")
    assert os.listdir("x") == os.listdir("y") == ["circuit.json"]


def test_saving_at_once_leaves_one_whole_circuit() -> None:
    Path("x").mkdir()
    children = []
    for scale in range(1, 5):
        child = os.fork()
        if not child:
            status = 1
            try:
                for _ in range(20):
                    circuit(scale).save("x", force=True)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    scores = acdc.Circuit.load("x").scores
    assert scores is not None
    assert np.max(scores.values) in range(1, 5)
    assert set(os.listdir("x")) == {"circuit.json", "scores.safetensors"}


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_comes_to_be_meanwhile_is_replaced_only_with_force(force: bool) -> None:
    def write(text: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        with folders.whole_folder("out", force=force) as place:
            (place / "circuit.json").write_text(text)
            (place / "circuit.svg").touch()  # there is to be none
            meanwhile()

    def other() -> None:
        Path("out").mkdir()
        Path("out/circuit.json").write_text("theirs")
        Path("out/circuit.svg").write_text("theirs")

    if force:
        write("mine", other)
        assert every_file() == {"out/circuit.json": "mine"}
    else:
        with pytest.raises(AcdcError, match="out exists: choose another folder"):
            write("mine", other)
        assert every_file() == {"out/circuit.json": "theirs", "out/circuit.svg": "theirs"}
