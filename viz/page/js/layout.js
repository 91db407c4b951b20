// Where things are: every node's row and column come with the data (viz/layout.py); here they are given heights and
// widths for what is drawn just now.
//
// Heights grow upwards in here and are turned round at the end, since on a screen y grows downwards.

import { wholeLabel } from "./nodes.js";
import { routeCurves } from "./route.js";

export const SIZES = { width: 56, height: 24, clearance: 5, lane: 5, arrow: 7 };
export const PLACE_LINE = 16; // height of a line of text below the picture
const ASPECT = 1.3; // width to height of a picture, as far as columns may be wider for it
const MOST_ROUTED = 450; // more lines than this are drawn straight through, which is quicker

/** Boxes for nodes and curves for lines: adds `box` and `points`; returns the extent. */
export function layOut(data, view, state) {
  const degree = new Map();
  for (const line of view.lines) {
    degree.set(line.source, (degree.get(line.source) ?? 0) + 1);
    degree.set(line.destination, (degree.get(line.destination) ?? 0) + 1);
  }
  const rows = state.stable && data.places === null ? allRows(data, view) : rowsOf(view.nodes);
  const slots = Math.max(1, ...rows.map((row) => row.slots));
  const row = rows.length > 24 ? 38 : rows.length > 20 ? 44 : rows.length > 12 ? 50 : 60; // deep models would be too small to read
  const column = Math.min(150, Math.max(78, (ASPECT * row * rows.length) / slots));
  const widest = slots * column;
  const sizes = { ...SIZES, row, column };
  const boxes = new Map();
  const bands = data.places === null ? null : bandsOf(data, rows, column);
  rows.forEach(({ nodes, columns, slots: own }, level) => {
    if (bands !== null) return placeInBands(nodes, bands, level * row, boxes, column, degree);
    const widths = nodes.map((node) => widthOf(node, degree.get(node.id) ?? 0, widest / nodes.length));
    const total = widths.reduce((sum, width) => sum + width, 0) + (column - SIZES.width) * (nodes.length - 1);
    let x = -total / 2;
    nodes.forEach((node, i) => {
      const slot = columns?.get(node.id);
      const middle = slot === undefined ? x + widths[i] / 2 : (slot - (own - 1) / 2) * column;
      boxes.set(node.id, {
        x: middle,
        y: level * row,
        width: slot === undefined ? widths[i] : SIZES.width,
        height: SIZES.height,
      });
      x += widths[i] + column - SIZES.width;
    });
  });
  routeCurves(view.lines, boxes, sizes, view.lines.length <= MOST_ROUTED);
  for (const line of view.lines) for (let i = 1; i < line.points.length; i += 2) line.points[i] *= -1;
  for (const node of view.nodes) {
    const box = boxes.get(node.id);
    node.box = { ...box, y: -box.y };
  }
  view.bands = bands;
  const extent = extentOf(view);
  if (bands === null) return extent;
  const ends = bands.flatMap(({ x, width }) => [x - width / 2, x + width / 2]);
  return {
    left: Math.min(extent.left, ...ends),
    right: Math.max(extent.right, ...ends),
    top: extent.top,
    bottom: extent.bottom + 2 * PLACE_LINE,
  };
}

/** A column for each place in which something is drawn, as wide as its fullest row: its middle and width. */
function bandsOf(data, rows, column) {
  const most = data.places.map((_, place) =>
    rows.reduce((found, { nodes }) => Math.max(found, nodes.filter((node) => node.place === place).length), 0),
  );
  const total = most.reduce((sum, n) => sum + n, 0) * column;
  let x = -total / 2;
  return most
    .map((n, place) => {
      const band = { ...data.places[place], place, x: x + (n * column) / 2, width: n * column };
      x += n * column;
      return band;
    })
    .filter((band) => band.width > 0);
}

function placeInBands(nodes, bands, y, boxes, column, degree) {
  for (const { place, x, width } of bands) {
    const inside = nodes.filter((node) => node.place === place);
    inside.forEach((node, i) =>
      boxes.set(node.id, {
        x: x + (i - (inside.length - 1) / 2) * column,
        y,
        width: Math.min(widthOf(node, degree.get(node.id) ?? 0, width / inside.length), width / inside.length - 8),
        height: SIZES.height,
      }),
    );
  }
}

/** The rows that something is drawn in, from the bottom. */
function rowsOf(nodes) {
  const rows = new Map();
  for (const node of nodes) {
    if (!rows.has(node.row)) rows.set(node.row, { nodes: [], slots: 0 });
    rows.get(node.row).nodes.push(node);
    rows.get(node.row).slots += 1;
  }
  return [...rows.values()];
}

/** Every row of the graph, and a column for every head, whether it is drawn or not. */
function allRows(data, view) {
  const rows = [];
  for (const node of data.nodes.values()) {
    const row = (rows[node.row] ??= { nodes: [], slots: 0, columns: new Map() });
    if (node.kind === "head" || node.kind === "group") row.columns.set(node.name, node.column);
    row.slots = Math.max(row.slots, node.column + 1);
  }
  for (const node of view.nodes) rows[node.row].nodes.push(node);
  return rows;
}

function widthOf(node, degree, room) {
  const least = Math.max(SIZES.width, 14 + 7.2 * Math.min(22, Array.from(wholeLabel(node)).length));
  if (node.kind === "head" || node.kind === "group") return least;
  return Math.min(Math.max(least, 0.9 * room), Math.max(least, 1.25 * SIZES.lane * degree));
}

function extentOf(view) {
  if (!view.nodes.length) return { left: -50, right: 50, top: -50, bottom: 50 };
  const xs = [],
    ys = [];
  for (const { box } of view.nodes) {
    xs.push(box.x - box.width / 2, box.x + box.width / 2);
    ys.push(box.y - box.height / 2, box.y + box.height / 2);
  }
  for (const line of view.lines) for (let i = 0; i < line.points.length; i += 2) xs.push(line.points[i]);
  const low = (values) => values.reduce((least, value) => Math.min(least, value), Infinity);
  const high = (values) => values.reduce((most, value) => Math.max(most, value), -Infinity);
  return { left: low(xs), right: high(xs), top: low(ys), bottom: high(ys) };
}
