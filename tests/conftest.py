"""Settings for all tests: no network, no display, one thread, the same examples every time."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("acdc", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("acdc")
