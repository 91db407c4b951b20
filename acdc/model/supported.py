"""Which modules are taken, what they may be wrapped in, and what is refused, and why.

A module in memory is used in place, so its weights have to be there as what they are: plain floating-point tensors,
whole, of one dtype, on one device. Where a module computes a weight anew in each call (adapters, quantisation,
pruning, parametrisations) there is nothing to read in place, and the message says how to make it a plain weight.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch.nn.modules.dropout import _DropoutNd
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from acdc.errors import AcdcError, UnsupportedModelError
from acdc.model.architecture import Decomposition
from acdc.model.elsewhere import Elsewhere
from acdc.model.programs import hooked, tracr
from acdc.model.reading import decoder
from acdc.registry import Registry

FAMILIES: Registry[Callable[[Any], Decomposition]] = Registry(
    "acdc.families",
    "a function that takes the module and gives its Decomposition",
    {},
    fits=callable,
)
"""Adapters of other packages by `config.model_type`, which is the name of their entry point.

acdc has none of its own: it reads any decoder by watching it.
"""

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}

_QUANTISED = "quantised weights are not supported; load it in bfloat16 or float32"


def decompose(module: torch.nn.Module, name: str) -> Decomposition:
    """Where the engine finds the module's weights.

    Raises:
        UnsupportedModelError: with the reason.
    """
    if isinstance(module, tracr.TracrModel):
        check_weights(module, name)
        return tracr.decompose(module)
    if isinstance(module, hooked.HookedModel):
        check_weights(module, name)
        return hooked.decompose(module)
    config: Any = getattr(module, "config", None)
    if not isinstance(getattr(config, "model_type", None), str):
        raise UnsupportedModelError(f"{name}: {_not_causal(module)}")
    _check_adapters(module, name)
    check_config(config, name)
    if _head(module) is None:
        raise UnsupportedModelError(
            f"{name}: {type(module).__name__} has no language-model head; load it with AutoModelForCausalLM"
        )
    refuse_dropout(module, name)
    check_weights(module, name)
    if config.model_type not in FAMILIES:
        return decoder.decompose(module)
    try:
        return FAMILIES[config.model_type](module)
    except AcdcError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UnsupportedModelError(
            f"{name}: a part of this {config.model_type} is not what its family's adapter knows: {error}"
        ) from error


def _head(module: Any) -> Any:
    """The unembedding of a language model; None of a module without one."""
    return module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None


def unwrap(module: torch.nn.Module) -> torch.nn.Module:
    """The decoder inside what trains, compiles or extends it: the same weights, nothing copied.

    Raises:
        UnsupportedModelError: the wrapper itself does something.
    """
    inner = module
    while True:
        if isinstance(inner, torch.nn.DataParallel | torch.nn.parallel.DistributedDataParallel):
            wrapped = inner.module
        elif "_orig_mod" in inner._modules:  # torch.compile
            wrapped = inner._modules["_orig_mod"]
        elif getattr(getattr(inner, "config", None), "model_type", None) == "gemma3" and hasattr(inner, "lm_head"):
            _check_adapters(inner, type(inner).__name__)
            wrapped = _text_part(inner)
        else:
            return inner
        if inner._forward_hooks or inner._forward_pre_hooks:
            raise UnsupportedModelError(
                f"{type(inner).__name__} has forward hooks, which are not part of the decoder inside it: remove them"
            )
        inner = wrapped


def _text_part(module: Any) -> torch.nn.Module:
    """The decoder of a Gemma 3 that sees images, as the same family without: its modules, shared."""
    from transformers import Gemma3ForCausalLM

    body = module.model.language_model
    with torch.device("meta"):
        text: Any = Gemma3ForCausalLM(body.config)
    text.model, text.lm_head, text.training = body, module.lm_head, module.training
    text.config = body.config
    return text


def check_config(config: Any, name: str) -> None:
    """Refuse what can be refused before any weight is read.

    Raises:
        UnsupportedModelError: with the reason.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name}: encoder-decoder models ({kind}) are not supported, only decoders")
    if getattr(config, "quantization_config", None) is not None and not _dequantised(config):
        raise UnsupportedModelError(f"{name}: {_QUANTISED}")
    if getattr(config, "add_cross_attention", False):
        raise UnsupportedModelError(f"{name}: cross-attention ({kind}) is not supported")


def check_kind(kind: str, name: str) -> None:
    """Refuse a folder or file of a model that is no causal language model.

    Raises:
        UnsupportedModelError: naming the type.
    """
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in FAMILIES:
        raise UnsupportedModelError(
            f"{name}: architecture {kind!r} is no causal language model of the installed transformers "
            f"({transformers.__version__}); docs/models.md lists those that can be read"
        )


def _dequantised(config: Any) -> bool:
    """Whether transformers read the weights from a GGUF file: they are plain numbers now."""
    given = config.quantization_config
    return getattr(given, "quant_method", None) == "gguf" and not isinstance(given, dict)


def _check_adapters(module: torch.nn.Module, name: str) -> None:
    """Refuse what PEFT has put beside the weights, before and after `merge_adapter` alike."""
    peft = sys.modules.get("peft")
    if peft is None:
        return
    if isinstance(module, peft.PeftModel | peft.PeftMixedModel):
        if hasattr(module, "merge_and_unload"):
            advice = "merge the adapter first: model = model.merge_and_unload()"
        else:
            advice = "an adapter of its kind cannot be merged into the weights, and is not supported"
        raise UnsupportedModelError(f"{name} is a model of PEFT; {advice}")
    if any(isinstance(part, peft.tuners.tuners_utils.BaseTunerLayer) for part in module.modules()):
        raise UnsupportedModelError(
            f"{name} holds an adapter of PEFT that is not merged; merge it first: with the PeftModel around it, "
            "model = model.merge_and_unload(); without one, save the adapter (model.save_pretrained(FOLDER)) and do "
            "peft.PeftModel.from_pretrained(base_model, FOLDER).merge_and_unload()"
        )


def check_weights(module: torch.nn.Module, name: str) -> None:
    """Refuse weights that cannot be read in place.

    Raises:
        UnsupportedModelError: with the reason and what to do.
    """
    for path, part in module.named_modules():
        _check_part(part, f"{name}: {path or type(part).__name__}", name)
    parameters = dict(module.named_parameters())
    for key, parameter in parameters.items():
        if parameter.is_meta:
            raise UnsupportedModelError(
                f"{name}: {key} has no numbers (it is on the meta device): load the model onto one device, or let "
                "accelerate spread it (device_map)"
            )
        if parameter.is_inference():
            raise UnsupportedModelError(
                f"{name}: {key} was made inside torch.inference_mode, which rules gradients out; load the model "
                "outside of it, or inside torch.no_grad"
            )
        if not parameter.is_floating_point():
            raise UnsupportedModelError(f"{name}: weights that are not floating point are not supported: {key}")
        if not isinstance(parameter, Elsewhere) and (
            type(parameter.data) is not torch.Tensor or type(parameter) is not torch.nn.Parameter
        ):
            raise UnsupportedModelError(
                f"{name}: {key} is a {type(parameter.data).__name__}, not a plain tensor (quantised, or spread over "
                "processes): load the model in bfloat16 or float32 onto one device"
            )
    dtypes = {parameter.dtype for parameter in parameters.values()}
    if len(dtypes) > 1 or not dtypes <= set(DTYPES.values()):
        got = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UnsupportedModelError(
            f"{name}: expected all weights in one of {', '.join(DTYPES)}, got {got}; convert it first: "
            "module.to(torch.float32)"
        )
    devices = sorted({str(parameter.device) for parameter in parameters.values()})
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"{name}: expected all weights on one device, got {', '.join(devices)}: load it onto one, or let "
            "accelerate spread it (device_map)"
        )
    if not parameters:
        raise UnsupportedModelError(f"{name}: the module has no weights")


def _check_part(part: torch.nn.Module, where: str, name: str) -> None:
    """Refuse a module whose weight is not simply one of its parameters."""
    if "quantized" in type(part).__module__ or "bitsandbytes" in type(part).__module__:
        raise UnsupportedModelError(f"{name}: {_QUANTISED}")
    if torch.nn.utils.parametrize.is_parametrized(part):
        raise UnsupportedModelError(
            f"{where} computes its weight in each call; make it a plain one first: "
            "torch.nn.utils.parametrize.remove_parametrizations"
        )
    for key in ("weight", "bias"):
        value = getattr(part, key, None)
        if value is None or key in part._parameters or key in part._buffers or isinstance(value, torch.nn.Module):
            continue
        if isinstance(value, torch.Tensor) and key in vars(part):
            raise UnsupportedModelError(
                f"{where} computes its {key} in each call (pruning, or weight norm); make it a plain one first: "
                f"torch.nn.utils.prune.remove or remove_weight_norm"
            )
        if isinstance(part, torch.nn.Linear | torch.nn.Embedding):
            raise UnsupportedModelError(f"{where}: its {key} is a {type(value).__name__}, not a parameter")


def refuse_dropout(module: torch.nn.Module, name: str) -> None:
    """Refuse a module that drops out at random as it is.

    Raises:
        UnsupportedModelError: some part is in training mode and has dropout.
    """
    in_config = getattr(getattr(module, "config", None), "attention_dropout", 0.0)
    if (module.training and in_config) or any(part.training and _drops_out(part) for part in module.modules()):
        raise UnsupportedModelError(f"{name}: dropout is on, so every run would differ; call model.eval() first")


def _drops_out(part: torch.nn.Module) -> bool:
    """Whether it would in training mode: by itself, or by a part that it takes the share from (attention)."""
    own = [part, *part.children()]
    shares = [getattr(part, name, 0.0) for name in ("attention_dropout", "dropout")]  # a module is no share
    return any(isinstance(x, int | float) and x > 0 for x in shares) or any(
        isinstance(m, _DropoutNd) and m.p > 0 for m in own
    )


def _not_causal(module: torch.nn.Module) -> str:
    """What was expected; and where a part of the module would do, which."""
    what = f"expected a transformers causal language model, got {type(module).__name__}"
    for path, part in module.named_modules():
        kind = getattr(getattr(part, "config", None), "model_type", None)
        if path and kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and _head(part) is not None:
            return f"{what}; its .{path} is one, a {type(part).__name__}: load that"
    return what
