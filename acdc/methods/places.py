"""Where gradients are taken: at one prompt, at both, or along a path between them.

Every function here scores each edge on each prompt of one batch, `[prompt, n_ports, n_sources]`, as
`attribution.attribute` does for places on the straight line between the embeddings. How the gradient flows back is
another matter (`acdc.model.backward`), so each place goes with each way back.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acdc.engine.patching import Patching
from acdc.engine.plain_run import plain_run
from acdc.errors import AcdcError
from acdc.methods.attribution import Gradients, columns_of, gradient_of, refuse_bad_gradient
from acdc.metrics import Outcome
from acdc.model import forward, passes
from acdc.model.backward import Flow
from acdc.model.trace import Added


def on_activations(patching: Patching, outcome: Outcome, first: int, flow: Flow, *, steps: int) -> Tensor:
    """EAP-IG on activations (Mueller et al. 2025, arXiv 2504.13151): the path is walked by each source alone.

    score(s→d) = Σ (R[s] − A[s]) · mean over k = 1 … steps of ∂metric/∂x_d, where what the components that run at the
    same time as s write goes from their reference to their clean output, k / steps of the way, and everything before
    them stays clean. The sources of one sublayer walk together, so a step takes one pass for each sublayer.

    Args:
        steps: gradients on the way; first: prompts before these, for messages.
    """
    run = Gradients(patching, outcome, flow, first=first)
    clean, constant = run.clean, patching.constant
    run.clean_run()
    n_inputs = patching.graph.n_inputs
    for k in range(1, steps + 1):
        x = run.reference + k / steps * (clean - run.reference) + constant
        trace, gradients = run.at(x)
        only_inputs = torch.zeros_like(run.difference)
        only_inputs[:n_inputs] = run.difference[:n_inputs]
        run.add(trace, gradients, only_inputs)
        del trace, gradients
    B, T, D = clean.shape[1:]
    for layer, place in dict.fromkeys((stage.sublayer.layer, stage.place) for stage in patching.stages):
        whole = Added(layer, place, clean.new_zeros(()), parallel=patching.graph.parallel)
        low, high = columns_of(patching, whole)
        own = run.difference[low:high]
        for k in range(1, steps + 1):
            change = clean.new_zeros(1, B, T, D)
            change[0, :, patching.start :] = (1 - k / steps) * own.sum(0)
            added = Added(layer, place, change.requires_grad_(), parallel=patching.graph.parallel)
            trace, gradients = run.at(clean + constant, added=added)
            run.add(trace, gradients, own, added=added)
            del trace, gradients
    refuse_bad_gradient(run.scores, outcome)
    return run.scores / steps


def along_gradients(
    patching: Patching, outcome: Outcome, first: int, flow: Flow, *, steps: int, length: float
) -> Tensor:
    """EAP-GP (Zhang et al. 2025, arXiv 2502.06852, equation 8): the path follows the model instead of a straight line.

    From the clean embedding γ_0, each step goes down the squared distance between the logits and those of the
    reference run, by a fixed length on each prompt: γ_{j+1} = γ_j − length · g / ‖g‖, with
    g = ∂‖G(γ_j) − G(reference)‖² / ∂γ_j. Gradients of the metric are taken at γ_1 … γ_steps. Logits are those of the
    whole vocabulary where the metric reads.

    Args:
        steps: gradients on the way; length: of a step; first: prompts before these, for messages.
    """
    run = Gradients(patching, outcome, flow, first=first)
    constant = patching.constant
    run.clean_run()
    target = _logits(run, run.reference + constant).detach()
    x = run.clean + constant
    for _ in range(steps):
        with torch.enable_grad(), patching.model.frozen():
            leaf = x.detach().clone().requires_grad_()
            distance = (_logits(run, leaf) - target).square().sum()
            (g,) = gradient_of(distance, [leaf], outcome)
            passes.count(backward=len(patching.prompts))
        norm = g.flatten(2).norm(dim=2)[..., None, None].clamp(min=torch.finfo(g.dtype).tiny)
        x = (x - length * g / norm).detach()
        trace, gradients = run.at(x.clone())
        run.add(trace, gradients)
        del trace, gradients
    refuse_bad_gradient(run.scores, outcome)
    return run.scores / steps


def _logits(run: Gradients, x: Tensor) -> Tensor:
    """Of the plain model from the embedding `x` `[1, B, T, D]`, at the read positions: `[1, B, P, V]`."""
    patching = run.patching
    context, trace = plain_run(patching.model, patching.prompts, x=x)
    assert trace.final_input is not None
    logits = forward.readout(patching.model.decomposition, context.at_read(trace.final_input))
    return logits * patching.prompts.compared[..., None]


def conductance(patching: Patching, outcome: Outcome, first: int, flow: Flow, *, steps: int) -> Tensor:
    """Conductance: what flows through an edge on the way (Dhamdhere et al. 2018; Wu et al. 2026, arXiv 2606.16920).

    Along the straight line from the corrupted to the clean embedding, sources do not walk straight: score(s→d) =
    −Σ_k (a_s(k + 1) − a_s(k)) · ∂metric/∂x_d(k) over k = 0 … steps − 1. As the steps grow finer, the scores of what
    enters the logits add up to what separates the two prompts.

    Args:
        steps: of the line; first: prompts before these, for messages.

    Raises:
        AcdcError: the ablation is not "resample": what edges carry instead does not lie on the line then.
    """
    if patching.ablation != "resample":
        raise AcdcError(
            f"conductance follows outputs on the way to the corrupted prompts, so it needs ablation 'resample', got "
            f"{patching.ablation!r}; use eap-ig"
        )
    run = Gradients(patching, outcome, flow, first=first)
    line, constant = run.clean - run.reference, patching.constant
    run.clean_run()
    before = run.difference  # R[s] − a_s, here at the clean end
    for k in reversed(range(steps)):
        trace, gradients = run.at(run.reference + k / steps * line + constant)
        after = patching.source_differences([s.output(trace)[..., patching.start :, :] for s in patching.stages])
        inputs = slice(0, patching.graph.n_inputs)
        after[inputs] = k / steps * run.difference[inputs]
        run.add(trace, gradients, before - after)
        before = after
        del trace, gradients
    refuse_bad_gradient(run.scores, outcome)
    return run.scores
