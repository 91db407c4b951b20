// How large a circuit to show: a slider on a log scale, under a chart of what was measured at some sizes.

import { byId, el, fill, svgEl } from "./dom.js";
import { count, counted, number } from "./format.js";

const d3 = globalThis.d3;
const STEPS = 1000;
const HEIGHT = 86;
const THUMB = 8; // half of the slider's thumb: where its scale begins
const LEFT = 26; // room for the chart's own scale, which the style sheet leaves beside the slider too
const RIGHT = 42;

export class Sizebar {
  constructor(data, store) {
    this.data = data;
    this.store = store;
    this.slider = byId("size");
    this.entry = byId("size-number");
    this.chart = byId("chart");
    this.slider.addEventListener("input", () => this.choose(this.sizeAt(Number(this.slider.value)), { passing: true }));
    this.slider.addEventListener("change", () => store.write());
    this.entry.addEventListener("change", () => {
      this.choose(Math.round(Number(this.entry.value)));
      this.entry.value = String(this.store.state.n ?? this.view.unitsA);
    });
    byId("as-found").addEventListener("click", () => store.set({ n: null }));
    new ResizeObserver(() => this.draw()).observe(this.chart);
  }

  get most() {
    return this.data.circuits[this.store.state.a].order?.length ?? 0;
  }

  sizeAt(step) {
    return Math.max(1, Math.round(Math.exp((step / STEPS) * Math.log(this.most))));
  }

  stepAt(size) {
    return this.most > 1 ? Math.round((STEPS * Math.log(Math.max(1, size))) / Math.log(this.most)) : 0;
  }

  choose(n, how = {}) {
    if (Number.isFinite(n)) this.store.set({ n: Math.max(0, Math.min(this.most, n)) }, how);
  }

  show(view) {
    this.view = view;
    const { n } = this.store.state;
    const ranked = view.a.order !== null;
    const shown = n === null || !ranked ? view.unitsA : n;
    this.slider.disabled = this.entry.disabled = !ranked;
    this.entry.max = this.most;
    if (document.activeElement !== this.entry) this.entry.value = String(shown); // else it may be half typed
    const place = n === null ? view.a.asked : shown;
    if (document.activeElement !== this.slider || this.sizeAt(Number(this.slider.value)) !== place)
      this.slider.value = String(this.stepAt(place));
    this.slider.setAttribute("aria-valuetext", counted(shown, view.a.unit));
    byId("as-found").setAttribute("aria-pressed", String(n === null));
    const total = view.a.unit === "node" ? this.data.sources.length : this.data.total;
    fill(byId("size-total"), `of ${counted(total, view.a.unit)}`);
    this.entry.setAttribute("aria-label", `Number of ${view.a.unit}s`);
    fill(byId("size-says"), this.says(view, n, ranked));
    if (this.drawn?.a === view.a && this.drawn.b === view.b) this.moveCursor();
    else this.draw();
  }

  /** What is known of the circuit at its size. */
  says(view, n, ranked) {
    const parts = [];
    if (!ranked) {
      const ofNodes = view.a.unit !== "edge";
      const why = ofNodes ? `A circuit of ${view.a.unit}s, as it was found.` : "There is no ranking to make it larger or smaller by.";
      parts.push(el("div", {}, why));
    }
    if (n !== null && ranked && view.unitsA !== n) {
      parts.push(el("div", {}, `${count(view.unitsA)} left; the others are on no path`));
    }
    if (view.b !== null)
      return [
        ["A", view.a, n],
        ["B", view.b, view.nB],
      ].map(([name, circuit, size]) => this.saysOf(name, this.measured(circuit, size)));
    const values = this.measured(view.a, n);
    if (values === null) parts.push(el("div", { class: "quiet" }, "faithfulness not measured"));
    else {
      parts.push(
        el(
          "div",
          { class: "measures", "data-exact": String(values.exact) },
          el("span", { class: "key-f" }, "faithfulness ", el("b", {}, number(values.faithfulness))),
          values.kl === null || values.kl === undefined
            ? null
            : el("span", { class: "key-kl" }, "KL ", el("b", {}, number(values.kl)), " nats"),
        ),
        el("div", { class: "quiet" }, values.exact ? values.how : `as measured at ${counted(values.size, "edge")}`),
      );
    }
    return parts;
  }

  /** The same of one of two circuits, in a line. */
  saysOf(name, values) {
    if (values === null) return el("div", { class: "quiet" }, `${name}: not measured`);
    const kl = values.kl ?? null;
    return el(
      "div",
      { class: "measures", title: values.exact ? values.how : `as measured at ${counted(values.size, "edge")}` },
      el("span", {}, `${name}: `),
      el("span", { class: "key-f" }, "faithfulness ", el("b", {}, number(values.faithfulness))),
      kl === null ? null : el("span", { class: "key-kl" }, "KL ", el("b", {}, number(kl))),
    );
  }

  /** What was measured at a size, or at the nearest one. */
  measured(circuit, n) {
    if (n === null || circuit.order === null) {
      const { faithfulness, kl, n_prompts: prompts, prompts: kind } = circuit.measured;
      if (faithfulness === undefined) return null;
      const how = prompts ? `as found, on ${counted(prompts, `${kind ?? ""} prompt`.trim())}` : "as found";
      return { faithfulness, kl, exact: true, how };
    }
    const curve = circuit.curve;
    if (curve === null) return null;
    const off = (size) => Math.abs(Math.log((size + 0.5) / (n + 0.5)));
    const i = d3.leastIndex(curve.sizes, (x, y) => off(x) - off(y));
    return {
      size: curve.sizes[i],
      faithfulness: curve.faithfulness[i],
      kl: curve.kl?.[i],
      exact: curve.sizes[i] === n,
      how: "measured at this size",
    };
  }

  draw() {
    const width = this.chart.clientWidth;
    if (!width || this.view === undefined) return;
    const { a, b } = this.view;
    const x = d3.scaleLog([1, Math.max(2, this.most)], [LEFT + THUMB, width - RIGHT - THUMB]);
    const curves = [a, b].filter((circuit) => circuit !== null && circuit.curve !== null && circuit.unit === a.unit);
    const values = curves.flatMap((circuit) => circuit.curve.faithfulness).filter((value) => value !== null);
    const found = a.measured.faithfulness;
    const high = Math.min(1.5, Math.max(1, ...values, found ?? 0));
    const low = Math.max(-0.5, Math.min(0, ...values, found ?? 0));
    const y = d3.scaleLinear([low, high], [HEIGHT - 18, 7]).clamp(true);
    const kls = curves.flatMap((circuit) => circuit.curve.kl ?? []).filter((value) => value !== null);
    const z = d3.scaleLinear([0, Math.max(1e-9, ...kls)], [HEIGHT - 18, 7]).clamp(true);
    this.drawn = { a, b, x };
    this.cursor = svgEl("line", { class: "cursor", y1: 4, y2: HEIGHT - 18 });
    const tens = x.ticks(3).filter((t) => Number.isInteger(Math.log10(t)));
    fill(
      this.chart,
      svgEl(
        "svg",
        { width, height: HEIGHT, role: "img", "aria-label": "Faithfulness and KL divergence by circuit size" },
        kls.length
          ? [0, Math.max(...kls)].map((value) =>
              svgEl("text", { class: "tick kl-tick", x: width - RIGHT + 3, y: z(value) + 3.5 }, number(value, 2)),
            )
          : null,
        [...(low === -0.5 ? [low] : []), 0, 1, ...(high === 1.5 ? [high] : [])].map((value) => [
          svgEl("line", { class: "grid", x1: LEFT + THUMB, x2: width - RIGHT - THUMB, y1: y(value), y2: y(value) }),
          curves.length > 0 &&
            svgEl(
              "text",
              { class: "tick f-tick", x: LEFT, y: y(value) + 3.5, "text-anchor": "end" },
              value === 1.5 ? "≥1.5" : value === -0.5 ? "≤−.5" : String(value),
            ),
        ]),
        this.most > 1 &&
          tens.map((t) =>
            svgEl(
              "text",
              {
                class: "tick",
                x: x(t),
                y: HEIGHT - 4,
                "text-anchor": x(t) > width - RIGHT - 24 ? "end" : "middle",
              },
              count(t),
            ),
          ),
        this.most > 1 && this.cursor,
        curves.map((circuit) => this.series(circuit, circuit === b, x, y, z)),
        found !== undefined && this.most > 1 && a.asked >= 1
          ? svgEl(
              "path",
              {
                class: "found",
                transform: `translate(${x(a.asked)},${y(found)})`,
                d: "M0-5.5L5.5 0L0 5.5L-5.5 0Z",
              },
              svgEl("title", {}, `as found: ${counted(a.kept.length, "edge")}, faithfulness ${number(found)}`),
            )
          : null,
        curves.length
          ? null
          : svgEl(
              "text",
              { class: "tick above", x: width / 2, y: HEIGHT / 2 - 2, "text-anchor": "middle" },
              "faithfulness was not measured at other sizes",
            ),
      ),
    );
    this.moveCursor();
  }

  /** To the size that is shown. */
  moveCursor() {
    const n = this.store.state.n ?? this.view.a.asked;
    const at = this.drawn.x(Math.max(1, n));
    this.cursor.setAttribute("x1", at);
    this.cursor.setAttribute("x2", at);
    this.cursor.setAttribute("visibility", n >= 1 ? "visible" : "hidden");
  }

  series(circuit, other, x, y, z) {
    const { sizes, faithfulness, kl } = circuit.curve;
    const points = (values, scale) =>
      sizes.map((size, i) => [size, values[i], scale]).filter(([size, value]) => size >= 1 && value !== null);
    const path = (values, scale, name) =>
      svgEl("path", {
        class: `${name}${other ? " other" : ""}`,
        d: d3.line(
          (p) => x(p[0]),
          (p) => scale(p[1]),
        )(points(values, scale)),
      });
    const last = points(faithfulness, y).at(-1);
    const named = this.view.b !== null && last !== undefined;
    return [
      named &&
        svgEl(
          "text",
          { class: "tick", x: x(last[0]) + 4, y: y(last[1]) + (other ? 10 : -3) },
          other ? "B" : "A",
        ),
      kl && path(kl, z, "kl-line"),
      path(faithfulness, y, "f-line"),
      !other &&
        points(faithfulness, y).map(([size, value]) =>
          svgEl(
            "circle",
            { class: "dot", cx: x(size), cy: y(value), r: 4, "data-size": size, onclick: () => this.choose(size) },
            svgEl(
              "title",
              {},
              `${counted(size, "edge")}: faithfulness ${number(value)}${kl ? `, KL ${number(kl[sizes.indexOf(size)])}` : ""}`,
            ),
          ),
        ),
    ];
  }
}
