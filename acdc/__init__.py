"""acdc: automated circuit discovery for transformer language models.

    model = acdc.load("induction-2l")
    task = acdc.tasks.load("induction")
    circuit = acdc.discover(model, task)
    print(acdc.evaluate(model, task, circuit))

Names are imported when first used, so that `import acdc` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from acdc.errors import AcdcError, EmptyCircuitError, TaskError, UnsupportedModelError

if TYPE_CHECKING:
    from acdc import formats as formats
    from acdc import inspection as inspection
    from acdc import methods as methods
    from acdc import metrics as metrics
    from acdc import neurons as neurons
    from acdc import tasks as tasks
    from acdc import tracing as tracing
    from acdc import viz as viz
    from acdc.acting.circuit_model import CircuitModel
    from acdc.acting.opening import load
    from acdc.auditing.audit import audit
    from acdc.auditing.record import AuditReport
    from acdc.certificates.certify import certify
    from acdc.certificates.record import Certificate
    from acdc.certificates.verify import verify
    from acdc.circuit import Circuit, Provenance, Scores
    from acdc.discovery import cut, discover, score
    from acdc.engine.ranks import alone
    from acdc.evaluation.completeness import Completeness, completeness
    from acdc.evaluation.curve import Curve, curve
    from acdc.evaluation.evaluate import Evaluation, evaluate
    from acdc.evaluation.minimality import Minimality, minimality
    from acdc.evaluation.missed import Missed, missed
    from acdc.graph import Graph
    from acdc.inspection import ablate, patch_path
    from acdc.model.load import builtin_models
    from acdc.model.model import Model
    from acdc.tasks.programs.compile import compile
    from acdc.tasks.prompts import Prompts
    from acdc.tracing import Tracing, trace

_WHERE = {
    "AuditReport": "acdc.auditing.record",
    "Certificate": "acdc.certificates.record",
    "Circuit": "acdc.circuit",
    "CircuitModel": "acdc.acting.circuit_model",
    "Completeness": "acdc.evaluation.completeness",
    "Curve": "acdc.evaluation.curve",
    "Evaluation": "acdc.evaluation.evaluate",
    "Graph": "acdc.graph",
    "Minimality": "acdc.evaluation.minimality",
    "Missed": "acdc.evaluation.missed",
    "Model": "acdc.model.model",
    "Prompts": "acdc.tasks.prompts",
    "Provenance": "acdc.circuit",
    "Scores": "acdc.circuit",
    "Tracing": "acdc.tracing",
    "ablate": "acdc.inspection",
    "alone": "acdc.engine.ranks",
    "audit": "acdc.auditing.audit",
    "builtin_models": "acdc.model.load",
    "certify": "acdc.certificates.certify",
    "verify": "acdc.certificates.verify",
    "compile": "acdc.tasks.programs.compile",
    "completeness": "acdc.evaluation.completeness",
    "curve": "acdc.evaluation.curve",
    "cut": "acdc.discovery",
    "discover": "acdc.discovery",
    "evaluate": "acdc.evaluation.evaluate",
    "load": "acdc.acting.opening",
    "minimality": "acdc.evaluation.minimality",
    "missed": "acdc.evaluation.missed",
    "patch_path": "acdc.inspection",
    "score": "acdc.discovery",
    "trace": "acdc.tracing",
}

_PARTS = ("formats", "inspection", "methods", "metrics", "neurons", "tasks", "tracing", "viz")
_RENAMED = {"io": "formats"}
"""Public names of the last version, and what they are now."""

__all__ = [
    "AcdcError",
    "AuditReport",
    "Certificate",
    "Circuit",
    "CircuitModel",
    "Completeness",
    "Curve",
    "EmptyCircuitError",
    "Evaluation",
    "Graph",
    "Minimality",
    "Missed",
    "Model",
    "Prompts",
    "Provenance",
    "Scores",
    "TaskError",
    "Tracing",
    "UnsupportedModelError",
    "ablate",
    "alone",
    "audit",
    "builtin_models",
    "certify",
    "compile",
    "completeness",
    "curve",
    "cut",
    "discover",
    "evaluate",
    "load",
    "minimality",
    "missed",
    "patch_path",
    "score",
    "tasks",
    "trace",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _PARTS:
        value = importlib.import_module(f"acdc.{name}")
    elif name in _RENAMED:
        raise AttributeError(f"acdc.{name} is now acdc.{_RENAMED[name]}")
    else:
        raise AttributeError(f"module 'acdc' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PARTS})
