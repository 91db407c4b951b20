"""The Tracr suite: every program, by name, of which a compiled model comes with acdc."""

from __future__ import annotations

from acdc.benchmarks.training.tracr_library import LIBRARY
from acdc.benchmarks.training.tracr_own import OWN
from acdc.benchmarks.training.tracr_program import Program

PROGRAMS: dict[str, Program] = {**LIBRARY, **OWN}
