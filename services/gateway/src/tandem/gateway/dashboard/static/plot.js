// A line plot as SVG: axes, gaps where nothing was seen, and the values under the pointer.

const NS = "http://www.w3.org/2000/svg";
const LEFT = 46, RIGHT = 8, TOP = 8, BOTTOM = 18, HEIGHT = 110;
const NEW = 3;

function svg(name, attributes, ...children) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

// The top of an axis that begins at 0: 1, 2, 2.5 or 5 times a power of ten, not below `most`.
export function axisTop(most) {
  if (!(most > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(most));
  return [1, 2, 2.5, 5, 10].map((step) => step * power).find((top) => top >= most * 0.999);
}

// Runs of values without a gap, as [place, value] pairs.
export function runs(values) {
  const found = [[]];
  values.forEach((value, place) => {
    if (value === null) found.push([]);
    else found.at(-1).push([place, value]);
  });
  return found.filter((run) => run.length);
}

export class Plot {
  // lines: [{label, cls}], as many as `draw` gets arrays. shown: a value as text. least: the lowest top of the axis.
  constructor(host, { title, lines, shown, least }) {
    this.lines = lines;
    this.shown = shown;
    this.least = least;
    this.values = lines.map(() => []);
    this.spacing = 1;
    this.hovered = null;
    this.legend = lines.map((line) => {
      const value = document.createElement("b");
      const item = document.createElement("span");
      item.className = `key ${line.cls}`;
      item.append(line.label, " ", value);
      host.append(item);
      return { item, value };
    });
    const head = document.createElement("figcaption");
    const name = document.createElement("span");
    name.className = "title";
    name.textContent = title;
    this.when = document.createElement("span");
    this.when.className = "when";
    head.append(name, this.when, ...this.legend.map((entry) => entry.item));
    this.canvas = svg("svg", { height: HEIGHT, role: "img", "aria-label": title });
    host.append(head, this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this.hover(event));
    this.canvas.addEventListener("pointerleave", () => this.hover(null));
    new ResizeObserver(() => this.render()).observe(this.canvas);
  }

  // values: one array per line, the oldest first, null = nothing seen. spacing: seconds between two of them.
  draw(values, spacing) {
    this.values = values;
    this.spacing = spacing;
    this.render();
  }

  hover(event) {
    const count = this.values[0].length;
    const inner = this.canvas.clientWidth - LEFT - RIGHT;
    const place = event && Math.round(((event.offsetX - LEFT) / inner) * (count - 1));
    this.hovered = event && place >= 0 && place < count ? place : null;
    this.render();
  }

  render() {
    const width = this.canvas.clientWidth, count = this.values[0].length;
    if (!width || !count) return;
    const top = axisTop(Math.max(this.least, ...this.values.flat().map((value) => value ?? 0)));
    const x = (place) => LEFT + (place / (count - 1)) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - value / top) * (HEIGHT - TOP - BOTTOM);
    const parts = [...this.axes(width, count, top, x, y)];
    this.values.forEach((line, which) => parts.push(...this.line(line, this.lines[which].cls, x, y)));
    if (this.hovered !== null)
      parts.push(svg("line", { class: "cross", x1: x(this.hovered), x2: x(this.hovered), y1: TOP, y2: HEIGHT - BOTTOM }));
    this.canvas.replaceChildren(...parts);
    this.tell(count);
  }

  *axes(width, count, top, x, y) {
    for (const value of [0, top / 2, top]) {
      yield svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(value), y2: y(value) });
      yield svg("text", { class: "y", x: LEFT - 5, y: y(value) + 3.5 }, this.shown(value));
    }
    const minutes = ((count - 1) * this.spacing) / 60;
    for (const share of [0, 0.5, 1]) {
      const text = share === 1 ? "now" : `−${Number((minutes * (1 - share)).toFixed(1))} min`;
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      yield svg("text", { x: x((count - 1) * share), y: HEIGHT - 4, "text-anchor": anchor }, text);
    }
  }

  *line(values, cls, x, y) {
    for (const run of runs(values)) {
      const at = run.map(([place, value]) => `${x(place).toFixed(1)},${y(value).toFixed(1)}`);
      if (run.length > 1) yield svg("polyline", { class: cls, points: at.join(" ") });
      else yield svg("circle", { class: cls, cx: x(run[0][0]), cy: y(run[0][1]), r: 1.6 });
    }
    if (this.hovered !== null && values[this.hovered] !== null)
      yield svg("circle", { class: cls, cx: x(this.hovered), cy: y(values[this.hovered]), r: 3 });
  }

  // The legend has the values under the pointer, else the newest of each line, if that is not old.
  tell(count) {
    const ago = this.hovered === null ? 0 : (count - 1 - this.hovered) * this.spacing;
    this.when.textContent = this.hovered === null ? "" : ago ? `${ago} s ago` : "now";
    this.values.forEach((line, which) => {
      const value = this.hovered === null ? line.slice(-NEW).findLast((one) => one !== null) : line[this.hovered];
      this.legend[which].value.textContent = value == null ? "–" : this.shown(value);
    });
  }
}
