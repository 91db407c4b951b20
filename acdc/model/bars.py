"""Progress bars of transformers: none while acdc loads or saves, which takes it less time than they take to read.

They are turned off for a moment, and left as they were found: a user's own settings are not ours to change.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def no_bars() -> Iterator[None]:
    """transformers shows no bar, and neither does the hub; afterwards both do as they did before."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    shown, downloads = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    with warnings.catch_warnings():  # where a variable of the environment has the last word
        warnings.simplefilter("ignore")
        logging.disable_progress_bar()
    try:
        yield
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if shown:
                logging.enable_progress_bar()
            (enable_progress_bars if downloads else disable_progress_bars)()
