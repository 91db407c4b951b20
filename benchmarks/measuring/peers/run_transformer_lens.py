"""Runs in the environment of transformer-lens 4: its edge attribution, in the denoising direction."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from typing import Any

from torch import Tensor

from .exchange import Clock, Job, load_bare, write_results


def our_name(source: Any, destination: Any) -> str:
    """An edge between its nodes, without the position."""
    writers = {"embed": "input", "attn_head_out": f"a{source.layer}.h{source.head}", "mlp_out": f"m{source.layer}"}
    readers = {"mlp_in": f"m{destination.layer}", "logits": "logits"}
    head = f"a{destination.layer}.h{destination.head}<{destination.kind[0]}>"
    return f"{writers[source.kind]}->{readers.get(destination.kind, head)}"


def main(folder: str) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch

    job = Job.read(folder)
    bare = load_bare(job)
    model: Any = TransformerBridge.boot_transformers(str(job.model), device="cpu")
    model.eval()

    def eap() -> dict[str, float]:
        totals: dict[str, float] = defaultdict(float)
        for i in range(len(job.clean)):  # a metric sees one pair's logits and is not told which pair's

            def metric(logits: Tensor, i: int = i) -> Tensor:
                last = logits[0, -1]
                return last[job.answers[i]] - last[job.wrong[i]]

            pair = job.clean[i : i + 1], job.corrupted[i : i + 1]
            found = attribution_patch(model, *pair, metric, config=EdgeAttributionConfig(granularity="edge"))
            for (source, destination), score in found.edge_scores.items():  # an edge a position
                totals[our_name(source, destination)] += score / len(job.clean)
        return dict(totals)

    results = {"eap, denoising": Clock(job, bare).result(eap)} if "eap" in job.works else {}
    write_results(job.folder, "transformer-lens", "transformer-lens", results)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(sys.argv[1])
