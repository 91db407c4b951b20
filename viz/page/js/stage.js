// The picture: lines on a canvas, nodes above them as SVG that can be focused, both moved by one zoom.

import { byId, fill, svgEl } from "./dom.js";
import { Painter } from "./canvas.js";
import { PLACE_LINE, layOut } from "./layout.js";
import { palette } from "./looks.js";
import { looksOf, makeNode, placeTexts } from "./nodes.js";
import { Prompt } from "./prompt.js";
import { pathsThrough } from "./view.js";

const d3 = globalThis.d3;
const MARGIN = 28;
const LAYERS = 44; // room for their names
const LAYER_GAP = 13;

export class Stage {
  /** `on` has what happens: select(id), toggle(key, id), hover(thing, x, y) and zoomed([k, x, y]); nextPrompt(). */
  constructor(data, on) {
    this.data = data;
    this.on = { ...on, focus: (id) => (this.focused = id) };
    this.root = byId("stage");
    this.nodeLayer = byId("nodes");
    this.layerLayer = byId("layers");
    this.placeLayer = byId("places");
    this.prompt = new Prompt(data, byId("prompt"), on.nextPrompt);
    this.layers = [];
    this.drawn = new Map();
    this.painter = new Painter(byId("lines"), byId("marks"));
    this.transform = d3.zoomIdentity;
    this.lit = null;
    this.focused = null;
    this.moved = false;
    this.zoom = d3
      .zoom()
      .scaleExtent([0.05, 6])
      .extent(() => [
        [0, 0],
        [this.size?.width ?? 1, this.size?.height ?? 1],
      ])
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

  /** Show a new view; `passing`: it will be another at once. */
  show(view, state, roles, passing = false) {
    this.view = view;
    this.roles = roles;
    this.extent = layOut(this.data, view, state);
    this.paths(state, passing);
    this.drawNodes(state);
    this.drawLayers();
    this.drawPlaces();
    this.prompt.draw(state.example, this.size);
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

  paths(state, passing = false) {
    const chosen = [...state.pins, ...(state.sel === null ? [] : [state.sel])];
    const found = chosen.map((id) => pathsThrough(this.data, this.view, id)).filter((paths) => paths !== null);
    this.lit = found.length ? new Set(found.flatMap((paths) => [...paths.lines])) : null;
    this.litNodes = found.length ? new Set(found.flatMap((paths) => [...paths.nodes])) : null;
    this.colours = palette();
    this.painter.prepare(this.view, this.lit, this.colours, passing);
  }

  // ---- nodes ----

  drawNodes(state) {
    const active = document.activeElement?.dataset?.node;
    const tabbable =
      this.view.nodes.find((node) => node.id === (state.sel ?? this.focused)) ?? this.view.nodes.at(-1);
    const before = this.drawn;
    this.drawn = new Map(this.view.nodes.map((node) => [node.id, this.nodeOf(node, state, before.get(node.id))]));
    for (const [id, { element }] of before) if (this.drawn.get(id)?.element !== element) element.remove();
    const elements = [...this.drawn.values()].map(({ element }) => element);
    this.nodeLayer.append(...elements.filter((element) => element.parentNode === null));
    for (const element of elements) {
      const index = element.dataset.node === tabbable?.id ? "0" : "-1";
      if (element.getAttribute("tabindex") !== index) element.setAttribute("tabindex", index);
    }
    if (active && document.activeElement?.dataset?.node !== active) this.nodeElement(active)?.focus({ preventScroll: true });
  }

  /** A node's element: the one that is there, if it looks the same but for its place. */
  nodeOf(node, state, before) {
    const faint = this.litNodes !== null && !this.litNodes.has(node.id);
    const looks = looksOf(node, { state, faint, roles: this.roles, colours: this.colours });
    const key = JSON.stringify(looks);
    const place = `translate(${node.box.x},${node.box.y})`;
    const element = before?.key === key ? before.element : makeNode(looks, this.on);
    if (before?.element !== element || before.place !== place) element.setAttribute("transform", place);
    return { element, key, place };
  }

  // ---- layers ----

  /** The names of the layers, at the left of the picture beside their first rows. */
  drawLayers() {
    const heights = new Map();
    for (const node of this.view.nodes) {
      const inside = node.kind !== "input" && node.kind !== "logits" && node.kind !== "role";
      if (inside) heights.set(node.layer, Math.max(heights.get(node.layer) ?? -Infinity, node.box.y));
    }
    this.layers = [...heights].map(([layer, y]) => ({ layer, y })).sort((one, other) => other.y - one.y);
    fill(
      this.layerLayer,
      this.layers.map(({ layer }) => svgEl("text", {}, `layer ${layer}`)),
    );
    this.placeLayers();
  }

  placeLayers() {
    let last = Infinity;
    const left = Math.max(12, this.transform.applyX(this.extent?.left ?? 0) - 64);
    this.layers.forEach(({ y }, i) => {
      const [, at] = this.transform.apply([0, y]);
      const label = this.layerLayer.children[i];
      const fits = last - at >= LAYER_GAP;
      label.setAttribute("x", left.toFixed(1));
      label.setAttribute("y", (at + 3.5).toFixed(1));
      label.setAttribute("visibility", fits ? "visible" : "hidden");
      if (fits) last = at;
    });
  }

  /** Below the picture what each column is: the name of a place, and the tokens there. */
  drawPlaces() {
    const { bands } = this.view;
    const { top, bottom } = this.extent;
    fill(this.placeLayer, bands === null ? null : placeTexts(bands, top, bottom - 2 * PLACE_LINE));
  }

  // ---- finding nodes ----

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

  /** Another example's prompt. */
  showPrompt({ example }) {
    this.prompt.draw(example, this.size);
    this.prompt.place(this.view, this.transform);
  }

  // ---- moving ----

  onResize() {
    const { width, height } = this.root.getBoundingClientRect();
    if (!width || !height) return;
    this.size = { width, height };
    this.painter.resize(width, height);
    if (this.view === undefined) return;
    this.prompt.draw(this.prompt.example, this.size);
    if (this.moved) this.draw();
    else this.fit();
  }

  /** The whole picture, as large as there is room, but no larger than life. */
  fit() {
    if (this.size === undefined || this.view === undefined) return;
    const { left, right, top, bottom } = this.extent;
    const { above, below } = this.prompt.room();
    const k = Math.min(
      1.6,
      (this.size.width - 2 * MARGIN - LAYERS) / (right - left),
      (this.size.height - 2 * MARGIN - above - below) / (bottom - top),
    );
    const x = (this.size.width + LAYERS) / 2 - (k * (left + right)) / 2;
    const y = (this.size.height + above - below) / 2 - (k * (top + bottom)) / 2;
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
          [event.transform.k, event.transform.x, event.transform.y].map((v) => Number(v.toPrecision(7))),
        ),
      200,
    );
  }

  draw() {
    if (this.size === undefined) return;
    this.nodeLayer.setAttribute("transform", this.transform.toString());
    this.placeLayer.setAttribute("transform", this.transform.toString());
    this.placeLayers();
    this.prompt.place(this.view, this.transform);
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
