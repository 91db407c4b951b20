"""Circuits as files of other programs, written and read."""

from acdc.formats.registry import FORMATS, Format, export, import_circuit

__all__ = ["FORMATS", "Format", "export", "import_circuit"]
