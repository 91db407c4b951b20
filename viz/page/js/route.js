// Curves between boxes: they leave and enter vertically and, where they would cut a box in between, are led through
// a gap near by, side by side. The same rules as for the diagrams for papers; heights grow upwards.

/** Adds `points` to lines, Bézier points [x, y, …]: start, then (control, control, end) for each piece. */
export function routeCurves(lines, boxes, sizes, around) {
  const { starts, ends } = portsOf(lines, boxes);
  const levels = new Map();
  for (const box of boxes.values()) {
    if (levels.has(box.y)) levels.get(box.y).push(box);
    else levels.set(box.y, [box]);
  }
  for (const row of levels.values()) row.sort((a, b) => a.x - b.x);
  const heights = [...levels.keys()].sort((a, b) => a - b);
  const taken = new Map(heights.map((y) => [y, []]));
  const spans = lines.map((line) => boxes.get(line.destination).y - boxes.get(line.source).y);
  const order = [...lines.keys()];
  if (around) order.sort((i, j) => spans[i] - spans[j] || i - j);
  for (const i of order) {
    const source = boxes.get(lines[i].source),
      destination = boxes.get(lines[i].destination);
    const start = [starts[i], source.y + sizes.height / 2];
    const end = [ends[i], destination.y - sizes.height / 2 - sizes.arrow];
    if (end[1] <= start[1]) {
      lines[i].points = sideways(start, end, sizes); // only between folded nodes
      continue;
    }
    if (!around) {
      lines[i].points = straight(start, end);
      continue;
    }
    const between = heights.filter((y) => y > source.y && y < destination.y);
    lines[i].points = upward(start, end, between, levels, taken, sizes);
  }
}

/** Where lines leave and enter: spread over the side of the box in the order of where they lead; q, k, v in thirds. */
function portsOf(lines, boxes) {
  const lean = lines.map(({ source, destination }) => {
    const s = boxes.get(source),
      d = boxes.get(destination);
    return (d.x - s.x) / Math.max(1, d.y - s.y);
  });
  const out = new Map(),
    into = new Map();
  lines.forEach((line, i) => {
    if (!out.has(line.source)) out.set(line.source, []);
    out.get(line.source).push(i);
    const key = `${line.destination}<${line.port}`;
    if (!into.has(key)) into.set(key, []);
    into.get(key).push(i);
  });
  const starts = [],
    ends = [];
  const spread = (members, middle, width, places) => {
    const gap = Math.min(width / members.length, 10);
    members.forEach((i, k) => (places[i] = middle + gap * (k - (members.length - 1) / 2)));
  };
  for (const [name, members] of out) {
    const box = boxes.get(name);
    spread(
      members.sort((i, j) => lean[i] - lean[j] || i - j),
      box.x,
      0.8 * box.width,
      starts,
    );
  }
  for (const members of into.values()) {
    const { destination, port } = lines[members[0]];
    const box = boxes.get(destination);
    const third = ({ q: -1, k: 0, v: 1 }[port] ?? 0) * (box.width / 3.1);
    spread(
      members.sort((i, j) => lean[j] - lean[i] || i - j),
      box.x + third,
      (port ? 0.26 : 0.85) * box.width,
      ends,
    );
  }
  return { starts, ends };
}

function upward(start, end, between, levels, taken, sizes) {
  const through = new Map([
    [start[1], start[0]],
    [end[1], end[0]],
  ]);
  const led = new Set();
  for (;;) {
    const curve = smooth(through);
    const cut = between.filter((y) => !led.has(y) && cuts(curve, y, levels.get(y), sizes));
    if (!cut.length) return curve;
    for (const y of cut) {
      const heights = [...through.keys()];
      const below = through.get(Math.max(...heights.filter((h) => h < y)));
      const above = through.get(Math.min(...heights.filter((h) => h > y)));
      const x = gapFor(below, above, levels.get(y), taken.get(y), sizes);
      through.set(y - sizes.height / 2, x).set(y + sizes.height / 2, x);
      led.add(y);
    }
  }
}

/** The curve through points (height → x), vertical at its ends and without overshoot. */
function smooth(through) {
  const y = [...through.keys()].sort((a, b) => a - b);
  const x = y.map((height) => through.get(height));
  const slope = x.map(() => 0);
  for (let i = 1; i < y.length - 1; i++) {
    const h0 = y[i] - y[i - 1],
      h1 = y[i + 1] - y[i];
    const d0 = (x[i] - x[i - 1]) / h0,
      d1 = (x[i + 1] - x[i]) / h1;
    if (d0 * d1 > 0) slope[i] = (3 * (h0 + h1)) / ((2 * h1 + h0) / d0 + (h1 + 2 * h0) / d1);
  }
  const points = [x[0], y[0]];
  for (let i = 0; i < y.length - 1; i++) {
    const third = ((y[i + 1] - y[i]) / 3) * (y.length === 2 ? 1.35 : 1);
    points.push(
      x[i] + slope[i] * third,
      y[i] + third,
      x[i + 1] - slope[i + 1] * third,
      y[i + 1] - third,
      x[i + 1],
      y[i + 1],
    );
  }
  return points;
}

/** The same where nothing is in the way. */
function straight([x0, y0], [x1, y1]) {
  const third = ((y1 - y0) / 3) * 1.35;
  return [x0, y0, x0, y0 + third, x1, y1 - third, x1, y1];
}

function sideways([x0, y0], [x1, y1], sizes) {
  const out = 1.2 * sizes.row;
  const side = (x0 + x1) / 2 + 1.5 * sizes.column * (x1 >= x0 ? 1 : -1);
  const middle = (y0 + y1) / 2;
  return [x0, y0, x0, y0 + out / 2, side, y0 + out / 2, side, middle, side, y1 - out / 2, x1, y1 - out / 2, x1, y1];
}

function cuts(curve, y, row, sizes) {
  const xs = [];
  for (let k = 0; k <= 8; k++) xs.push(xAt(curve, y + (k / 8 - 0.5) * sizes.height));
  const reach = sizes.clearance - 0.01;
  return row.some((box) => {
    const left = box.x - box.width / 2 - reach,
      right = box.x + box.width / 2 + reach;
    return xs.some((x, k) => k && Math.max(xs[k - 1], x) > left && Math.min(xs[k - 1], x) < right);
  });
}

/** x of an upward curve at a height. */
function xAt(points, height) {
  let i = 0;
  while (i + 8 < points.length && points[i + 7] < height) i += 6;
  const at = (t, j) => {
    const u = 1 - t;
    return (
      u * u * u * points[i + j] +
      3 * t * u * u * points[i + 2 + j] +
      3 * t * t * u * points[i + 4 + j] +
      t * t * t * points[i + 6 + j]
    );
  };
  let low = 0,
    high = 1;
  for (let k = 0; k < 18; k++) {
    const middle = (low + high) / 2;
    if (at(middle, 1) < height) low = middle;
    else high = middle;
  }
  return at((low + high) / 2, 0);
}

/** The free place in a row that is least out of the way between two x's; later lines go beside earlier ones. */
function gapFor(below, above, row, taken, sizes) {
  const reach = sizes.clearance;
  let best = null;
  row.forEach((box, i) => {
    const left = box.x - box.width / 2 - reach,
      right = box.x + box.width / 2 + reach;
    const roomLeft = i ? left - (row[i - 1].x + row[i - 1].width / 2 + reach) : Infinity;
    const roomRight = i + 1 < row.length ? row[i + 1].x - row[i + 1].width / 2 - reach - right : Infinity;
    for (const [beside, away, room] of [
      [left, -1, roomLeft],
      [right, 1, roomRight],
    ]) {
      const detour = [Math.abs(beside - below) + Math.abs(above - beside), Math.abs(2 * beside - below - above)];
      if (
        best === null ||
        detour[0] < best.detour[0] ||
        (detour[0] === best.detour[0] && detour[1] < best.detour[1])
      ) {
        best = { beside, away, room, detour };
      }
    }
  });
  const { beside, away, room } = best;
  const lanes = 1 + Math.floor(Math.min(Math.max(room, 0) / sizes.lane, taken.length));
  const places = Array.from({ length: lanes }, (_, k) => beside + away * sizes.lane * k);
  const along = (below - beside) * away;
  if (along >= 0 && along <= room) places.unshift(below);
  const free = places.find((x) => taken.every((other) => Math.abs(x - other) > 0.9 * sizes.lane));
  const x = free ?? beside + away * sizes.lane * (taken.length % lanes);
  taken.push(x);
  return x;
}
