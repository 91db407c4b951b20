"""Tracr models: transformers compiled from a RASP program, whose true circuits are therefore known.

A compiled model is a plain decoder without norms: one-hot embeddings, attention, a ReLU MLP, and an unembedding
that reads the subspace of the program's output. `TracrModel` runs it in torch and `TracrProgram` records what it
computes. The first token is the BOS token of the compiler, and the output there is undefined. A categorical output
is near one-hot over the output vocabulary (all zero where the program says None), a numerical one is one number.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic
import safetensors.torch
import torch
from pydantic import StrictBool, StrictFloat, StrictInt, StrictStr
from torch import Tensor, nn

from acdc.errors import AcdcError
from acdc.model.architecture import Attention, Decomposition, Layer, Parts, Projection
from acdc.store.reading import read_record
from acdc.store.tensors import build, open_tensors
from acdc.store.writing import write_atomically

Value = StrictBool | StrictInt | StrictFloat | StrictStr
"""What a RASP sequence holds."""

BOS, PAD = "BOS", "PAD"

BUILTIN = Path(__file__).parents[1] / "builtin"


class TracrProgram(pydantic.BaseModel, frozen=True, extra="forbid", protected_namespaces=()):
    """What a Tracr model computes, and its sizes; stored as `config.json`.

    Attributes:
        name: the model's name, like "tracr-reverse".
        description: one line on what the program computes.
        source: text of the RASP program.
        vocabulary: token of each token id, the special tokens included.
        output_vocabulary: value of each row of a categorical output; None: the output is numerical.
        bos: the token that starts every input; None if the program runs without one.
        pad: the token that fills up shorter inputs of a batch.
        max_length: greatest number of program tokens in an input, the BOS token not counted.
        distinct: whether the program is defined on inputs without repeated tokens only.
        causal: whether a position attends to earlier positions only.
        n_layers, n_heads, d_head, d_model: sizes.
        mlp_widths: hidden units of each layer's MLP.
        padding: heads and MLPs that the compiler filled with zeros because another layer has more of them.
        residual_labels: what each direction of the residual stream stands for, like "tokens:a".
    """

    format: int = 1
    model_type: Literal["tracr"] = "tracr"
    name: str
    description: str
    source: str
    vocabulary: tuple[Value, ...]
    output_vocabulary: tuple[Value, ...] | None
    bos: str | None
    pad: str
    max_length: int
    distinct: bool = False
    causal: bool = False
    n_layers: int
    n_heads: int
    d_head: int
    d_model: int
    mlp_widths: tuple[int, ...]
    padding: tuple[str, ...] = ()
    residual_labels: tuple[str, ...] = ()

    @property
    def numerical(self) -> bool:
        """Whether the output is a number and not one of the values of `output_vocabulary`."""
        return self.output_vocabulary is None

    @property
    def tokens(self) -> tuple[Value, ...]:
        """The vocabulary without its special tokens."""
        return tuple(token for token in self.vocabulary if token not in (self.bos, self.pad))

    @property
    def _name_or_path(self) -> str:
        return self.name

    @property
    def bos_token_id(self) -> int | None:
        return None if self.bos is None else self.vocabulary.index(self.bos)

    @property
    def context_length(self) -> int:
        """Greatest number of positions: the BOS token, if there is one, and `max_length` tokens."""
        return self.max_length + (self.bos is not None)


class TracrLayer(nn.Module):
    """Attention with weights `[H, d_head, D]` and no biases, then a ReLU MLP; each adds to the residual stream."""

    def __init__(self, n_heads: int, d_head: int, d_model: int, mlp_width: int) -> None:
        super().__init__()
        self.w_q, self.w_k, self.w_v, self.w_o = (
            nn.Parameter(torch.zeros(n_heads, d_head, d_model)) for _ in range(4)
        )
        self.mlp = nn.Sequential(nn.Linear(d_model, mlp_width), nn.ReLU(), nn.Linear(mlp_width, d_model))

    def forward(self, x: Tensor, allowed: Tensor, scale: float) -> Tensor:
        """`x [B, T, D]`, `allowed [B, 1, query, key]` bool."""
        q = torch.einsum("btd,hkd->bhtk", x, self.w_q)
        k = torch.einsum("btd,hkd->bhtk", x, self.w_k)
        v = torch.einsum("btd,hkd->bhtk", x, self.w_v)
        scores = q @ k.transpose(-1, -2) * scale  # [B, H, query, key]
        scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
        z = scores.softmax(-1) @ v  # [B, H, T, d_head]
        x = x + torch.einsum("bhtk,hkd->btd", z, self.w_o)
        return x + self.mlp(x)


class TracrModel(nn.Module):
    """A compiled RASP program in plain torch.

    Attributes:
        program: the record of what it computes.
        token_embedding, position_embedding, unembedding: `.weight` is `[V, D]`, `[positions, D]`, `[O, D]`.
        layers: `TracrLayer` each.
        scale: what attention scores are multiplied by.
        causal: whether a position attends to earlier positions only.
    """

    def __init__(self, program: TracrProgram) -> None:
        super().__init__()
        self.program = program
        self.causal = program.causal
        self.scale = program.d_head**-0.5
        n_outputs = 1 if program.output_vocabulary is None else len(program.output_vocabulary)
        self.token_embedding = nn.Embedding(len(program.vocabulary), program.d_model)
        self.position_embedding = nn.Embedding(program.context_length, program.d_model)
        self.layers = nn.ModuleList(
            TracrLayer(program.n_heads, program.d_head, program.d_model, width) for width in program.mlp_widths
        )
        self.unembedding = nn.Linear(program.d_model, n_outputs, bias=False)

    def forward(
        self, tokens: Tensor, position_ids: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Outputs `[B, T, O]` (O = 1 if numerical).

        Args:
            tokens: `[B, T]` token ids.
            position_ids: `[B, T]`; default: real tokens counted from 0.
            attention_mask: `[B, T]`, nonzero at real tokens; default: all are.
        """
        B, T = tokens.shape
        mask = torch.ones_like(tokens) if attention_mask is None else attention_mask.to(tokens.device).long()
        if position_ids is None:
            position_ids = (mask.cumsum(-1) - 1).clamp(min=0)
        allowed = mask.bool()[:, None, None, :].expand(B, 1, T, T)
        everywhere = torch.ones(T, T, dtype=torch.bool, device=tokens.device)
        if self.causal:
            allowed = allowed & everywhere.tril()
        allowed = allowed | everywhere.tril().triu()  # padding sees itself, so that no row is empty
        x = self.token_embedding(tokens) + self.position_embedding(position_ids)  # [B, T, D]
        for layer in self.layers:
            x = layer(x, allowed, self.scale)
        return self.unembedding(x)

    @property
    def config(self) -> TracrProgram:
        """The program, under the name that `transformers` gives to what describes a model."""
        return self.program

    # ---- values and token ids ----------------------------------------------------------------------------------

    def encode(self, inputs: Sequence[Sequence[Value]]) -> tuple[Tensor, Tensor]:
        """Token ids `[B, T]` with BOS in front and PAD behind, and the mask `[B, T]` of tokens that are not PAD.

        Raises:
            AcdcError: an input is empty, too long, or holds a value that is not in the vocabulary.
        """
        program = self.program
        index = {_key(token): i for i, token in enumerate(program.vocabulary)}
        start = [] if program.bos is None else [index[_key(program.bos)]]
        rows = []
        for values in inputs:
            if not 1 <= len(values) <= program.max_length:
                raise AcdcError(f"{program.name} takes 1 to {program.max_length} tokens, got {len(values)}")
            foreign = [value for value in values if value not in program.tokens]
            if foreign:
                known = ", ".join(map(repr, program.tokens))
                raise AcdcError(f"{foreign[0]!r} is not in the vocabulary of {program.name}: {known}")
            rows.append(start + [index[_key(value)] for value in values])
        T = max(map(len, rows))
        pad = index[_key(program.pad)]
        tokens = torch.tensor([row + [pad] * (T - len(row)) for row in rows])
        mask = torch.tensor([[True] * len(row) + [False] * (T - len(row)) for row in rows])
        return tokens, mask

    def decode(self, outputs: Tensor, mask: Tensor | None = None) -> list[list[Value | None]]:
        """Values the outputs `[B, T, O]` stand for, without the BOS position and the positions not in the mask."""
        start = int(self.program.bos is not None)
        vocabulary = self.program.output_vocabulary
        decoded: list[list[Value | None]] = []
        for i, row in enumerate(outputs):
            kept = row[start:] if mask is None else row[start:][mask[i, start:]]
            if vocabulary is None:
                decoded.append([float(value) for value in kept[:, 0]])
            else:
                best, index = kept.max(-1)
                decoded.append(
                    [
                        vocabulary[j] if top > 0.5 else None
                        for top, j in zip(best.tolist(), index.tolist(), strict=True)
                    ]
                )
        return decoded

    @torch.no_grad()
    def run(self, inputs: Sequence[Sequence[Value]]) -> list[list[Value | None]]:
        """The program's outputs on inputs given as values, like `model.run(["abc", "ba"])`."""
        tokens, mask = self.encode(inputs)
        return self.decode(self(tokens.to(self.unembedding.weight.device), attention_mask=mask).cpu(), mask)

    # ---- files -------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write `model.safetensors` and `config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / "model.safetensors", safetensors.torch.save(weights))
        write_atomically(folder / "config.json", self.program.model_dump_json(indent=1) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> TracrModel:
        """Read a model from a folder, or a built-in one by name.

        Raises:
            AcdcError: the folder holds no Tracr model, or its files do not fit together.
        """
        path = Path(folder)
        if not path.is_dir() and (BUILTIN / str(folder)).is_dir():
            path = BUILTIN / str(folder)
        config, weights = path / "config.json", path / "model.safetensors"
        if not config.is_file() or not weights.is_file():
            raise AcdcError(f"no Tracr model at {str(folder)!r}: expected config.json and model.safetensors there")
        program = read_program(path)
        return build(lambda: cls(program), len(program.mlp_widths), open_tensors(weights), repr(str(folder)))


def decompose(model: TracrModel) -> Decomposition:
    """Where the engine finds the weights of a `TracrModel`, in place."""

    def attention(layer: TracrLayer) -> Attention:
        q, k, v = (Projection(weight.detach(), bias=None) for weight in (layer.w_q, layer.w_k, layer.w_v))
        return Attention(
            norm=None, q=q, k=k, v=v, w_o=layer.w_o.detach(), b_o=None, scale=model.scale, causal=model.causal
        )

    layers = [layer for layer in model.layers if isinstance(layer, TracrLayer)]
    return Decomposition(
        layers=tuple(
            Layer(
                mixes=attention(layer),
                mlp_norm=None,
                mlp=layer.mlp,
                parts=Parts(layer, attention=None, attention_writes=None, mlp=layer.mlp, mlp_writes=layer.mlp),
            )
            for layer in layers
        ),
        token_embedding=model.token_embedding,
        position_embedding=model.position_embedding,
        rotary=None,
        final_norm=None,
        unembedding=model.unembedding.weight.detach(),
    )


def read_program(folder: str | Path) -> TracrProgram:
    """The program of the Tracr model in a folder, without its weights.

    Raises:
        AcdcError: the folder's `config.json` records no program.
    """
    try:
        return read_record(Path(folder) / "config.json", TracrProgram)
    except AcdcError as error:
        raise AcdcError(f"no Tracr model at {str(folder)!r}: {error}") from None


def builtin_names() -> list[str]:
    """Names of the Tracr models that come with acdc."""
    return sorted(path.parent.name for path in BUILTIN.glob("tracr-*/config.json"))


def _key(value: Value | None) -> tuple[type, Value | None]:
    """Tells True from 1."""
    return (bool if isinstance(value, bool) else float if isinstance(value, int | float) else str), value
