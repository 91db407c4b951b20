"""Runs in the environment of `auto-circuit`: its mask gradient, single-edge patching and ACDC."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import torch

from .exchange import Clock, Job, load_bare, write_results
from .hooked import load_hooked


def our_name(edge: Any) -> str:
    """ "A0.1->A2.3.Q" as "a0.h1->a2.h3<q>"."""
    ends = []
    for name in (edge.src.name, edge.dest.name):
        name = {"Resid Start": "input", "Resid End": "logits"}.get(name, name)
        name = re.sub(r"^MLP (\d+)$", r"m\1", name)
        name = re.sub(r"^A(\d+)\.(\d+)$", r"a\1.h\2", name)
        ends.append(re.sub(r"^A(\d+)\.(\d+)\.([QKV])$", lambda m: f"a{m[1]}.h{m[2]}<{m[3].lower()}>", name))
    return "->".join(ends)


def main(folder: str) -> None:
    from auto_circuit.data import PromptDataLoader, PromptDataset
    from auto_circuit.prune_algos.ACDC import acdc_prune_scores
    from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
    from auto_circuit.utils.ablation_activations import src_ablations
    from auto_circuit.utils.graph_utils import patch_mode, patchable_model, set_all_masks
    from auto_circuit.utils.tensor_ops import batch_avg_answer_diff

    job = Job.read(folder)
    bare = load_bare(job)
    clock = Clock(job, bare)
    model: Any = patchable_model(
        load_hooked(job, bare), factorized=True, slice_output="last_seq", separate_qkv=True
    )
    answers, wrong = list(job.answers[:, None]), list(job.wrong[:, None])
    loader = PromptDataLoader(
        PromptDataset(job.clean, job.corrupted, answers, wrong),
        seq_len=job.clean.shape[1], diverge_idx=0, batch_size=len(job.clean), shuffle=False,
    )  # fmt: skip
    by_name = {our_name(edge): edge for edge in model.edges}

    def named(scores: Any) -> dict[str, float]:
        return {name: float(edge.prune_score(scores)) for name, edge in by_name.items()}

    def eap() -> dict[str, float]:
        for wrapper in model.dest_wrappers:
            wrapper.patch_mask.grad = None
        # The gradient of minus the logit difference with respect to patching an edge: how much the edge helps.
        return named(mask_gradient_prune_scores(model, loader, None, "logit", "avg_diff", mask_val=0.0))

    @torch.inference_mode()
    def exact() -> dict[str, float]:
        batch = next(iter(loader))
        corrupted = src_ablations(model, batch.corrupt)
        full = float(batch_avg_answer_diff(model(batch.clean)[model.out_slice], batch))
        helps = {}
        for name, edge in by_name.items():
            with patch_mode(model, corrupted, edges=[edge]):
                helps[name] = full - float(batch_avg_answer_diff(model(batch.clean)[model.out_slice], batch))
        set_all_masks(model, val=0.0)
        return helps

    def acdc() -> dict[str, float]:
        # Edges that go at this τ score τ, those that stay score infinity.
        scores = acdc_prune_scores(model, loader, None, tao_exps=[0], tao_bases=[job.tau])
        return {name: float(score == torch.inf) for name, score in named(scores).items()}

    results = {}
    if "eap" in job.works:
        results["eap"] = clock.result(eap)
    if "exact" in job.works:
        results["exact"] = clock.result(exact)
    if "acdc" in job.works:
        results["acdc"] = clock.result(acdc)
        # It sorts edges by layer only, and a set within a layer: given them in our order, it keeps our order.
        model.edges = [by_name[name] for name in job.edges]
        results["acdc in our order"] = clock.result(acdc)
    write_results(job.folder, "auto-circuit", "auto-circuit", results)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1])
