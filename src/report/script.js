"use strict";
// Says the values under the pointer; a page without scripts lacks only that.
const shown = new Intl.NumberFormat("en", { maximumSignificantDigits: 4 });
let ready = 0;
for (const svg of document.querySelectorAll("svg.chart")) {
  const [left, right, first, last] = svg.dataset.x.split(" ").map(Number);
  const [top, bottom, low, high, log] = svg.dataset.y.split(" ").map(Number);
  const stepAt = x => Math.round(first + (x - left) / (right - left) * (last - first));
  const valueAt = y => {
    const part = (bottom - y) / (bottom - top);
    return log ? low * Math.pow(high / low, part) : low + part * (high - low);
  };
  const lines = [...svg.querySelectorAll("[data-name]")].map(line => ({
    name: line.dataset.name,
    points: line.getAttribute("points").trim().split(" ").map(p => p.split(",").map(Number)),
  }));
  const output = svg.closest("figure").querySelector("output");
  const hair = svg.querySelector(".hair");
  const move = event => {
    const box = svg.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * svg.viewBox.baseVal.width;
    const near = lines.map(l => l.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
    const at = near.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a)[0];
    hair.setAttribute("x1", at);
    hair.setAttribute("x2", at);
    const said = near.map((p, i) => (lines.length > 1 ? lines[i].name + " " : "") + shown.format(valueAt(p[1])));
    output.textContent = "step " + stepAt(at) + ": " + said.join(", ");
  };
  const leave = () => {
    hair.setAttribute("x1", -9);
    hair.setAttribute("x2", -9);
    output.textContent = "";
  };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerleave", leave);
  if (lines.length > 0 && lines.every(l => l.points.every(p => p.every(Number.isFinite)))) ready += 1;
}
document.documentElement.dataset.charts = ready;
