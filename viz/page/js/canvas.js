// Lines on a canvas: grouped by their looks into paths that are made once a view and only stroked when it moves.

import { DASHES, arrow, lineColour, lineOpacity, lineWidth } from "./looks.js";
import { SIZES } from "./layout.js";

const FAINT = 0.09;
const WIDTHS = 5; // lines are drawn in so many different widths
export const MOST_COUNTED = 120;
const MOST_DASHED = 900; // dashes of more lines than this are neither seen apart nor quick to draw
const MOST_DASHED_PASSING = 150; // while the slider is dragged: dashes cost most of all that is drawn

export class Painter {
  constructor(canvas, overlay) {
    this.canvas = canvas;
    this.overlay = overlay;
    this.groups = [];
    this.view = null;
  }

  resize(width, height) {
    this.scale = window.devicePixelRatio || 1;
    for (const canvas of [this.canvas, this.overlay]) {
      canvas.width = Math.round(width * this.scale);
      canvas.height = Math.round(height * this.scale);
    }
  }

  /** Take a view's lines; `lit` is the set of those that are not faint, or null for all; `passing`: for a moment. */
  prepare(view, lit, colours, passing = false) {
    this.view = view;
    this.lit = lit;
    this.colours = colours;
    const groups = new Map();
    const dashed = view.lines.length <= (passing ? MOST_DASHED_PASSING : MOST_DASHED);
    for (const line of view.lines) {
      const faint = lit !== null && !lit.has(line);
      const colour = lineColour(line, colours);
      const width = lineWidth(line, view);
      const step = Math.min(WIDTHS - 1, Math.floor(((width - 0.8) / 3.4) * WIDTHS));
      const dash = dashed ? line.port : "";
      const key = `${faint}/${step}/${dash}/${colour}`;
      if (!groups.has(key))
        groups.set(key, {
          faint,
          colour,
          dash: DASHES[dash],
          width: 0,
          opacity: 0,
          n: 0,
          path: new Path2D(),
          heads: new Path2D(),
        });
      const group = groups.get(key);
      group.width += (width - group.width) / ++group.n;
      group.opacity += (lineOpacity(line, view) - group.opacity) / group.n;
      trace(group.path, line.points);
      const [x0, y0, x1, y1, x2, y2] = arrow(line, SIZES.arrow);
      group.heads.moveTo(x0, y0);
      group.heads.lineTo(x1, y1);
      group.heads.lineTo(x2, y2);
    }
    this.groups = [...groups.values()].sort((a, b) => b.faint - a.faint || a.width - b.width);
    this.samples = null;
  }

  draw({ k, x, y }) {
    const context = this.clear(this.canvas, k, x, y);
    for (const group of this.groups) {
      context.globalAlpha = group.faint ? FAINT : group.opacity;
      context.strokeStyle = context.fillStyle = group.colour;
      context.lineWidth = group.width;
      context.setLineDash(group.dash);
      context.stroke(group.path);
      if (!group.faint) context.fill(group.heads);
    }
    this.drawCounts(context);
  }

  /** How many edges each line stands for, where some stand for several and there is room to say so. */
  drawCounts(context) {
    if (this.view.lines.length > MOST_COUNTED) return;
    context.globalAlpha = 1;
    context.setLineDash([]);
    context.font = "9px system-ui, sans-serif";
    context.textAlign = "center";
    context.textBaseline = "middle";
    context.lineWidth = 3;
    for (const line of this.view.lines) {
      if (line.edges.length < 2 || (this.lit !== null && !this.lit.has(line))) continue;
      const [x, y] = middleOf(line.points);
      context.strokeStyle = this.colours.ground;
      context.strokeText(`×${line.edges.length}`, x, y);
      context.fillStyle = lineColour(line, this.colours);
      context.fillText(`×${line.edges.length}`, x, y);
    }
  }

  /** Draw one line so that it stands out; null: none. */
  mark(line, { k, x, y }) {
    const context = this.clear(this.overlay, k, x, y);
    if (line === null) return;
    const path = new Path2D();
    trace(path, line.points);
    context.lineCap = "round";
    context.strokeStyle = this.colours.ground;
    context.lineWidth = lineWidth(line, this.view) + 5;
    context.stroke(path);
    context.strokeStyle = context.fillStyle = lineColour(line, this.colours);
    context.lineCap = "butt";
    context.setLineDash(DASHES[line.port]);
    context.lineWidth = lineWidth(line, this.view) + 1.2;
    context.stroke(path);
    const [x0, y0, x1, y1, x2, y2] = arrow(line, SIZES.arrow + 2);
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.lineTo(x2, y2);
    context.fill();
  }

  clear(canvas, k, x, y) {
    const context = canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, canvas.width, canvas.height);
    context.setTransform(k * this.scale, 0, 0, k * this.scale, x * this.scale, y * this.scale);
    context.globalAlpha = 1;
    context.setLineDash([]);
    return context;
  }

  /** The line nearest to a point, if there is one within `reach`; lit ones only, if some are faint. */
  nearest(px, py, reach, lit) {
    if (this.view === null) return null;
    this.samples ??= this.view.lines.map((line) => sampled(line.points));
    let best = reach * reach,
      found = null;
    this.view.lines.forEach((line, i) => {
      if (lit !== null && !lit.has(line)) return;
      const points = this.samples[i];
      for (let j = 0; j + 3 < points.length; j += 2) {
        const d = toSegment(px, py, points[j], points[j + 1], points[j + 2], points[j + 3]);
        if (d < best) {
          best = d;
          found = line;
        }
      }
    });
    return found;
  }
}

function trace(path, points) {
  path.moveTo(points[0], points[1]);
  for (let i = 2; i + 5 < points.length; i += 6) {
    path.bezierCurveTo(points[i], points[i + 1], points[i + 2], points[i + 3], points[i + 4], points[i + 5]);
  }
}

/** The point half way along a line, by its pieces. */
export function middleOf(points) {
  const pieces = (points.length - 2) / 6;
  const i = 6 * Math.floor((pieces - 1) / 2);
  const t = pieces % 2 ? 0.5 : 1,
    u = 1 - t;
  const at = (j) =>
    u * u * u * points[i + j] + 3 * t * u * u * points[i + 2 + j] + 3 * t * t * u * points[i + 4 + j] + t * t * t * points[i + 6 + j];
  return [at(0), at(1)];
}

function sampled(points) {
  const found = [points[0], points[1]];
  for (let i = 0; i + 7 < points.length; i += 6) {
    for (let step = 1; step <= 10; step++) {
      const t = step / 10,
        u = 1 - t;
      const weights = [u * u * u, 3 * t * u * u, 3 * t * t * u, t * t * t];
      found.push(
        weights.reduce((sum, w, k) => sum + w * points[i + 2 * k], 0),
        weights.reduce((sum, w, k) => sum + w * points[i + 2 * k + 1], 0),
      );
    }
  }
  return found;
}

/** Square of the distance from a point to a segment. */
function toSegment(px, py, ax, ay, bx, by) {
  const dx = bx - ax,
    dy = by - ay;
  const t = Math.max(0, Math.min(1, ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy || 1)));
  return (px - ax - t * dx) ** 2 + (py - ay - t * dy) ** 2;
}
