"""Circuits as files of other programs, written and read."""

from acdc.formats.registry import FOLDERS, FORMATS, Format, export, export_folder, import_circuit

__all__ = ["FOLDERS", "FORMATS", "Format", "export", "export_folder", "import_circuit"]
