"""The walk of a newcomer: every command of the README and of the documentation's pages is one, and runs.

Where a command names a model that has to be fetched, a model that comes with acdc stands in for it; nothing else is
changed, but for what opens a browser, goes to a network, a GPU or a cluster, or measures a whole benchmark.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import acdc
from acdc.cli import main as cli
from command_line import Command

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT, *ROOT.glob("docs/**/")) for path in path.glob("*.md")
)
STAND_INS = {
    "gpt2": "tiny-tasks", "smollm2-135m-q4": "tiny-tasks", "EleutherAI/pythia-70m": "induction-2l",
    "a9.h9": "a3.h1", "a9.h6@end": "a2.h0@end", "a20.h0": "a2.h0", "a23.h0<q>": "a3.h1<q>", "PARTS": "a3.h1",
    "RUN": "runs/mine", "NAME": "tracr-hist", "10000": "64", "8": "2",
}  # fmt: skip
_MINE = "discover tiny-tasks --task sva --method eap-ig --edges 40 -o runs/mine"
BEFORE = {  # what a page takes for granted
    "README.md": (
        "discover tiny-tasks --task ioi --units node --method nap-ig --edges 12 --ablation zero -o runs/nodes",
    ),
    "docs/pictures.md": (_MINE,),
    "docs/trust.md": (_MINE,),
}
RUN_ELSEWHERE = ("docs/induction.md", "docs/ioi.md", "docs/ioi-tiny-tasks.md", "docs/tiny-tasks.md", "CHANGELOG.md")
"""Pages whose commands are run, and what they print compared; and one that says what once was."""


def commands(page: str) -> list[list[str]]:
    """Words of the commands of a page as they follow each other, in blocks and in sentences; `acdc` is left out.

    A command that processes share keeps its `torchrun`.
    """
    found = []
    text = (ROOT / page).read_text("utf-8")
    for block, sentence in re.findall(r"^```sh\n(.*?)^```$|`(acdc [^`]+)`", text, re.DOTALL | re.MULTILINE):
        for line in (block or sentence).splitlines():
            for words in _split(shlex.split(line, comments=True)):
                program, *rest = words
                if Path(program).name == "acdc":
                    found.append(rest)
                elif program == "torchrun":
                    found.append(words)
    return found


def _split(words: list[str]) -> list[list[str]]:
    """The commands of a line that are joined by `&&`."""
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return [part for part in parts if part]


def alone(words: list[str]) -> list[str]:
    """The command that processes share, as one of a process."""
    return words[words.index("acdc") + 1 :] if words[0] == "torchrun" else words


def fault(words: list[str]) -> str:
    """What keeps words from being a command whose options exist; "missing" if an argument is, "" if nothing does."""
    command: Any = get_command(cli.app)
    parent: Any = None
    rest = [word for word in words if word != "…"]
    missing = len(rest) < len(words)
    try:
        while hasattr(command, "commands"):
            context = command.make_context(command.name or "acdc", rest, parent=parent)
            given = [*context._protected_args, *context.args]
            if not given:
                return "missing" if missing or not command.invoke_without_command else ""
            _, command, rest = command.resolve_command(context, given)
            parent = context
        command.make_context(command.name, rest, parent=parent)
    except SystemExit:
        return ""
    except Exception as error:
        return "missing" if type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError") else str(error)
    return "missing" if missing else ""


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_every_command_of_every_page_is_one(page: str) -> None:
    """Its command, its options and the kinds of their values exist; a sentence may leave arguments out."""
    found = {" ".join(words): fault(alone(words)) for words in commands(page)}
    assert {line: wrong for line, wrong in found.items() if wrong not in ("", "missing")} == {}


def test_a_command_that_is_none_is_found() -> None:
    assert fault(["discover", "tiny-tasks", "--tusk", "ioi"])
    assert fault(["discoverr", "tiny-tasks"])
    assert fault(["discover", "tiny-tasks", "--edges", "many"]) not in ("", "missing")
    assert fault(["models", "fetch", "--no-such"]) not in ("", "missing")
    assert fault(["discover"]) == "missing"
    assert fault(["tasks", "ioi"]) == fault(["models"]) == ""


def runnable(page: str) -> list[list[str]]:
    """Commands of a page that a machine alone can run, with stand-ins for what it does not have."""
    found = []
    for words in commands(page):
        own = alone(words)
        if fault(own) or own[0] == "benchmark" or own[:2] == ["models", "fetch"] or "InterpBench" in " ".join(own):
            continue
        if any(word.endswith(".gguf") for word in own):
            continue
        words = [STAND_INS.get(word, word) for word in words]
        for option in ("--revision", *(["--device"] if "cuda" in words else [])):
            if option in words:
                at = words.index(option)
                del words[at : at + 2]
        if words[0] == "view":
            words.append("--no-open")
        if words[0] == "discover" and "-o" not in words:
            words.append("--force")
        found.append(words)
    return found


def own_files() -> None:
    """`my-model` and `prompts.jsonl` and `mine.jsonl`, which the pages call the reader's own."""
    model = acdc.load("tiny-tasks")
    model.module.save_pretrained("my-model")  # type: ignore[operator]
    model.tokenizer.save_pretrained("my-model")
    prompts = acdc.tasks.load("sva", size=400).prepare(model).discovery
    assert prompts.answers is not None
    assert prompts.wrong is not None
    rows = []
    length = prompts.mask.sum(1).mode().values  # equally long, which means by position ask for
    for i, real in enumerate(prompts.mask):
        if real.sum() != length:
            continue
        clean, corrupted = (side[i][real][1:].tolist() for side in (prompts.clean, prompts.corrupted))
        answers = {
            name: sorted({int(token) for token in side[i].flatten() if token > 0})
            for name, side in (("answer_tokens", prompts.answers), ("wrong_tokens", prompts.wrong))
        }
        rows.append({"clean_tokens": clean, "corrupted_tokens": corrupted} | answers)
    for name in ("prompts.jsonl", "mine.jsonl"):
        Path(name).write_text("\n".join(map(json.dumps, rows)))


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as the command shows them
@pytest.mark.parametrize("page", [page for page in PAGES if page not in RUN_ELSEWHERE and runnable(page)])
def test_every_command_of_a_page_runs(page: str, command: Command) -> None:
    own_files()
    failed = []
    for words in [*(shlex.split(line) for line in BEFORE.get(page, ())), *runnable(page)]:
        if words[0] == "torchrun":
            line = [sys.executable, "-m", "torch.distributed.run", *words[1:]]
            shared = subprocess.run(line, capture_output=True, text=True, check=False)
            status, said = shared.returncode, shared.stderr
        else:
            status, _, said = command(*words)
        if status != 0:
            failed.append((" ".join(words), said.splitlines()[-1:]))
    assert failed == []
