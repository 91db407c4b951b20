"""Options that several methods share: each is a type, and what it means in words.

A method's options are the keyword-only arguments of its functions. `Annotated[int, "what it means"]` says what one
means, and `acdc methods NAME` and the reference show it.
"""

from __future__ import annotations

from typing import Annotated

from acdc.methods.masks import Loss
from acdc.methods.ways_back import Backward

Steps = Annotated[int, "points on the way from the corrupted to the clean prompt at which gradients are taken"]
Back = Annotated[
    Backward, "how gradients flow back through norms, softmax, activations and gates: as they are, or so"
]
Price = Annotated[float, "what each part that is kept costs, in the units of the loss: larger, and fewer stay"]
Updates = Annotated[int, "updates of the mask"]
Rate = Annotated[float, "learning rate of the mask"]
Batch = Annotated[int, "prompts an update"]
OfWhat = Annotated[Loss | None, "what is kept small: the divergence from the full model, or the metric's loss"]
Sparsity = Annotated[float, "share of all parts that is to go"]
WarmUp = Annotated[int, "updates until the sparsity that is aimed at is reached"]
