// The picture: lines on a canvas, nodes above them as SVG that can be focused, both moved by one zoom.

import { byId, fill, svgEl } from "./dom.js";
import { Painter } from "./canvas.js";
import { layOut } from "./layout.js";
import { nodeFill, palette } from "./looks.js";
import { pathsThrough } from "./view.js";
import { counted, short } from "./format.js";

const d3 = globalThis.d3;

export class Stage {
  /** `on` has what happens: select(id), toggle(key, id), hover(thing, x, y) and zoomed([k, x, y]). */
  constructor(data, on) {
    this.data = data;
    this.on = on;
    this.root = byId("stage");
    this.nodeLayer = byId("nodes");
    this.painter = new Painter(byId("lines"), byId("marks"));
    this.transform = d3.zoomIdentity;
    this.lit = null;
    this.focused = null;
    this.moved = false;
    this.zoom = d3
      .zoom()
      .scaleExtent([0.05, 6])
      .on("zoom", (event) => this.onZoom(event));
    this.zoom.filter(
      (event) => !event.target.closest("button") && !event.button && (!event.ctrlKey || event.type === "wheel"),
    );
    this.surface = d3.select(this.root).call(this.zoom).on("dblclick.zoom", null);
    this.root.addEventListener("pointermove", (event) => this.onMove(event));
    this.root.addEventListener("pointerleave", () => this.hover(null));
    this.root.addEventListener("click", (event) => this.onClick(event));
    new ResizeObserver(() => this.onResize()).observe(this.root);
  }

  /** Show a new view. */
  show(view, state, roles) {
    this.view = view;
    this.roles = roles;
    this.extent = layOut(this.data, view, state);
    this.paths(state);
    this.drawNodes(state);
    if (!this.moved) this.fit();
    else this.draw();
  }

  /** The same view with another selection, other pins or other colours. */
  restyle(state, roles) {
    this.roles = roles;
    this.paths(state);
    this.drawNodes(state);
    this.draw();
  }

  paths(state) {
    const chosen = [...state.pins, ...(state.sel === null ? [] : [state.sel])];
    const found = chosen.map((id) => pathsThrough(this.data, this.view, id)).filter((paths) => paths !== null);
    this.lit = found.length ? new Set(found.flatMap((paths) => [...paths.lines])) : null;
    this.litNodes = found.length ? new Set(found.flatMap((paths) => [...paths.nodes])) : null;
    this.colours = palette();
    this.painter.prepare(this.view, this.lit, this.colours);
  }

  // ---- nodes ----

  drawNodes(state) {
    const active = document.activeElement?.dataset?.node;
    const tabbable =
      this.view.nodes.find((node) => node.id === (state.sel ?? this.focused)) ?? this.view.nodes.at(-1);
    fill(
      this.nodeLayer,
      this.view.nodes.map((node) => this.drawNode(node, state, node === tabbable)),
    );
    if (active) this.nodeElement(active)?.focus({ preventScroll: true });
  }

  drawNode(node, state, tabbable) {
    const { x, y, width, height } = node.box;
    const selected = node.id === state.sel || node.members.includes(state.sel);
    const pinned = node.members.some((name) => state.pins.includes(name)) || state.pins.includes(node.id);
    const classes = [
      "node",
      node.kind,
      selected && "selected",
      pinned && "pinned",
      this.litNodes && !this.litNodes.has(node.id) && "faint",
    ];
    const round = node.kind === "mlp" || node.kind === "input" || node.kind === "logits" ? 2 : 7;
    const most = Math.max(3, Math.floor((width - 8) / 6.8));
    const folds = node.kind === "layer" || node.kind === "role";
    return svgEl(
      "g",
      {
        class: classes.filter(Boolean).join(" "),
        transform: `translate(${x},${y})`,
        tabindex: tabbable ? 0 : -1,
        role: "button",
        "aria-pressed": String(selected),
        "aria-label": `${node.label}${node.role ? `, ${node.role}` : ""}${folds ? `, ${counted(node.members.length, "node")}` : ""}${pinned ? ", pinned" : ""}`,
        "data-node": node.id,
        onclick: (event) => {
          event.stopPropagation();
          this.on.select(node.id);
        },
        ondblclick: () => this.on.toggle("pins", node.id),
        onfocus: () => (this.focused = node.id),
      },
      folds &&
        svgEl("rect", {
          class: "behind",
          x: -width / 2 + 3,
          y: -height / 2 - 3,
          width,
          height,
          rx: round,
          fill: nodeFill(node, this.roles, this.colours),
        }),
      svgEl("rect", {
        class: "box",
        x: -width / 2,
        y: -height / 2,
        width,
        height,
        rx: round,
        fill: nodeFill(node, this.roles, this.colours),
      }),
      svgEl("text", { y: 4.2 }, short(node.label, most)),
      pinned && svgEl("circle", { class: "pin", cx: width / 2 - 1, cy: -height / 2 + 1, r: 4 }),
    );
  }

  nodeElement(id) {
    return [...this.nodeLayer.children].find((child) => child.dataset.node === id) ?? null;
  }

  /** Move the focus to the nearest node in a direction. */
  step(from, direction) {
    const here = this.view.nodes.find((node) => node.id === from)?.box;
    if (here === undefined) return;
    const rows = direction === "up" || direction === "down";
    const sign = direction === "up" || direction === "left" ? -1 : 1;
    const off = (box) => (rows ? box.y - here.y : box.x - here.x) * sign;
    const beside = (box) => Math.abs(rows ? box.x - here.x : box.y - here.y);
    const candidates = this.view.nodes.filter(({ box }) => (rows ? off(box) > 1 : off(box) > 1 && beside(box) < 1));
    const cost = ({ box }) => off(box) * (rows ? 4 : 1) + beside(box);
    const next = candidates.sort((x, y) => cost(x) - cost(y))[0];
    if (next !== undefined) this.focus(next.id);
  }

  /** Focus a node, and bring it into sight. */
  focus(id) {
    const node = this.view.nodes.find((other) => other.id === id || other.members.includes(id));
    if (node === undefined) return;
    this.reveal(node.box);
    for (const child of this.nodeLayer.children)
      child.setAttribute("tabindex", child.dataset.node === node.id ? 0 : -1);
    this.nodeElement(node.id)?.focus({ preventScroll: true });
  }

  reveal({ x, y }) {
    const [sx, sy] = this.transform.apply([x, y]);
    const { width, height } = this.size;
    if (sx < 40 || sy < 30 || sx > width - 40 || sy > height - 30) {
      this.moved = true;
      this.surface.call(this.zoom.translateTo, x, y);
    }
  }

  // ---- moving ----

  onResize() {
    const { width, height } = this.root.getBoundingClientRect();
    if (!width || !height) return;
    this.size = { width, height };
    this.painter.resize(width, height);
    if (this.view === undefined) return;
    if (this.moved) this.draw();
    else this.fit();
  }

  /** The whole picture, as large as there is room, but no larger than life. */
  fit() {
    if (this.size === undefined || this.view === undefined) return;
    const { left, right, top, bottom } = this.extent;
    const margin = 28;
    const k = Math.min(
      1.6,
      (this.size.width - 2 * margin) / (right - left),
      (this.size.height - 2 * margin) / (bottom - top),
    );
    const x = this.size.width / 2 - (k * (left + right)) / 2;
    const y = this.size.height / 2 - (k * (top + bottom)) / 2;
    this.fitting = true;
    this.surface.call(this.zoom.transform, d3.zoomIdentity.translate(x, y).scale(k));
    this.fitting = false;
    this.moved = false;
    this.on.zoomed(null);
  }

  /** Go to a zoom of the address. */
  goTo(zoom) {
    if (zoom === null) this.fit();
    else {
      this.moved = true;
      this.surface.call(this.zoom.transform, d3.zoomIdentity.translate(zoom[1], zoom[2]).scale(zoom[0]));
    }
  }

  zoomBy(factor) {
    this.moved = true;
    this.surface.call(this.zoom.scaleBy, factor);
  }

  onZoom(event) {
    this.transform = event.transform;
    this.draw();
    if (this.fitting) return;
    this.moved = true;
    clearTimeout(this.telling);
    this.telling = setTimeout(
      () =>
        this.on.zoomed(
          [event.transform.k, event.transform.x, event.transform.y].map((v) => Number(v.toPrecision(5))),
        ),
      200,
    );
  }

  draw() {
    if (this.size === undefined) return;
    this.nodeLayer.setAttribute("transform", this.transform.toString());
    this.painter.draw(this.transform);
    this.painter.mark(this.marked ?? null, this.transform);
  }

  // ---- pointing ----

  lineAt(event) {
    const box = this.root.getBoundingClientRect();
    const [x, y] = this.transform.invert([event.clientX - box.left, event.clientY - box.top]);
    return this.painter.nearest(x, y, 7 / this.transform.k, this.lit);
  }

  onMove(event) {
    if (event.buttons) return this.hover(null);
    const name = event.target.closest?.("[data-node]")?.dataset.node;
    const node = name === undefined ? null : this.view.nodes.find((other) => other.id === name);
    if (event.target.closest("button")) return this.hover(null);
    this.hover(node ? { node } : this.lineAt(event), event);
  }

  hover(thing, event) {
    const line = thing === null || thing.node ? null : thing;
    if (line !== (this.marked ?? null)) {
      this.marked = line;
      this.painter.mark(line, this.transform);
    }
    this.root.classList.toggle("pointing", line !== null);
    this.on.hover(thing, event);
  }

  onClick(event) {
    if (event.defaultPrevented || event.target.closest("button")) return; // the end of a drag, or a control
    const line = this.lineAt(event);
    this.on.select(line === null ? null : line.id);
  }
}
