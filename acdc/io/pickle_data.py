"""Reading the data in a pickle without unpickling it: nothing is imported and nothing is called.

A pickle is a program for a small stack machine. Here that machine builds lists, tuples, sets, dictionaries, texts and
numbers as it is told. Where it is told to import something there will be a `Named`, which is but a name, and where it
is told to call something a `Made`, which records what of and with what. What a reader does not know stays inert.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

from acdc.errors import AcdcError


@dataclasses.dataclass(frozen=True)
class Named:
    """Something the pickle would have imported, like `torch.float32`."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclasses.dataclass(eq=False)
class Made:
    """Something the pickle would have made by a call.

    Attributes:
        what: the `Named` it would have called.
        arguments: with these.
        state: what it would have set on the result, mostly a dictionary of attributes.
    """

    what: Any
    arguments: Any
    state: Any = None


PERSISTENT = Named("pickle", "persistent_id")
"""What a `Made` is of where the pickle names something that is kept outside of it, as a tensor's numbers are."""


class _Mark:
    """The place on the stack that MARK leaves."""


_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8",
}  # fmt: skip


def read_pickle(content: bytes, what: str) -> Any:
    """The data in a pickle.

    Args:
        what: names the pickle in the message of an error.

    Raises:
        AcdcError: it is no pickle, it is cut off, or it does what data has no need of.
    """
    try:
        return _Machine().run(content)
    except AcdcError as error:
        raise AcdcError(f"{what} {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise AcdcError(f"{what} is not a pickle that can be read: {error or type(error).__name__}") from None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise ValueError("it is cut off")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in ("PROTO", "FRAME"):
            return
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _TUPLES:
            size = _TUPLES[name]
            items = stack[len(stack) - size :]
            del stack[len(stack) - size :]
            stack.append(tuple(items))
        elif name == "MARK":
            stack.append(_Mark)
        elif name in _MARKED:
            stack.append(_MARKED[name](self.marked()))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            target = stack[-1]
            if not isinstance(target, Made):  # of an object that is like a dictionary: left out
                self.top(dict).update(_pairs(items))
        elif name == "ADDITEMS":
            items = self.marked()
            self.top(set).update(items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(Named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute = stack.pop()
            stack.append(Named(str(stack.pop()), str(attribute)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(Made(stack.pop(), arguments))
        elif name == "BINPERSID":
            stack.append(Made(PERSISTENT, stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            self.top(Made).state = state
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise AcdcError(f"holds more than data (pickle instruction {name}); only plain data is read")

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark, taken off it together with the mark."""
        start = len(self.stack) - 1 - self.stack[::-1].index(_Mark)
        items = self.stack[start + 1 :]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"expected a {kind.__name__} on the stack, got a {type(self.stack[-1]).__name__}")
        return self.stack[-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(items[::2], items[1::2], strict=True))


_MARKED: dict[str, Callable[[list[Any]], Any]] = {
    "TUPLE": tuple,
    "LIST": list,
    "FROZENSET": frozenset,
    "DICT": _pairs,
}
