"""Contextual decomposition against its rules, written out on the plain GPT-2 module, one node after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import families
import oracle
import problems
from acdc.engine.problem import Problem
from acdc.errors import UnsupportedModelError
from acdc.methods import METHODS
from acdc.metrics import OUTCOMES


def through(norm: Any, whole: Tensor, part: Tensor) -> Tensor:
    deviation = (whole.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
    return (part - part.mean(-1, keepdim=True)) / deviation * norm.weight


@torch.no_grad()
def test_each_node_is_carried_to_the_logits_by_the_rules() -> None:
    patching, measure = problems.make("gpt2")
    graph, prompts = patching.graph, patching.prompts
    module: Any = families.module("gpt2", dtype=torch.float64)
    module.set_attn_implementation("eager")
    out = module(
        input_ids=prompts.clean, output_attentions=True, output_hidden_states=True, use_cache=False,
        attention_mask=prompts.mask.long(),
    )  # fmt: skip
    clean = oracle.source_outputs(patching.model.module, graph, prompts.clean, prompts.mask)
    corrupted = oracle.source_outputs(patching.model.module, graph, prompts.corrupted, prompts.mask)
    D, H = 24, 3
    expected = []
    for source in graph.sources:
        own, part = clean[source] - corrupted[source], torch.zeros_like(clean[source])
        part = own if source == "input" else part
        x = clean["input"]
        for index, block in enumerate(module.transformer.h):
            w_v = block.attn.c_attn.weight[:, 2 * D :]
            v = (through(block.ln_1, x, part) @ w_v).unflatten(-1, (H, -1)).transpose(1, 2)
            z = (out.attentions[index].double() @ v).transpose(1, 2).flatten(-2)
            part = part + z @ block.attn.c_proj.weight
            part = part + own if source.startswith(f"a{index}.") else part
            x = x + sum(clean[f"a{index}.h{h}"] for h in range(H)) + block.attn.c_proj.bias
            given = block.ln_2(x)
            part = part + block.mlp(given) - block.mlp(given - through(block.ln_2, x, part))
            part = part + own if source == f"m{index}" else part
            x = x + clean[f"m{index}"]
        rest = module.transformer.ln_f(x) - through(module.transformer.ln_f, x, part)
        logits = module.lm_head(rest)[torch.arange(len(x))[:, None], prompts.positions][None][..., measure.rows]
        whole = module.lm_head(module.transformer.ln_f(x))
        whole = whole[torch.arange(len(x))[:, None], prompts.positions][None][..., measure.rows]
        expected.append(float((measure.value(whole) - measure.value(logits)).mean()))
    score = METHODS["cd-t"].score
    assert score is not None
    problem = Problem(patching.model, graph, prompts, OUTCOMES["logit-difference"], unit="node", batch_size=2)
    np.testing.assert_allclose(score(problem).values, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_gated_mlps_have_no_rule(family: str) -> None:
    model = problems.tiny(family)
    score = METHODS["cd-t"].score
    assert score is not None
    with pytest.raises(UnsupportedModelError, match="gated MLPs"):
        score(Problem(model, model.graph(), problems.make_prompts(), OUTCOMES["logit-difference"]))
