// Nodes as SVG: a box with its name, its role below it, and for an MLP which of its neurons the circuit keeps.

import { svgEl } from "./dom.js";
import { counted, short } from "./format.js";
import { nodeFill } from "./looks.js";

const NEURONS = 5; // height of the strip of neurons

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
    neurons && neuronStrip(neurons, width, height),
    role && svgEl("text", { class: "role-label", y: height / 2 + 9 }, short(role, 16)),
    pinned && svgEl("circle", { class: "pin", cx: width / 2 - 1, cy: -height / 2 + 1, r: 4 }),
  );
}

/** The text in a node's box. */
export function labelOf({ label, neurons, width }) {
  const text = neurons ? `${label} · ${neurons.kept.length}/${neurons.hidden}` : label;
  return short(text, Math.max(3, Math.floor((width - 8) / 6.8)));
}

/** "12 of 512 neurons" */
export function neuronsOf({ kept, hidden }) {
  return `${kept.length} of ${counted(hidden, "neuron")}`;
}

/** A strip below an MLP's box as wide as all its neurons, with a mark for each that is kept. */
export function neuronStrip({ kept, hidden }, width, height, attributes = {}) {
  const place = (unit) => Number((-width / 2 + ((unit + 0.5) / hidden) * width).toFixed(1));
  const marks = [...new Set(kept.map(place))].map((x) => `M${x} ${height / 2 + 1}v${NEURONS}`);
  return [
    svgEl("rect", { class: "neuron-strip", x: -width / 2, y: height / 2 + 1, width, height: NEURONS, ...attributes.strip }),
    svgEl("path", { class: "neuron-marks", d: marks.join(""), ...attributes.marks }),
  ];
}
