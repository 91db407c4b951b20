"""The walk of a newcomer: every command of the README and of the pages on pictures and tracing runs, one after another.

Where a command names a model that has to be fetched, a model that comes with acdc stands in for it; nothing else is
changed, but for what opens a browser, goes to a network or a cluster, or measures a whole benchmark.
"""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

import acdc
from command_line import Command

ROOT = Path(__file__).parents[1]
STAND_INS = {
    "gpt2": "tiny-tasks", "smollm2-135m-q4": "tiny-tasks", "EleutherAI/pythia-70m": "induction-2l",
    "a9.h9": "a3.h1", "a9.h6@end": "a2.h0@end",
}  # fmt: skip
BEFORE = {  # what a page takes for granted
    "README.md": (
        "discover tiny-tasks --task ioi --units node --method nap-ig --edges 12 --ablation zero -o runs/nodes",
    )
}


def commands(page: str) -> list[list[str]]:
    text = (ROOT / page).read_text("utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        for line in block.splitlines()
    ]
    found = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("acdc ")]
    return [words for words in found if words[0] != "benchmark" and words[:2] != ["models", "fetch"]]


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
@pytest.mark.parametrize("page", ["README.md", "docs/pictures.md", "docs/tracing.md"])
def test_every_command_of_a_page_runs(page: str, command: Command) -> None:
    own_files()
    failed = []
    for words in [*(shlex.split(line) for line in BEFORE.get(page, ())), *commands(page)]:
        words = [STAND_INS.get(word, word) for word in words]
        if "--revision" in words:
            at = words.index("--revision")
            del words[at : at + 2]
        if words[0] == "view":
            words.append("--no-open")
        if words[0] == "discover" and "-o" not in words:
            words.append("--force")
        done = command(*words)
        if done.status != 0:
            failed.append((" ".join(words), done.err.splitlines()[-1:]))
    assert failed == []
