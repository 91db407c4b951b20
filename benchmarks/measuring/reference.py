"""Pages of the reference, made from the registries: what there is, with its options and defaults.

python -m acdc.benchmarks.measuring.reference docs/reference
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import acdc
from acdc.formats import FOLDERS
from acdc.formats import FORMATS as CIRCUIT_FORMATS
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES
from acdc.store.writing import write_atomically
from acdc.tasks.peer_formats import FORMATS as PROMPT_FORMATS
from acdc.tasks.registry import GENERATORS

ROOT = Path(acdc.__file__).resolve().parents[1]
"""Of the repository, and of a source distribution, in which acdc/benchmarks is no link but a copy."""
_MADE = "<!-- Made by acdc.benchmarks.measuring.reference; not to be edited. -->\n\n"
API = {
    "The verbs": ("acdc.discovery.discover", "acdc.discovery.cut", "acdc.discovery.score"),
    "Judging": (
        "acdc.evaluation.evaluate.evaluate",
        "acdc.evaluation.curve.curve",
        "acdc.evaluation.completeness.completeness",
        "acdc.evaluation.minimality.minimality",
        "acdc.evaluation.missed.missed",
    ),
    "What they give": ("acdc.circuit.circuit.Scores", "acdc.circuit.circuit.Circuit", "acdc.graph.graph.Graph"),
    "Models": ("acdc.acting.opening.load", "acdc.model.load.builtin_models"),
    "Prompts": (
        "acdc.tasks.registry.load",
        "acdc.tasks.prompts.Prompts",
        "acdc.tasks.check.check_task",
        "acdc.metrics.outcome.Outcome",
        "acdc.metrics.outcome.Targets",
    ),
    "Acting": (
        "acdc.acting.circuit_model.CircuitModel",
        "acdc.acting.saying.say",
        "acdc.acting.checkpoint.save_checkpoint",
        "acdc.acting.lists.lists",
    ),
    "Pictures": ("acdc.viz.draw.draw", "acdc.viz.page.write_page"),
    "Files": ("acdc.formats.registry.export", "acdc.formats.registry.import_circuit"),
    "Errors": ("acdc.errors.AcdcError",),
}
"""What the page on Python shows, by heading."""


def pages() -> dict[str, str]:
    """Every page by the name of its file."""
    return {
        "methods.md": _methods(),
        "tasks.md": _tasks(),
        "metrics.md": _metrics(),
        "formats.md": _formats(),
        "python.md": _python(),
        "words.md": _words(),
    }


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _methods() -> str:
    text = f"{_MADE}# Methods\n\nAlso on the command line: `acdc methods`, `acdc methods eap-ig`.\n"
    for name, method in METHODS.items():
        text += f"\n## {name}\n\n{method.description[0].upper()}{method.description[1:]}.\n\n"
        facts = {
            "gives": method.gives,
            "cost": method.cost,
            "from": method.paper,
            "signs of its scores": method.signs,
            "gradient": method.gradient,
        }
        text += _table(("", ""), [(fact, value) for fact, value in facts.items() if value])
        if method.options:
            types, meanings = method.option_types, method.option_meanings
            rows = [(f"`{o}`", types[o], f"`{d!r}`", meanings[o]) for o, d in method.options.items()]
            text += "\n" + _table(("option", "expects", "default", "means"), rows)
        if method.targets:
            found = [(f"`--{target}`", what) for target, what in method.targets.items()]
            text += "\n" + _table(("its search takes", "as"), found)
    return text


def _tasks() -> str:
    text = f"{_MADE}# Tasks\n\nAlso on the command line: `acdc tasks`, `acdc tasks ioi`.\n"
    for name, task in GENERATORS.items():
        text += f"\n## {name}\n\n{task.description[0].upper()}{task.description[1:]}.\n\nMetric: `{task.metric}`.\n"
        if task.options:
            rows = [(f"`{o.name}`", o.expects, f"`{o.default!r}`", o.meaning) for o in task.options.values()]
            text += "\n" + _table(("option", "expects", "default", "means"), rows)
    return text


def _metrics() -> str:
    rows = []
    for name, metric in OUTCOMES.items():
        needs = ["answers"] * metric.needs_answers + ["wrong answers"] * metric.needs_wrong
        more = ["distance from the full model"] * metric.is_distance
        more += ["no gradient"] * (not metric.differentiable) + ["answers of several tokens"] * metric.takes_texts
        rows.append((f"`{name}`", metric.description, " and ".join(needs), ", ".join(more)))
    return f"{_MADE}# Metrics\n\nAlso on the command line: `acdc metrics`.\n\n" + _table(
        ("metric", "what it is", "needs", "more"), rows
    )


def _formats() -> str:
    text = f"{_MADE}# Formats\n\n## Of circuits\n\n"
    rows = []
    for name, known in CIRCUIT_FORMATS.items():
        ways = ["written"] * (known.write is not None) + ["read"] * (known.read is not None)
        rows.append((f"`{name}`", known.description, " and ".join(ways)))
    rows += [(f"`{name}`", "a folder as MIB's circuit track takes it", "written and read") for name in FOLDERS]
    text += _table(("format", "what it is", "is"), rows)
    text += "\nWhat a format does not hold of a circuit is listed when it is written.\n\n## Of prompts\n\n"
    prompts = [
        (f"`{name}`", known.description, known.left_out, "yes" if known.recognised else "by `--task-format`")
        for name, known in PROMPT_FORMATS.items()
    ]
    return text + _table(("format", "what it is", "not used", "known by its fields"), prompts)


def _python() -> str:
    text = f"{_MADE}# Python\n"
    for heading, names in API.items():
        text += f"\n## {heading}\n\n" + "\n".join(f"::: {name}\n" for name in names)
    return text


def _words() -> str:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = contributing.partition("### Words of ours\n")[2].partition("\n## ")[0]
    return f"{_MADE}# Words\n{rows}"


def main() -> None:
    folder = Path(sys.argv[1])
    for name, text in pages().items():
        write_atomically(folder / name, text)


if __name__ == "__main__":
    main()
