"""Circuits as files: our own folder format, and the formats of peers."""

from acdc.io.files import write_atomically
from acdc.io.formats import FORMATS, Format, export, import_circuit

__all__ = ["FORMATS", "Format", "export", "import_circuit", "write_atomically"]
