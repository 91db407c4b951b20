// Where a head attends: its pattern as a picture, and on a prompt's own tokens.

import { unpack } from "./data.js";
import { el, svgEl } from "./dom.js";
import { counted, token } from "./format.js";
import { section } from "./overview.js";

const d3 = globalThis.d3;
const SIDE = 300;

export function headView(data, head, store) {
  const patterns = data.patterns;
  if (patterns === null) return null;
  if (!(head in patterns.mean))
    return section(
      "Attention",
      el("p", { class: "quiet" }, "This head's pattern was left out to keep the page small."),
    );
  const examples = patterns.tokens.length;
  const example = Math.min(store.state.example, examples - 1);
  const options = [
    el("option", { value: -1 }, `mean of ${counted(patterns.prompts, "prompt")}`),
    patterns.tokens.map((_, i) => el("option", { value: i }, `prompt ${i + 1}`)),
  ];
  const chooser = el(
    "select",
    {
      id: "example",
      "aria-label": "Which prompt",
      value: -1,
      onchange: (event) => store.set({ example: Number(event.target.value) }),
    },
    options,
  );
  chooser.value = String(example);
  const weights = unpack.u8(example < 0 ? patterns.mean[head] : patterns.examples[head][example]);
  const size = Math.round(Math.sqrt(weights.length));
  const most = Math.max(1, ...rowMost(weights, size));
  const names = example < 0 ? Array.from({ length: size }, (_, i) => String(i)) : patterns.tokens[example];
  return section(
    "Attention",
    el("div", { class: "row" }, chooser),
    pattern(weights, size, names, most),
    example < 0
      ? el("p", { class: "quiet" }, "Rows are queries, the first on top; columns are keys, by position in the prompt.")
      : strip(weights, size, names, most),
  );
}

/** Where the head at a line's end (or else its start) attends from the prompt's last token, as a fact for the tooltip. */
export function attendsTo(data, line, example) {
  const { patterns } = data;
  const head = [line.destination, line.source].find((name) => patterns !== null && name in patterns.mean);
  if (head === undefined || !patterns.tokens.length) return [];
  const prompt = Math.min(Math.max(example, 0), patterns.tokens.length - 1);
  const names = patterns.tokens[prompt];
  const last = unpack.u8(patterns.examples[head][prompt]).slice(-names.length);
  const most = [...last.keys()].sort((a, b) => last[b] - last[a]).slice(0, 2);
  const keys = most.map((k) => `${token(names[k], 12)} ${(last[k] / 255).toFixed(2)}`);
  return [[`${head} attends, prompt ${prompt + 1}`, `${token(names.at(-1), 12)} → ${keys.join(", ")}`]];
}

/** The largest weight of each query. */
function rowMost(weights, size) {
  return Array.from({ length: size }, (_, q) => weights.subarray(q * size, (q + 1) * size).reduce((a, b) => Math.max(a, b), 0));
}

/** The colour of a share of the largest weight, between 0 and 1, on the page's ground. */
function shade() {
  const style = getComputedStyle(document.documentElement);
  return d3.interpolateRgb(style.getPropertyValue("--sheet").trim(), style.getPropertyValue("--heat").trim());
}

/** Which weights the colours stand for: each head has its own scale, from nothing to its largest weight. */
function scale(most) {
  const colour = shade();
  const stops = Array.from({ length: 5 }, (_, i) => colour(i / 4)).join(", ");
  return el(
    "div",
    { class: "heat-scale", role: "img", "aria-label": `Colours from 0 to ${(most / 255).toFixed(2)}` },
    el("span", {}, "0"),
    el("span", { class: "heat-bar", css: { background: `linear-gradient(to right, ${stops})` } }),
    el("span", {}, (most / 255).toFixed(2)),
  );
}

/** A square of weights; the reader's finger reads one. */
function pattern(weights, size, names, most) {
  const labels = size <= 28;
  const longest = Math.max(...names.map((name) => Array.from(token(name, 9)).length));
  const margin = labels ? 8 + 6 * longest : 4;
  const cell = (SIDE - margin) / size;
  const colour = shade();
  const canvas = el("canvas", { class: "pattern-cells", width: size, height: size });
  const context = canvas.getContext("2d");
  for (let q = 0; q < size; q++) {
    for (let k = 0; k < size; k++) {
      context.fillStyle = colour(weights[q * size + k] / most);
      context.fillRect(k, q, 1, 1);
    }
  }
  const image = canvas.toDataURL();
  const readout = el("p", { class: "readout quiet", "aria-live": "polite" }, "Point at a cell to read it.");
  const text = (name, attributes) => svgEl("text", { class: "token-name", ...attributes }, token(name, 9));
  const square = svgEl(
    "svg",
    {
      class: "pattern",
      viewBox: `0 0 ${SIDE} ${SIDE}`,
      role: "img",
      "aria-label": `Attention pattern, ${size} by ${size}`,
    },
    svgEl("image", {
      x: margin,
      y: margin,
      width: SIDE - margin,
      height: SIDE - margin,
      href: image,
      preserveAspectRatio: "none",
      class: "pixels",
    }),
    svgEl("rect", { class: "frame", x: margin, y: margin, width: SIDE - margin, height: SIDE - margin }),
    labels &&
      names.map((name, i) =>
        text(name, { x: margin - 4, y: margin + (i + 0.5) * cell + 3.5, "text-anchor": "end" }),
      ),
    labels &&
      names.map((name, i) =>
        text(name, { transform: `translate(${margin + (i + 0.5) * cell + 3.5},${margin - 4}) rotate(-90)` }),
      ),
  );
  square.addEventListener("pointermove", (event) => {
    const box = square.getBoundingClientRect();
    const at = (value, low, extent) =>
      Math.floor(((((value - low) / extent) * SIDE - margin) / (SIDE - margin)) * size);
    const k = at(event.clientX, box.left, box.width),
      q = at(event.clientY, box.top, box.height);
    if (q < 0 || k < 0 || q >= size || k >= size) return;
    readout.textContent = `${token(names[q])} (${q}) attends to ${token(names[k])} (${k}): ${(weights[q * size + k] / 255).toFixed(2)}`;
  });
  return el("div", { class: "pattern-box" }, square, scale(most), readout);
}

/** The prompt's tokens, shaded by how much the chosen one attends to each. */
function strip(weights, size, names, most) {
  const colour = shade();
  const chips = names.map((name, q) =>
    el(
      "button",
      { class: "token", "data-position": q, onpointerenter: () => choose(q), onfocus: () => choose(q) },
      token(name),
    ),
  );
  const says = el("p", { class: "quiet" });
  function choose(q) {
    chips.forEach((chip, k) => {
      const weight = weights[q * size + k] / 255;
      const share = weights[q * size + k] / most;
      chip.style.background = colour(share);
      chip.style.color = share > 0.55 ? "var(--on-heat)" : "var(--text)";
      chip.classList.toggle("query", k === q);
      chip.title = `${weight.toFixed(2)}`;
    });
    says.textContent = `Shaded: what ${token(names[q])} at position ${q} attends to.`;
  }
  choose(size - 1);
  return el("div", {}, el("div", { class: "tokens" }, chips), says);
}
