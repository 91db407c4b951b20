// The picture as a file: SVG, PNG made of that SVG, or JSON of what is shown.

import { MOST_COUNTED, middleOf } from "./canvas.js";
import { svgEl } from "./dom.js";
import { count, counted, short } from "./format.js";
import { arrow, DASHES, legendOf, legendSample, lineColour, lineOpacity, lineWidth, nodeFill, palette } from "./looks.js";
import { PLACE_LINE, SIZES } from "./layout.js";
import { labelOf, neuronMarks, placeTexts } from "./nodes.js";
import { LINE, answerText, endsOf, promptLines, promptOf, promptTexts } from "./prompt.js";

const FONT = "Helvetica, Arial, sans-serif";

/** The whole picture as an SVG element that needs no style sheet. */
export function drawSvg(data, view, stage, roles) {
  const colours = palette();
  const legend = legendOf(view, roles, colours);
  const { left, right, top } = stage.extent;
  const width = Math.max(right - left, 420),
    margin = 20,
    head = 34 + stage.prompt.room().above;
  const example = promptOf(data, stage.prompt.example);
  const prompt = example === null ? [] : promptLines(example, width);
  const { input, logits } = endsOf(view);
  const bottom = stage.extent.bottom + LINE * prompt.length;
  const x0 = (left + right) / 2 - width / 2 - margin,
    y0 = top - head - margin;
  const rows = legendRows(legend, width);
  const height = bottom - top + head + 2 * margin + 18 * (rows.at(-1)?.row + 1 || 0) + 22;
  const faint = (lit) => (lit ? null : 0.12);
  const lines = view.lines.map((line) => {
    const [ax, ay, bx, by, cx, cy] = arrow(line, SIZES.arrow);
    const p = line.points.map((value) => Number(value.toFixed(2)));
    let d = `M${p[0]} ${p[1]}`;
    for (let i = 2; i + 5 < p.length; i += 6) d += `C${p.slice(i, i + 6).join(" ")}`;
    const colour = lineColour(line, colours);
    return svgEl(
      "g",
      { class: "edge", "data-edge": line.id, opacity: faint(stage.lit === null || stage.lit.has(line)) },
      svgEl("title", {}, line.id),
      svgEl("path", {
        d,
        fill: "none",
        stroke: colour,
        "stroke-width": lineWidth(line, view).toFixed(2),
        "stroke-opacity": lineOpacity(line, view).toFixed(2),
        "stroke-dasharray": DASHES[line.port].join(" ") || null,
      }),
      svgEl("path", {
        d: `M${ax.toFixed(2)} ${ay.toFixed(2)}L${bx.toFixed(2)} ${by.toFixed(2)}L${cx.toFixed(2)} ${cy.toFixed(2)}Z`,
        fill: colour,
      }),
      line.edges.length > 1 && view.lines.length <= MOST_COUNTED ? countOf(line, colour, colours) : null,
    );
  });
  const nodes = view.nodes.map((node) => {
    const { x, y, width: w, height: h } = node.box;
    return svgEl(
      "g",
      {
        class: "node",
        "data-node": node.id,
        transform: `translate(${x.toFixed(2)},${y.toFixed(2)})`,
        opacity: faint(stage.litNodes === null || stage.litNodes.has(node.id)),
      },
      svgEl("title", {}, node.id),
      svgEl("rect", {
        x: -w / 2,
        y: -h / 2,
        width: w,
        height: h,
        rx: node.kind === "head" ? 7 : 2,
        fill: nodeFill(node, roles, colours),
        stroke: colours.outline,
        "stroke-width": 0.9,
      }),
      svgEl(
        "text",
        { y: 4.2, "text-anchor": "middle", "font-size": 12, fill: colours.text },
        labelOf({ ...node, width: w }),
      ),
      node.neurons &&
        svgEl("path", { d: neuronMarks(node.neurons, w, h), stroke: colours.accent, "stroke-width": 0.9, fill: "none" }),
    );
  });
  const below = bottom + margin;
  const entries = rows.map(({ entry, x, row }) => {
    const sample = legendSample(entry, colours);
    sample.setAttribute("x", x0 + margin + x);
    sample.setAttribute("y", below + 18 * row);
    return [
      sample,
      svgEl(
        "text",
        { x: x0 + margin + x + 33, y: below + 18 * row + 10, "font-size": 10.5, fill: colours.text },
        entry.meaning,
      ),
    ];
  });
  const caption = [
    `${count(view.edgesA)} of ${count(data.total)} ${view.a.unit === "line" ? "lines" : "edges"}, ${short(view.a.name, 40)}`,
    view.b === null ? "" : `, compared with ${short(view.b.name, 40)}`,
    view.leftOut ? `; ${counted(view.leftOut, "weaker line")} left out` : "",
  ].join("");
  return svgEl(
    "svg",
    {
      xmlns: "http://www.w3.org/2000/svg",
      viewBox: `${x0} ${y0} ${width + 2 * margin} ${height}`,
      width: width + 2 * margin,
      height,
      "font-family": FONT,
    },
    svgEl("rect", { x: x0, y: y0, width: width + 2 * margin, height, fill: colours.ground }),
    svgEl(
      "text",
      { x: x0 + margin, y: y0 + 26, "font-size": 15, "font-weight": "bold", fill: colours.text },
      short(data.title, Math.floor(width / 8)),
    ),
    view.bands === null ? null : placeTexts(view.bands, top, bottom - 2 * PLACE_LINE, placeLooks(colours)),
    input && promptTexts(prompt, input.x, input.y + LINE, placeLooks(colours).name),
    logits && example && promptTexts([answerText(example)], logits.x, logits.y - 7, placeLooks(colours).name),
    lines,
    nodes,
    entries,
    svgEl(
      "text",
      { x: x0 + margin, y: y0 + height - 12, "font-size": 10.5, fill: colours.quiet },
      short(caption, Math.floor(width / 5.2)),
    ),
  );
}

function placeLooks({ quiet, text }) {
  const looks = { "text-anchor": "middle", "font-size": 11 };
  return {
    line: { stroke: quiet, "stroke-width": 0.5, "stroke-dasharray": "2 3" },
    name: { ...looks, fill: text },
    tokens: { ...looks, fill: quiet },
  };
}

/** How many edges a line stands for, half way along it. */
function countOf(line, colour, colours) {
  const [x, y] = middleOf(line.points).map((value) => value.toFixed(1));
  const halo = { "paint-order": "stroke", stroke: colours.ground, "stroke-width": 3 };
  return svgEl("text", { x, y, "font-size": 9, "text-anchor": "middle", fill: colour, ...halo }, `×${line.edges.length}`);
}

function legendRows(legend, width) {
  const placed = [];
  let x = 0,
    row = 0;
  for (const entry of legend) {
    const needed = 40 + 5.8 * entry.meaning.length + 16;
    if (x && x + needed > width) {
      x = 0;
      row += 1;
    }
    placed.push({ entry: { ...entry, meaning: short(entry.meaning, Math.floor((width - 60) / 5.8)) }, x, row });
    x += needed;
  }
  return placed;
}

export function svgText(svg) {
  return `<?xml version="1.0" encoding="UTF-8"?>\n${new XMLSerializer().serializeToString(svg)}\n`;
}

/** What is shown, for other programs. */
export function viewRecord(data, view, state, roles) {
  return {
    format: "acdc-view",
    version: 1,
    title: data.title,
    circuit: view.a.name,
    compared: view.b?.name ?? null,
    size: state.n,
    edges: view.lines.map((line) => ({
      source: line.source,
      destination: line.destination,
      port: line.port,
      score: line.score,
      size: line.size,
      in: line.side || "a",
      stands_for: line.edges.length,
    })),
    nodes: view.nodes.map((node) => ({
      name: node.id,
      label: node.label,
      role: node.role,
      neurons: node.neurons?.kept ?? null,
      members: node.members,
      x: node.box.x,
      y: node.box.y,
    })),
    roles,
    left_out: view.leftOut,
    state,
  };
}

/** Save a picture as PNG, twice its size, or as large as a canvas may be. */
export async function pngOf(svg) {
  const width = Number(svg.getAttribute("width")),
    height = Number(svg.getAttribute("height"));
  const scale = Math.min(2, 8000 / Math.max(width, height));
  const url = URL.createObjectURL(new Blob([svgText(svg)], { type: "image/svg+xml" }));
  try {
    const image = new Image();
    image.src = url;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = Math.ceil(width * scale);
    canvas.height = Math.ceil(height * scale);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    return await new Promise((done) => canvas.toBlob(done, "image/png"));
  } finally {
    URL.revokeObjectURL(url);
  }
}

/** Let the browser save a file. */
export function download(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/** A title as the name of a file. */
export function fileName(title, ending) {
  const plain = title
    .normalize("NFKD")
    .replace(/[^\w.-]+/g, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 60);
  return `${plain || "circuit"}.${ending}`;
}
