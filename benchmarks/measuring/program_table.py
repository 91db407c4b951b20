"""The command of measurements on compiled programs: a table in CSV, a row each, of all programs or of some."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import sys
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from acdc.model.programs.tracr import builtin_names
from acdc.store.writing import write_atomically

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def main(
    description: str | None,
    record: type[DataclassInstance],
    rows_of: Callable[[list[str]], Iterable[DataclassInstance]],
) -> None:
    """Write the rows of the programs that the command line names (all, if it names none) to the file it names.

    Args:
        record: of a row; rows_of: names of programs to rows.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("programs", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in dataclasses.fields(record)])
    for row in rows_of(options.programs or builtin_names()):
        print(row, file=sys.stderr, flush=True)
        writer.writerow([_cell(value) for value in dataclasses.asdict(row).values()])
    write_atomically(options.out, text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else value
