// The prompt that flows in: an example's tokens below the input, and its answer above the logits.
//
// They are as large whatever the zoom, since they are read and not looked at.

import { fill, svgEl } from "./dom.js";
import { short, token } from "./format.js";

export const LINE = 15; // height of a line of them
const LETTER = 6.2; // width
const MOST_LINES = 3;
const WIDEST = 560;
const SIDES = 132; // room for what else stands beside the picture

/** An example's tokens, its answers, and which of how many it is; null where the page has none. */
export function promptOf(data, example) {
  const lens = data.lens?.examples ?? [];
  const prompts = data.patterns?.tokens ?? lens.map(({ tokens }) => tokens);
  if (!prompts.length || data.places !== null) return null;
  const index = Math.min(Math.max(example, 0), prompts.length - 1);
  return { tokens: prompts[index], answers: lens[index]?.answers ?? [], index, total: prompts.length };
}

/** The tokens in at most three lines that are no wider; what has no room is left out of the middle. */
export function promptLines({ tokens }, width) {
  const most = Math.max(12, Math.floor(width / LETTER));
  const words = tokens.map((text) => token(text));
  const size = (word) => Array.from(word).length + 1;
  let room = (MOST_LINES - 0.5) * most;
  let first = 0,
    last = words.length;
  while (first < last) {
    room -= size(first <= words.length - last ? words[first] : words[last - 1]);
    if (room < 0) break;
    if (first <= words.length - last) first += 1;
    else last -= 1;
  }
  const shown = first === last ? words : [...words.slice(0, first), "…", ...words.slice(last)];
  const lines = [];
  for (const word of shown) {
    const longer = lines.length ? `${lines.at(-1)} ${word}` : word;
    if (lines.length && size(longer) <= most) lines[lines.length - 1] = longer;
    else lines.push(short(word, most));
  }
  return lines;
}

/** "→ Mary" */
export function answerText({ answers }) {
  return answers.length ? `→ ${answers.slice(0, 3).map((text) => token(text)).join(", ")}` : "";
}

/** Texts one below the other, around x, the first at y. */
export function promptTexts(lines, x, y, attributes = {}) {
  return lines.map((line, i) => svgEl("text", { x, y: y + LINE * i, ...attributes }, line));
}

/** The boxes that it flows into, and those that it comes out of: the middle, and the outer edge of each. */
export function endsOf(view) {
  const end = (kind, outer) => {
    const boxes = view.nodes.filter((node) => node.kind === kind).map(({ box }) => box);
    if (!boxes.length) return null;
    return { x: boxes.reduce((sum, { x }) => sum + x, 0) / boxes.length, y: outer(boxes) };
  };
  return {
    input: end("input", (boxes) => Math.max(...boxes.map((box) => box.y + box.height / 2))),
    logits: end("logits", (boxes) => Math.min(...boxes.map((box) => box.y - box.height / 2))),
  };
}

/** The prompt in the picture. */
export class Prompt {
  /** `onNext` is called with the number of the next example where the reader asks for it. */
  constructor(data, layer, onNext) {
    this.data = data;
    this.layer = layer;
    this.onNext = onNext;
    this.example = -1;
  }

  /** An example's tokens and answer, and what leads to the next example. */
  draw(example, size) {
    this.example = example;
    const prompt = promptOf(this.data, example);
    if (prompt === null || size === undefined) return;
    const focused = document.activeElement?.classList?.contains("prompt-next");
    fill(
      this.layer,
      svgEl("text", { class: "prompt-answer" }, answerText(prompt)),
      promptTexts(promptLines(prompt, Math.min(WIDEST, size.width - SIDES)), 0, 0, { class: "prompt-line" }),
      prompt.total > 1 && this.next(prompt),
    );
    if (focused) this.layer.lastElementChild.focus({ preventScroll: true });
  }

  next({ index, total }) {
    const next = (event) => {
      event.stopPropagation();
      this.onNext((index + 1) % total);
    };
    return svgEl(
      "text",
      {
        class: "prompt-next",
        role: "button",
        tabindex: 0,
        "aria-label": "Show the next prompt",
        onclick: next,
        onkeydown: (event) => event.key === "Enter" && next(event),
      },
      `prompt ${index + 1} of ${total} ›`,
    );
  }

  /** What it needs above and below the picture. */
  room() {
    const [answer, ...below] = this.layer.children;
    return { above: answer?.textContent ? LINE : 0, below: LINE * below.length };
  }

  place(view, transform) {
    if (!this.layer.children.length) return;
    const { input, logits } = endsOf(view);
    [...this.layer.children].forEach((text, i) => {
      const end = i ? input : logits;
      text.setAttribute("visibility", end === null ? "hidden" : "visible");
      if (end === null) return;
      const [x, y] = transform.apply([end.x, end.y]);
      text.setAttribute("x", x.toFixed(1));
      text.setAttribute("y", (i ? y + LINE * i : y - 7).toFixed(1));
    });
  }
}
