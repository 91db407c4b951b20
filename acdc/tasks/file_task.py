"""A user's own task: prompt pairs from a file, of which some may be held out.

The file is read when the task is loaded, and everything wrong with it is said at once; what depends on the model, when
the task is prepared.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import networkx as nx

from acdc.errors import TaskError
from acdc.metrics import Outcome
from acdc.shown import are, counted
from acdc.tasks.prompt_files import Line, check_lines, read_lines
from acdc.tasks.prompts import Padding
from acdc.tasks.repeats import first_of_each, reads_corrupted
from acdc.tasks.task import (
    Ablation,
    Dataset,
    ShownTask,
    resolve_metric,
    takers_of_texts,
    takes_texts,
    to_prompts,
    token_texts,
)
from acdc.tasks.tokenise import (
    SAME_ANSWER,
    Checked,
    Encoder,
    ModelLike,
    TextPair,
    TokenPair,
    check,
    tokenise,
    with_corrupted,
)

_OF_TEXTS = "log-probability-difference"
"""What `logit-difference` is where answers are of several tokens: of one token, the two are equal."""


@dataclasses.dataclass(frozen=True)
class _Row:
    """A pair as token ids, and where it stands."""

    label: str
    pair: TokenPair


L = TypeVar("L", Line, _Row)


@dataclasses.dataclass(frozen=True, repr=False)
class FileTask(ShownTask):
    """The task in a user's file; make one with `acdc.tasks.load`."""

    name: str
    outcome: Outcome
    lines: tuple[Line, ...]
    held_out: tuple[Line, ...] = ()
    held_out_name: str = ""
    ablation: Ablation = "resample"
    seed: int = 0
    padding: Padding = "right"
    parted: bool = False
    """Whether held-out prompts were parted from the file's by `split`: then none may be a discovery prompt too."""
    chosen: bool = True
    """Whether the user chose the metric; otherwise it is what fits the answers."""
    lenient: bool = False
    """Whether lines that the tokenizer does not suit are left out, with a warning; otherwise they are an error."""
    wanted: int | None = None
    """How many discovery prompts are drawn of those that the tokenizer suits; None: all, or they are drawn already."""
    left_out: tuple[str, ...] = ()
    """What is wrong with lines that were left out when the file was read."""
    held_out_left_out: tuple[str, ...] = ()
    """The same of the file of held-out prompts."""
    remarks: tuple[str, ...] = ()
    """What else there was to warn of when the file was read."""

    @property
    def metric(self) -> str:
        return self.outcome.name

    @property
    def description(self) -> str:
        n = len(self.lines) if self.wanted is None else min(self.wanted, len(self.lines))
        return f"{counted(n, 'prompt pair')} of {self.name}"

    def prepare(self, model: ModelLike) -> Dataset:
        texts = not self.chosen or takes_texts(self.outcome)
        rows = _checked(self.lines, model, texts=texts)
        other = _checked(self.held_out, model, texts=texts)
        found: dict[str, list[str]] = {}
        warnings: list[str] = list(self.remarks)
        for name, lines, part in ((self.name, self.lines, rows), (self.held_out_name, self.held_out, other)):
            labelled = [(line.label, row) for line, row in zip(lines, part, strict=True)]
            found.setdefault(name, []).extend(f"{label}: {x}" for label, row in labelled for x in row.problems)
            warnings += _warnings(labelled, name)
        if (
            self.lenient
            and any(not row.problems for row in rows)
            and (not other or any(not x.problems for x in other))
        ):
            theirs = [
                *self.held_out_left_out,
                *(found[self.held_out_name] if self.held_out_name != self.name else ()),
            ]
            warnings += _left_out(self.name, [*self.left_out, *found[self.name]])
            warnings += _left_out(self.held_out_name, theirs)
        else:
            check_lines(found)
        kept, more = _distinct(_fitting(self.lines, rows), self.name)
        kept, of_size = _drawn(kept, self.wanted, self.seed, self.name)
        judged, held_out_more = _distinct(_fitting(self.held_out, other), self.held_out_name)
        warnings += (*more, *of_size, *held_out_more)
        judged, remarks = _apart(judged, kept, self)
        warnings += remarks
        texts = any(line.pair.has_texts for line in (*kept, *judged))
        outcome = self.outcome
        if texts and not takes_texts(outcome):
            outcome = resolve_metric(_OF_TEXTS)
            warnings.append(
                f"{self.name}: some answers are of several tokens, so the metric is {_OF_TEXTS}, which is what "
                f"{self.outcome.name} is of one token; other metrics take several too (acdc metrics)"
            )
        discovery = to_prompts([line.pair for line in kept], model, padding=self.padding, texts=texts)
        held_out = [line.pair for line in judged]
        return Dataset(
            name=self.name,
            discovery=discovery,
            held_out=to_prompts(held_out, model, padding=self.padding, texts=texts) if held_out else None,
            metric=outcome,
            ablation=self.ablation,
            seed=self.seed,
            warnings=(*warnings, *_read_as(self.lines, self.name, model)),
            tokens=token_texts(discovery, model),
        )


def load_file(
    path: Path,
    *,
    metric: Any = None,
    size: int | None = None,
    seed: int = 0,
    held_out: Path | None = None,
    split: float | None = None,
    ablation: Ablation = "resample",
    padding: Padding = "right",
    format: str | None = None,
) -> FileTask:
    """The task in a file; see `acdc.tasks.load`."""
    if held_out is not None and split is not None:
        raise TaskError("held_out and split both give held-out prompts: choose one")
    if split is not None and not 0 < split < 1:
        raise TaskError(f"expected split between 0 and 1, the fraction of prompts to hold out, got {split}")
    lines, found, known = read_lines(path, format)
    other, more, _ = read_lines(held_out, known.name) if held_out is not None else ((), [], known)
    lenient, left_out, held_out_left_out = known.read is not None and bool(lines), found, more
    default = known.metric or _default_metric(lines)
    if (left_out or held_out_left_out) and not lenient:
        outcome = resolve_metric(metric if metric is not None else default)
        found, more = found + _without_answers(lines, outcome), more + _without_answers(other, outcome)
        check_lines({str(path): found} | ({} if held_out is None else {str(held_out): more}))
    lines, remarks = _distinct(lines, path.name)
    other_name = path.name if held_out is None else held_out.name
    if held_out is not None and other_name == path.name and held_out != path:
        other_name = str(held_out)  # two files of one name
    other, more_remarks = _distinct(other, other_name)
    if split is not None:
        lines, other, of_split = _split(lines, split, seed, path.name)
        remarks = (*remarks, *of_split)
    if not lenient:
        lines, of_size = _drawn(lines, size, seed, path.name)
        remarks = (*remarks, *of_size)
    outcome = resolve_metric(metric if metric is not None else default)
    found, more = _without_answers(lines, outcome), _without_answers(other, outcome)
    rest = [tuple(x for x in part if _answered(x, outcome)) for part in (lines, other)]
    if lenient and rest[0] and (rest[1] or not other):
        left_out, held_out_left_out = left_out + found, held_out_left_out + more
        lines, other = rest
    else:
        check_lines({path.name: found, other_name: more} if held_out else {path.name: found + more})
    return FileTask(
        name=path.name,
        outcome=outcome,
        lines=lines,
        held_out=other,
        held_out_name=other_name,
        ablation=ablation,
        seed=seed,
        padding=padding,
        parted=split is not None,
        chosen=metric is not None,
        lenient=lenient,
        wanted=size if lenient else None,
        left_out=tuple(left_out) if lenient else (),
        held_out_left_out=tuple(held_out_left_out) if lenient else (),
        remarks=(*remarks, *more_remarks),
    )


def _distinct(lines: Sequence[L], name: str) -> tuple[tuple[L, ...], tuple[str, ...]]:
    """The lines whose prompts and answers did not occur before, and what to warn of."""

    def asked(line: L) -> Hashable:
        pair = line.pair
        return dataclasses.replace(pair, answers=(), wrong=()), frozenset(pair.answers), frozenset(pair.wrong)

    kept, remarks = first_of_each(lines, asked, name)
    return tuple(kept), remarks


def _drawn(lines: tuple[L, ...], size: int | None, seed: int, name: str) -> tuple[tuple[L, ...], tuple[str, ...]]:
    """So many lines, in the file's order, and what to warn of where there are fewer."""
    if size is None or size == len(lines):
        return lines, ()
    if size > len(lines):
        fewer = f"{counted(len(lines), 'prompt')} {are(len(lines))} used instead of {size}: the file has no more"
        return lines, (f"{name}: {fewer}",)
    chosen = sorted(random.Random(f"size/{seed}").sample(range(len(lines)), size))
    return tuple(lines[i] for i in chosen), ()


def _fitting(lines: Sequence[Line], rows: Sequence[Checked]) -> list[_Row]:
    """The lines without problems, as token ids."""
    return [_Row(line.label, row.pair) for line, row in zip(lines, rows, strict=True) if not row.problems]


def _split(
    lines: tuple[Line, ...], share: float, seed: int, name: str
) -> tuple[tuple[Line, ...], tuple[Line, ...], tuple[str, ...]]:
    """Discovery and held-out lines, each in the file's order, and what to warn of.

    Equal clean prompts stay on one side, and so do the two of a pair that is there both ways round, which are the same
    two runs; unless so many hang together that the sides would not have their share.
    """
    wanted = max(1, round(share * len(lines)))
    pairs = {(line.pair.clean, line.pair.corrupted) for line in lines}
    alike: nx.Graph[Any] = nx.Graph((one, other) for one, other in pairs if one != other and (other, one) in pairs)
    together = list(nx.connected_components(alike))
    size = Counter(line.pair.clean for line in lines)
    most = max(2, min(wanted, len(lines) - wanted) // 2)
    remarks: tuple[str, ...] = ()
    if any(sum(size[clean] for clean in group) > most for group in together):
        together = []
        why = "too many hang together to be kept on one side"
        remarks = (f"{name}: pairs that are there both ways round may be discovery and held-out prompts: {why}",)
    group_of = {clean: n for n, group in enumerate(together) for clean in group}
    groups: dict[Any, list[int]] = {}
    for i, line in enumerate(lines):
        groups.setdefault(group_of.get(line.pair.clean, line.pair.clean), []).append(i)
    shuffled = list(groups.values())
    random.Random(f"split/{seed}").shuffle(shuffled)
    held = set[int]()
    for group in shuffled[:-1]:
        if len(held) < wanted:
            held.update(group)
    if not held:
        raise TaskError(f"{name}: split={share} of {len(shuffled)} different clean prompt leaves one side empty")
    parts = [tuple(line for i, line in enumerate(lines) if (i in held) == side) for side in (False, True)]
    return parts[0], parts[1], remarks


def _default_metric(lines: tuple[Line, ...]) -> str:
    if any(line.pair.wrong for line in lines):
        return "logit-difference"
    return "probability" if any(line.pair.answers for line in lines) else "kl"


def _answered(line: Line, outcome: Outcome) -> bool:
    return not _without_answers([line], outcome)


def _without_answers(lines: Iterable[Line], outcome: Outcome) -> list[str]:
    found = []
    for line in lines:
        if outcome.needs_answers and not line.pair.answers:
            found.append(f"{line.label} has no answers, which metric {outcome.name!r} needs")
        if outcome.needs_wrong and not line.pair.wrong:
            found.append(f"{line.label} has no wrong answers, which metric {outcome.name!r} needs")
    return found


def _checked(lines: tuple[Line, ...], model: ModelLike, *, texts: bool) -> list[Checked]:
    """The pairs as token ids of the model; texts: with answers of several tokens."""
    advice = "" if texts else f"; {takers_of_texts()} too"
    written = [line.pair for line in lines if isinstance(line.pair, TextPair)]
    encoded: Iterator[Checked] = iter(())
    if written:
        encoder = Encoder(model)
        whole, same = with_corrupted(written, encoder)
        found = tokenise(whole, encoder, texts=texts, advice=advice)
        encoded = (
            dataclasses.replace(row, remarks=(*row.remarks, SAME_ANSWER)) if i in same else row
            for i, row in enumerate(found)
        )
    rows = []
    for line in lines:
        row = Checked(line.pair) if isinstance(line.pair, TokenPair) else next(encoded)
        if row.pair.has_texts and not texts:
            row = dataclasses.replace(
                row, problems=(*row.problems, f"an answer is several tokens, expected one{advice}")
            )
        rows.append(check(row, model))
    return rows


def _warnings(labelled: list[tuple[str, Checked]], name: str) -> list[str]:
    """Each remark with the lines it is about."""
    about: dict[str, list[str]] = {}
    for label, row in labelled:
        for remark in row.remarks:
            about.setdefault(remark, []).append(label)
    return [f"{name}: {remark} ({_list(labels)})" for remark, labels in about.items()]


def _left_out(name: str, found: list[str]) -> list[str]:
    """One warning for all lines that are left out, the first of them by number and reason."""
    if not found:
        return []
    shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
    return [f"{name}: {counted(len(found), 'row')} {are(len(found))} left out: {shown}"]


def _read_as(lines: tuple[Line, ...], name: str, model: ModelLike) -> tuple[str, ...]:
    """What token ids beside texts mean to this tokenizer: they may be those of another."""
    for line in lines:
        ids = [x for x in (*line.pair.answers[:1], *line.pair.wrong[:1]) if isinstance(x, int)]
        if ids and isinstance(line.pair, TextPair):
            texts = " and ".join(repr(Encoder(model).text(token)) for token in ids)
            return (
                f"{name}: answers are token ids; to the tokenizer of {model.name}, {line.label}'s read {texts}",
            )
    return ()


def _apart(
    held_out: tuple[_Row, ...], kept: tuple[_Row, ...], task: FileTask
) -> tuple[tuple[_Row, ...], list[str]]:
    """The held-out rows that are no discovery prompts, and what to warn of.

    Of a split none has a discovery prompt's clean tokens; in a file of their own none is run as one of discovery.
    """
    both = reads_corrupted(task.ablation) and not task.parted

    def tokens(row: _Row) -> Hashable:
        return (row.pair.clean, row.pair.corrupted) if both else row.pair.clean

    known = set(map(tokens, kept))
    shared = [row.label for row in held_out if tokens(row) in known]
    if not shared:
        return held_out, []
    if len(shared) == len(held_out):
        raise TaskError(f"{task.name}: to this tokenizer every held-out prompt is a discovery prompt too")
    of = counted(len(shared), "held-out prompt", of=len(held_out))
    why = f"{are(len(shared))} left out, being discovery prompts to this tokenizer ({_list(shared)})"
    return tuple(row for row in held_out if tokens(row) not in known), [f"{task.name}: {of} {why}"]


def _list(labels: list[str], shown: int = 5) -> str:
    return ", ".join(labels[:shown]) + (f" and {len(labels) - shown} more" if len(labels) > shown else "")
