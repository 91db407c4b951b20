"""What a certificate claims, and its file: `certificate.json` beside `circuit.json`.

It names what it is about by digests: the circuit's files byte for byte, the weights, the prompts. It has a digest of
itself, and one way only to be written, so that no byte of it can be changed unnoticed. A digest proves nothing by
itself, since whoever changes a claim can make it anew: what is claimed is measured again by `acdc.verify`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import pydantic

from acdc.circuit.folder import NAME as CIRCUIT
from acdc.circuit.folder import SCORES
from acdc.errors import AcdcError
from acdc.shown import counted
from acdc.store.folders import placed
from acdc.store.reading import complaints, parse_json, read
from acdc.store.writing import fields_digest, write_atomically

NAME = "certificate.json"
VERSION = 1
Strength = Literal["none", "local", "pairs", "subset", "cardinal"]
STRENGTHS: tuple[Strength, ...] = ("none", "local", "pairs", "subset", "cardinal")
_LARGEST = 64 * 2**20


class Budget(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """That the circuit is within a distance from the full model, as a mean over the discovery prompts.

    Attributes:
        budget, distance: in the metric's units; separation: of the full model from no edge.
        least_without: the least distance without any one edge (node, of a circuit of nodes); which: that one.
    """

    budget: float
    distance: float
    separation: float
    least_without: float | None
    which: str


NO_EDGE = "(no edge)"
"""Name of the circuit that has none."""


class Minimality(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How strong it is that no less would do, within the budget, on these prompts.

    "local": no single edge (node, of a circuit of nodes) can go. "pairs": and no two. "subset": no proper part of the
    circuit is within the budget. "cardinal": no circuit of the graph with fewer edges is. (Names as in Hadad et al.
    2026, arXiv 2602.16823.) The last two are of connected circuits of edges, which under resample ablation is all of
    them: what dangles changes nothing.

    Attributes:
        tested: circuits that were run for it.
        refuted: what can go, each alone or for "local" both together, or a smaller circuit within the budget, which is
            `NO_EDGE` where it has none.
    """

    strength: Strength
    tested: int
    refuted: tuple[str, ...] = ()


class Enumeration(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Whether the circuit gives the model's output on inputs that were enumerated.

    Attributes:
        what: which pairs, in words; proof: whether they are all there are.
        pairs: how many; inputs: different clean inputs.
        changed: pairs on which an output differs; mean, worst: share of changed outputs of a pair.
        refutations: some of these, clean and corrupted as token ids.
    """

    what: str
    proof: bool
    pairs: int
    inputs: int
    changed: int
    mean: float
    worst: float
    refutations: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


class Stability(pydantic.BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """Edges that provably stay, or stay out, when some prompts change, of a circuit by vote.

    An edge is in if most subsamples of the prompts rank it among the best. Nothing is claimed of the ranking by all
    prompts at once, which one prompt of a huge score can turn over.

    Attributes:
        method, edges: what ranks, and how many edges are kept.
        samples: subsamples that voted; share: of the prompts in each; confidence: of all statements together.
        radius: prompts that may be changed, left out or added.
        kept: edges that stay, each with the largest radius at which it does; out: number of those that stay out;
            abstained: of neither.
    """

    method: str
    edges: int
    samples: int = pydantic.Field(ge=1)
    share: float = pydantic.Field(gt=0, lt=1)
    confidence: float = pydantic.Field(gt=0, lt=1)
    radius: int = pydantic.Field(ge=0)
    kept: dict[str, int]
    out: int
    abstained: int


class Certificate(pydantic.BaseModel, frozen=True, extra="forbid"):
    """All that is claimed of one circuit, and what it is claimed for.

    Attributes:
        circuit_sha256, scores_sha256: of the files beside it; edges_sha256: of the names of its edges, in order.
        model, weights_sha256, dtype; task, prompts_sha256, metric, ablation: what it holds for.
        unit: what the circuit is made of, "edge" or "node", and what is claimed to be needed.
        seed: of what was drawn.
    """

    format: Literal["acdc-certificate"] = "acdc-certificate"
    version: int = VERSION
    circuit_sha256: str = ""
    scores_sha256: str = ""
    edges_sha256: str
    n_edges: int
    model: str
    weights_sha256: str
    dtype: str
    task: str
    prompts_sha256: str
    n_prompts: int
    metric: str
    ablation: str
    unit: Literal["edge", "node"] = "edge"
    seed: int = 0
    budget: Budget
    minimality: Minimality
    enumeration: Enumeration | None = None
    stability: Stability | None = None

    def claims(self) -> list[str]:
        """What is claimed, a plain sentence each."""
        b, m = self.budget, self.minimality
        where = f"on {counted(self.n_prompts, 'prompt')} of {self.task}, under {self.ablation} ablation"
        found = [f"it is within {b.budget:.4g} of the full model in {self.metric} ({b.distance:.4g}) {where}"]
        unit = self.unit
        said = {
            "none": f"it is not minimal: {_any_of(m.refuted)} can go alone within the budget",
            "local": f"no single {unit} can go within the budget (local minimality)",
            "pairs": f"no {unit} and no two {unit}s can go within the budget",
            "subset": "no proper part of it is within the budget (subset minimality)",
            "cardinal": "no circuit of the graph with fewer edges is within the budget (cardinal minimality)",
        }
        found.append(f"{said[m.strength]}; {counted(m.tested, 'circuit')} {'was' if m.tested == 1 else 'were'} run")
        if (e := self.enumeration) is not None:
            kind = (
                "proved"
                if e.proof and not e.changed
                else "refuted"
                if e.changed
                else "not refuted, which is no proof"
            )
            found.append(
                f"that it gives the model's outputs is {kind}: {e.changed:,} of {e.pairs:,} pairs ({e.what}) change, a "
                f"share of {e.mean:.3g} of outputs on average"
            )
        if (s := self.stability) is not None:
            found.append(
                f"by vote of {s.samples} subsamples, each of {s.share:.0%} of the prompts, on {s.method}'s best "
                f"{s.edges} edges: {len(s.kept)} stay in if any {s.radius} prompts change, {s.out:,} stay out, "
                f"{s.abstained:,} are undecided (confidence {s.confidence:.0%})"
            )
        return found


def _any_of(names: tuple[str, ...]) -> str:
    """Some of the names, of which each is meant by itself."""
    shown = ", ".join(names[:3])
    return (f"any of {shown}" if len(names) > 1 else shown) + (" and others" if len(names) > 3 else "")


# ---- the file ---------------------------------------------------------------------------------------------------


def content(certificate: Certificate) -> bytes:
    """The file's bytes: with the digest of all fields, and one way to write them."""
    value = json.loads(certificate.model_dump_json())
    if certificate.unit == "edge":  # so that those of before there were others are the same bytes
        del value["unit"]
    value["sha256"] = fields_digest(value)
    return (json.dumps(value, indent=1, ensure_ascii=True) + "\n").encode()


def write(certificate: Certificate, folder: Path) -> Path:
    """Write `certificate.json` beside the circuit, with the digests of its files."""
    tied = certificate.model_copy(update=dict(zip(("circuit_sha256", "scores_sha256"), files(folder), strict=True)))
    return write_atomically(folder / NAME, content(tied))


def load(folder: Path) -> Certificate:
    """Read `certificate.json`, and refuse it if it or the circuit's files are not byte for byte what was certified.

    Raises:
        AcdcError: there is none, it or a file beside it was changed, or it is of another version.
    """
    path = folder / NAME
    if not path.is_file():
        raise AcdcError(f"no certificate at {str(folder)!r}: make one with acdc certify")
    what, given = repr(str(path)), read(path, largest=_LARGEST)
    value = parse_json(given, what)
    if not isinstance(value, dict) or value.get("format") != "acdc-certificate":
        raise AcdcError(f'{what} is not a certificate: expected an object with "format": "acdc-certificate"')
    if value.get("version") != VERSION:
        raise AcdcError(f"{what} is of version {value.get('version')!r:.40}; this version of acdc reads {VERSION}")
    digest = value.pop("sha256", None)
    try:
        certificate = Certificate.model_validate_json(json.dumps(value), strict=False)
    except pydantic.ValidationError as error:
        raise AcdcError(f"{what} is damaged: {complaints(error)}") from None
    if digest != fields_digest(value) or content(certificate) != given:
        raise AcdcError(f"{what} was changed after it was written: certify again")
    for name, then, now in zip(
        (CIRCUIT, SCORES), (certificate.circuit_sha256, certificate.scores_sha256), files(folder), strict=True
    ):
        if then != now:
            raise AcdcError(f"{name} was changed after it was certified: certify again")
    return certificate


def files(folder: Path) -> tuple[str, str]:
    """Digests of the circuit's files; "" for one that is not there."""
    found = []
    for name in (CIRCUIT, SCORES):
        path = placed(folder, name)
        found.append(hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
    return found[0], found[1]


def folder_of(run: Path) -> Path:
    """The folder of a run, given by itself or by its `circuit.json`."""
    return run.parent if run.is_file() else run
