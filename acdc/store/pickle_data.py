"""Reading the data in a pickle without unpickling it: nothing is imported and nothing is called.

A pickle is a program for a small stack machine. Here that machine builds lists, tuples, sets, dictionaries, texts and
numbers as it is told. Where it is told to import something there will be a `Named`, which is but a name, and where it
is told to call something a `Made`, which records what of and with what. What a reader does not know stays inert.

A few bytes can stand for very much: what is put into the memo once can be taken out often, and a tuple of two such
tuples sixty times over has 2^60 parts. So everything is bounded, the size of what is there when it is looked through
(shared parts counted each time) above all; and since to hash is to look through, only what is hashed at once can be a
key or a member of a set.
"""

from __future__ import annotations

import dataclasses
import pickletools
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
        items: keys and values by turns that it would have put into the result.
    """

    what: Any
    arguments: Any
    state: Any = None
    items: list[Any] = dataclasses.field(default_factory=list)


PERSISTENT = Named("pickle", "persistent_id")
"""What a `Made` is of where the pickle names something that is kept outside of it, as a tensor's numbers are."""


MOST_INSTRUCTIONS = 5_000_000
MOST_MEMOS = 1_000_000
MOST_PARTS = 10_000_000
"""Parts of a pickle's data, shared ones counted wherever they are; a hundred letters of a text are one."""
DEEPEST = 100

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
        value = _Machine().run(content)
        _check_size(value)
        return value
    except AcdcError as error:
        raise AcdcError(f"{what} {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise AcdcError(f"{what} is not a pickle that can be read: {error or type(error).__name__}") from None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []  # since the last mark
        self.below: list[list[Any]] = []  # before each mark
        self.memo: dict[int, Any] = {}
        self.hashed = 0

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name == "STOP":
                return self.stack.pop()
            if count >= MOST_INSTRUCTIONS:
                raise AcdcError(f"has more than {MOST_INSTRUCTIONS:,} pickle instructions")
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
            start = len(stack) - _TUPLES[name]
            if start < 0:
                raise ValueError("a tuple has fewer items than it says")
            stack[start:] = [tuple(stack[start:])]
        elif name == "MARK":
            self.below.append(stack)
            self.stack = []
        elif name in ("TUPLE", "LIST"):
            items = self.marked()
            self.stack.append(tuple(items) if name == "TUPLE" else items)
        elif name == "FROZENSET":
            items = self.marked()
            self.stack.append(frozenset(self.hashable(items)))
        elif name == "DICT":
            items = self.marked()
            self.stack.append(self.pairs(items))
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            self.top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            pairs = self.pairs(items)
            if isinstance(self.stack[-1], Made):  # of an object that is like a dictionary
                self.stack[-1].items += items
            else:
                self.top(dict).update(pairs)
        elif name == "ADDITEMS":
            items = self.marked()
            self.top(set).update(self.hashable(items))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
            if len(self.memo) > MOST_MEMOS:
                raise AcdcError(f"has more than {MOST_MEMOS:,} entries in its memo")
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "GLOBAL":
            module, _, attribute = argument.partition(" ")
            stack.append(Named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            if not (isinstance(module, str) and isinstance(attribute, str)):
                raise ValueError("the name of something to import is not a text")
            stack.append(Named(module, attribute))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            stack.append(Made(stack.pop(), arguments))
        elif name == "BINPERSID":
            stack.append(Made(PERSISTENT, stack.pop()))
        elif name == "BUILD":
            state = stack.pop()
            self.top(Made).state = state
        elif name == "POP":
            if stack:
                stack.pop()
            else:
                self.marked()
        elif name == "POP_MARK":
            self.marked()
        elif name == "DUP":
            stack.append(stack[-1])
        else:
            raise AcdcError(f"holds more than data (pickle instruction {name}); only plain data is read")

    def marked(self) -> list[Any]:
        """What was put on the stack since the last mark, taken off it together with the mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"expected a {kind.__name__} on the stack, got a {type(self.stack[-1]).__name__}")
        return self.stack[-1]

    def hashable(self, items: list[Any]) -> list[Any]:
        """The items, if they can be keys; the parts of tuples count wherever they are hashed."""
        for item in items:
            parts = item if isinstance(item, tuple) else (item,)
            self.hashed += len(parts)
            if self.hashed > MOST_PARTS:
                raise AcdcError(f"has more than {MOST_PARTS:,} parts of keys")
            if not all(isinstance(part, _HASHED) for part in parts):
                raise AcdcError("has keys, or members of sets, that are not texts, numbers or flat tuples of these")
            if any(isinstance(part, int) and abs(part) > 2**64 for part in parts):
                raise AcdcError("has whole numbers of more than 64 bits among its keys")
        return items

    def pairs(self, items: list[Any]) -> dict[Any, Any]:
        return dict(zip(self.hashable(items[::2]), items[1::2], strict=True))


_HASHED = (str, bytes, int, float, bool, type(None), Named, Made)


def _parts(value: Any) -> list[Any]:
    """What a value holds."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    if isinstance(value, Made):
        return [value.what, value.arguments, value.state, value.items]
    return []


def _check_size(value: Any) -> None:
    """Refuse what is too large or too deep to be looked through, or holds itself; every object is met once here."""
    sizes: dict[int, tuple[int, int]] = {}  # by identity: parts and depth
    entered: set[int] = set()
    left = [value]
    while left:
        item = left[-1]
        if id(item) in sizes:
            left.pop()
            continue
        parts = _parts(item)
        if parts and id(item) not in entered:
            entered.add(id(item))
            unknown = [part for part in parts if id(part) not in sizes]
            if any(id(part) in entered for part in unknown):
                raise AcdcError("holds an object that holds itself")
            left += unknown
            continue
        left.pop()
        inside = [sizes[id(part)] for part in parts]
        length = len(item) // 100 if isinstance(item, str | bytes) else 0
        size = 1 + length + sum(size for size, _ in inside)
        depth = 1 + max((depth for _, depth in inside), default=0)
        if size > MOST_PARTS:
            raise AcdcError(f"has more than {MOST_PARTS:,} parts when those that are shared are counted each time")
        if depth > DEEPEST:
            raise AcdcError(f"is nested more than {DEEPEST} deep")
        sizes[id(item)] = size, depth
