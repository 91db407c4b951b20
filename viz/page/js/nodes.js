// Nodes as SVG: a box with its name, its role above it, and for an MLP which of its neurons the circuit keeps.

import { svgEl } from "./dom.js";
import { counted, short, token } from "./format.js";
import { nodeFill } from "./looks.js";

const NEURONS = 4; // height of the marks for these

/** All that a node looks like but for its place, so that an element is made anew only where that has changed. */
export function looksOf(node, { state, faint, roles, colours }) {
  const { width, height } = node.box;
  return {
    id: node.id,
    kind: node.kind,
    label: node.label,
    role: node.kind === "role" ? null : node.role,
    members: node.members.length,
    neurons: node.neurons,
    fill: nodeFill(node, roles, colours),
    width,
    height,
    selected: node.id === state.sel || node.members.includes(state.sel),
    pinned: node.members.some((name) => state.pins.includes(name)) || state.pins.includes(node.id),
    faint,
  };
}

/** The element of a node. */
export function makeNode(looks, on) {
  const { id, kind, label, role, members, neurons, fill, width, height, selected, pinned, faint } = looks;
  const round = kind === "mlp" || kind === "input" || kind === "logits" ? 2 : 7;
  const folds = kind === "layer" || kind === "role";
  const box = (attributes) =>
    svgEl("rect", { x: -width / 2, y: -height / 2, width, height, rx: round, fill, ...attributes });
  const says = [
    label,
    role,
    folds && counted(members, "node"),
    neurons && neuronsOf(neurons),
    pinned && "pinned",
  ];
  return svgEl(
    "g",
    {
      class: ["node", kind, selected && "selected", pinned && "pinned", faint && "faint"].filter(Boolean).join(" "),
      role: "button",
      "aria-pressed": String(selected),
      "aria-label": says.filter(Boolean).join(", "),
      "data-node": id,
      onclick: (event) => {
        event.stopPropagation();
        on.select(id);
      },
      ondblclick: () => on.toggle("pins", id),
      onfocus: () => on.focus(id),
    },
    folds && box({ class: "behind", x: -width / 2 + 3, y: -height / 2 - 3 }),
    box({ class: "box" }),
    svgEl("text", { y: 4.2 }, labelOf(looks)),
    neurons && svgEl("path", { class: "neuron-marks", d: neuronMarks(neurons, width, height) }),
    role && svgEl("text", { class: "role-label", y: -height / 2 - 3 }, short(role, 16)), // arrowheads are below
    pinned && svgEl("circle", { class: "pin", cx: width / 2 - 1, cy: -height / 2 + 1, r: 4 }),
  );
}

/** The text in a node's box, as far as there is room. */
export function labelOf(node) {
  return short(wholeLabel(node), Math.max(3, Math.floor((node.width - 8) / 6.8)));
}

/** The same, where there is. */
export function wholeLabel({ label, neurons }) {
  return neurons ? `${label} · ${neurons.kept.length}/${neurons.hidden}` : label;
}

/** "12 of 512 units": neurons of an MLP, or dimensions of a head. */
export function neuronsOf({ kept, hidden }) {
  return `${kept.length} of ${counted(hidden, "unit")}`;
}

/** The neurons that are kept as marks along the lower side of their MLP's box, which is as wide as all of them. */
export function neuronMarks({ kept, hidden }, width, height) {
  const place = (unit) => Number((-width / 2 + ((unit + 0.5) / hidden) * width).toFixed(1));
  return [...new Set(kept.map(place))].map((x) => `M${x} ${height / 2}v${-NEURONS}`).join("");
}

/** The names and tokens of columns, below the picture, and lines between the columns. */
export function placeTexts(bands, top, bottom, attributes = {}) {
  return bands.map(({ label, tokens, x, width }, i) => {
    const most = Math.max(4, Math.floor(width / 6.5));
    return [
      i > 0 &&
        svgEl("line", { class: "place-line", x1: x - width / 2, x2: x - width / 2, y1: top, y2: bottom + 30, ...attributes.line }),
      svgEl("text", { class: "place-name", x, y: bottom + 14, ...attributes.name }, short(label, most)),
      tokens && svgEl("text", { class: "place-tokens", x, y: bottom + 28, ...attributes.tokens }, token(tokens, most)),
    ];
  });
}
