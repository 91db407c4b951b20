"""Reading and moving an interactive page in a browser, for its tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

Page = Any
"""A page of Playwright's, which need not be installed."""


def saved(page: Page, format: str) -> bytes:
    """What the page saves as this format."""
    page.click("#save summary")
    with page.expect_download() as download:
        page.click(f"#save-{format}")
    return Path(download.value.path()).read_bytes()


def record(page: Page) -> dict[str, Any]:
    return json.loads(saved(page, "json"))


def lines(page: Page) -> list[str]:
    """The names of the lines drawn."""
    edges = record(page)["edges"]
    return [f"{e['source']}->{e['destination']}" + (f"<{e['port']}>" if e["port"] else "") for e in edges]


def state(page: Page) -> dict[str, Any]:
    """What the page's address holds."""
    pairs = page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")
    return {key: json.loads(value) for key, value in pairs.items()}


def wait_for(page: Page, expression: str) -> None:
    """Until something is true; the page's own rules forbid Playwright's way of waiting."""
    for _ in range(200):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never true: {expression}")


def nodes(page: Page) -> list[str]:
    return page.eval_on_selector_all("#nodes > g", "all => all.map((one) => one.dataset.node)")


def node(name: str) -> str:
    return f'[data-node="{name}"]'


def slide(page: Page, size: int, most: int) -> None:
    """Move the slider to the place of a size."""
    step = round(1000 * np.log(size) / np.log(most))
    page.evaluate(
        "step => { const s = document.getElementById('size'); s.value = step;"
        " s.dispatchEvent(new Event('input')); s.dispatchEvent(new Event('change')); }",
        step,
    )


def between(page: Page, below: str, above: str) -> tuple[float, float]:
    """The middle of a straight line from one box to another."""
    low, high = (page.locator(f"{node(name)} .box").bounding_box() for name in (below, above))
    return high["x"] + high["width"] / 2, (high["y"] + high["height"] + low["y"]) / 2
