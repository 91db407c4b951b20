"""Processes that share the prompts of one task, each its own batches of them (`torch.distributed`, under `torchrun`).

All of them make the same calls. The one idea: what is measured prompt by prompt is put together again in the order of
the prompts before anything is decided by it, so that every process takes the same decisions as one that has all
prompts. Every exchange says first whether somebody has failed, so that an error of one ends the work of all.

Only the verbs that are `shared` do so, and in them only what asks for its share (`Problem.batches`); everything else is
computed whole by each process. A single process is `ALONE`, for which nothing here does anything.
"""

from __future__ import annotations

import atexit
import contextlib
import contextvars
import dataclasses
import datetime
import functools
import hashlib
import os
import socket
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from acdc.errors import AcdcError
from acdc.store.resume import Arrays, Expected, ResumeFile, digest

if TYPE_CHECKING:
    from acdc.graph import FloatArray

Given = ParamSpec("Given")
Result = TypeVar("Result")

FIRST = 32768
"""Bytes that go with the news whether anybody has failed; what is larger takes an exchange of its own."""
PATIENCE = datetime.timedelta(days=1)
"""How long a process may keep the others waiting: one that has ended is noticed at once."""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What `torchrun` says to each process."""


class OtherProcessError(AcdcError):
    """Another process of the same run has failed, with what it said."""


@dataclasses.dataclass(frozen=True)
class Ranks:
    """This process among those that share the work.

    Attributes:
        rank: its number, from 0; count: how many there are.
        device: where tensors are when they are exchanged.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = dataclasses.field(default_factory=lambda: torch.device("cpu"))

    def share(self, n: int) -> range:
        """Which of so many batches are this process's; one after the other, by rank."""
        return range(self.rank * n // self.count, (self.rank + 1) * n // self.count)

    def size_of_batch(self, prompts: int, most: int) -> int:
        """Prompts a batch, at most so many, so that all processes have some, and alike many if that can be."""
        batches = -(-prompts // most)
        size = -(-prompts // (-(-batches // self.count) * self.count))
        while -(-prompts // size) < self.count:
            size -= 1
        return size

    # ---- exchanges ---------------------------------------------------------------------------------------------

    def gathered(self, x: Tensor) -> Tensor:
        """Everybody's `[..., n]` as one tensor, by rank, so in the order of the prompts; n may differ."""
        if self.count == 1:
            return x
        rows = x.detach().movedim(-1, 0).contiguous()
        parts = self._exchange(_bytes_of(rows))
        whole = torch.cat([part.view(x.dtype).view(-1, *rows.shape[1:]) for part in parts])
        return whole.movedim(0, -1).to(x.device)

    def summed(self, x: FloatArray) -> FloatArray:
        """The sum of everybody's arrays, of one shape."""
        if self.count == 1:
            return x
        self.meet()
        total = torch.as_tensor(x).to(self.device, copy=True)
        with _explained():
            dist.all_reduce(total)
        found: FloatArray = total.cpu().numpy()
        return found

    def least(self, number: float) -> float:
        """The least of everybody's numbers."""
        return float(self.gathered(torch.tensor([number], dtype=torch.float64)).min())

    def told(self, thing: Result) -> Result:
        """What the first process has, for all."""
        if self.count == 1:
            return thing
        self.meet()
        box = [thing]
        with _explained():
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def neighbours(self, device: torch.device) -> int:
        """How many processes compute on the same device of the same machine."""
        if self.count == 1:
            return 1
        name = f"{socket.gethostname()} {device if device.type == 'cpu' else torch.device(device)}"
        if device.type == "cuda" and device.index is None:
            name += f":{torch.cuda.current_device()}"
        own = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "big")
        return int((self.gathered(torch.tensor([own])) == own).sum())

    def agree(self, what: list[object]) -> None:
        """Refuse to share the work if it is not the same everywhere.

        Raises:
            AcdcError: the processes were given different work.
        """
        if self.count == 1:
            return
        keys = {bytes(part.tolist()) for part in self._exchange(_bytes_of(digest(what).encode()))}
        if len(keys) > 1:
            raise AcdcError(
                f"the {self.count} processes that share this work were given different work: expected the same "
                "model, prompts and options in each; draw prompts with the same seed"
            )

    def meet(self) -> None:
        """Wait for everybody.

        Raises:
            OtherProcessError: another one has failed.
        """
        if self.count > 1:
            self._exchange(torch.empty(0, dtype=torch.uint8))

    def fail(self, error: BaseException) -> None:
        """Tell the others, who wait for this process, that it cannot go on."""
        if self.count == 1 or isinstance(error, OtherProcessError) or getattr(error, "_acdc_told", False):
            return
        with contextlib.suppress(AttributeError):
            error._acdc_told = True  # type: ignore[attr-defined]
        text = str(error) if isinstance(error, AcdcError) else f"{type(error).__name__}: {error}"
        with contextlib.suppress(OtherProcessError):
            self._exchange(_bytes_of(text.encode()[:FIRST]), failed=True)

    def _exchange(self, own: Tensor, *, failed: bool = False) -> list[Tensor]:
        """Everybody's bytes, by rank.

        Raises:
            OtherProcessError: somebody has failed, whose bytes are the message.
        """
        news = torch.zeros(16 + FIRST, dtype=torch.uint8)
        news[:16].view(torch.int64)[:] = torch.tensor([failed, len(own)])
        news[16 : 16 + min(len(own), FIRST)] = own[:FIRST]
        every = self._all(news)
        for rank, part in enumerate(every):
            if part[0]:
                text = bytes(part[16 : 16 + int(part[:16].view(torch.int64)[1])].tolist()).decode(errors="replace")
                raise OtherProcessError(f"{text} (process {rank + 1} of {self.count})")
        sizes = [int(part[:16].view(torch.int64)[1]) for part in every]
        if max(sizes) <= FIRST:
            return [part[16 : 16 + size].clone() for part, size in zip(every, sizes, strict=True)]
        padded = torch.zeros(-(-max(sizes) // 16) * 16, dtype=torch.uint8)
        padded[: len(own)] = own
        return [part[:size] for part, size in zip(self._all(padded), sizes, strict=True)]

    def _all(self, own: Tensor) -> list[Tensor]:
        own = own.to(self.device)
        every = [torch.empty_like(own) for _ in range(self.count)]
        with _explained():
            dist.all_gather(every, own)
        return [part.cpu() for part in every]


ALONE = Ranks()
_current: contextvars.ContextVar[Ranks] = contextvars.ContextVar("ranks", default=ALONE)
_broken = False
_sharing: contextvars.ContextVar[bool] = contextvars.ContextVar("sharing", default=True)


def _bytes_of(what: Tensor | bytes) -> Tensor:
    if isinstance(what, bytes):
        return torch.tensor(list(what), dtype=torch.uint8)
    return what.cpu().flatten().view(torch.uint8)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """A connection that breaks means that a process has ended."""
    global _broken
    reason = "another process that shares this work has ended (killed, or out of memory?): start them all again"
    if _broken:  # to wait for the others would be to wait for ever
        raise OtherProcessError(reason)
    try:
        yield
    except RuntimeError as error:
        _broken = True
        raise OtherProcessError(reason) from error


# ---- who shares ---------------------------------------------------------------------------------------------------


def current() -> Ranks:
    """The processes that do the present work together."""
    return _current.get()


def sharing(prompts: int) -> Ranks:
    """Those among which so many prompts are shared out: `ALONE` where each is to run all of them, or they are few."""
    ranks = _current.get()
    return ranks if _sharing.get() and prompts >= ranks.count else ALONE


@contextlib.contextmanager
def sharing_if(shares: bool) -> Iterator[None]:
    """Whether work inside shares out its prompts; otherwise each process runs all of them."""
    token = _sharing.set(shares and _sharing.get())
    try:
        yield
    finally:
        _sharing.reset(token)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Work inside is of this process alone, whatever others there are: for a call that the others do not make."""
    token = _current.set(dataclasses.replace(ALONE))
    try:
        yield
    finally:
        _current.reset(token)


def shared(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """A verb, of a model first, whose work is shared if there are several processes."""

    @functools.wraps(function)
    def wrapper(*args: Given.args, **options: Given.kwargs) -> Result:
        if _current.get() is not ALONE:
            return function(*args, **options)
        if launched() and not joined().count > 1:
            model: Any = args[0] if args else options.get("model")
            start(getattr(model, "device", torch.device("cpu")))
        ranks = joined()
        if ranks.count == 1:
            return function(*args, **options)
        token = _current.set(ranks)
        try:
            result = function(*args, **options)
            ranks.meet()
        except Exception as error:
            ranks.fail(error)
            raise
        finally:
            _current.reset(token)
        return result

    return wrapper


def joined() -> Ranks:
    """The processes of `torch.distributed` that this one has joined."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    backend = str(dist.get_backend())
    on_gpu = "nccl" in backend and "gloo" not in backend
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), device)


def launched() -> bool:
    """Whether `torchrun`, or what says the same, has started several processes of which this is one."""
    return (
        dist.is_available() and all(os.environ.get(name) for name in VARIABLES) and os.environ["WORLD_SIZE"] != "1"
    )


def start(device: torch.device) -> Ranks:
    """Join the processes that `torchrun` has started: by gloo, or where models are on GPUs by NCCL.

    Raises:
        AcdcError: they do not find each other.
    """
    if dist.is_initialized():
        return joined()
    if device.type == "cuda":
        torch.cuda.set_device(device if device.index is not None else int(os.environ.get("LOCAL_RANK", "0")))
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise AcdcError(
            f"the processes that share this work do not find each other at {os.environ['MASTER_ADDR']}:"
            f"{os.environ['MASTER_PORT']}: {error}"
        ) from error
    atexit.register(_leave)
    return joined()


def _leave() -> None:
    """Python cannot end while the connections live."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


# ---- going on -------------------------------------------------------------------------------------------------------


class SharedResume(ResumeFile):
    """A resume file of work that all processes do in step: the first one writes and reads it, for all."""

    def load(self, expected: Expected, *, endless: Collection[str] = ()) -> Arrays:
        ranks = current()
        return ranks.told(super().load(expected, endless=endless) if ranks.rank == 0 else {})

    def save(self, **arrays: Any) -> None:
        if current().rank == 0:
            super().save(**arrays)

    def remove(self) -> None:
        if current().rank == 0:
            super().remove()
        elif self.path is not None:
            self._own_path().unlink(missing_ok=True)

    def of_prompts(self, first: int, last: int) -> ResumeFile:
        """A file of this process's own, for work on these prompts that is not in step."""
        if self.path is None:
            return self
        stays = self.stays or current().rank > 0
        return ResumeFile(self._own_path(), f"{self.key} {first}-{last}", stays)

    def _own_path(self) -> Path:
        assert self.path is not None
        rank = current().rank
        return self.path.with_name(f"{self.path.name}.{rank}") if rank else self.path
