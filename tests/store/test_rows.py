"""Rows that many processes fill together: each is there once and whole, whoever is killed and whatever is damaged."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from acdc.errors import AcdcError
from acdc.store import rows as module
from acdc.store.processes import this_process
from acdc.store.rows import Rows

KEY = ("suite/one", "case ü", 3)


def table(folder: Path, made_by: str = "us", fields: tuple[str, ...] = ("name", "case", "seed")) -> Rows:
    rows = Rows(folder, made_by, fields)
    rows.open()
    return rows


def row(**values: object) -> dict[str, object]:
    return {"name": KEY[0], "case": KEY[1], "seed": KEY[2], **values}


def test_a_row_comes_back_and_its_file_is_named_by_its_key(tmp_path: Path) -> None:
    rows = table(tmp_path)
    rows.put(row(figure=0.1, undefined=float("nan"), inside=[float("inf"), "text"]))
    assert rows.get(KEY) == row(figure=0.1, undefined=None, inside=[None, "text"])
    assert rows.all() == [rows.get(KEY)]
    assert rows.path(KEY).name.startswith("suite_one--case_--3--")
    assert rows.get((*KEY[:2], 4)) is None
    assert rows.path(("a", "b", "c")) != rows.path(("a", "b--c", ""))
    assert rows.path(("a_b",)) != rows.path(("a/b",))


def test_the_first_row_stays_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    rows = table(tmp_path)
    rows.put(row(figure=1))
    rows.put(row(figure=2))
    assert rows.all() == [row(figure=1)]
    rows.put(row(figure=3), instead=True)
    assert rows.all() == [row(figure=3)]


@pytest.mark.parametrize("damage", ["half", "changed", "moved", "nothing", "other"])
def test_a_damaged_row_is_said_once_counts_as_missing_and_is_replaced(tmp_path: Path, damage: str) -> None:
    rows = table(tmp_path)
    rows.put(row(figure=12345))
    path = rows.path(KEY)
    text = path.read_text()
    if damage == "moved":
        another = (*KEY[:2], 4)
        rows.path(another).write_text(text)
        with pytest.warns(UserWarning, match="is damaged, or no row of this table"):
            assert rows.get(another) is None
        return
    changed = text.replace("12345", "12346")
    path.write_text({"half": text[: len(text) // 2], "changed": changed, "nothing": "", "other": "[1]"}[damage])
    with pytest.warns(UserWarning, match="is damaged, or no row of this table"):
        assert rows.get(KEY) is None
    assert rows.all() == []  # warnings are errors here: it is not said again
    rows.put(row(figure=2))
    assert rows.get(KEY) == row(figure=2)


def test_rows_of_another_make_are_refused(tmp_path: Path) -> None:
    table(tmp_path, "acdc 0.0.1").put(row())
    with pytest.raises(AcdcError, match=r"made by acdc 0\.0\.1, and this is us: .* choose another folder"):
        table(tmp_path).get(KEY)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(AcdcError, match="is not a folder of results"):
        table(tmp_path / "file")


def test_one_alone_has_a_claim_and_gives_it_up_also_in_an_error(tmp_path: Path) -> None:
    first, second = table(tmp_path), table(tmp_path)
    with contextlib.suppress(ZeroDivisionError), first.claimed(KEY) as mine:
        assert mine
        with second.claimed(KEY) as theirs:
            assert not theirs
        with second.claimed((*KEY[:2], 4)) as another:
            assert another
        table(tmp_path)  # does not clear it
        with second.claimed(KEY) as theirs:
            assert not theirs
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with second.claimed(KEY) as theirs:
        assert theirs


@pytest.mark.parametrize("who", ["ended", "elsewhere", "touched", "nobody"])
def test_claims_of_the_dead_are_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    rows = table(tmp_path)
    left = {
        "ended": this_process() | {"started": "1"},
        "elsewhere": this_process() | {"boot": "another machine", "started": "1"},
        "touched": this_process() | {"processes": "another container", "started": "1"},
        "nobody": [],
    }[who]
    (tmp_path / f".{rows.path(KEY).name}.claim").write_text(json.dumps(left))
    with rows.claimed(KEY) as mine:
        assert mine == (who == "ended")
    if who == "ended":
        return
    monkeypatch.setattr(module, "LEASE", -1.0 if who != "touched" else 1e9)
    with rows.claimed(KEY) as mine:
        assert mine == (who != "touched")


WORKERS = """
import os, random, signal, sys
from pathlib import Path
from acdc.store.rows import Rows

folder, n_rows = Path(sys.argv[1]), int(sys.argv[2])
log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
dice = random.Random()

def deadly(work):
    def step(*args, **options):
        if dice.random() < 0.02:
            os.kill(os.getpid(), signal.SIGKILL)
        return work(*args, **options)
    return step

def work(seed):
    dice.seed(seed)
    rows = Rows(folder / "rows", "us", ("row",))
    rows.open()
    order = dice.sample(range(n_rows), n_rows)
    while left := [row for row in order if rows.get([row]) is None]:
        for row in left:
            with rows.claimed([row]) as mine:
                if mine and rows.get([row]) is None:
                    os.write(log, b"%d %d\\n" % (row, os.getpid()))
                    rows.put({"row": row, "by": os.getpid()})

for round in range(1000):
    workers = []
    for worker in range(4):
        if not (pid := os.fork()):
            if round < 30:
                for name in ("open", "link", "replace", "write", "unlink", "stat"):
                    setattr(os, name, deadly(getattr(os, name)))
            os.fsync = lambda _: None
            work(f"{round} {worker}")
            os._exit(0)
        workers.append(pid)
    ends = [os.waitpid(pid, 0) for pid in workers]
    for pid, status in ends:
        print(pid, status)
    if not any(status for _, status in ends):
        break
"""


def test_four_processes_that_are_killed_at_random_lose_and_double_nothing(tmp_path: Path) -> None:
    n_rows = 40
    ran = subprocess.run(
        [sys.executable, "-c", WORKERS, str(tmp_path), str(n_rows)], check=True, capture_output=True, text=True
    )
    status = dict(line.split() for line in ran.stdout.splitlines())
    assert any(end == "9" for end in status.values())
    assert set(status.values()) == {"0", "9"}, ran.stderr
    starts: dict[str, list[str]] = {}
    for line in (tmp_path / "log").read_text().splitlines():
        starts.setdefault(line.split()[0], []).append(line.split()[1])
    rows = table(tmp_path / "rows", fields=("row",))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert {found["row"]: str(found["by"]) for found in rows.all()} == {
            int(row): by[-1] for row, by in starts.items()
        }
    assert len(starts) == n_rows
    assert all(status[by] == "9" for row in starts.values() for by in row[:-1])  # nobody else was there meanwhile
    assert {path.suffix for path in (tmp_path / "rows").iterdir()} == {".json"}
