"""What a stage knows: how the components of one kind in one layer are run.

Inside a stage outputs are *compact*, whatever its components need to say what they write (a head's attention result
of `d_head` numbers, for instance); `write` makes of them what goes to the residual stream, `d_model` numbers, and is
linear. So differences may be taken of compact outputs, and references kept of them. Compact outputs are
`[component, C, B, P, X]`.

A new kind of component is a subclass, with rows in the graph's table, in one file, which `acdc.engine.stages` imports.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from acdc.graph import Graph, IntArray, Sublayer
from acdc.model.architecture import Layer
from acdc.model.forward import Context
from acdc.model.model import Model
from acdc.model.trace import Trace, rest_of_run

if TYPE_CHECKING:
    from acdc.engine.propagate import Run

KINDS: dict[str, type[Stage]] = {}
"""The stages by the kind of their components."""


@dataclasses.dataclass(frozen=True)
class Written:
    """A change of what some sources write.

    Attributes:
        sources: their indices.
        difference: `[source, C, B, P, D]`; P is the window if `everywhere`, else the read positions.
    """

    sources: list[int]
    difference: Tensor
    everywhere: bool


@dataclasses.dataclass
class StageState:
    """What a stage keeps of a run with known residual inputs.

    Attributes:
        output: compact outputs that differences are taken from, `[component, 1, B, W, X]`.
    """

    output: Tensor


@dataclasses.dataclass
class WholeState(StageState):
    """With the residual input of a stage's only component, `[1, B, W, D]`, or at all positions if it reads all."""

    x: Tensor


@dataclasses.dataclass
class PortInputs:
    """Residual inputs of a layer's q, k and v ports: one that all share, and those that have come to differ.

    Attributes:
        _shared: `[1, B, W, D]`.
    """

    _shared: Tensor
    _own: dict[tuple[int, int], Tensor] = dataclasses.field(default_factory=dict)

    def get(self, which: int, heads: IntArray) -> Tensor:
        """`[len(heads) or 1, 1, B, W, D]`; `which` is 0, 1, 2 for q, k, v."""
        rows = [self._own.get((which, int(head))) for head in heads]
        if all(row is None for row in rows):
            return self._shared[None]
        return torch.stack([self._shared if row is None else row for row in rows])

    def own(self, which: int, head: int) -> Tensor:
        """The port's own input `[1, B, W, D]`, to be written to."""
        if (which, head) not in self._own:
            self._own[which, head] = self._shared.clone()
        return self._own[which, head]


class Stage(abc.ABC):
    """Components of one kind in one layer.

    Attributes:
        index: its number among the graph's stages.
        place: which of the two sums of the layer its components add up to.
        earlier: number of sources that run before it, which are the first ones.
        parallel: whether the MLP does not read what mixes positions in its layer.
        nothing: zeros in place of what one component writes, `[1, 1, 1, 1, D]`.
        coupled: whether a component's output depends on the other components'.
    """

    kind: ClassVar[str]
    place: ClassVar[Literal["attention", "mlp"]]
    coupled: bool = False

    def __init_subclass__(cls) -> None:
        if kind := getattr(cls, "kind", None):
            KINDS[kind] = cls

    def __init__(self, model: Model, graph: Graph, sublayer: Sublayer, index: int) -> None:
        self.sublayer, self.index = sublayer, index
        self.layer: Layer = model.decomposition.layers[sublayer.layer]
        self.earlier = graph.sources_before(sublayer.stage)
        self.parallel = graph.parallel
        self.nothing = model.decomposition.unembedding.new_zeros(1, 1, 1, 1, model.d_model)

    # ---- outputs -----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def output(self, trace: Trace) -> Tensor:
        """Compact outputs of a plain run."""

    @abc.abstractmethod
    def zeros(self) -> Tensor:
        """Compact outputs of which nothing is written, `[component, 1, 1, 1, X]`."""

    @abc.abstractmethod
    def write(self, compact: Tensor, components: IntArray | None = None) -> Tensor:
        """What the components (None: all) write, `[component, C, B, P, D]`; linear."""

    @abc.abstractmethod
    def total(self, compact: Tensor) -> Tensor:
        """What the stage as a whole writes, with what belongs to no component: `[C, B, P, D]`."""

    def constant(self) -> Tensor | None:
        """What the stage writes that belongs to no component, `[D]`."""
        return None

    # ---- circuits ----------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def state(self, trace: Trace, start: int, output: Tensor | None, *, writable: bool) -> StageState:
        """What is kept of a run.

        Args:
            output: compact outputs to take differences from; None: the run's own.
            writable: copy what a search will change in place.
        """

    @abc.abstractmethod
    def rerun(self, run: Run) -> list[Written]:
        """Recompute the components that a change reaches, each where it is needed."""

    def rest(self, model: Model, context: Context, trace: Trace, written: Tensor) -> Tensor:
        """Run the rest of the plain model when the stage writes `written` `[C, B, W, D]` more than in `trace`.

        Returns:
            The final residual stream at the read positions, `[C, B, P, D]`.
        """
        if self.place == "attention" and not self.parallel:
            index = self.sublayer.layer
            x = trace.mlp_input[index][..., context.start :, :] + written
            return rest_of_run(model.decomposition, context, trace, x, index, at_mlp=True)
        following = self.sublayer.layer + 1
        after = [*trace.attention_input, trace.final_input][following]
        assert after is not None
        x = after[..., context.start :, :] + written
        return rest_of_run(model.decomposition, context, trace, x, following)

    # ---- gradients ---------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def ends(self, trace: Trace) -> list[Tensor]:
        """Where gradients are taken in an ungrouped plain run."""

    @abc.abstractmethod
    def gradients(
        self, trace: Trace, given: Sequence[Tensor], start: int, out: Tensor, *, frozen: bool = False
    ) -> None:
        """Gradients at the residual inputs of all ports, `[port, B, W, D]`, into `out`.

        Args:
            given: those at `ends`.
            frozen: the scale of the norm before the ports is a constant.
        """


class WholeStage(Stage):
    """One component with one port, whose compact output is what it writes."""

    @abc.abstractmethod
    def read(self, trace: Trace) -> Tensor:
        """The residual input in a plain run, `[1, B, T, D]`."""

    def zeros(self) -> Tensor:
        return self.nothing

    def write(self, compact: Tensor, components: IntArray | None = None) -> Tensor:
        return compact

    def total(self, compact: Tensor) -> Tensor:
        return compact[0]

    def state(self, trace: Trace, start: int, output: Tensor | None, *, writable: bool) -> WholeState:
        x = self.read(trace)[..., self.reads_from(start) :, :]
        output = (self.output(trace) if output is None else output)[..., start:, :]
        return WholeState(output.clone(), x.clone()) if writable else WholeState(output, x)

    def reads_from(self, start: int) -> int:
        """The first position whose input is kept, where only those from `start` on can change."""
        return start

    def ends(self, trace: Trace) -> list[Tensor]:
        return [self.read(trace)]

    def gradients(
        self, trace: Trace, given: Sequence[Tensor], start: int, out: Tensor, *, frozen: bool = False
    ) -> None:
        out[:] = given[0][0, :, start:]
