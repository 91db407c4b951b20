"""Heat maps and the page of a tracing show its numbers under the prompt's tokens, and obey no token."""

from __future__ import annotations

import re

import numpy as np
import pytest

from acdc.errors import AcdcError
from acdc.tracing import SiteMap, Tracing
from acdc.viz import tracing as pictures
from acdc.viz.plots import new_axes

TOKENS = ("0 The", "1 <b>", "2 $x$", "3 \n")
EFFECTS = np.array([[0.0, -1.0, 2.0, 1.0], [4.0, 0.5, np.nan, -2.0]])
LAYERS = SiteMap("mlp", ("layer", "position"), (("0", "1"), TOKENS), EFFECTS[..., None], np.array([-4.0]), "kl")
HEADS = SiteMap(
    "head", ("layer", "head", "position"), (("0",), ("h0", "h1"), TOKENS), EFFECTS[None, ..., None], None, "kl"
)


def tracing(*maps: SiteMap) -> Tracing:
    one = np.ones(1)
    return Tracing("<model>", "task", "kl", "resample", "noise", "exact", "position", maps, one, one)


def test_a_heat_map_shows_shares_under_the_tokens() -> None:
    ax = new_axes()
    assert LAYERS.plot(ax) is ax
    (image,) = ax.collections
    shown = np.ma.filled(image.get_array().reshape(2, 4).astype(float), np.nan)
    np.testing.assert_allclose(shown, EFFECTS / -4)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0 The", "1 <b>", "2 $x$", "3 \\n"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("position", "layer")


def test_heads_are_rows_of_their_own_and_effects_stand_for_missing_shares() -> None:
    ax = tracing(HEADS).plot()
    (image,) = ax.collections
    np.testing.assert_allclose(np.ma.filled(image.get_array().reshape(2, 4).astype(float), np.nan), EFFECTS)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["0.h0", "0.h1"]
    with pytest.raises(AcdcError, match="maps of mlp, head"):
        tracing(LAYERS, HEADS).plot()


@pytest.mark.parametrize("format", ["svg", "pdf"])
def test_the_same_tracing_gives_the_same_bytes(format: str) -> None:
    first, second = (pictures.render(tracing(LAYERS, HEADS), format) for _ in range(2))
    assert first == second
    with pytest.raises(AcdcError, match="unknown format"):
        pictures.render(tracing(LAYERS), "bmp")


def test_the_page_needs_nothing_and_escapes_what_it_shows() -> None:
    page = pictures.page(tracing(LAYERS, HEADS), tracing(LAYERS, HEADS))
    assert "<script" not in page
    assert "http://" not in page
    assert "<b>" not in page
    assert "&lt;model&gt;" in page
    titles = re.findall(r"title='layer (\d), position (\d) [^']*: share (-?[\d.]+)'", page)
    found = {(int(layer), int(position)): float(value) for layer, position, value in titles}
    expected = {index: value for index, value in np.ndenumerate(EFFECTS / -4) if not np.isnan(value)}
    assert found == pytest.approx(expected)
    assert "correlation with exact 1.000" in page
