"""What heads do, as labels with a score and the evidence: where they attend, what they write, what depends on it.

Where a head attends is compared with rules that name a key for a query: the token before, itself, the first, one that
equals it, the one that followed its like. What it writes is judged by the token it attends to: is that token's logit
raised or lowered? And what depends on it is measured by replacing it, and for heads that steer others by path patching.
A rule that holds on these prompts need not hold elsewhere: labels are of a head on a task.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from acdc.engine import memory
from acdc.engine.circuits import measure_prompts
from acdc.engine.measure import bind
from acdc.engine.problem import Problem, Progress, no_progress
from acdc.evaluation.judging import is_numerical
from acdc.graph import BoolArray, FloatArray
from acdc.inspection.ablate import along
from acdc.inspection.direct import direct_effects
from acdc.inspection.runs import judged, plain_runs
from acdc.inspection.statistics import Likeness, add_attention, all_weights, copying, on_answers, rules_of
from acdc.methods.exact import node_effects
from acdc.model.model import Model
from acdc.shown import Shown, counted
from acdc.tasks import as_dataset
from acdc.tasks.prompts import Prompts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from acdc.tasks.task import Dataset, Task

RULES = {
    "previous token": "mean attention to the token before the query",
    "self": "mean attention to the query's own position",
    "sink": "share of queries that rest on the first token: most of their attention is there",
    "duplicate token": "mean attention to earlier positions with the query's token, where there are any",
    "induction": "mean attention to what followed earlier occurrences of the query's token, where there are any",
}
"""Rules of attention, and what their score is."""

LABELS = {
    **RULES,
    "positional": "1 less half the mean distance of single prompts' patterns from their mean; if no rule above holds",
    "mover": "attention, where the metric reads, to tokens that are the answer, and what it writes raises the answer",
    "negative mover": "the same attention, and what it writes lowers the answer",
    "inhibition": "share of the head's effect that goes through the queries of movers alone",
    "copying": "rank among the prompts' tokens, from -1 to 1, of a token's own logit in what the head would write if "
    "it attended to that token",
    "suppressing": "the same with the sign turned",
}
"""Every label, and what its score is."""

THRESHOLD = 0.6
"""Of a score, for a label."""
RESTS = 0.6
"""Attention of a query to the first token, from which it rests there. A head that counts tokens gives it as much as
each of them: that is much on average, and yet no rest."""
STEEP = {"positional": 0.95, "copying": 0.9, "suppressing": 0.9}
"""The same for scores that are high by chance."""
STEERS = 0.3
"""Share of a head's effect through the queries of movers, from which it is said to inhibit."""
MATTERS = 0.03
"""Share of the metric's separation that replacing a head has to change, for labels of what heads do to others; for
movers also the share of the model's logit difference that they write, since others may stand in for one."""


@dataclasses.dataclass(frozen=True)
class Role:
    """A label of a head.

    Attributes:
        head, label: by name; score: what `LABELS` says; evidence: in words.
    """

    head: str
    label: str
    score: float
    evidence: str


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class HeadRoles(Shown):
    """Labels of heads on a task.

    Attributes:
        heads: names; labels: names of what is scored.
        scores: `[head, label]`, NaN where the prompts do not tell.
        effect: `[head]`, share of the metric's separation that goes if the head alone carries its reference.
        roles: the labels that are given.
    """

    task: str
    model: str
    heads: tuple[str, ...]
    labels: tuple[str, ...]
    scores: FloatArray
    effect: FloatArray
    roles: tuple[Role, ...]
    n_prompts: int

    def of(self, head: str) -> tuple[Role, ...]:
        """The labels of a head, the strongest first."""
        return tuple(role for role in self.roles if role.head == head)

    def groups(self) -> dict[str, tuple[str, ...]]:
        """Heads by label, as `acdc.viz.write_page(…, roles=)` takes them: each head under its first label."""
        found: dict[str, tuple[str, ...]] = {}
        seen = set()
        for role in self.roles:
            if role.head not in seen:
                seen.add(role.head)
                found[role.label] = (*found.get(role.label, ()), role.head)
        return found

    def _summary(self) -> str:
        return f"{self.task} in {self.model}: {counted(len(self.roles), 'label')} of {counted(len(self.heads), 'head')}"

    def nothing(self) -> str:
        """A sentence for where no label is given: how high the highest scores of attention are instead."""
        said = f"no label fits any of the {counted(len(self.heads), 'head')} of {self.model} on {self.task}"
        rules = [self.labels.index(name) for name in RULES]
        scores = np.nan_to_num(self.scores[:, rules], nan=-np.inf)
        if not np.isfinite(scores).any():
            return f"{said}: its prompts tell nothing of where they attend"
        head, rule = np.unravel_index(scores.argmax(), scores.shape)
        highest = f"{self.heads[head]} with {scores.max():.2f} for {self.labels[rules[rule]]!r}"
        return f"{said}: the highest is {highest}, which takes {THRESHOLD}"

    def facts(self) -> dict[str, str]:
        """What was looked at."""
        return {"roles": f"{self.task} in {self.model}, on {counted(self.n_prompts, 'prompt')}"}

    def table(self) -> tuple[Sequence[str], list[Sequence[str]]]:
        """A row a label."""
        effect = dict(zip(self.heads, self.effect.tolist(), strict=True))
        rows: list[Sequence[str]] = [
            (role.head, role.label, f"{role.score:.2f}", f"{effect[role.head]:.3f}", role.evidence)
            for role in self.roles
        ]
        return ("head", "label", "score", "effect", "evidence"), rows


@memory.explained
@torch.inference_mode(False)
@torch.no_grad()
def head_roles(
    model: Model,
    task: Task | Dataset | Prompts,
    *,
    batch_size: int | None = None,
    memory: str | None = None,
    progress: Progress = no_progress,
) -> HeadRoles:
    """Label every head by what it does on the task's held-out prompts; arguments as for `attention_patterns`."""
    dataset = as_dataset(task, model)
    problem = judged(model, dataset, batch_size=batch_size, memory=memory, progress=progress)
    heads = model.graph().names("head")
    sums = {name: np.zeros((len(heads), 2)) for name in (*RULES, "answer", "wrong", "copying")}
    alike = Likeness()
    causal = all(layer.attention.causal for layer in model.decomposition.layers if layer.mixer is None)
    tokens = problem.prompts.clean[problem.prompts.own].unique().to(model.device)
    tokens = tokens[tokens < model.vocabulary_size]
    for prompts, context, trace in plain_runs(problem, "what heads do"):
        weights = all_weights(model, context, trace)  # [head, B, query, key]
        for name, keys in rules_of(prompts, causal=causal).items():
            at_least = RESTS if name == "sink" else None
            add_attention(sums[name], weights, keys, prompts.own, at_least=at_least)
        for name, ids in (("answer", prompts.answers), ("wrong", prompts.wrong)):
            if ids is not None and model.program is None:
                add_attention(sums[name], weights, *on_answers(prompts, ids))
        if model.program is None and not is_numerical(model):
            sums["copying"] += copying(model, prompts, trace, tokens)
        alike.add(weights, prompts.own)
    for prompts, context, trace in plain_runs(problem, "how alike patterns are"):
        alike.compare(all_weights(model, context, trace), prompts.own)
    mean = {
        name: np.divide(total, count, out=np.full(len(heads), np.nan), where=count > 0)
        for name, (total, count) in ((name, x.T) for name, x in sums.items())
    }
    graph = problem.graph
    change = node_effects(problem)[[graph.source_index[head] for head in heads]]
    (ends,) = measure_prompts(problem, [np.zeros_like(graph.valid)])
    apart = ends.full.mean() - ends.circuits.mean()
    effect = -change / apart if apart else np.zeros(len(heads))
    scores = {name: mean[name] for name in RULES} | {"positional": alike.score(len(heads))}
    towards, whole = _towards(model, dataset, heads, batch_size, memory)
    matters = (np.abs(effect) >= MATTERS) | (np.abs(towards) >= MATTERS * whole)
    scores["mover"] = np.where(towards > 0, mean["answer"], np.nan)
    scores["negative mover"] = np.where(towards < 0, mean["answer"], np.nan)
    scores["copying"], scores["suppressing"] = mean["copying"], -mean["copying"]
    movers = [heads[i] for i in np.flatnonzero((np.nan_to_num(mean["answer"]) >= THRESHOLD) & matters)]
    scores["inhibition"] = _inhibition(problem, heads, movers, effect, change)
    table = np.stack([scores[label] for label in LABELS], axis=1)
    roles = tuple(_roles(heads, scores, matters, towards, movers))
    return HeadRoles(dataset.name, model.name, heads, tuple(LABELS), table, effect, roles, len(problem.prompts))


def _roles(
    heads: Sequence[str],
    scores: Mapping[str, FloatArray],
    matters: BoolArray,
    towards: FloatArray,
    movers: Sequence[str],
) -> list[Role]:
    found = []
    for i, head in enumerate(heads):
        own: list[tuple[str, str]] = []
        rules = [name for name in RULES if scores[name][i] >= THRESHOLD]
        rules.sort(key=lambda name: -scores[name][i])
        if "induction" in rules and "previous token" in rules:  # what follows its like is then the token before
            rules.remove("induction")
        own += [(name, f"{scores[name][i]:.0%} of its attention") for name in rules if name != "sink"]
        if not rules and scores["positional"][i] >= STEEP["positional"]:
            own.append(("positional", "it attends alike on all prompts"))
        for name in ("mover", "negative mover"):
            if matters[i] and scores[name][i] >= THRESHOLD:
                own.append((name, f"writes {towards[i]:+.3g} to the answer's logit less the wrong one's"))
        if scores["inhibition"][i] >= STEERS:
            own.append(("inhibition", f"through the queries of {', '.join(movers)}"))
        for name in ("copying", "suppressing"):
            if scores[name][i] >= STEEP[name]:
                own.append((name, "what it writes of a token, by the token's own logit"))
        if scores["sink"][i] >= THRESHOLD:  # last: heads of large models rest there where they have nothing to do
            own.append(("sink", f"{scores['sink'][i]:.0%} of its queries"))
        found += [Role(head, name, float(scores[name][i]), evidence) for name, evidence in own]
    return found


def _towards(
    model: Model, dataset: Dataset, heads: Sequence[str], batch_size: int | None, memory: str | None
) -> tuple[FloatArray, float]:
    """What each head writes to the answer's logit less the wrong one's, mean over the prompts, and how large that is in
    all; NaN for programs."""
    if model.program is not None or is_numerical(model):
        return np.full(len(heads), np.nan), np.nan
    effects = direct_effects(model, dataset, batch_size=batch_size, memory=memory)
    found = effects.mean()
    constant = effects.constant_answer - (0.0 if effects.constant_wrong is None else effects.constant_wrong)
    return np.array([found[head] for head in heads]), abs(sum(found.values()) + float(constant.mean()))


def _inhibition(
    problem: Problem, heads: Sequence[str], movers: Sequence[str], effect: FloatArray, change: FloatArray
) -> FloatArray:
    """`[head]`: share of what goes with a head that does through movers' queries alone; NaN where there is nothing.

    Args:
        effect: `[head]`, of the separation; change: `[head]`, of the metric.
    """
    graph = problem.graph
    found = np.full(len(heads), np.nan)
    candidates = [i for i, head in enumerate(heads) if abs(effect[i]) >= MATTERS and head not in movers]
    steps: dict[int, list[tuple[int, list[int]]]] = {}
    for i in candidates:
        source = graph.source_index[heads[i]]
        into = [
            (mover, graph.destination_index[f"{mover}<q>"])
            for mover in movers
            if graph.valid[graph.destination_index[f"{mover}<q>"], source]
        ]
        if into:
            ends = [(graph.source_index[mover], [graph.n_destinations - 1]) for mover, _ in into]
            steps[i] = [(source, [d for _, d in into]), *ends]
    sums = dict.fromkeys(steps, 0.0)
    for patching in problem.batches():
        measure = bind(problem.outcome, patching)
        for i, own in steps.items():
            logits = along(patching, own, None)
            value = measure.value(logits if measure.rows is None else logits[..., measure.rows])[0]
            sums[i] += float((value if problem.outcome.is_distance else value - measure.full).sum())
    for i, through in sums.items():
        found[i] = through / len(problem.prompts) / change[i] if change[i] else np.nan
    return found
