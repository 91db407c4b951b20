"""Information flow routes (Ferrando & Voita 2024): how near a destination's input is to each of its parts.

No metric, no gradient and no corrupted prompt: a part a of a sum x counts by its proximity max(0, ‖x‖₁ − ‖a − x‖₁), as
a share of all parts' proximities, averaged over the prompt's real tokens. All heads of a layer read one stream, and so
have the same shares; what tells them apart is what they write.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from acdc.engine.circuits import measure_prompts
from acdc.engine.patching import Patching
from acdc.engine.problem import Problem
from acdc.errors import AcdcError
from acdc.methods.aggregates import Estimates, estimates, sums
from acdc.methods.method import Method


@torch.no_grad()
def flow_shares(patching: Patching) -> Tensor:
    """Each source's share of what each destination reads, `[prompt, n_ports, n_sources]`.

    Constants of the stream that belong to no source (output biases) count as no part, and in no sum.
    """
    graph, mask = patching.graph, patching.prompts.mask
    parts = [x[0] for x in patching.clean_inputs]
    found = parts[0].new_zeros(len(mask), graph.n_ports, graph.n_sources)
    real = mask.to(parts[0].dtype)

    def shares() -> Tensor:
        every = torch.stack(parts)  # [S, B, T, D]
        x = every.sum(0)
        near = (x.abs().sum(-1) - (every - x).abs().sum(-1)).clamp(min=0)  # [S, B, T]
        share = near / near.sum(0).clamp(min=torch.finfo(near.dtype).tiny)
        return (share * real).sum(-1).T / real.sum(-1, keepdim=True)  # [B, S]

    for stage in patching.stages:
        if stage.earlier != len(parts):
            raise AcdcError(f"{stage.sublayer} does not read all that was written before it")
        found[:, stage.sublayer.every_port.start : stage.sublayer.every_port.stop, : len(parts)] = shares()[:, None]
        later = [s for s in patching.stages if s.sublayer.stage == stage.sublayer.stage]
        if stage is later[-1]:  # what runs together reads none of each other
            for own in later:
                parts += list(own.write(own.output(patching.clean))[:, 0])
    found[:, -1] = shares()
    return found


def _information_flow(problem: Problem) -> Estimates:
    measure_prompts(problem, [])  # as with every method, a metric that is no number on some prompt is refused
    graph = problem.graph
    total = np.zeros((3, *problem.units.shape))
    ports = torch.as_tensor(np.bincount(graph.port_destination))  # of a destination, which read one stream
    batches = problem.batches("gradients")
    for i, (_, patching) in enumerate(batches.after(0)):
        problem.progress(i, len(batches), "proximities")
        shares = flow_shares(patching)
        merged = shares.new_zeros(len(shares), *graph.valid.shape)
        merged.index_add_(1, torch.as_tensor(graph.port_destination, device=shares.device), shares)
        merged /= ports.to(shares.device)[:, None]
        total += sums(problem.units.collect(merged).movedim(0, -1))
    problem.progress(len(batches), len(batches), "proximities")
    return estimates(batches.ranks.summed(total), len(problem.prompts))


INFORMATION_FLOW = Method(
    name="information-flow",
    description="information flow routes: each part's share of what a destination reads, by proximity",
    cost="3 forward",
    paper="Ferrando & Voita 2024, arXiv 2403.00824",
    score=_information_flow,
    shares_prompts=True,
)
