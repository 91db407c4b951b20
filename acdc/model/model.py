"""`Model`: a loaded decoder with its decomposition."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import inspect
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from acdc.graph import Graph
from acdc.model import forward, rotary
from acdc.model.architecture import Decomposition
from acdc.model.gguf import weights_note
from acdc.model.trace import whole_run
from acdc.shown import Shown

if TYPE_CHECKING:
    from acdc.model.programs.tracr import TracrModel


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Model(Shown):
    """A decoder ready for circuit discovery; make one with `acdc.load`.

    Attributes:
        name: as given to `load`, or the module's own name.
        module: the `transformers` (or Tracr) module, used in place.
        tokenizer: its tokenizer, or None if there is none.
        decomposition: where the engine finds the weights.
        revision: of the hub model, as given to `load`.
        tokenizer_name: hub name or folder of the tokenizer, if `load` was given one.
    """

    name: str
    module: torch.nn.Module
    tokenizer: Any
    decomposition: Decomposition
    revision: str | None = None
    tokenizer_name: str | None = None

    @property
    def program(self) -> TracrModel | None:
        """The module as a `TracrModel`, or None if the model is not a compiled program."""
        from acdc.model.programs.tracr import TracrModel

        return self.module if isinstance(self.module, TracrModel) else None

    @property
    def note(self) -> str:
        """What a user must know of the weights beside the results: that they were quantised once; mostly ""."""
        return weights_note(getattr(self.module, "config", None))

    @property
    def n_layers(self) -> int:
        return len(self.decomposition.layers)

    @property
    def n_heads(self) -> int:
        return self.decomposition.attentions[0].n_heads

    @property
    def n_kv_heads(self) -> int:
        return self.decomposition.attentions[0].k.weight.shape[0]

    @property
    def d_model(self) -> int:
        return self.decomposition.unembedding.shape[1]

    @property
    def vocabulary_size(self) -> int:
        """Number of output rows of the unembedding."""
        return self.decomposition.unembedding.shape[0]

    @property
    def input_vocabulary_size(self) -> int:
        """Number of token ids a prompt may have; the outputs of programs are of another vocabulary."""
        size = getattr(self.decomposition.token_embedding, "num_embeddings", None)
        return size if isinstance(size, int) else self.vocabulary_size

    @property
    def context_length(self) -> int | None:
        if self.program is not None:
            return self.program.position_embedding.num_embeddings
        length = getattr(self.module.config, "max_position_embeddings", None)
        return length if isinstance(length, int) else None

    @property
    def bos_token_id(self) -> int | None:
        token = getattr(getattr(self.module, "config", None), "bos_token_id", None)
        return token if isinstance(token, int) and token < self.vocabulary_size else None

    @property
    def device(self) -> torch.device:
        return self.decomposition.unembedding.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decomposition.unembedding.dtype

    def _summary(self) -> str:
        return f"{self.name}, {type(self.module).__name__}, {self.n_layers} layers of {self.n_heads} heads"

    def facts(self) -> dict[str, str]:
        """What it is and how large."""
        parameters = sum(p.numel() for p in self.module.parameters())
        heads = f"{self.n_heads}"
        if self.n_kv_heads != self.n_heads:
            heads += f" on {self.n_kv_heads} key/value heads"
        found = {
            "model": self.name,
            "kind": type(self.module).__name__,
            "layers": f"{self.n_layers}",
            "heads": heads,
            "d_model": f"{self.d_model:,}",
            "vocabulary": f"{self.vocabulary_size:,}",
            "parameters": f"{parameters:,}",
            "edges": f"{self.graph().n_edges:,}",
            "weights": f"{str(self.dtype).removeprefix('torch.')} on {self.device}",
        }
        return found | ({"note": self.note} if self.note else {})

    def graph(
        self,
        *,
        qkv: Literal["split", "merged"] = "split",
        group_kv: bool = False,
        inputs: Literal["single", "split", "token"] = "single",
    ) -> Graph:
        """The computational graph; see `Graph` for the options."""
        return Graph(
            n_layers=self.n_layers,
            n_heads=self.n_heads,
            n_kv_heads=self.n_kv_heads,
            parallel=self.decomposition.parallel,
            qkv=qkv,
            group_kv=group_kv,
            inputs=inputs,
            mixers=tuple(i for i, layer in enumerate(self.decomposition.layers) if layer.mixer is not None),
        )

    def config_hash(self) -> str:
        """Short hash of the configuration, to tell whether a circuit was found in this architecture."""
        config = getattr(self.module, "config", None)
        if config is None:
            return ""
        values = config.to_dict() if hasattr(config, "to_dict") else config.model_dump(mode="json")
        values = {k: v for k, v in values.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
        return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def plain_logits(
        self,
        token_ids: Tensor,
        mask: Tensor,
        position_ids: Tensor | None = None,
        *,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The module's own logits `[B, T, vocabulary]`: the reference the decomposition is checked against.

        Each prompt's are those it has alone: where the module would choose by the longest of a call, calls are apart.

        Args:
            positions: `[P]`, those whose logits to give, `[B, P, vocabulary]`; None: all.
        """
        everywhere = slice(None) if positions is None else positions
        if position_ids is None:
            position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
        if self.program is not None:
            out: Tensor = self.program(token_ids, position_ids=position_ids, attention_mask=mask)
            return out[:, everywhere]
        spares = positions is not None and "logits_to_keep" in inspect.signature(self.module.forward).parameters
        only = {"logits_to_keep": positions} if spares else {}
        parts: list[tuple[Tensor, Tensor]] = []
        for rows, ids in rotary.groups(self.decomposition, mask, position_ids):
            rotary.forget(self.decomposition)
            whole = len(rows) == len(mask)
            tokens, real = (token_ids, mask) if whole else (token_ids[rows], mask[rows])
            logits = self.module(
                input_ids=tokens, attention_mask=real.long(), position_ids=ids, use_cache=False, **only
            ).logits
            parts.append((rows, logits if spares else logits[:, everywhere]))
        if len(parts) == 1:
            return parts[0][1]
        return rotary.together([rows for rows, _ in parts], [logits for _, logits in parts])

    def decomposed_logits(self, token_ids: Tensor, mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        """The same logits through the decomposition."""
        everywhere = torch.arange(token_ids.shape[1], device=token_ids.device).expand_as(token_ids)
        context = forward.make_context(self.decomposition, token_ids, mask, position_ids, read=everywhere)
        final = whole_run(self.decomposition, context).final_input
        assert final is not None
        return forward.readout(self.decomposition, final[0])

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """No gradients for weights inside the block; what the user had is restored."""
        wanted = [p for p in self.module.parameters() if p.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in wanted:
                parameter.requires_grad_(True)
