"""Runs the EAP-IG papers' code, module `eap`, from a checkout: its EAP and EAP-IG.

That code takes strings and a GPU; here it is given tokens and the CPU. (The PyPI package `eap` is another thing.)
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .exchange import Clock, Job, load_bare, write_results
from .hooked import load_hooked


@contextlib.contextmanager
def on_cpu() -> Iterator[None]:
    """Tensors that are asked for on a GPU are made on the CPU."""
    zeros = torch.zeros

    @functools.wraps(zeros)
    def here(*size: Any, device: Any = None, **options: Any) -> Tensor:
        return zeros(*size, **options)

    with mock.patch.object(torch, "zeros", here):
        yield


def tokens_as_they_are(
    model: Any, inputs: Any, max_length: int | None = None
) -> tuple[Tensor, Tensor, Tensor, int]:
    """In place of the tokeniser: tokens, attention mask, lengths and number of positions."""
    tokens = torch.as_tensor(inputs)
    return tokens, torch.ones_like(tokens), torch.full((len(tokens),), tokens.shape[1]), tokens.shape[1]


def main(folder: str) -> None:
    for drawing in ("pygraphviz", "cmapy"):  # imported for pictures only
        with contextlib.suppress(ImportError):
            __import__(drawing)
        sys.modules.setdefault(drawing, mock.MagicMock())
    from eap import attribute
    from eap.graph import Graph

    job = Job.read(folder)
    bare = load_bare(job)
    model = load_hooked(job, bare)
    loader = [(job.clean, job.corrupted, torch.arange(len(job.clean)))]

    def metric(logits: Tensor, clean_logits: Tensor, lengths: Tensor, label: Tensor) -> Tensor:
        """The sum, since the code divides by the number of prompts."""
        last = logits[:, -1]
        return (last.gather(1, job.answers[:, None]) - last.gather(1, job.wrong[:, None])).sum()

    def helps(score: Any, **options: Any) -> dict[str, float]:
        with on_cpu(), mock.patch.object(attribute, "tokenize_plus", tokens_as_they_are):
            graph = Graph.from_model(model)
            scores = score(model, graph, loader, metric, quiet=True, **options)
        return {name: -float(scores[edge.matrix_index]) for name, edge in graph.edges.items()}

    clock, results = Clock(job, bare), {}
    if "eap" in job.works:
        results["eap"] = clock.result(lambda: helps(attribute.get_scores_eap))
    if "eap-ig" in job.works:
        results["eap-ig"] = clock.result(lambda: helps(attribute.get_scores_eap_ig, steps=job.steps))
    write_results(job.folder, "eap", "eap", results)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1])
