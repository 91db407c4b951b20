"""`acdc.load`: whatever can be run by its name or folder, a decoder or a circuit as a model.

A folder says itself which of the two it is, and holds no code: a circuit's model is `CircuitModel`, of this package.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch

from acdc.acting.circuit_model import NAME, CircuitModel
from acdc.model import load as decoders
from acdc.model.model import Model


def load(
    model: str | Path | torch.nn.Module,
    *,
    tokenizer: Any = None,
    revision: str | None = None,
    device: str = "cpu",
    dtype: str | torch.dtype | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a decoder for circuit discovery, or open a folder that `CircuitModel.save` wrote.

    Args:
        model: name of a built-in or fetched model, hub name, local folder (of `save_pretrained`, an InterpBench case,
            or a circuit's model), GGUF file (dequantised), or a `transformers` module in memory (used in place, without
            a copy; from inside `DataParallel`, a compiled module or a Gemma 3 that sees images, the decoder is taken).
        tokenizer: a tokenizer, or the hub name or folder of one; None: the one beside the weights, if there is one.
        revision: branch, tag or commit of a hub model, of a training checkpoint for instance; config, weights and
            tokenizer are all taken from it.
        device: "cpu", "cuda", "cuda:1", "mps", "auto" (the best there is), or "disk": the CPU, with weights that
            stay in their files, in the type that they have there, and are read as they are needed. "cuda+cpu" and
            "cuda+disk": the GPU, with weights that stay in the CPU's memory or in their files, and visit it one at a
            time. A module in memory stays where it is; one that `accelerate` has spread over GPUs, the CPU and the disk
            computes on the first GPU, which the weights of the others visit.
        dtype: "float32", "float64", "bfloat16", "float16"; None: float32 for files, as it is for a module.
        trust_remote_code: run code that comes with a hub model. Off unless you ask.

    Returns:
        The decoder. The folder of a circuit's model gives a `CircuitModel` (`acdc.CircuitModel.load` says so to a type
        checker), whose decoder is loaded by its name, with these options, and must have the weights it was made with.

    A folder that holds a model and a LoRA adapter gives the model with the adapter merged into it, and a warning that
    says so; this needs PEFT.

    Raises:
        UnsupportedModelError: the architecture or checkpoint cannot be decomposed exactly, or the module's weights
            cannot be read in place (an unmerged adapter, quantised weights, some on a GPU and some not, …).
        AcdcError: the model cannot be found, its files are broken or disagree, or device or dtype are not available.
    """
    options: dict[str, Any] = {"device": device, "dtype": dtype, "trust_remote_code": trust_remote_code}
    if isinstance(model, str | os.PathLike) and _holds_circuit(Path(model)):
        decoders.refuse_revision(os.fspath(model), revision)
        return cast(Model, CircuitModel.load(model, tokenizer=tokenizer, **options))
    return decoders.load(model, tokenizer=tokenizer, revision=revision, **options)


def _holds_circuit(folder: Path) -> bool:
    try:
        return (folder / NAME).is_file()
    except (OSError, ValueError):  # no name of a folder; what it is then is said where models are loaded
        return False
