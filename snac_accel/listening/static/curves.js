// Lines over the steps of a run, as SVG; dashes tell them apart where colours do not.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 520;
const HEIGHT = 230;
const MARGIN = { left: 58, right: 12, top: 10, bottom: 30 };
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "1 4", "12 4"];

function shape(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, String(value));
  made.append(...children);
  return made;
}

function round(value) {
  return Math.abs(value) >= 10000 || (value !== 0 && Math.abs(value) < 0.001) ? value.toExponential(1) : String(Number(value.toPrecision(3)));
}

function curvesFigure({ title, unit, series, is_logarithmic: isLogarithmic }) {
  const lines = Object.entries(series);
  const points = lines.flatMap(([, line]) => line);
  const scale = isLogarithmic ? Math.log10 : (value) => value;
  const unscale = isLogarithmic ? (value) => 10 ** value : (value) => value;
  const [left, right] = extent(points.map(([step]) => step));
  const [low, high] = extent(points.map(([, value]) => scale(value)));
  const x = (step) => MARGIN.left + ((step - left) / (right - left)) * (WIDTH - MARGIN.left - MARGIN.right);
  const y = (value) => HEIGHT - MARGIN.bottom - ((scale(value) - low) / (high - low)) * (HEIGHT - MARGIN.top - MARGIN.bottom);
  const said = lines.map(([name, line]) => `${name} from ${round(line[0][1])} to ${round(line[line.length - 1][1])}`).join(", ");
  const drawing = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${said}` });
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const value = unscale(low + share * (high - low));
    drawing.append(shape("line", { class: "grid", x1: MARGIN.left, x2: WIDTH - MARGIN.right, y1: y(value), y2: y(value) }));
    drawing.append(shape("text", { class: "tick", x: MARGIN.left - 6, y: y(value) + 4, "text-anchor": "end" }, round(value)));
    const step = left + share * (right - left);
    const anchor = share === 1 ? "end" : share === 0 ? "start" : "middle";
    drawing.append(shape("text", { class: "tick", x: x(step), y: HEIGHT - 10, "text-anchor": anchor }, round(step)));
  }
  lines.forEach(([, line], index) => {
    const path = line.map(([step, value], i) => `${i ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    drawing.append(shape("path", { class: `line colour-${index % 6}`, d: path, "stroke-dasharray": DASHES[index % 6] }));
  });
  const legend = lines.map(([name, line], index) => {
    const sample = shape("svg", { class: "sample", viewBox: "0 0 28 8", "aria-hidden": "true" });
    sample.append(shape("path", { class: `line colour-${index % 6}`, d: "M0 4L28 4", "stroke-dasharray": DASHES[index % 6] }));
    return element("li", {}, sample, ` ${name}: ${round(line[0][1])} → ${round(line[line.length - 1][1])}`);
  });
  return element("figure", {}, element("figcaption", {}, element("strong", {}, title), unit ? ` (${unit})` : ""), drawing, element("ul", { class: "legend" }, legend));
}

// Smallest and largest, never the same.
function extent(values) {
  const low = Math.min(...values);
  const high = Math.max(...values);
  return high > low ? [low, high] : [low - Math.abs(low || 1) * 0.1, high + Math.abs(high || 1) * 0.1];
}
