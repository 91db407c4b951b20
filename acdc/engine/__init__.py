"""Running a circuit of a model on prompts: references, patched passes, batches, memory."""
