"""Stand-in models with tiny tokenizers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer

from tiny_tokenizers import STYLES, StandIn, stand_in, wrap


@pytest.fixture(scope="session")
def trained() -> Callable[[str], Tokenizer]:
    """A new copy of the tokenizer of a style, trained once."""
    done: dict[str, str] = {}

    def get(style: str) -> Tokenizer:
        if style not in done:
            done[style] = STYLES[style]().to_str()
        return Tokenizer.from_str(done[style])

    return get


_ALL = [(style, bos) for style in STYLES for bos in (False, True)]


@pytest.fixture(scope="session", params=_ALL, ids=[f"{style}{'-bos' * bos}" for style, bos in _ALL])
def model(request: pytest.FixtureRequest, trained: Callable[[str], Tokenizer]) -> StandIn:
    """A model with a tokenizer of each style, with and without BOS."""
    style, bos = request.param
    return stand_in(wrap(trained(style), bos=bos))


@pytest.fixture(scope="session")
def gpt2_like(trained: Callable[[str], Tokenizer]) -> StandIn:
    return stand_in(wrap(trained("byte-bpe"), bos=False), name="gpt2-like")
