"""How much memory work needs, how much there is, and what would fit.

The need is worked out before the work, from the shapes of what each kind of work holds at its peak: the runs it keeps,
what a patched pass mixes, attention scores where they are made whole, logits, and what gradients keep. It is meant to
be an upper bound, and close: `docs/memory.md` compares it with what was measured.
"""

from __future__ import annotations

import contextlib
import contextvars
import ctypes
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.metrics import Outcome
from acdc.model.elsewhere import Elsewhere, numbers
from acdc.model.model import Model
from acdc.store.amounts import size
from acdc.tasks.prompts import Prompts

Given = ParamSpec("Given")
Result = TypeVar("Result")

Work = Literal["circuits", "everywhere", "exact", "gradients", "search"]
"""Running circuits, reading logits at every position, scoring edges one by one, attribution, or a search."""

MARGIN = 1.2
"""For what the allocator holds back, and for what is too small to be counted."""
OF_GRADIENTS = 1.1
"""The same of attribution, which holds many pieces of one size for as long as a run takes."""

OVERHEAD = 4e6
"""Bytes of Python's own, which count where somebody has said how many there may be."""

DIRECTIONS = 3
"""In which a quadratic model knows how a metric that is a distance curves; of others it needs one."""

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 65536, "mps": 65536}
"""Tokens that fill the machine: methods run as many circuits at once as have so many, but at least one."""


# ---- what work needs --------------------------------------------------------------------------------------------


def tokens_at_once(device: torch.device) -> int:
    return TOKENS_AT_ONCE.get(device.type, 65536)


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes that work needs.

    Attributes:
        prompt: of each prompt.
        token: of each token of all circuits that are run at once: as many as have `least` tokens, but one at least.
        row: of a prompt in each circuit more that is run at once.
        fixed: of a circuit's mask, and of what is kept of all prompts whatever their batch.
        length: tokens a prompt.
        modelled: of each prompt where a circuit's weights are differentiated prompt by prompt, beside one circuit: at
            other times than when several circuits are run.
    """

    prompt: float
    token: float
    row: float
    fixed: float
    length: int
    least: int
    modelled: float = 0.0
    margin: float = MARGIN

    def of(self, prompts: int, least: int | None = None) -> float:
        """Bytes for so many prompts; `least` instead of its own."""
        tokens = prompts * self.length
        at_once = max(1, (self.least if least is None else least) // tokens) * tokens
        largest = max(self.token * at_once, self.token * tokens + prompts * self.modelled)
        return self.margin * (self.fixed + prompts * self.prompt + largest)

    def fitting(self, available: float, most: int, least: int | None = None) -> int:
        """How many prompts fit, of so many; `least` as for `of`."""
        return next((n for n in range(most, 0, -1) if self.of(n, least) <= available), 0)

    def tokens(self, available: float, prompts: int) -> int:
        """How many tokens of all circuits that are run at once fit beside so many prompts."""
        return (
            self.least
            if not self.token
            else int((available / self.margin - self.fixed - prompts * self.prompt) / self.token)
        )


def need(model: Model, graph: Graph, prompts: Prompts, outcome: Outcome, ablation: str, work: Work) -> Need:
    """What work on such prompts needs beside the weights."""
    T = prompts.clean.shape[1]
    P = T if work == "everywhere" else prompts.positions.shape[1]
    S, H, L, D = graph.n_sources, graph.n_heads, graph.n_layers, model.d_model
    layers = model.decomposition.layers
    attention = model.decomposition.attentions[0]
    h, h_kv = H * attention.q.weight.shape[1], model.n_kv_heads * attention.q.weight.shape[1]
    mlp = kept_by_gradient(layers[0].mlp, model) if graph.mlp else 0
    size, logit = model.dtype.itemsize, max(4, model.dtype.itemsize)
    masks = len({each.sees for each in model.decomposition.attentions})
    capped = attention.softcap is not None
    read = P * logit * min(model.vocabulary_size, 64 if outcome.rows == "answers" else model.vocabulary_size)

    # Elements a token: what a plain run leaves behind, attention scores, and one circuit of a patched run.
    trace = L * (3 * D + 2 * h + 2 * h_kv) + 2 * D
    runs = (2 if ablation == "resample" else 3) * trace + (L * 2 * h if h_kv != h else 0) + 2 * D
    if ablation == "mean-position":
        runs += trace  # references of prompts that are padded on the left
    scores = (4 if capped else 3) * H * T
    patched = (S + 6 * H) * D + 4 * h + 2 * mlp + scores
    kept, at_once = float(runs), 0.0
    if work in ("circuits", "everywhere"):
        kept += patched
        read = P * logit * model.vocabulary_size  # the divergence from the full model is measured too
    elif work == "exact":
        kept, at_once = kept + S * D, 8 * D + 6 * h + 4 * mlp + scores
    elif work == "gradients":
        # Capped scores are made one by one, and leave holes between those that gradients keep.
        kept += L * (9 * D + 9 * h + 2 * h_kv + mlp + (5 if capped else 1) * H * T) + scores
        ports = max(sum(len(x.every_port) for x in graph.sublayers_of(layer)) for layer in range(L))
        copies = 2 if size < 4 and model.device.type == "cpu" else 1  # matrix products in half precision make one
        kept += (copies * S + 2 * ports) * D + 8 * graph.n_ports * S / T  # and each edge's score of each prompt
    else:
        kept += S * D + graph.n_ports * D + L * (4 * h + 2 * D)  # the circuit's own activations
        # Gradients in the circuit, by which `guided` ranks its edges.
        kept += L * (mlp + 2 * D + (2 if capped else 1) * H * T)
        at_once = (S + graph.n_ports + 6 * H) * D + L * (5 * h + 2 * D) + 2 * mlp + scores
    fixed = graph.n_ports * S * (3 * size + 8)
    modelled = 0.0
    if work == "search":  # the quadratic model of guided pruning: of a batch, and the rows of all prompts
        directions = DIRECTIONS + 1 if outcome.is_distance else 1
        modelled = graph.n_edges * (2 * size + 8 * (1 + 2 * directions)) + 4 * (1 + directions) * read
        fixed += 3 * 8 * directions * graph.n_edges * len(prompts) + 8 * graph.n_ports * S
    masked = T * (3 * masks * size + 4)  # bytes a token: masks of the contexts, and what they are made from
    return Need(
        prompt=T * (kept * size + masked) + 8 * read,
        token=at_once * size + 4 * read / T,
        row=MARGIN * (T * patched * size + 4 * read),
        fixed=fixed,
        length=T,
        least=tokens_at_once(model.device) if at_once else 0,
        modelled=modelled,
        margin=OF_GRADIENTS if work == "gradients" else MARGIN,
    )


def kept_by_gradient(function: Callable[[Tensor], Tensor], model: Model) -> int:
    """Elements that autograd keeps of an MLP's run, a token, its weights apart: the widths that are really there."""
    own = {numbers(p).untyped_storage().data_ptr() for p in model.module.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if not isinstance(x, Elsewhere) and x.untyped_storage().data_ptr() not in own:
            kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.enable_grad(), model.frozen(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        x = model.decomposition.unembedding.new_ones(1, 1, model.d_model).requires_grad_()
        out = function(x)
    return sum(x.untyped_storage().nbytes() // x.dtype.itemsize for x in kept.values()) + out.numel()


# ---- what there is ----------------------------------------------------------------------------------------------


def available(device: torch.device) -> float:
    """Bytes that can still be had: of the GPU, or of the machine, the container and the process."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min([_machine(), *_container(), *_process()])


def _machine() -> float:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            return 1024.0 * int(line.split()[1])
    try:
        pages: Any = os.sysconf("SC_AVPHYS_PAGES") if "SC_AVPHYS_PAGES" in os.sysconf_names else None
        return float((pages or os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return math.inf


def _container() -> Iterator[float]:
    """What the control groups of the process leave it (version 2, then 1)."""
    for line in _lines("/proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, cache = Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"
        elif controllers == "memory":
            root, limit, used = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in [inner, *inner.parents]:  # as seen from inside, the group may be the root
            found = _lines(folder / limit), _lines(folder / used)
            if all(part and part[0].isdigit() for part in found):
                reclaimable = [
                    int(x.split()[1]) for x in _lines(folder / "memory.stat") if x.startswith(f"{cache} ")
                ]
                yield float(int(found[0][0]) - int(found[1][0]) + sum(reclaimable[:1]))
            if folder == root:
                break


def _process() -> Iterator[float]:
    """What limits of the process (`ulimit -v`, `ulimit -d`) leave it."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = next(iter(_lines("/proc/self/statm")), "").split()
    if not used:
        return
    page = resource.getpagesize()
    for kind, pages in ((resource.RLIMIT_AS, used[0]), (resource.RLIMIT_DATA, used[5])):
        limit = resource.getrlimit(kind)[0]
        if limit != resource.RLIM_INFINITY:
            yield float(max(0, limit - int(pages) * page))


def _lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def give_back() -> None:
    """Give what was freed back to the system, where the allocator can: holes between what is in use count too."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# ---- saying so --------------------------------------------------------------------------------------------------


def too_large(need: Need, prompts: int, limit: float, *, given: bool, half: bool) -> str:
    """That work on so many prompts does not fit in `limit` bytes, and what to do.

    Args:
        given: whether the limit is the user's, and not what is free.
        half: whether the model is in half precision already.
    """
    fitting = need.fitting(limit, prompts - 1, 0)
    if fitting:
        out = f"use a batch size of at most {fitting} (--batch-size {fitting})"
    else:
        narrow = "" if half else ", --dtype bfloat16"
        more = "more memory (--memory)" if given else "a machine with more memory"
        out = f"use prompts shorter than {need.length} tokens{narrow}, or {more}"
    what = "one prompt" if prompts == 1 else f"a batch of {prompts} prompts"
    there = f"{size(limit)} is {'allowed' if given else 'free'}"
    return (
        f"not enough memory: {what} of {need.length} tokens needs about {size(need.of(prompts, 0))}, and {there}; "
        f"{out}"
    )


_doing: contextvars.ContextVar[str | None] = contextvars.ContextVar("doing", default=None)


def expect(sentence: str) -> None:
    """What to say should an allocation of the work that starts now fail."""
    _doing.set(sentence)


def explained(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """A function in which a failed allocation is an `AcdcError` with the sentence of the work it was for."""

    @functools.wraps(function)
    def wrapper(*args: Given.args, **options: Given.kwargs) -> Result:
        token = _doing.set(None)
        try:
            return function(*args, **options)
        except (MemoryError, RuntimeError) as error:
            if not _is_allocation(error):
                raise
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            sentence = _doing.get() or f"not enough memory: {first}"
        finally:
            _doing.reset(token)
        raise AcdcError(sentence)

    return wrapper


def _is_allocation(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    text = str(error).lower()
    return any(
        part in text for part in ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc")
    )
