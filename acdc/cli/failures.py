"""What the command line says when it fails: one line for whatever the user can do something about.

Below the commands are libraries that raise exceptions of their own when memory, a disk or a database gives out. These
are known here and explained. What is not known is a mistake of ours, is called so, and ends with another status; with
ACDC_TRACEBACK=1 in the environment it is shown where any failure comes from.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import typer

from acdc.errors import AcdcError

TRACEBACK = "ACDC_TRACEBACK"
USER_ERROR, OUR_ERROR = 2, 70


class Failure(NamedTuple):
    """A failure as the command line shows it.

    Attributes:
        text: what happened, and what to do.
        status: the exit status: 2, or 70 for a mistake of ours.
    """

    text: str
    status: int = USER_ERROR


def explain(error: BaseException) -> Failure:
    """What to say of an exception that ended a command."""
    reason = _one_line(str(error))
    if isinstance(error, AcdcError):
        return Failure(str(error))
    if isinstance(error, typer.TyperException):
        text, context = error.format_message().replace("Value error, ", ""), getattr(error, "ctx", None)
        if context is not None and type(error).__name__ != "BadParameter":  # not a value, which says what is wrong
            text = f"{text.rstrip('.')}; {context.command_path} --help shows how"
        return Failure(text, error.exit_code)
    if _is_out_of_memory(error):
        return Failure(
            "there is not enough memory: give a smaller --batch-size or --size, --dtype bfloat16, or a smaller model"
            + (f" ({reason})" if reason else "")
        )
    if isinstance(error, RecursionError):
        return Failure("what was given is nested too deeply to be read")
    if isinstance(error, OSError):
        return Failure(f"{error.filename or 'input or output'}: {error.strerror or reason or type(error).__name__}")
    if isinstance(error, UnicodeError):
        return Failure(f"a text or a file's name cannot be encoded or decoded: {reason}")
    if _is_device_error(error):
        return Failure(f"the device cannot do this: {reason}; try --device cpu")
    if type(error).__name__ in _LOADERS or type(error).__module__.split(".")[0] in (
        "safetensors",
        "huggingface_hub",
    ):
        return Failure(f"a file of the model cannot be read: {reason or type(error).__name__}")
    return Failure(
        f"this is a bug in acdc, please report it: {type(error).__name__}: {reason}; {TRACEBACK}=1 shows where",
        OUR_ERROR,
    )


_LOADERS = ("SafetensorError", "UnpicklingError", "BadZipFile", "PanicException", "ParseError")
"""Exceptions of libraries that read files, by name: not all of these libraries are always there."""


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    told = r"not enough memory|can't allocate memory|out of memory|alloc_cpu|bad_alloc|std::bad_array_new_length"
    return isinstance(error, RuntimeError) and re.search(told, str(error)) is not None


def _is_device_error(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    kind = None if torch is None else getattr(torch, "AcceleratorError", None)
    told = r"CUDA error|CUBLAS_STATUS|CUDNN_STATUS|MPS backend|NVIDIA driver"
    if kind is not None and isinstance(error, kind):
        return True
    return isinstance(error, RuntimeError | NotImplementedError | AssertionError) and bool(
        re.search(told, str(error))
    )


def _one_line(text: str, most: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}…"
