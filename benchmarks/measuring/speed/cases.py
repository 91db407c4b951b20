"""What is measured on: models of known shapes, most with random weights, random pairs, and the bare model's passes."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from typing import Any

import torch
import transformers

import acdc
from acdc.engine.problem import Problem
from acdc.graph import FloatArray
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of a model.

    Attributes:
        n_kv_heads: key/value heads of a Qwen2 model; None: a GPT-2 model, whose MLPs have 4 · d_model neurons.
        d_mlp: neurons of a Qwen2 model's MLPs.
        acdc_shares: about which shares of the edges ACDC is to keep.
        weights: name of the trained model that it is (`acdc models`); None: random ones.
    """

    name: str
    n_layers: int
    n_heads: int
    d_model: int
    vocabulary_size: int
    n_kv_heads: int | None = None
    d_mlp: int = 0
    acdc_shares: tuple[float, ...] = ()
    weights: str | None = None

    @property
    def small(self) -> bool:
        """Whether all works take seconds."""
        return self.d_model < 256


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("S", 2, 4, 64, 500, acdc_shares=(0.5,)),
        Shape("M", 12, 12, 768, 50_257, acdc_shares=(0.03, 0.007)),
        Shape("L", 24, 14, 896, 151_936, n_kv_heads=2, d_mlp=4864),
        Shape("SmolLM2", 30, 9, 576, 49_152, n_kv_heads=3, d_mlp=1536, weights="smollm2-135m-q4"),
        Shape("Gemma", 18, 4, 640, 262_144, n_kv_heads=1, d_mlp=2048, weights="gemma-3-270m-q4"),
    )
}
"""S: a toy; M: GPT-2 small; L: Qwen2-0.5B; the last two are real."""


def make_module(shape: Shape, *, n_positions: int = 1024, seed: int = 0) -> Any:
    """A model of this shape with the random weights it is initialised with, or the trained model of this shape."""
    if shape.weights is not None:
        return acdc.load(shape.weights).module
    torch.manual_seed(seed)
    if shape.n_kv_heads is None:
        config = transformers.GPT2Config(
            vocab_size=shape.vocabulary_size, n_positions=n_positions, n_embd=shape.d_model, n_layer=shape.n_layers,
            n_head=shape.n_heads, bos_token_id=0, eos_token_id=0,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).eval()
    other = transformers.Qwen2Config(
        vocab_size=shape.vocabulary_size, hidden_size=shape.d_model, intermediate_size=shape.d_mlp,
        num_hidden_layers=shape.n_layers, num_attention_heads=shape.n_heads, num_key_value_heads=shape.n_kv_heads,
        max_position_embeddings=n_positions, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(other).eval()


def make_prompts(vocabulary_size: int, *, pairs: int, tokens: int, seed: int = 0) -> Prompts:
    """Random pairs that share no token but by chance, with a random answer and a random wrong answer each."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.randint(vocabulary_size, size, generator=generator)

    answers = draw(pairs)
    wrong = (answers + 1 + torch.randint(vocabulary_size - 1, (pairs,), generator=generator)) % vocabulary_size
    return Prompts.from_tokens(draw(pairs, tokens), draw(pairs, tokens), answers, wrong)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A model, prompts and a metric to measure on.

    Attributes:
        given: the module of that shape to use; None: one with random weights.
    """

    shape: Shape
    pairs: int
    tokens: int
    metric: str = "logit-difference"
    given: Any = None

    @cached_property
    def module(self) -> Any:
        return (make_module(self.shape) if self.given is None else self.given).requires_grad_(False)

    @cached_property
    def model(self) -> Model:
        return acdc.load(self.module)

    @cached_property
    def prompts(self) -> Prompts:
        return make_prompts(self.shape.vocabulary_size, pairs=self.pairs, tokens=self.tokens)

    @cached_property
    def problem(self) -> Problem:
        """Batches are what the engine makes of them."""
        return Problem(self.model, self.model.graph(), self.prompts, OUTCOMES[self.metric])

    @cached_property
    def eap(self) -> FloatArray:
        """EAP scores for the logit difference, to choose circuits and thresholds from."""
        return acdc.score(self.model, self.prompts, "eap", metric="logit-difference").values

    @torch.no_grad()
    def forward(self) -> None:
        """F: the bare model's forward pass."""
        self.module(input_ids=self.prompts.clean, use_cache=False)

    def forward_backward(self) -> None:
        """FB: the bare model's forward pass, and back from the mean logit difference to the embeddings."""
        embedded = self.module.get_input_embeddings()(self.prompts.clean).requires_grad_()
        logits = self.module(inputs_embeds=embedded, use_cache=False).logits[:, -1]
        assert self.prompts.answers is not None
        assert self.prompts.wrong is not None
        pairs = torch.cat((self.prompts.answers[:, 0], self.prompts.wrong[:, 0]), -1)
        right, wrong = logits.gather(-1, pairs).unbind(-1)
        torch.autograd.grad((right - wrong).mean(), embedded)
