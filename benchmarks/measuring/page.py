"""How smoothly the page moves: frames a second while a circuit of some thousand lines is panned and zoomed.

    python -m acdc.benchmarks.measuring.page                  # 2,000 lines of GPT-2 small's graph, in headless Chromium

Each frame moves the picture and draws all of it again, and a point of it is read back, so that no drawing is put off;
a frame is counted when the browser asks for the next one.
Headless Chromium draws on the processor, which is the slowest case: a reader's browser has a graphics card.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.viz.page import write_page

_MOVE = """async (seconds) => {
  const stage = document.getElementById("stage");
  const { left, top, width, height } = stage.getBoundingClientRect();
  const x = left + width / 2, y = top + height / 2;
  const turn = (dx, dy) => stage.dispatchEvent(new WheelEvent("wheel", {
    deltaY: dy, clientX: x + dx, clientY: y, bubbles: true, cancelable: true }));
  const pen = document.getElementById("lines").getContext("2d");
  const times = [];
  const start = performance.now();
  await new Promise((done) => {
    const frame = (now) => {
      times.push(now);
      const i = times.length;
      turn(40 * Math.sin(i / 9), 25 * Math.sin(i / 15));
      pen.getImageData(0, 0, 1, 1);
      if (now - start < 1000 * seconds) requestAnimationFrame(frame); else done();
    };
    requestAnimationFrame(frame);
  });
  return times;
}"""


def circuit_of(lines: int) -> Circuit:
    """A circuit of so many edges, all drawn as lines of their own, in GPT-2 small's graph with random scores."""
    graph = Graph(12, 12)
    random = np.random.default_rng(0)
    values = random.lognormal(size=graph.valid.shape) * random.choice([-1, 1], size=graph.valid.shape)
    made = Provenance(model="random scores", task="frames a second", method="random")
    scores = Scores(graph, values, "random", made)
    return Circuit(graph, scores.top(lines, prune=False).edges, scores, made)


def measure(page: Path, *, seconds: float, width: int, height: int) -> dict[str, Any]:
    """Frames a second while the page is moved: the mean, and that of the slowest twentieth of frames."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise AcdcError("no chromium to measure in: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.goto(page.absolute().as_uri())
        shown.wait_for_selector("html[data-ready]", state="attached")
        shown.evaluate(_MOVE, 0.5)  # to warm up
        times = shown.evaluate(_MOVE, seconds)
        version = browser.version
        browser.close()
    gaps = np.diff(times)
    return {
        "frames_per_second": 1000 / float(gaps.mean()),
        "median": 1000 / statistics.median(gaps),
        "slowest_twentieth": 1000 / float(np.quantile(gaps, 0.95)),
        "frames": len(times),
        "window": [width, height],
        "chromium": version,
        "processor": platform.processor() or platform.machine(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=2000, help="lines drawn")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to move")
    parser.add_argument("--window", type=int, nargs=2, default=(1440, 900), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(circuit_of(options.lines), Path(folder) / "page.html")
        assert page.path is not None
        width, height = options.window
        found = measure(page.path, seconds=options.seconds, width=width, height=height)
    print(json.dumps({"lines": options.lines} | found, indent=1))


if __name__ == "__main__":
    main()
