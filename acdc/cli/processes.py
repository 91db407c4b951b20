"""The command line where `torchrun` has started several processes: they work together, and the first one speaks.

Only it prints and writes, all end with one status, and an error of any is the first one's line.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acdc.cli.failures import TRACEBACK
from acdc.errors import AcdcError

if TYPE_CHECKING:
    from acdc.engine.ranks import Ranks
    from acdc.store.folders import Claim

SHARED = ("discover", "cut", "evaluate")
"""Commands that processes can do together."""


def launched() -> bool:
    """Whether this is one of several processes."""
    if "WORLD_SIZE" not in os.environ:
        return False
    from acdc.engine import ranks

    return ranks.launched()


def only_first_speaks() -> None:
    """Silence every process but the first."""
    if launched() and os.environ["RANK"] != "0" and not os.environ.get(TRACEBACK):
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


@contextlib.contextmanager
def together(arguments: Sequence[str]) -> Iterator[None]:
    """A command that ends when it is done in all processes; one that each would do again is refused.

    Raises:
        AcdcError: another process has failed, or the command cannot be shared.
    """
    command = next(iter(arguments), "--help")
    if not command.startswith("-") and command not in SHARED and launched():
        raise AcdcError(
            f"acdc {command} is the work of one process: start it without torchrun, which is for "
            f"{', '.join(SHARED[:-1])} and {SHARED[-1]}"
        )
    yield
    if (team := _joined()) is not None:
        team.meet()


def join(device: str) -> tuple[Ranks, str]:
    """The processes that work together, and the device of this one: each has a GPU of its own.

    Raises:
        AcdcError: they do not find each other.
    """
    from acdc.engine import ranks

    if not launched():
        return ranks.ALONE, device
    import torch

    computes, plus, weights = device.partition("+")
    if computes == "auto":
        computes = "cuda" if torch.cuda.is_available() else "cpu"
    if computes == "cuda":
        computes = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    on_gpu = computes.startswith("cuda") and torch.cuda.is_available()
    return ranks.start(torch.device(computes if on_gpu else "cpu")), f"{computes}{plus}{weights}"


@contextlib.contextmanager
def claimed(team: Ranks, out: Path | None, **options: Any) -> Iterator[Claim]:
    """The folder that the first process claims, for all to know; arguments and errors as of `folders.claimed`."""
    from acdc.store import folders

    with folders.claimed(out, **options) if team.rank == 0 else contextlib.nullcontext() as claim:
        claim = team.told(claim)
        assert claim is not None
        yield claim


def fail(error: BaseException) -> None:
    """Tell the others that this process cannot go on, also if they have not found each other yet."""
    with contextlib.suppress(AcdcError):
        if _joined() is None and launched():
            join("cpu")
        if (team := _joined()) is not None:
            team.fail(error)


def wait_for_words() -> None:
    """End no earlier than the first one has said why: `torchrun` ends all when it sees one end."""
    if (team := _joined()) is not None:
        with contextlib.suppress(AcdcError):
            team.meet()


def _joined() -> Ranks | None:
    """The processes, if they have found each other, and are several."""
    ranks = sys.modules.get("acdc.engine.ranks")
    if ranks is None:
        return None
    team: Ranks = ranks.joined()
    return team if team.count > 1 else None
