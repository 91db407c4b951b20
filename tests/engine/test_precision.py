"""Half precision: what can be told apart in float32 is told apart, and a search decides as it does in float32."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import acdc
from acdc.engine import precision
from acdc.engine.problem import Problem
from acdc.methods.search import Search
from acdc.metrics import OUTCOMES
from acdc.model.model import Model
from acdc.tasks.prompts import Prompts


def offset_module() -> torch.nn.Module:
    """A GPT-2 whose logits share a large offset, as those of the trained ones do."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=4, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    module: Any = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(60 * parameter.shape[-1] ** -0.5)
        module.lm_head.weight.add_(1.0)
        module.transformer.ln_f.bias.add_(-2.0)
    return module


def pair(dtype: torch.dtype) -> tuple[Model, Model]:
    """The model in half precision, and the same weights in float32."""
    module = offset_module().to(dtype)
    return acdc.load(module), acdc.load(copy.deepcopy(module).float())


def prompts() -> Prompts:
    ids = torch.randint(1, 50, (4, 16), generator=torch.Generator().manual_seed(1))
    other = ids.clone()
    other[:, 5] = (other[:, 5] + 9) % 50
    return Prompts.from_tokens(ids, other, answers=[1, 2, 3, 4], wrong=[11, 12, 13, 14])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_offset_that_logits_share_hides_nothing(dtype: torch.dtype) -> None:
    half, single = pair(dtype)
    valid = half.graph().valid
    ours, theirs = (acdc.score(model, prompts(), "exact").values[valid] for model in (half, single))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.95
    assert np.abs(ours - theirs).max() < 0.3 * np.abs(theirs).max()


def test_the_readout_is_that_of_the_same_weights_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """In slices of the vocabulary too."""
    half, single = pair(torch.bfloat16)
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = acdc.model.forward.readout(single.decomposition, x.float())
    monkeypatch.setattr("acdc.model.forward.SLICE", 7)
    found = acdc.model.forward.readout(half.decomposition, x)
    torch.testing.assert_close(found, expected)
    rows = torch.tensor([3, 9, 40])
    torch.testing.assert_close(acdc.model.forward.readout(half.decomposition, x, rows), expected[..., rows])


@pytest.mark.parametrize("method", ["acdc", "guided"])
def test_a_search_decides_as_in_float32(method: str) -> None:
    half, single = pair(torch.bfloat16)
    with pytest.warns(UserWarning, match=r"in bfloat16.*decides in float32"):
        found = acdc.discover(half, prompts(), method, threshold=0.01)
    assert np.array_equal(found.edges, acdc.discover(single, prompts(), method, threshold=0.01).edges)
    assert half.dtype == torch.bfloat16  # the user's module is as it was


def test_where_no_copy_fits_the_rounding_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning's number: how far a run of all edges, edge by edge, is from the full model; 0 but for rounding."""
    half, _ = pair(torch.bfloat16)
    monkeypatch.setattr(precision, "fits", lambda *_: False)
    with pytest.warns(UserWarning, match=r"rounding alone moves .* by (up to )?[0-9.e-]+"):
        acdc.discover(half, prompts(), "acdc", threshold=0.01)


def test_full_precision_is_left_alone() -> None:
    single = acdc.load(offset_module())
    problem = Problem(single, single.graph(), prompts(), OUTCOMES["logit-difference"])
    assert problem.patching().model is single
    assert Search  # the searches run on what `patching` gives
