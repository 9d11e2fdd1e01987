// Charts of the report: SVG that is drawn anew when its width changes, with a cursor for mouse,
// touch and arrow keys that reads out the numbers.
"use strict";

const report = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "7 3", "8 3 2 3", "2 2.5"];

function element(name, attributes, parent, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  if (parent) parent.append(made);
  return made;
}

// Round steps of 1, 2 or 5 times a power of ten, or of 60 for angles.
function ticks(low, high, most, angles) {
  let step = 60;
  if (!angles) {
    const power = 10 ** Math.floor(Math.log10((high - low) / most));
    step = power * [1, 2, 5, 10].find((k) => (high - low) / (k * power) <= most);
  }
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; ++k) found.push(k * step);
  const places = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return found.map((value) => [value, value.toFixed(places).replace("-", "−")]);
}

function said(value) {
  if (value === null) return "–";
  return String(Number(value.toPrecision(4))).replace("-", "−");
}

class Chart {
  constructor(figure, spec) {
    this.figure = figure;
    this.spec = spec;
    this.dots = spec.kind === "dots";
    this.at = null; // index of the row under the cursor
    this.readout = figure.querySelector(".readout output");
    const column = (k) => spec.columns[k].values;
    this.series = spec.series.map((s, k) => ({
      name: s.name, x: column(s.x), y: column(s.y), colour: `var(--c${k % 7})`,
      dash: this.dots ? "" : DASHES[k % 4],
    }));
    this.legend(figure.querySelector(".legend"));
    const rows = spec.columns[0].values.map((_, k) => spec.columns.map((c) => c.values[k] ?? ""));
    const csv = [spec.columns.map((c) => `"${c.name}"`), ...rows].map((row) => row.join(",")).join("\n");
    figure.querySelector(".csv").href = "data:text/csv;charset=utf-8," + encodeURIComponent(csv + "\n");
    this.svg = element("svg", { tabindex: 0, role: "img" }, figure.querySelector(".plot"));
    this.svg.setAttribute("aria-label", `${spec.title}: ${spec.yLabel} against ${spec.xLabel}. Arrow keys read out values.`);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.show(null));
    this.svg.addEventListener("blur", () => this.show(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    const end = this.ranges().x[1]; // rows beyond it are in the table alone
    this.last = this.dots ? this.series[0].x.length - 1 : this.series[0].x.findLastIndex((x) => x <= end);
    for (const button of figure.querySelectorAll(".peaks button")) {
      const show = () => this.show(this.nearest(Number(button.dataset.x)));
      for (const kind of ["pointerenter", "focus", "click"]) button.addEventListener(kind, show);
      for (const kind of ["pointerleave", "blur"]) button.addEventListener(kind, () => this.show(null));
    }
    new ResizeObserver(() => requestAnimationFrame(() => this.draw())).observe(this.svg.parentElement);
  }

  legend(list) {
    if (this.series.length < 2) return;
    for (const s of this.series) {
      const item = document.createElement("li");
      const sample = element("svg", { viewBox: "0 0 30 10", "aria-hidden": "true" }, item);
      if (this.dots) element("circle", { cx: 15, cy: 5, r: 4, fill: s.colour }, sample);
      else element("path", { d: "M1 5H29", stroke: s.colour, "stroke-width": 2.5, "stroke-dasharray": s.dash }, sample);
      item.append(s.name);
      list.append(item);
    }
  }

  ranges() {
    const known = (values) => values.filter((v) => v !== null);
    const extent = (values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];
    const x = this.spec.xRange ?? extent(known(this.series.flatMap((s) => s.x)));
    let y = this.spec.yRange;
    if (!y) {
      const [low, high] = extent([...known(this.series.flatMap((s) => s.y)), ...this.spec.rules]);
      const margin = 0.05 * (high - low || Math.abs(high) || 1);
      // zero is the floor of what is positive and reaches near it
      y = [low >= 0 && low < 0.5 * high ? 0 : low - margin, high + margin];
    }
    return { x: x[0] < x[1] ? x : [x[0] - 1, x[0] + 1], y };
  }

  draw() {
    const width = Math.max(240, this.svg.parentElement.clientWidth);
    const peaks = this.spec.peaks;
    const left = 52, right = 14, top = peaks.length ? 58 : 26, bottom = 38;
    const height = this.dots ? width - left - right + top + bottom : Math.min(340, Math.max(240, 0.5 * width));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.replaceChildren();
    const range = this.ranges();
    const scale = ([low, high], from, to) => (v) => from + ((v - low) / (high - low)) * (to - from);
    this.x = scale(range.x, left, width - right);
    this.y = scale(range.y, height - bottom, top);
    this.box = { left, right: width - right, top, bottom: height - bottom };
    for (const [v, text] of ticks(...range.x, width / 80, this.dots)) {
      const x = this.x(v);
      element("path", { class: "grid", d: `M${x} ${top}V${height - bottom}` }, this.svg);
      element("text", { x, y: height - bottom + 16, "text-anchor": "middle" }, this.svg, text);
    }
    for (const [v, text] of ticks(...range.y, (height - top - bottom) / 40, this.dots)) {
      const y = this.y(v);
      element("path", { class: "grid", d: `M${left} ${y}H${width - right}` }, this.svg);
      element("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, this.svg, text);
    }
    element("path", { class: "axis", fill: "none", d: `M${left} ${top}V${height - bottom}H${width - right}` }, this.svg);
    element("text", { x: 2, y: 13 }, this.svg, this.spec.yLabel);
    element("text", { x: width - right, y: height - 5, "text-anchor": "end" }, this.svg, this.spec.xLabel);
    for (const v of this.spec.rules) element("path", { class: "rule", d: `M${left} ${this.y(v)}H${width - right}` }, this.svg);
    for (const s of this.series) this.dots ? this.drawDots(s) : this.drawCurve(s);
    this.drawPeaks(peaks);
    this.cursor = element("g", { "aria-hidden": "true" }, this.svg);
    this.show(this.at);
  }

  drawCurve(s) {
    let path = "", pen = "M";
    const end = this.ranges().x[1];
    s.x.forEach((x, k) => {
      if (s.y[k] === null || x > end) { pen = "M"; return; }
      path += `${pen}${this.x(x).toFixed(1)} ${this.y(s.y[k]).toFixed(1)}`;
      pen = "L";
    });
    element("path", { class: "curve", d: path, stroke: s.colour, "stroke-dasharray": s.dash }, this.svg);
  }

  drawDots(s) {
    const group = element("g", { fill: s.colour, "fill-opacity": 0.45 }, this.svg);
    s.x.forEach((x, k) => element("circle", { cx: this.x(x).toFixed(1), cy: this.y(s.y[k]).toFixed(1), r: 2 }, group));
  }

  // The highest first; a label that would touch another is left to the list below the chart.
  drawPeaks(peaks) {
    const taken = [];
    for (const [x, y] of [...peaks].sort((a, b) => b[1] - a[1])) {
      const place = this.x(x);
      if (taken.some((other) => Math.abs(other - place) < 13)) continue;
      taken.push(place);
      const up = this.y(y) - 5;
      element("text", { class: "peak", transform: `translate(${place + 4} ${up}) rotate(-90)` }, this.svg, x.toFixed(0));
    }
  }

  nearest(x) {
    const values = this.series[0].x.slice(0, this.last + 1);
    return values.reduce((best, v, k) => (Math.abs(v - x) < Math.abs(values[best] - x) ? k : best), 0);
  }

  point(event) {
    const place = this.svg.getBoundingClientRect();
    const px = event.clientX - place.left, py = event.clientY - place.top;
    if (this.dots) {
      let best = 0, least = Infinity;
      for (const s of this.series) s.x.forEach((x, k) => {
        const far = Math.hypot(this.x(x) - px, this.y(s.y[k]) - py);
        if (far < least) { best = k; least = far; }
      });
      this.show(best);
      return;
    }
    const [low, high] = this.ranges().x;
    const wanted = low + ((px - this.box.left) / (this.box.right - this.box.left)) * (high - low);
    const peak = this.spec.peaks.find(([x]) => Math.abs(this.x(x) - px) < 6);
    this.show(this.nearest(peak ? peak[0] : wanted));
  }

  key(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (event.key === "Escape") return this.show(null);
    if (!(event.key in steps)) return;
    event.preventDefault();
    this.show(this.at === null ? 0 : Math.min(this.last, Math.max(0, this.at + steps[event.key])));
  }

  show(row) {
    this.at = row;
    if (!this.cursor) return;
    this.cursor.replaceChildren();
    this.readout.textContent = "";
    if (row === null) return;
    const columns = this.spec.columns;
    if (!this.dots) {
      const x = this.x(this.series[0].x[row]);
      element("path", { class: "cursor", d: `M${x} ${this.box.top}V${this.box.bottom}` }, this.cursor);
    }
    for (const s of this.series) {
      if (s.y[row] === null) continue;
      element("circle", { cx: this.x(s.x[row]), cy: this.y(s.y[row]), r: 4, fill: s.colour, stroke: "var(--card)" }, this.cursor);
    }
    const peak = this.spec.peaks.some(([x]) => Math.abs(x - columns[0].values[row]) < 1e-3 * Math.abs(x));
    this.readout.textContent = columns.map((c) => `${c.name} ${said(c.values[row])}`).join(" · ") + (peak ? " · peak" : "");
  }
}

const charts = [...document.querySelectorAll("figure[data-chart]")].map(
  (figure) => new Chart(figure, report.charts[Number(figure.dataset.chart)]),
);
