"""Records by name: those that come with acdc, and those that other packages bring.

A package brings a record by an entry point, a line of its metadata: `"acdc.methods"` is the group of the methods, and
so on. Such packages are imported when a name is asked for that acdc does not have, or when all names are: never
before. One that fails, or brings what cannot be used, costs a warning that names it, and nothing else.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib import metadata
from typing import Generic, TypeVar

from acdc.errors import AcdcError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """The records of one kind by name, acdc's own first.

    Args:
        group: of the entry points that bring more.
        what: a record of this kind in words, like "a Method".
        own: acdc's records by name.
        fits: whether an object can be such a record.
        name: the record's own name; None: it goes by the name of its entry point.
        also: other names that are taken.
    """

    def __init__(
        self,
        group: str,
        what: str,
        own: Mapping[str, T],
        *,
        fits: Callable[[object], bool],
        name: Callable[[T], str] | None = None,
        also: Callable[[], Iterable[str]] = tuple,
    ) -> None:
        self.group, self.what = group, what
        self._own, self._fits, self._name, self._also = dict(own), fits, name, also
        self._acdcs = frozenset(own)
        self._brought: dict[str, T] | None = None

    def __getitem__(self, name: str) -> T:
        return self._own[name] if name in self._own else self._all()[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._all()

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.group}: {', '.join(self)})"

    def comes_with_acdc(self, name: str) -> bool:
        """Whether the record of that name is one of acdc's own."""
        return name in self._acdcs

    def add(self, record: T, *, name: str = "") -> None:
        """Add a record for as long as this program runs.

        Args:
            name: for records that have none of their own.

        Raises:
            AcdcError: it is no such record, or its name is taken.
        """
        if not self._fits(record):
            raise AcdcError(f"expected {self.what}, got {type(record).__name__}")
        key = name if self._name is None else self._name(record)
        if not _is_name(key):
            raise AcdcError(f"expected a name of {_NAME}, got {key!r:.60}")
        if key in self or key in self._also():
            raise AcdcError(f"the name {key!r} is taken")
        self._own[key] = record

    def remove(self, name: str) -> None:
        """Remove a record that `add` has added."""
        del self._own[name]

    def reload(self) -> None:
        """Look for entry points again: a package has been installed since."""
        self._brought = None

    def _all(self) -> dict[str, T]:
        if self._brought is None:
            self._brought = {}  # what is imported now may ask for names itself
            self._brought |= self._from_packages()
        return self._own | self._brought

    def _from_packages(self) -> dict[str, T]:
        found: dict[str, T] = {}
        for point in _points(self.group):
            problem = ""
            try:
                record = point.load()
            except (Exception, SystemExit) as error:  # whatever it is, acdc can do without
                reason = " ".join(str(error).split())
                problem = f"cannot be imported: {type(error).__name__}: {reason:.300}"
            else:
                name = point.name
                if not self._fits(record):
                    problem = f"is no record: expected {self.what}, got {type(record).__name__}"
                elif self._name is not None:
                    name = self._name(record)
                if not problem and not _is_name(name):
                    problem = f"has no usable name: expected {_NAME}, got {name!r:.60}"
                elif not problem and (name in self._own or name in found or name in self._also()):
                    problem = f"is left out: the name {name!r} is taken"
            if problem:
                text = (
                    f"entry point {point.name!r} of package {_package(point)!r} in group {self.group!r} {problem}"
                )
                warnings.warn(text, stacklevel=4)
            else:
                found[name] = record
        return found


_NAME = "letters, digits, dots, dashes and underscores"


def _is_name(given: object) -> bool:
    """Whether it can be a name: options, tables and names of folders are made of them."""
    return isinstance(given, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", given, re.ASCII) is not None


def _points(group: str) -> Iterable[metadata.EntryPoint]:
    """The entry points of a group, by package and name; those of one package that is installed twice count once."""
    points: dict[tuple[str, str, str], metadata.EntryPoint] = {}
    for point in metadata.entry_points(group=group):
        points.setdefault((_package(point), point.name, point.value), point)
    return [points[key] for key in sorted(points)]


def _package(point: metadata.EntryPoint) -> str:
    """The name of the package that brings it; "?" if its metadata has none."""
    try:
        return str(point.dist.name or "?") if point.dist is not None else "?"
    except Exception:  # there is no metadata, or no file of it can be read
        return "?"
