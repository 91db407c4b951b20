"""How quick the page is: until it is open, and frames a second while its slider is dragged and while it is moved.

    python -m acdc.benchmarks.measuring.page                  # GPT-2 small's 32,491 scored edges, in headless Chromium
    python -m acdc.benchmarks.measuring.page --layers 30 --heads 9 --kv-heads 3
    python -m acdc.benchmarks.measuring.page --run runs/ioi

Open is when the picture has been drawn and the browser asks for the next frame. In each frame the slider stands at
another size, or the picture is moved, and all of it is drawn again; a point of it is read back, so that no drawing is
put off. A frame is counted when the browser asks for the next one.
Headless Chromium draws on the processor, which is the slowest case: a reader's browser has a graphics card.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from acdc.benchmarks.cost import device_name
from acdc.circuit import Circuit, Provenance, Scores
from acdc.errors import AcdcError
from acdc.graph import Graph
from acdc.viz.page import write_page

_OPENED = """
new MutationObserver((_, observer) => {
  if (document.documentElement?.dataset.ready !== "true") return;
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame(() => (globalThis.opened = performance.now())));
}).observe(document, { attributes: true, subtree: true, childList: true });
"""

_FRAMES = """async ([seconds, what]) => {
  const stage = document.getElementById("stage"), slider = document.getElementById("size");
  const { left, top, width, height } = stage.getBoundingClientRect();
  const x = left + width / 2, y = top + height / 2;
  const steps = {
    move: (i) => stage.dispatchEvent(new WheelEvent("wheel", {
      deltaY: 25 * Math.sin(i / 15), clientX: x + 40 * Math.sin(i / 9), clientY: y, bubbles: true, cancelable: true })),
    slide: (i) => {
      slider.value = Math.round(680 + 300 * Math.sin(i / 25));
      slider.dispatchEvent(new Event("input", { bubbles: true }));
    },
  };
  const pen = document.getElementById("lines").getContext("2d");
  const times = [];
  const start = performance.now();
  await new Promise((done) => {
    const frame = (now) => {
      times.push(now);
      pen.getImageData(0, 0, 1, 1);
      steps[what](times.length);
      if (now - start < 1000 * seconds) requestAnimationFrame(frame); else done();
    };
    requestAnimationFrame(frame);
  });
  return times;
}"""


def circuit_of(graph: Graph, lines: int) -> Circuit:
    """A circuit of so many edges, all drawn as lines of their own, in a graph with random scores."""
    random = np.random.default_rng(0)
    values = random.lognormal(size=graph.valid.shape) * random.choice([-1, 1], size=graph.valid.shape)
    made = Provenance(model="random scores", task="frames a second", method="random")
    scores = Scores(graph, values, "random", made)
    return Circuit(graph, scores.top(lines, prune=False).edges, scores, made)


def measure(page: Path, *, seconds: float, width: int, height: int) -> dict[str, Any]:
    """Seconds until the page is open (the median of five times), and frames a second.

    Frames a second are the mean, the median, and that of the slowest twentieth of frames, for each of `slide`, the
    slider dragged between a hundredth of the edges and nearly all of them, and `move`, panned and zoomed at the size
    that the page opens with. Milliseconds of work are those of the page's own thread a frame, by the processor's clock.
    """
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise AcdcError("no chromium to measure in: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": height})
        shown.add_init_script(_OPENED)
        opened = []
        for _ in range(5):
            shown.goto(page.absolute().as_uri())
            shown.wait_for_selector("html[data-ready]", state="attached")
            while (milliseconds := shown.evaluate("globalThis.opened ?? null")) is None:
                shown.wait_for_timeout(20)
            opened.append(milliseconds / 1000)
        meter = shown.context.new_cdp_session(shown)
        meter.send("Performance.enable", {"timeDomain": "threadTicks"})

        def work() -> float:
            metrics = meter.send("Performance.getMetrics")["metrics"]
            return 1000 * float(next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration"))

        found = {}
        for what in ("move", "slide"):
            shown.evaluate(_FRAMES, [0.5, what])  # to warm up
            before = work()
            times = shown.evaluate(_FRAMES, [seconds, what])
            found[what] = _rates(times) | {"milliseconds_of_work": (work() - before) / len(times)}
        version = browser.version
        browser.close()
    return {
        "megabytes": page.stat().st_size / 1e6,
        "seconds_to_open": statistics.median(opened),
        "frames_per_second": found,
        "window": [width, height],
        "chromium": version,
        "processor": device_name(),
    }


def _rates(times: Sequence[float]) -> dict[str, float]:
    gaps = np.diff(times)
    return {
        "mean": 1000 / float(gaps.mean()),
        "median": 1000 / statistics.median(gaps),
        "slowest_twentieth": 1000 / float(np.quantile(gaps, 0.95)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a run to show; otherwise random scores of a graph")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--kv-heads", type=int, help="groups that share keys and values; otherwise each its own")
    parser.add_argument("--lines", type=int, default=2000, help="lines drawn while it is moved")
    parser.add_argument("--seconds", type=float, default=5.0, help="how long to move and drag")
    parser.add_argument("--window", type=int, nargs=2, default=(1440, 900), metavar=("WIDTH", "HEIGHT"))
    options = parser.parse_args()
    if options.run is None:
        graph = Graph(options.layers, options.heads, n_kv_heads=options.kv_heads)
        circuit = circuit_of(graph, options.lines)
    else:
        circuit = Circuit.load(options.run)
    with tempfile.TemporaryDirectory() as folder:
        page = write_page(circuit, Path(folder) / "page.html")
        assert page.path is not None
        width, height = options.window
        found = measure(page.path, seconds=options.seconds, width=width, height=height)
    print(json.dumps({"edges": circuit.graph.n_edges, "kept": circuit.n_edges} | found, indent=1))


if __name__ == "__main__":
    main()
