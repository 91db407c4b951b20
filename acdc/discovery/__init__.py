"""The verbs: `score` ranks edges, `discover` gives a circuit, and `cut` another size of one."""

from acdc.discovery.verbs import cut, discover, score

__all__ = ["cut", "discover", "score"]
