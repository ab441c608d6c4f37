// What the pages share: their data, elements, colors and canvases.
"use strict";

const DATA = JSON.parse(document.getElementById("data").textContent);
const PALETTE = [
  "#0072B2",
  "#E69F00",
  "#009E73",
  "#CC79A7",
  "#D55E00",
  "#56B4E9",
  "#882255",
  "#999933",
  "#332288",
  "#44AA99",
];

const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A button in the page's style; `type` keeps it from ever submitting anything.
function button(text, action, attributes = {}) {
  const node = element("button", { type: "button", ...attributes }, text);
  node.onclick = action;
  return node;
}

// The 2-D context of a canvas, cleared, with its size in CSS pixels.
function context(canvas) {
  const ratio = window.devicePixelRatio,
    { clientWidth: w, clientHeight: h } = canvas;
  canvas.width = Math.round(w * ratio); // this also clears it
  canvas.height = Math.round(h * ratio);
  const g = canvas.getContext("2d");
  g.scale(ratio, ratio);
  return [g, w, h];
}

// Where the pointer is on a canvas, in CSS pixels.
function pointer(event, canvas) {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function circle(g, [x, y], radius) {
  g.beginPath();
  g.arc(x, y, radius, 0, 2 * Math.PI);
}

function line(g, from, to) {
  g.beginPath();
  g.moveTo(...from);
  g.lineTo(...to);
  g.stroke();
}

// A page draws on its canvases itself: again for another size, and for light or dark.
function redrawWith(draw, node) {
  new ResizeObserver(draw).observe(node);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
}
