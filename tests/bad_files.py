"""Inputs that no one should give, made from good ones: cut off, flipped, of wrong types, too large, oddly named.

A maker takes a random generator and an empty folder, puts a bad input there, and says how to give it: the arguments of
the command, or a function to call. What comes of it is told by `outcome`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel

import acdc
import hooked_folder
from acdc.cli import main as cli
from acdc.errors import AcdcError

Given = list[str] | Callable[[], object]
Maker = Callable[[random.Random, Path], Given]

ODD: list[Any] = [
    None, True, False, 0, -1, 1, 2.5, 1e308, 10**9, 10**30, "", "x", "2", "1e999", "\x1b[31m", "\u202e", "\ud83d",
    "a\0b", [], [1], [[]], [None], {}, {"a": 1}, "../../etc/passwd", "/dev/zero", float("nan"), float("inf"), "¹", "٣",
]  # fmt: skip

QUICK = ["--method", "random", "--threshold", "0", "--random-circuits", "0"]
EVALUATE = (
    "--task --metric --ablation --size --split --held-out --seed --batch-size --device --dtype --random-circuits"
)
DISCOVER = EVALUATE + " --edges --threshold --faithfulness --method --select --qkv --inputs --out"
VIEW = "--sizes --effects --prompts --compare --device --dtype --batch-size"
OTHERS = ("tasks check tracr-hist", "methods", "tasks", "models")

SECONDS = 30
"""After which an input counts as one that never ends."""


# ---- good inputs ------------------------------------------------------------------------------------------------


class Good:
    """Inputs that work, made once."""

    def __init__(self, folder: Path) -> None:
        self.run, self.model, self.hooked = folder / "run", folder / "model", folder / "hooked"
        model = acdc.load("tracr-reverse")
        self.circuit = acdc.discover(model, acdc.tasks.load("tracr-reverse", size=8), "eap-ig", edges=10)
        self.circuit.save(self.run)
        torch.manual_seed(0)
        config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=50, n_positions=32, bos_token_id=1)
        GPT2LMHeadModel(config).save_pretrained(self.model)
        hooked_folder.write_case(self.hooked)
        pair = {"clean_tokens": [5, 9], "corrupted_tokens": [5, 7], "answer_tokens": 9, "wrong_tokens": [3]}
        texts = {
            "clean": "Helen has files",
            "corrupted": "Paul has files",
            "answers": " from",
            "wrong_answers": " are",
        }
        self.prompts = folder / "good.jsonl"
        self.prompts.write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"clean_tokens": [6, 9]}) + "\n")
        lines = "".join(json.dumps(value) + "\n" for value in (pair, texts))
        table = "clean,corrupted,correct_idx,incorrect_idx\nHelen has,Paul has,3,4\nPaul has,Kate has,5,6\n"
        self.files = {"a.jsonl": lines, "b.json": json.dumps([pair, pair]), "c.csv": table}
        formats = [name for name, record in acdc.formats.FORMATS.items() if record.write and record.read]
        plain = acdc.Circuit(self.circuit.graph, self.circuit.edges, self.circuit.scores, self.circuit.provenance)
        self.exports = {name: acdc.formats.export(plain, name).encode() for name in formats}


# ---- ways to spoil ----------------------------------------------------------------------------------------------


def spoiled_bytes(dice: random.Random, content: bytes) -> bytes:
    """Cut off, flipped, with bytes put in, taken out or repeated."""
    place = dice.randrange(len(content) + 1)
    way = dice.randrange(7)
    if way == 0:
        return content[:place]
    if way == 1:
        return content[place:]
    if way == 2:
        return content[:place] + dice.randbytes(dice.randrange(1, 9)) + content[place:]
    if way == 3:
        return content[:place] + content[place + dice.randrange(1, 9) :]
    if way == 4:
        return content[:place] + content[place // 2 : place] + content[place:]
    if way == 5:
        return dice.choice(
            [b"", b"\0" * 100, b"\xff\xfe", b"PK\x03\x04", b"[" * 10**5, b"null", b'"\\ud800"', b"{}"]
        )
    flipped = bytearray(content or b"\0")
    for _ in range(dice.randrange(1, 5)):
        flipped[dice.randrange(len(flipped))] ^= 1 << dice.randrange(8)
    return bytes(flipped)


def spoiled_value(dice: random.Random, value: Any) -> Any:
    """A JSON value with one thing in it replaced, taken out, or added."""
    value = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        item = left.pop()
        keys = item.keys() if isinstance(item, dict) else range(len(item))
        places += [(item, key) for key in keys]
        left += [item[key] for key in keys if isinstance(item[key], dict | list)]
    if not places:
        return dice.choice(ODD)
    item, key = dice.choice(places)
    way = dice.randrange(8)
    if way == 0:
        del item[key]
    elif way == 1 and isinstance(item, dict):
        item[str(dice.choice(ODD))] = dice.choice(ODD)
    elif way == 2:
        item[key] = [item[key]]
    else:
        item[key] = copy.deepcopy(dice.choice(ODD))
    return value


def digested(value: Any) -> str:
    """The text of a circuit.json whose digest of itself is right, so that what is wrong is found by other checks."""
    if isinstance(value, dict):
        rest = {key: item for key, item in value.items() if key != "sha256"}
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
        value = rest | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    return json.dumps(value)


# ---- kinds of input ---------------------------------------------------------------------------------------------


def makers(good: Good) -> dict[str, Maker]:
    """A maker for every kind of input, by name."""

    def of_a_run(dice: random.Random, run: Path) -> list[str]:
        out = str(run.parent / "out")
        return dice.choice(
            [
                *(["export", str(run), "--to", name] for name in ("csv", "dot", "graphml", "circuit-tracer")),
                ["draw", str(run), "-o", out + ".svg"],
                ["draw", str(run), "--truth", "-o", out + ".svg"],
                ["view", str(run), "--no-model", "--no-open", "-o", out + ".html"],
                ["evaluate", str(run), "--random-circuits", "0"],
            ]
        )

    def circuit_json(dice: random.Random, folder: Path) -> Given:
        run = Path(shutil.copytree(good.run, folder / "run"))
        path = run / "circuit.json"
        if dice.random() < 0.4:
            path.write_bytes(spoiled_bytes(dice, path.read_bytes()))
        else:
            value = json.loads(path.read_text())
            for _ in range(dice.choice([1, 1, 1, 3])):
                value = spoiled_value(dice, value)
            path.write_text(digested(value))
        return of_a_run(dice, run)

    def scores(dice: random.Random, folder: Path) -> Given:
        run = Path(shutil.copytree(good.run, folder / "run"))
        path, record = run / "scores.safetensors", run / "circuit.json"
        content = path.read_bytes()
        if dice.random() < 0.5:
            size = struct.unpack("<Q", content[:8])[0]
            head = json.dumps(spoiled_value(dice, json.loads(content[8 : 8 + size]))).encode()
            content = struct.pack("<Q", len(head)) + head + content[8 + size :]
        else:
            content = spoiled_bytes(dice, content)
        path.write_bytes(content)
        value = json.loads(record.read_text())
        value["scores"]["sha256"] = hashlib.sha256(content).hexdigest()
        record.write_text(digested(value))
        return of_a_run(dice, run)

    def prompts(dice: random.Random, folder: Path) -> Given:
        name, text = dice.choice(list(good.files.items()))
        path = folder / name
        if dice.random() < 0.5:
            path.write_bytes(spoiled_bytes(dice, text.encode()))
        elif name.endswith(".csv"):
            cells = [line.split(",") for line in text.splitlines()]
            dice.choice(cells)[dice.randrange(4)] = str(dice.choice(ODD))
            path.write_text("\n".join(map(",".join, cells)), errors="surrogatepass")
        else:
            values = [json.loads(line) for line in text.splitlines()]
            values = [spoiled_value(dice, value) for value in values]
            path.write_text("\n".join(map(json.dumps, values)))
        command = ["tasks", "check", "tiny-tasks", str(path)]
        if dice.random() < 0.5:
            command = ["discover", "tiny-tasks", "--task", str(path), *QUICK, "-o", str(folder / "out")]
        return command

    def model_folder(dice: random.Random, folder: Path) -> Given:
        place = Path(shutil.copytree(good.model, folder / "model"))
        config, weights = place / "config.json", place / "model.safetensors"
        way = dice.random()
        if way < 0.6:
            config.write_text(json.dumps(spoiled_value(dice, json.loads(config.read_text()))))
        elif way < 0.7:
            config.write_bytes(spoiled_bytes(dice, config.read_bytes()))
        elif way < 0.85:
            content = weights.read_bytes()
            size = struct.unpack("<Q", content[:8])[0]
            head = json.dumps(spoiled_value(dice, json.loads(content[8 : 8 + size]))).encode()
            weights.write_bytes(struct.pack("<Q", len(head)) + head + content[8 + size :])
        elif way < 0.95:
            weights.write_bytes(spoiled_bytes(dice, weights.read_bytes()))
        else:
            weights.unlink()
            if dice.random() < 0.5:
                (place / "pytorch_model.bin").write_bytes(dice.randbytes(100))
        return ["discover", str(place), "--task", str(good.prompts), *QUICK, "-o", str(folder / "out")]

    def pickles(dice: random.Random, folder: Path) -> Given:
        place = Path(shutil.copytree(good.hooked, folder / "hooked"))
        path = place / dice.choice(
            ["edges.pkl", "edges.pkl", "ll_model_cfg.pkl", "ll_model_cfg.pkl", "ll_model.pth"]
        )
        if path.suffix == ".pkl" and dice.random() < 0.5:
            value = pickle.loads(path.read_bytes())
            value = [list(edge) for edge in value] if isinstance(value, list) else value
            path.write_bytes(pickle.dumps(spoiled_value(dice, value), protocol=dice.randrange(2, 5)))
        else:
            path.write_bytes(spoiled_bytes(dice, path.read_bytes()))
        return ["discover", str(place), "--qkv", "merged", "--inputs", "split", *QUICK, "-o", str(folder / "out")]

    def imports(dice: random.Random, folder: Path) -> Given:
        name, content = dice.choice(list(good.exports.items()))
        content = spoiled_bytes(dice, content)
        graph = dice.choice([None, good.circuit.graph])
        return lambda: acdc.formats.import_circuit(content, name, graph)

    def options(dice: random.Random, folder: Path) -> Given:
        value = str(dice.choice(ODD)).replace("\0", "").encode(errors="replace").decode()
        command, names = dice.choice(
            [
                (["discover", "tracr-hist", *QUICK, "-o", str(folder / "out")], DISCOVER),
                (["evaluate", str(good.run)], EVALUATE),
                (["view", str(good.run), "--no-open", "-o", str(folder / "out.html")], VIEW),
                (["draw", str(good.run)], "--format --style --detail --out"),
                (["export", str(good.run)], "--to --out"),
                *((name.split(), "--metric --size --seed --nonsense") for name in OTHERS),
            ]
        )
        if command[0] in ("discover", "evaluate") and dice.random() < 0.35:
            free = "metric seed ablation name_or_path size split held_out padding only_correct distribution steps x"
            free += " self problem graph resume"
            kind = dice.choice(["--task-option", "--option"]) if command[0] == "discover" else "--task-option"
            return [*command, kind, f"{dice.choice(free.split())}={value}"]
        return [*command, dice.choice(names.split()), value]

    return {
        "circuit.json": circuit_json,
        "scores.safetensors": scores,
        "prompts": prompts,
        "model folders": model_folder,
        "pickles and torch files": pickles,
        "imports": imports,
        "options": options,
    }


# ---- what comes of it -------------------------------------------------------------------------------------------


class _TooLong(BaseException):
    pass


def outcome(given: Given) -> tuple[str, str]:
    """What comes of an input, and the message.

    Returns:
        "accepted"; "refused", in one line and with status 2; "no verdict" of `tasks check`, with status 1; or "failed":
        anything else, like a traceback, a control character that reached the terminal, or no end.
    """
    out, err = io.StringIO(), io.StringIO()

    def stop(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = _status(given)
    except AcdcError as error:
        return "refused", str(error)
    except BaseException as error:  # whatever comes here is what a user would see as a traceback
        if isinstance(error, KeyboardInterrupt):
            raise
        return "failed", f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    text = err.getvalue()
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    raw = any(sign in out.getvalue() + text for sign in ("\x1b", "\u202e", "\x07"))
    if status == 0 and "Traceback" not in text and not raw:
        return "accepted", text
    if status == 1 and isinstance(given, list) and given[:2] == ["tasks", "check"]:
        return "no verdict", text
    if status == 2 and len(errors) == 1 and "Traceback" not in text and not raw:
        return "refused", errors[0]
    return "failed", f"status {status}: {text[-600:]}"


def _status(given: Given) -> int:
    if callable(given):
        given()
        return 0
    argv = sys.argv
    sys.argv = ["acdc", *given]
    try:
        cli.main()
    except SystemExit as exit:
        return int(exit.code or 0)
    finally:
        sys.argv = argv
    return 0


def bad_inputs(maker: Maker, count: int, seed: str, folder: Path) -> Iterator[Given]:
    """So many inputs of a kind, each in a folder of its own that goes when the next is asked for."""
    place = os.getcwd()
    for number in range(count):
        own = folder / str(number)
        own.mkdir()
        os.chdir(own)
        try:
            yield maker(random.Random(f"{seed}/{number}"), own)
        finally:
            os.chdir(place)
            shutil.rmtree(own)
