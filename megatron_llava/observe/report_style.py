"""How a report looks, and the little script that tells the values under the pointer."""

from __future__ import annotations

import base64
import hashlib

STYLE = """
:root { color-scheme: light dark; --text: #1f2328; --soft: #59636e; --line: #d8dee4; --back: #fff;
  --panel: #f6f8fa; --mark: #c8f0c8; --good: #1a7f37; --bad: #cf222e; --odd: #9a6700;
  --c0: #0969da; --c1: #d1570a; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989; --c5: #0a7a80;
  --c6: #9a6700; --c7: #57606a; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --soft: #9da7b1; --line: #30363d;
  --back: #0d1117; --panel: #161b22; --mark: #1d4a2a; --good: #3fb950; --bad: #f85149;
  --odd: #d29922; --c0: #58a6ff; --c1: #ff9a57; --c2: #3fb950; --c3: #bc8cff; --c4: #f778ba;
  --c5: #39c5cf; --c6: #d29922; --c7: #9da7b1; } }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--text);
  background: var(--back); max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 .8rem; padding-bottom: .3rem;
  border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 0; }
p { margin: .3rem 0; } small, .sub { color: var(--soft); } .odd { color: var(--odd); }
code { font-size: .9em; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; margin: .8rem 0 0; }
a { color: var(--c0); text-decoration: none; } a:hover { text-decoration: underline; }
ul.notes { margin: 1rem 0 0; padding: .6rem 1rem .6rem 2rem; background: var(--panel);
  border-left: 4px solid var(--odd); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; font-weight: 400; }
.numbers td, .numbers th { text-align: right; white-space: nowrap; padding: .3rem .6rem; }
.numbers td:first-child, .numbers th:first-child { text-align: left; padding-left: 0; }
.numbers tr:first-child th, .settings tr:first-child th { color: var(--soft); }
.summary th, .facts th { color: var(--soft); padding-right: 1.6rem; }
.summary td:nth-child(2) { font-weight: 600; white-space: nowrap; }
.facts td { overflow-wrap: anywhere; }
.summary td:nth-child(3) { color: var(--soft); }
.total td { font-weight: 600; }
.settings { width: 100%; table-layout: fixed; } .settings td { overflow-wrap: anywhere; }
.settings td { padding: .12rem .9rem .12rem 0; }
.settings td:not(:first-child) { font-family: ui-monospace, Consolas, monospace; font-size: .86em; }
.settings tr:not(.differs) td { color: var(--soft); }
.settings .differs td:nth-child(2), .settings .differs td:first-child { font-weight: 600; }
.settings b { color: var(--odd); }
details { margin: .4rem 0; } summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
summary small { font-weight: 400; margin-left: .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr));
  gap: 1.2rem 1.6rem; }
figure { margin: 0; } .chart p { font-size: .82rem; color: var(--soft); margin: 0; }
.chart .odd { color: var(--odd); }
.chart figcaption { min-height: 2.9rem; } .plot { position: relative; }
.key { font-size: .82rem; margin-right: 1rem; white-space: nowrap; }
.key i { display: inline-block; width: 1.1rem; height: 0; border-top: 3px solid;
  margin-right: .35rem; vertical-align: middle; }
svg { display: block; width: 100%; height: auto; }
svg text { font: 11.5px system-ui, sans-serif; fill: var(--soft); }
svg path { fill: none; stroke: currentColor; stroke-width: 1.6; stroke-linejoin: round; }
svg .noisy path { stroke-width: 1; stroke-opacity: .4; }
svg .noisy path.trend { stroke-width: 2; stroke-opacity: 1; }
svg circle { fill: currentColor; } svg line { stroke: var(--line); }
svg .axis, svg .tick { stroke: var(--soft); } svg .cross { stroke: var(--soft); }
svg .resume { stroke: var(--odd); stroke-dasharray: 3 3; }
.tip { position: absolute; top: 0; pointer-events: none; background: var(--panel);
  padding: .2rem .5rem; border: 1px solid var(--line); font-size: .8rem; white-space: pre; }
.answers { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 12px; }
.answers figure { padding: 8px; border: 1px solid var(--line); border-left-width: 4px;
  font-size: .85rem; overflow-wrap: anywhere; }
.answers .frame { min-height: 112px; margin-bottom: .4rem; display: flex; align-items: center; }
.answers img { max-height: 150px; max-width: 100%; border: 1px solid var(--line); }
.right { border-left-color: var(--good) !important; } .right .answer { color: var(--good); }
.wrong { border-left-color: var(--bad) !important; } .wrong .answer { color: var(--bad); }
.answer { font-weight: 600; }
section { border-top: 1px solid var(--line); padding: .8rem 0; overflow-wrap: anywhere; }
section h2 { font-size: .95rem; border: 0; margin: 0; padding: 0; }
section figure img { margin: 1px; vertical-align: top; } section figcaption { color: var(--soft); }
pre { white-space: pre-wrap; background: var(--panel); padding: .8rem; max-height: 24rem;
  overflow: auto; margin: .5rem 0 0; }
mark { background: var(--mark); color: inherit; }
"""
STYLE += "".join(f".c{number} {{ color: var(--c{number}); }}\n" for number in range(8))

SCRIPT = """
for (const figure of document.querySelectorAll(".chart .plot")) {
  const svg = figure.querySelector("svg"), cross = svg.querySelector(".cross");
  const tip = figure.querySelector(".tip");
  const [low, high, left, right] = svg.dataset.scale.split(" ").map(Number);
  const curves = [...svg.querySelectorAll("path[data-steps]")].map(path => ({
    name: path.dataset.name, steps: path.dataset.steps.split(" ").map(Number),
    values: path.dataset.values.split(";") }));
  const nearest = (steps, wanted) => steps.reduce((best, step, index) =>
    Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? index : best, 0);
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect(), unit = box.width / svg.viewBox.baseVal.width;
    const place = (event.clientX - box.left) / unit;
    if (place < left - 4 || place > right + 4) { hide(); return; }
    const wanted = low + (place - left) / (right - left) * (high - low);
    const step = curves.map(curve => curve.steps[nearest(curve.steps, wanted)]).reduce((a, b) =>
      Math.abs(b - wanted) < Math.abs(a - wanted) ? b : a);
    const lines = curves.map(curve => [curve.name, curve.values[curve.steps.indexOf(step)]]);
    tip.textContent = ["step " + step.toLocaleString("en"), ...lines.filter(line => line[1])
      .map(line => line.join(": "))].join("\\n");
    const across = left + (step - low) / (high - low) * (right - left);
    cross.setAttribute("x1", across); cross.setAttribute("x2", across);
    cross.setAttribute("visibility", "visible");
    tip.hidden = false;
    const before = across > (left + right) / 2;
    tip.style.left = before ? "auto" : across * unit + 10 + "px";
    tip.style.right = before ? box.width - across * unit + 10 + "px" : "auto";
  });
}
"""

POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-"
    + base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    + "'"
)
"""What a browser may do for the page: load nothing, and run no script but this one."""
