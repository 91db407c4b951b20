// How lines look, on the canvas and in exported pictures: one channel, one meaning.
//
// Colour is the sign, measured if it was, else the score's if that has one, or, in a comparison, the circuit; width the
// size of the score, or its rank where lines are many; dashes the port.

import { svgEl } from "./dom.js";

export const DASHES = { q: [5, 3], k: [1.3, 2.6], v: [], "": [] };
const MOST_BY_SIZE = 60; // lines, beyond which they go by rank
export const SIDES = { both: "in both", a: "only in A", b: "only in B" };

/** The colours of the theme in force. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = [
    "ground",
    "text",
    "quiet",
    "positive",
    "negative",
    "unsigned",
    "both",
    "only-a",
    "only-b",
    "head",
    "mlp",
    "end",
    "outline",
    "accent",
  ];
  const colours = Object.fromEntries(names.map((name) => [name, get(name)]));
  colours.roles = Array.from({ length: 8 }, (_, i) => get(`role-${i}`));
  return colours;
}

export function lineColour(line, colours) {
  if (line.side) return { both: colours.both, a: colours["only-a"], b: colours["only-b"] }[line.side];
  const sign = lineSign(line);
  return sign === 0 ? colours.unsigned : sign > 0 ? colours.positive : colours.negative;
}

/** 1 or -1 by what was measured, else by the score if its sign is an estimate of that; 0 if nothing is known. */
export function lineSign(line) {
  if (line.mixed) return 0;
  return line.sign || (line.scored ? Math.sign(line.score ?? 0) : 0);
}

/** Whether lines are so many that their looks go by rank, and weak ones fade; as in diagrams for papers. */
export function isRanked(view) {
  return view.sizes.length > MOST_BY_SIZE;
}

/** From 0 to 1: the root of the size of its score, so that weak lines stay visible, or by rank where lines are many. */
function strength(line, view) {
  if (line.size === null || !view.sizes.at(-1)) return 0.15;
  if (!isRanked(view)) return Math.sqrt(line.size / view.sizes.at(-1));
  return (globalThis.d3.bisectRight(view.sizes, line.size) / view.sizes.length) ** 3;
}

/** Thinner if there are many. */
export function lineWidth(line, view) {
  const thick = 1.1 + 3 * Math.min(1, Math.sqrt(MOST_BY_SIZE / Math.max(1, view.lines.length)));
  return 0.8 + (thick - 0.8) * strength(line, view);
}

export function lineOpacity(line, view) {
  return isRanked(view) ? 0.3 + 0.65 * Math.sqrt(strength(line, view)) : 0.95;
}

/** The three corners of a line's arrowhead. */
export function arrow(line, size) {
  const x = line.points.at(-2),
    y = line.points.at(-1);
  const half = 0.42 * size;
  return [x - half, y, x, y - size, x + half, y];
}

export function roleColour(role, roles, colours) {
  const index = Object.keys(roles).indexOf(role);
  return index < 0 ? null : colours.roles[index % colours.roles.length];
}

export function nodeFill(node, roles, colours) {
  if (node.role !== null) return roleColour(node.role, roles, colours) ?? colours.head;
  return { mlp: colours.mlp, input: colours.end, logits: colours.end }[node.kind] ?? colours.head;
}

/** What has to be explained of a view: [sample, meaning] with the sample as `{colour, dash, width}` or `{fill}`. */
export function legendOf(view, roles, colours) {
  const entries = [];
  const line = (colour, meaning, dash = [], width = 2) => entries.push({ colour, dash, width, meaning });
  if (view.b === null) {
    if (view.lines.some((x) => x.sign > 0)) line(colours.positive, "helps: worse without it");
    if (view.lines.some((x) => x.sign < 0)) line(colours.negative, "hinders: better without it");
    const estimated = view.lines.filter((x) => !x.sign).map(lineSign);
    if (estimated.some((sign) => sign > 0)) line(colours.positive, "score > 0, an estimate");
    if (estimated.some((sign) => sign < 0)) line(colours.negative, "score < 0, an estimate");
  } else {
    for (const [side, name] of [
      ["both", "both"],
      ["a", "only-a"],
      ["b", "only-b"],
    ])
      line(colours[name], SIDES[side]);
  }
  const ports = new Set(view.lines.map((x) => x.port));
  if (ports.has("q")) line(colours.unsigned, "to queries", DASHES.q, 1.6);
  if (ports.has("k")) line(colours.unsigned, "to keys", DASHES.k, 1.6);
  if (ports.has("q") || ports.has("k")) line(colours.unsigned, "to values, others", [], 1.6);
  const present = new Set(view.nodes.map((node) => node.role));
  for (const role of Object.keys(roles))
    if (present.has(role)) entries.push({ fill: roleColour(role, roles, colours), meaning: role });
  return entries;
}

/** The sample of a legend's entry as SVG, 26 by 12. */
export function legendSample(entry, colours) {
  const sample = entry.fill
    ? svgEl("rect", {
        x: 1,
        y: 1,
        width: 24,
        height: 10,
        rx: 3,
        fill: entry.fill,
        stroke: colours.outline,
        "stroke-width": 0.8,
      })
    : svgEl("line", {
        x1: 0,
        y1: 6,
        x2: 26,
        y2: 6,
        stroke: entry.colour,
        "stroke-width": entry.width,
        "stroke-dasharray": entry.dash.join(" ") || null,
      });
  return svgEl("svg", { width: 26, height: 12, viewBox: "0 0 26 12", "aria-hidden": "true" }, sample);
}
