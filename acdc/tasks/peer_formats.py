"""Prompts in the files of other tools: each format is a record that says by what it is known and what is made of a row.

A row becomes a record of ours (`records`), or says why it cannot. Files of others hold rows that do not fit every
tokenizer, and rows that were never meant as pairs: those are left out, with a warning that lists them by number and
reason, and the rest is used. Fields are those that the tools write; nothing is guessed.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from acdc.errors import TaskError, unknown
from acdc.tasks.records import ALIASES, ANOTHER, ANSWERS, REGIONS
from acdc.tasks.spans import Characters, Span

Record = Mapping[Any, Any]

COUNTERPART = object()
"""The key of a record's counterpart in the file beside its own."""


@dataclasses.dataclass(frozen=True)
class TaskFormat:
    """A format of prompts.

    Attributes:
        name: as `--task-format` takes it.
        description: one line: whose it is, and its fields.
        known_by: fields that a record has if it is in this format, "a.b" within "a"; none: it has to be asked for.
        read: a record of the format to one of ours; a `ValueError` says why not. None: its records are ours.
        left_out: what a record holds that is not used.
        metric: instead of the one that files get by their answers.
        beside: where corrupted prompts are that are in a file of their own, by the path of the clean ones; a record
            then has the one in the same row as `COUNTERPART`. A `ValueError` says that there is none.
    """

    name: str
    description: str
    known_by: tuple[str, ...] = ()
    read: Callable[[Record], dict[Any, Any]] | None = None
    left_out: str = "nothing"
    metric: str | None = None
    beside: Callable[[Path], Path] | None = None

    @property
    def recognised(self) -> bool:
        """Whether a file needs no name of its format."""
        return self.read is None or bool(self.known_by) or self.name == "edge-pruning"

    def knows(self, record: object) -> bool:
        """Whether a record is in this format, by its fields; one with answers under our names is ours."""
        ours = isinstance(record, Mapping) and any(ALIASES.get(key, key) in ANSWERS for key in record)
        return bool(self.known_by) and not ours and all(_has(record, path) for path in self.known_by)


def _has(record: object, path: str) -> bool:
    for key in path.split("."):
        if not isinstance(record, Mapping) or key not in record:
            return False
        record = record[key]
    return True


def _text(record: Record, path: str) -> str:
    value: Any = record
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise ValueError(f"{path!r} is missing")
        value = value[key]
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise ValueError(f"expected {path!r} as a text, got {value!r:.60}")
    return str(value)


def _different(answer: str, wrong: str) -> dict[str, Any]:
    if answer == wrong:
        raise ValueError(f"the answer of the counterfactual is {answer!r:.40} too")
    return {"answers": answer, "wrong_answers": wrong}


# ---- MIB --------------------------------------------------------------------------------------------------------


def _mib_ioi(record: Record) -> dict[str, Any]:
    pair = {"clean": _text(record, "prompt"), "corrupted": _text(record, "s2_io_flip_counterfactual.prompt")}
    names = (_text(record, f"metadata.{role}") for role in ("indirect_object", "subject"))
    return pair | _different(*(f" {name}" for name in names))


def _chosen(record: Record, where: str = "") -> str:
    labels = record.get("choices", {}).get("label") if isinstance(record.get("choices"), Mapping) else None
    key = record.get("answerKey")
    if not isinstance(labels, list) or type(key) is not int or not 0 <= key < len(labels):
        raise ValueError(f"expected {where}'answerKey' as an index into {where}'choices.label', got {key!r:.40}")
    return str(labels[key])


def _mib_choice(record: Record) -> dict[str, Any]:
    pair = {"clean": _text(record, "prompt"), "corrupted": _text(record, "symbol_counterfactual.prompt")}
    other = _chosen(record["symbol_counterfactual"], "symbol_counterfactual's ")
    return pair | _different(_chosen(record), other)


def _mib_arithmetic(record: Record) -> dict[str, Any]:
    pair = {"clean": _text(record, "prompt"), "corrupted": _text(record, "random_counterfactual.prompt")}
    return pair | _different(_text(record, "label"), _text(record, "random_counterfactual.label"))


def _later_years(record: Record, year: str) -> dict[str, Any]:
    if not re.fullmatch(r"[0-9]{1,2}", year) or int(year) == 99:
        raise ValueError(f"expected the last two digits of a year before 99, got {year!r:.40}")
    years = [f"{y:02}" for y in range(100)]
    pair = {"clean": _text(record, "clean"), "corrupted": _text(record, "corrupted")}
    return pair | {"answers": years[int(year) + 1 :], "wrong_answers": years[: int(year) + 1]}


def _mib_greater_than(record: Record) -> dict[str, Any]:
    """Prompts end in a whole year, of which MIB reads what the model says before its last two digits."""
    prompts = {side: re.sub("(?<=[0-9]{2})[0-9]{2}$", "", _text(record, side)) for side in ("clean", "corrupted")}
    return _later_years(prompts, _text(record, "year")[-2:])


def _eap_greater_than(record: Record) -> dict[str, Any]:
    return _later_years(record, _text(record, "correct_idx"))


# ---- others -----------------------------------------------------------------------------------------------------


def _regions(record: Record, name: str) -> list[str]:
    parts = record.get(name)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"expected {name!r} as a list of texts, got {parts!r:.60}")
    return parts


def _causalgym(record: Record) -> dict[Any, Any]:
    base, src = (_regions(record, name) for name in ("base", "src"))
    pair: dict[Any, Any] = {"clean": "".join(base), "corrupted": "".join(src)}
    if len(base) == len(src):  # the regions correspond
        pair[REGIONS] = tuple(_corresponding(base, src))
    return pair | _different(_text(record, "base_label"), _text(record, "src_label"))


def _corresponding(base: list[str], src: list[str]) -> Iterator[Span]:
    """The regions of both as spans; a space between two belongs to the second, as tokens have it."""
    for i in range(len(base)):
        there = []
        for parts in (base, src):
            text = "".join(parts)
            ends = [sum(map(len, parts[:n])) for n in (i, i + 1)]
            cuts = [len(text[:end].rstrip(" ")) if end < len(text) else end for end in ends]
            there.append(Characters(*cuts))
        if all(where.stop > where.start for where in there):
            yield Span(f"region {i}", there[0], there[1])


_PREDICT = re.compile(r"<predict>(.*?)</predict>", re.DOTALL)


def _edge_pruning(record: Record) -> dict[str, Any]:
    found: dict[str, str] = {}
    for side in ("clean", "corrupted"):
        text = _text(record, side)
        marks = list(_PREDICT.finditer(text))
        if len(marks) != 1:
            raise ValueError(f"expected one <predict>…</predict> in {side!r}, got {len(marks)}")
        prompt, answer = text[: marks[0].start()], marks[0].group(1)
        if text[marks[0].end() :].strip():
            raise ValueError(f"text follows the prediction in {side!r}")
        if prompt.endswith(" ") and not answer.startswith(" "):  # the space belongs to the word it stands before
            prompt, answer = prompt[:-1], f" {answer}"
        found[side], found[f"{side} answer"] = prompt, answer
    answer, wrong = found["clean answer"], found["corrupted answer"]
    several = {"answers": answer} if answer == wrong else {"answers": answer, "wrong_answers": wrong}
    return {"clean": found["clean"], "corrupted": found["corrupted"], **several}


def _blimp(record: Record) -> dict[str, Any]:
    good, bad = _text(record, "sentence_good"), _text(record, "sentence_bad")
    words, others = good.split(" "), bad.split(" ")
    shared = 0
    while shared < min(len(words), len(others)) and words[shared] == others[shared]:
        shared += 1
    if not shared:
        raise ValueError("the sentences differ in their first word, so no prompt comes before the difference")
    if good == bad:
        raise ValueError("the sentences are the same")
    if shared in (len(words), len(others)):
        raise ValueError("one sentence only goes on where the other ends")
    if record.get("one_prefix_method") is True:
        prompt = _text(record, "one_prefix_prefix")
        answers = (_text(record, f"one_prefix_word_{which}") for which in ("good", "bad"))
        texts = [" " + answer.lstrip() for answer in answers]
    else:
        prompt = " ".join(words[:shared])
        texts = [" " + " ".join(part[shared:]) for part in (words, others)]
    return {"clean": prompt, "corrupted": ANOTHER} | _different(*texts)


# ---- PEAP -------------------------------------------------------------------------------------------------------

_NO_SPANS = re.compile(
    r"prompt|(prompt_|example_|pair_)?id|correct_proffesion_idx|is_model_correct|label|length|split|Unnamed: .*"
    r"|(correct|wrong|S1|S2|IO)_token|top_answer|(top_answer|correct|wrong)_prob"
)
"""Other columns in the files of position-aware EAP (https://github.com/technion-cs-nlp/PEAP)."""


def _counterfactuals(path: Path) -> Path:
    """The file of counterfactual prompts, which has the name of the clean ones but for its ending."""
    stem, clean, _ = path.name.rpartition("_clean")
    found = sorted(path.parent.glob(f"{glob.escape(stem)}_counter*{glob.escape(path.suffix)}")) if clean else []
    if len(found) != 1:
        names = ", ".join(other.name for other in found) or "none"
        raise ValueError(
            f"{path.name}: expected one file of counterfactual prompts beside it, NAME_counter….csv beside "
            f"NAME_clean.csv, got {names}"
        )
    return found[0]


def _peap_pair(record: Record) -> dict[Any, Any]:
    if not isinstance(other := record.get(COUNTERPART), Mapping):
        raise ValueError("the file of counterfactual prompts has no such row")
    if (here := record.get("prompt_id")) != (there := other.get("prompt_id", here)):
        raise ValueError(f"'prompt_id' is {here!r:.40}, and {there!r:.40} in the file of counterfactual prompts")
    clean, corrupted = _text(record, "prompt"), _text(other, "prompt")
    return {"clean": clean, "corrupted": corrupted, REGIONS: tuple(_peap_spans(record))}


def _peap_spans(record: Record) -> Iterator[Span]:
    """A column a span: the token it starts at, counted with the BOS; each goes up to the next, the last to `length`.

    Of columns of which one starts where the next does, all but the last are empty.
    """
    if (length := _whole(_text(record, "length"))) is None:
        raise ValueError(f"expected 'length' as a number of tokens, got {record['length']!r:.40}")
    starts = [*_peap_starts(record), ("length", length)]
    for (name, start), (following, end) in pairwise(starts):
        if not 1 <= start <= end:
            raise ValueError(
                f"expected {name!r:.60} to start at a token from 1 to {end}, where {following!r:.60} is, got {start}; "
                "a column of numbers that are no spans has to be left out"
            )
        if start == end:
            continue
        positions = tuple(range(start - 1, end - 1))
        # counted from the end too: the numbers are right for a tokenizer that makes as many tokens of the prompt
        last = tuple(range(start - end, 0)) if following == "length" else None
        yield Span(name, positions, last, asked=True)


def _peap_starts(record: Record) -> Iterator[tuple[str, int]]:
    for name, cell in record.items():
        if not isinstance(name, str) or _NO_SPANS.fullmatch(name):
            continue
        if (start := _whole(cell)) is not None:
            yield name, start
        elif re.fullmatch(r"\s*|nan|[-+]?[0-9.]+(e[-+]?[0-9]+)?", str(cell), re.IGNORECASE):
            raise ValueError(
                f"expected {name!r:.60} as the number of the token that the span starts at, got {cell!r:.40}"
            )


def _whole(cell: Any) -> int | None:
    """The whole number in a cell, which may be written as tables with a gap in the column have it: 10.0."""
    found = re.fullmatch(r"([0-9]{1,9})(\.0)?", cell) if isinstance(cell, str) else None
    return int(found[1]) if found else None


def _peap(record: Record) -> dict[Any, Any]:
    return _peap_pair(record) | _different(_text(record, "correct_token"), _text(record, "wrong_token"))


def _peap_greater_than(record: Record) -> dict[Any, Any]:
    pair = _peap_pair(record)
    return _later_years({"clean": pair["clean"], "corrupted": pair["corrupted"]}, _text(record, "label")) | pair


FORMATS: dict[str, TaskFormat] = {
    record.name: record
    for record in (
        TaskFormat("acdc", "acdc's own records: clean, corrupted, answers, wrong_answers, or token ids"),
        TaskFormat("eap", "EAP, EAP-IG, MIB: CSV of clean, corrupted, correct_idx, incorrect_idx", (), None,
                   "corrupted_hard"),
        TaskFormat("auto-circuit", "auto-circuit: prompts of clean, corrupt, answers, wrong_answers", (), None,
                   "seq_labels"),
        TaskFormat("feature-circuits", "feature-circuits: clean_prefix, patch_prefix, clean_answer, patch_answer", (),
                   None, "case"),
        TaskFormat("eap-greater-than", "EAP-IG: CSV of clean, corrupted, correct_idx, a year's last two digits", (),
                   _eap_greater_than, metric="probability-difference"),
        TaskFormat("mib-ioi", "MIB: prompt, metadata and s2_io_flip_counterfactual",
                   ("prompt", "metadata.subject", "metadata.indirect_object"), _mib_ioi,
                   "the other counterfactuals, template, object and place"),
        TaskFormat("mib-choice", "MIB: prompt, choices, answerKey and symbol_counterfactual (mcqa, arc)",
                   ("prompt", "choices", "answerKey", "symbol_counterfactual"), _mib_choice,
                   "the other counterfactuals, and choices that are neither's answer"),
        TaskFormat("mib-arithmetic", "MIB: prompt, label and random_counterfactual",
                   ("prompt", "label", "random_counterfactual"), _mib_arithmetic,
                   "the other counterfactuals, operands and operator"),
        TaskFormat("mib-greater-than", "MIB: clean, corrupted and year", ("clean", "corrupted", "year"),
                   _mib_greater_than, metric="probability-difference"),
        TaskFormat("causalgym", "CausalGym: base, src, base_label, src_label", ("base", "src", "base_label"),
                   _causalgym, "types and task"),
        TaskFormat("blimp", "BLiMP: sentence_good, sentence_bad; the corrupted prompt is that of another row",
                   ("sentence_good", "sentence_bad"), _blimp, "field, term, UID and pairID"),
        TaskFormat("peap", "PEAP: CSV of prompt, spans, length, correct_token, wrong_token; NAME_counter….csv beside "
                   "NAME_clean.csv", ("prompt", "length", "split", "correct_token", "wrong_token"), _peap,
                   "split, and what the model said", beside=_counterfactuals),
        TaskFormat("peap-greater-than", "PEAP: CSV of prompt, spans, length, label; beside it as for peap",
                   ("prompt", "length", "split", "label"), _peap_greater_than, "split",
                   "probability-difference", _counterfactuals),
        TaskFormat("edge-pruning", "Edge Pruning: clean and corrupted with <predict>…</predict>", (), _edge_pruning),
    )
}  # fmt: skip
"""Formats of prompts by name."""


def task_format(name: str | None, record: object) -> TaskFormat:
    """The format of that name, or that of a file's first record.

    Raises:
        TaskError: there is none of that name.
    """
    if name is not None:
        if name not in FORMATS:
            raise TaskError(str(unknown("format of prompts", name, FORMATS)))
        return FORMATS[name]
    if isinstance(record, Mapping) and any(
        _PREDICT.search(str(record.get(side, ""))) for side in ("clean", "corrupted")
    ):
        return FORMATS["edge-pruning"]
    return next((known for known in FORMATS.values() if known.knows(record)), FORMATS["acdc"])
