"""How fast the engine is, against what the bare Hugging Face model takes for the passes that cannot be avoided.

Seconds do not travel between machines, ratios do. So every work is timed between two runs of the bare model's
forward (F) and forward and backward (FB: frozen weights, all logits) on the same batch, in the same process, and is
reported as a multiple of them:

    python -m acdc.benchmarks.measuring.speed --shapes S M -o docs/speed
"""
