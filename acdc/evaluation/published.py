"""Circuits that papers found by hand, as data: components in role groups, to compare with and for colours.

They are lists of components, not of edges, and each is one paper's claim under its own ablation and templates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from types import MappingProxyType

from acdc.graph import head_name

_GPT2 = ("gpt2", "gpt2-small")
_ATTENTION_ONLY_4L = ("attn-only-4l", "attn_only_4l512w_c4_code")


@dataclasses.dataclass(frozen=True)
class PublishedCircuit:
    """A circuit from a paper.

    Attributes:
        task: name of the task.
        models: names of the model, lower case, without their owner.
        paper: where it was published.
        roles: components by role, like `{"name mover": ("a9.h9", …)}`; no component has two roles.
    """

    task: str
    models: tuple[str, ...]
    paper: str
    roles: Mapping[str, tuple[str, ...]]

    @property
    def components(self) -> frozenset[str]:
        return frozenset(name for names in self.roles.values() for name in names)

    def role_of(self, component: str) -> str | None:
        """The role of a component like `a9.h9`; None if it is not in the circuit."""
        return next((role for role, names in self.roles.items() if component in names), None)

    def recovered(self, components: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Of each role, the components that are among the given ones."""
        return {role: tuple(name for name in names if name in components) for role, names in self.roles.items()}


def _roles(**groups: str) -> Mapping[str, tuple[str, ...]]:
    """`name_mover="9.9 10.0"` as `{"name mover": ("a9.h9", "a10.h0")}`; `m3` stays."""

    def component(text: str) -> str:
        layer, dot, head = text.partition(".")
        return head_name(int(layer), int(head)) if dot else text

    return MappingProxyType(
        {role.replace("_", " "): tuple(component(x) for x in names.split()) for role, names in groups.items()}
    )


PUBLISHED = (
    PublishedCircuit(
        task="ioi",
        models=_GPT2,
        paper="Wang et al. 2023, Interpretability in the Wild, arXiv 2211.00593",
        roles=_roles(
            name_mover="9.9 10.0 9.6",
            backup_name_mover="10.10 10.6 10.2 10.1 11.2 9.7 9.0 11.9",
            negative_name_mover="10.7 11.10",
            s_inhibition="7.3 7.9 8.6 8.10",
            induction="5.5 5.8 5.9 6.9",
            duplicate_token="0.1 0.10 3.0",
            previous_token="2.2 4.11",
        ),
    ),
    PublishedCircuit(
        task="greater-than",
        models=_GPT2,
        paper="Hanna et al. 2023, How does GPT-2 compute greater-than?, arXiv 2305.00586",
        roles=_roles(
            early="0.1 0.3 0.5 m0 m1 m2 m3",
            year_attention="5.5 6.1 6.9 7.10 8.11 9.1",
            greater_than="m8 m9 m10 m11",
        ),
    ),
    PublishedCircuit(
        task="induction",
        models=_GPT2,
        paper="Olsson et al. 2022, In-context Learning and Induction Heads, arXiv 2209.11895; heads of GPT-2 small "
        "as listed by TransformerLens' demonstration",
        roles=_roles(induction="5.1 5.5 6.9 7.2 7.10", previous_token="4.11"),
    ),
    PublishedCircuit(
        task="docstring",
        models=_ATTENTION_ONLY_4L,
        paper="Heimersheim and Janiak 2023, A circuit for Python docstrings in a 4-layer transformer",
        roles=_roles(argument_mover="3.0 3.6", upstream="0.5 1.2 1.4 2.0"),
    ),
)


def published(model: str, task: str) -> PublishedCircuit | None:
    """The published circuit of a task in a model, by their names; None if there is none.

    The model's name may have an owner (`openai-community/gpt2`) or be a folder of that name.
    """
    name = model.rstrip("/").rsplit("/", 1)[-1].lower()
    return next((x for x in PUBLISHED if x.task == task and name in x.models), None)
