"""From a RASP program to a Tracr model, checked: DeepMind's compiler, then our own torch model.

The compiler has silent defects, so that a compiled model is compared with the RASP evaluation of its program on
random inputs before anyone uses it, and refused with the first disagreement. Needs the extra `[tracr]`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from acdc.errors import AcdcError
from acdc.graph import head_name, mlp_name
from acdc.model.programs.rasp import evaluator, listing, number, rasp_modules, why_not
from acdc.model.programs.tracr import BOS, PAD, TracrModel, TracrProgram, Value

if TYPE_CHECKING:
    from acdc.tasks.programs.truth import TrueCircuits

MARGIN = 0.05
"""How far an output may be from the program's, as a number or as the one-hot vector of a value."""


@dataclasses.dataclass(frozen=True, eq=False)
class CompiledProgram:
    """A RASP program as a model, with its true circuits.

    Attributes:
        model: give it to `acdc.load`.
        truth: its true circuits.
    """

    model: TracrModel
    truth: TrueCircuits

    @property
    def name(self) -> str:
        """Name of the model and of its task."""
        return self.model.program.name

    def save(self, folder: str | Path) -> None:
        """Write the model and its true circuits; `acdc.load` takes the folder."""
        self.model.save(folder)
        self.truth.save(folder)


def compile(
    program: Any, *, name: str, vocabulary: Iterable[Value], max_length: int, **options: Any
) -> CompiledProgram:
    """Compile a RASP program, check it, derive its true circuits and register its task under its name.

        >>> from tracr.compiler import lib
        >>> from tracr.rasp import rasp
        >>> backwards = acdc.compile(lib.make_reverse(rasp.tokens), name="mine", vocabulary="ab", max_length=4)
        >>> model, task = acdc.load(backwards.model), acdc.tasks.load("mine")

    Args:
        program, name, vocabulary, max_length, options: see `compile_model`.

    Raises:
        AcdcError: the extra `[tracr]` is missing, the program does not compile, the model disagrees with it, or the
            name is a built-in model's.
    """
    from acdc.tasks.programs.tracr import register
    from acdc.tasks.programs.truth import derive_truth

    model = compile_model(program, name=name, vocabulary=vocabulary, max_length=max_length, **options)
    truth = derive_truth(model)
    register(model, truth)
    return CompiledProgram(model, truth)


def compile_model(
    program: Any,
    *,
    name: str,
    vocabulary: Iterable[Value],
    max_length: int,
    description: str = "",
    source: str | None = None,
    bos: bool = True,
    causal: bool = False,
    distinct: bool = False,
    mlp_exactness: int = 100,
    checks: int = 500,
    seed: int = 0,
) -> TracrModel:
    """Compile a RASP program (a `tracr.rasp.rasp.SOp`) and check the model against its evaluation.

    Args:
        program: the program.
        name: name of the model.
        vocabulary: the tokens of its inputs.
        max_length: greatest number of tokens in an input.
        description: one line that is kept with the model.
        source: the program's text; default: a listing of its expressions.
        bos: whether inputs start with the compiler's BOS token. Almost every program needs it.
        causal: whether positions attend to earlier positions only.
        distinct: whether the program is defined on inputs without repeated tokens only.
        mlp_exactness: steepness of the steps that MLPs are made of.
        checks: number of random inputs on which the model must agree with the program.

    Raises:
        AcdcError: the extra is missing, the program does not compile, or the model disagrees with it.
    """
    rasp, _ = rasp_modules()
    from tracr.compiler import compiling

    if not isinstance(program, rasp.SOp):
        raise AcdcError(f"expected a RASP program (tracr.rasp.rasp.SOp), got {type(program).__name__}")
    tokens = sorted(set(vocabulary), key=lambda token: (str(type(token)), token))
    if not tokens or max_length < 1 or not all(isinstance(token, str | int | float) for token in tokens):
        raise AcdcError(
            f"{name}: expected a vocabulary of strings or numbers and a max_length of 1 or more, "
            f"got {tokens} and {max_length}"
        )
    if reason := why_not(program):
        raise AcdcError(f"{name} does not compile: {reason}")
    number(program)
    try:
        compiled = compiling.compile_rasp_to_model(
            program, set(tokens), max_length, causal=causal, compiler_bos=BOS, compiler_pad=PAD,
            mlp_exactness=mlp_exactness,
        )  # fmt: skip
    except Exception as error:
        raise AcdcError(f"{name} does not compile: {type(error).__name__}: {error or 'no message'}") from error
    model = _to_torch(
        compiled, program, name=name, description=description,
        source=listing(program) if source is None else source, max_length=max_length, bos=bos,
        distinct=distinct,
    )  # fmt: skip
    check(model, evaluator(program, causal), n=checks, seed=seed)
    if bos:
        _compare(model, compiled)
    return model


def check(
    model: TracrModel, evaluate: Callable[[list[Value]], Sequence[Value | None]], *, n: int = 500, seed: int = 0
) -> None:
    """Compare a model with its program on random inputs of every length.

    Raises:
        AcdcError: with the first input on which they disagree.
    """
    from acdc.tasks.programs.inputs import random_inputs

    program = model.program
    inputs = random_inputs(program, n, rng=np.random.default_rng(seed))
    tokens, mask = model.encode(inputs)
    with torch.no_grad():
        outputs = model(tokens, attention_mask=mask)
    decoded = model.decode(outputs, mask)
    first = int(program.bos is not None)
    for i, values in enumerate(inputs):
        expected = list(evaluate(values))
        target = torch.zeros(len(values), outputs.shape[-1])
        for t, value in enumerate(expected):
            if value is None:
                continue
            if program.output_vocabulary is None:
                target[t, 0] = float(value)
            elif value in program.output_vocabulary:
                target[t, program.output_vocabulary.index(value)] = 1
            else:
                raise AcdcError(f"{program.name}: on {values} the program gives {value!r}, which the model cannot")
        error = float((outputs[i, first : first + len(values)] - target).abs().max())
        if error > MARGIN:
            raise AcdcError(
                f"{program.name} is not compiled exactly: on {values} the program gives {expected}, "
                f"the model {decoded[i]} (an output is off by {error:.3g})"
            )


def _compare(model: TracrModel, compiled: Any) -> None:
    """Compare outputs with those of the compiler's own JAX model."""
    from acdc.tasks.programs.inputs import random_inputs

    for values in random_inputs(model.program, 20, rng=np.random.default_rng(0)):
        theirs = torch.from_numpy(np.array(compiled.apply([BOS, *values]).transformer_output))
        with torch.no_grad():
            difference = float((model(model.encode([values])[0]) - model.unembedding(theirs)).abs().max())
        if difference > 1e-5:
            raise AcdcError(
                f"{model.program.name}: outputs differ from the compiler's by {difference:.3g} on {values}"
            )


def _to_torch(
    compiled: Any, program: Any, *, name: str, description: str, source: str, max_length: int, bos: bool,
    distinct: bool,
) -> TracrModel:  # fmt: skip
    """The compiled weights as a `TracrModel`; hidden units of MLPs that are all zero are left out."""
    config, labels = compiled.model_config, compiled.residual_labels
    H, K, D = config.num_heads, config.key_size, len(labels)
    parameters = {
        f"{module}/{key}": torch.from_numpy(np.array(value, dtype=np.float32))
        for module, values in compiled.params.items()
        for key, value in values.items()
    }
    biases = [key for key, value in parameters.items() if key.endswith("/b") and value.any()]
    if biases:
        raise AcdcError(f"{name}: expected a compiled model without biases, got them in {', '.join(biases)}")

    values = compiled.output_encoder.encoding_map if hasattr(compiled.output_encoder, "encoding_map") else None
    rows = [program.label] if values is None else [f"{program.label}:{value}" for value in values]
    unembedding = torch.zeros(len(rows), D)
    for row, label in enumerate(rows):
        unembedding[row, labels.index(label)] = 1

    vocabulary = tuple(token for token in compiled.input_encoder.encoding_map if bos or token != BOS)
    ids = [compiled.input_encoder.encoding_map[token] for token in vocabulary]
    weights = {
        "token_embedding.weight": parameters["token_embed/embeddings"][ids],
        "position_embedding.weight": parameters["pos_embed/embeddings"][0 if bos else 1 :],
        "unembedding.weight": unembedding,
    }
    padding, widths = [], []
    for layer in range(config.num_layers):
        attention, mlp = f"transformer/layer_{layer}/attn", f"transformer/layer_{layer}/mlp"
        for ours, theirs in (("w_q", "query"), ("w_k", "key"), ("w_v", "value")):
            weight = parameters[f"{attention}/{theirs}/w"].reshape(D, H, K).permute(1, 2, 0)
            weights[f"layers.{layer}.{ours}"] = weight.contiguous()
        weights[f"layers.{layer}.w_o"] = parameters[f"{attention}/linear/w"].reshape(H, K, D)
        padding += [head_name(layer, h) for h in range(H) if not weights[f"layers.{layer}.w_o"][h].any()]
        w_in, w_out = parameters[f"{mlp}/linear_1/w"], parameters[f"{mlp}/linear_2/w"]  # [D, M], [M, D]
        used = w_in.any(0) & w_out.any(1)
        if not used.any():
            padding.append(mlp_name(layer))
            used[0] = True
        widths.append(int(used.sum()))
        weights[f"layers.{layer}.mlp.0.weight"] = w_in[:, used].T.contiguous()
        weights[f"layers.{layer}.mlp.0.bias"] = torch.zeros(widths[-1])
        weights[f"layers.{layer}.mlp.2.weight"] = w_out[used].T.contiguous()
        weights[f"layers.{layer}.mlp.2.bias"] = torch.zeros(D)

    model = TracrModel(
        TracrProgram(
            name=name, description=description, source=source,
            vocabulary=vocabulary,
            output_vocabulary=None if values is None else tuple(values),
            bos=BOS if bos else None, pad=PAD, max_length=max_length, distinct=distinct, causal=config.causal,
            n_layers=config.num_layers, n_heads=H, d_head=K, d_model=D, mlp_widths=tuple(widths),
            padding=tuple(padding), residual_labels=tuple(labels),
        )
    )  # fmt: skip
    model.load_state_dict(weights)
    return model.eval()
