"""Circuits as files: our own folder format, and the formats of peers."""

from acdc.io.formats import FORMATS, Format, export, import_circuit
from acdc.io.writing import write_atomically

__all__ = ["FORMATS", "Format", "export", "import_circuit", "write_atomically"]
