"""The monitor's page: HTML, style and script, with nothing from elsewhere."""

from __future__ import annotations

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>mode-monitor</title>
<link rel="stylesheet" href="/monitor.css">
<header>
  <h1 id="title">mode-monitor</h1>
  <span id="status" class="badge">waiting</span>
  <span id="facts"></span>
  <button id="stop" type="button">Stop the robot</button>
</header>
<main>
  <section class="wide">
    <h2>Actions <small><b class="sent">sent</b>, <b class="asked">proposed</b>,
      <b class="chunk">predicted chunks</b>, <b class="bad">interventions</b></small></h2>
    <div id="actions"></div></section>
  <section id="camerabox"><h2>Cameras</h2><div id="cameras"></div></section>
  <section><h2>Inference <small>from request to chunk, up to … ms</small></h2>
    <canvas id="latency"></canvas></section>
  <section><h2>Loop <small>ticks that began late, by up to … ms</small></h2>
    <canvas id="late"></canvas></section>
  <section><h2>Interventions <small>ticks</small></h2><table id="interventions"></table></section>
</main>
<script src="/monitor.js"></script>
</html>
"""

STYLE = """
:root { color-scheme: light dark; --line: #8884; }
:root { --sent: #2563eb; --asked: #94a3b8; --chunk: #f59e0b; --bad: #dc2626; }
body { margin: 0; font: 14px/1.4 system-ui, sans-serif; }
header { display: flex; gap: 1em; align-items: center; padding: .6em 1em; }
header { border-bottom: 1px solid var(--line); background: Canvas; }
header { position: sticky; top: 0; z-index: 1; }  /* the button stays where it is */
h1 { font-size: 1.1em; margin: 0; } h2 { font-size: 1em; margin: 0 0 .4em; }
small { color: gray; font-weight: normal; }
.sent { color: var(--sent); } .asked { color: var(--asked); }
.chunk { color: var(--chunk); } .bad { color: var(--bad); }
main { display: grid; gap: 1em; padding: 1em; grid-template-columns: repeat(3, minmax(0, 1fr)); }
section { border: 1px solid var(--line); border-radius: 6px; padding: .8em; }
.wide { grid-column: 1 / -1; }
main.seeing .wide { grid-column: span 2; }
@media (max-width: 900px) {
  main { grid-template-columns: minmax(0, 1fr); }
  main .wide, main.seeing .wide { grid-column: auto; }
}
.badge { padding: .1em .6em; border-radius: 1em; background: #8883; white-space: nowrap; }
.badge.running { background: #16a34a; color: white; }
.badge.holding { background: #d97706; color: white; }
.badge.silent, .badge.died, .badge.stopping { background: var(--bad); color: white; }
button { flex: none; margin-left: auto; padding: .6em 1.4em; border: 0; border-radius: 6px; cursor: pointer; }
button { background: var(--bad); color: white; font-weight: bold; font-size: 1em; }
button:focus-visible { outline: 3px solid #f59e0b; }
section canvas { width: 100%; display: block; }
#latency, #late { height: 170px; }
#cameras { display: grid; gap: .6em; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
figure { margin: 0; max-width: 400px; } figcaption { color: gray; font-size: .85em; }
td { padding: 0 1em 0 0; } td + td { text-align: right; }
"""

SCRIPT = r"""
"use strict";
const KEPT = 300;  // ticks in the plots
const $ = id => document.getElementById(id);
let ticks = [], chunks = [], since = 0, chunksSince = 0, run = null, names = [];

function plots(wanted) {
  if (wanted.join() === names.join()) return;
  names = wanted;
  $("actions").replaceChildren(...names.map(name => {
    const canvas = document.createElement("canvas");
    canvas.title = name;
    canvas.style.height = Math.max(48, Math.min(190, 400 / names.length)) + "px";
    return canvas;
  }));
}

function cleared(canvas) {  // as sharp as the screen, in its own pixels
  const scale = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  canvas.width = Math.round(w * scale); canvas.height = Math.round(h * scale);
  const c = canvas.getContext("2d");
  c.scale(scale, scale);
  return [c, w, h];
}

function color(name) { return getComputedStyle(document.documentElement).getPropertyValue(name); }

function drawAction(canvas, d) {
  const [c, w, full] = cleared(canvas), h = full - 14, left = 130;
  if (!ticks.length) return;
  const last = ticks[ticks.length - 1].tick, ahead = 40, first = last - KEPT;
  const shown = chunks.slice(-3);
  const values = ticks.flatMap(t => [t.action[d], t.proposal[d]])
    .concat(shown.flatMap(k => k.actions.map(a => a[d]))).filter(v => v !== null);
  if (!values.length) return;
  const low = Math.min(...values), high = Math.max(...values), span = (high - low) || 1;
  const x = t => left + (t - first) / (KEPT + ahead) * (w - left), y = v => 4 + (high - v) / span * (h - 8);
  function line(points, style, width) {
    c.strokeStyle = style; c.lineWidth = width; c.beginPath();
    let down = false;
    for (const [t, v] of points) {
      if (v === null || t < first) { down = false; continue; }
      down ? c.lineTo(x(t), y(v)) : c.moveTo(x(t), y(v));
      down = true;
    }
    c.stroke();
  }
  c.fillStyle = color("--line"); c.fillRect(x(last), 0, 1, h);
  c.globalAlpha = .6;
  for (const k of shown) line(k.actions.map((a, i) => [k.start + i, a[d]]), color("--chunk"), 3);
  c.globalAlpha = 1;
  line(ticks.map(t => [t.tick, t.proposal[d]]), color("--asked"), 1);
  line(ticks.map(t => [t.tick, t.action[d]]), color("--sent"), 2);
  c.fillStyle = color("--bad");
  for (const t of ticks)
    if (t.interventions.length && t.tick >= first) c.fillRect(x(t.tick) - 1, h + 2, 2, 8);
  c.fillStyle = "gray"; c.font = "12px system-ui";
  c.fillText(names[d], 0, 14, left - 10);
  c.fillText(`${low.toFixed(3)} to ${high.toFixed(3)}`, 0, 30, left - 10);
}

function bars(canvas, labels, counts) {
  const [c, w, h] = cleared(canvas);
  const most = Math.max(1, ...counts), step = w / counts.length;
  c.font = "10px system-ui"; c.textAlign = "center";
  counts.forEach((n, i) => {
    const size = n / most * (h - 34);
    c.fillStyle = color("--sent"); c.fillRect(i * step + 2, h - 16 - size, step - 4, size);
    c.fillStyle = "gray";
    if (n) c.fillText(n, (i + .5) * step, h - 20 - size);
    c.fillText(labels[i], (i + .5) * step, h - 4);
  });
}

function lateness() {
  const bounds = [0.1, 0.2, 0.5, 1, 2, 5, 10], counts = new Array(bounds.length + 1).fill(0);
  for (const t of ticks) {
    const i = bounds.findIndex(b => t.late <= b);
    counts[i < 0 ? bounds.length : i]++;
  }
  bars($("late"), bounds.map(String).concat("more"), counts);
}

async function camera(name) {
  const answer = await fetch("/camera/" + encodeURIComponent(name));
  if (!answer.ok) return;
  const [h, w] = answer.headers.get("X-Shape").split("x").map(Number);
  const rgb = new Uint8Array(await answer.arrayBuffer());
  let canvas = document.querySelector(`canvas[data-camera="${CSS.escape(name)}"]`);
  if (!canvas) {
    canvas = document.createElement("canvas"); canvas.dataset.camera = name;
    const figure = document.createElement("figure"), caption = document.createElement("figcaption");
    caption.textContent = name; figure.append(canvas, caption); $("cameras").append(figure);
  }
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const image = new ImageData(w, h);
  const rgba = image.data;
  for (let i = 0, j = 0; i < rgb.length; i += 3, j += 4) {
    rgba[j] = rgb[i]; rgba[j + 1] = rgb[i + 1]; rgba[j + 2] = rgb[i + 2]; rgba[j + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function show(s) {
  $("status").textContent = s.status; $("status").className = "badge " + s.status;
  if (s.status === "waiting") return;
  if (s.run !== run) { ticks = []; chunks = []; run = s.run; $("cameras").replaceChildren(); }
  ticks = ticks.concat(s.ticks);
  const now = x => x.episode === ticks.at(-1)?.episode;  // ticks are counted anew in each
  ticks = ticks.filter(now).slice(-KEPT); chunks = chunks.concat(s.chunks).filter(now).slice(-8);
  since = s.after; chunksSince = s.chunks_after;
  plots(s.actions);
  $("title").textContent = s.title || "mode-monitor";
  const newest = ticks[ticks.length - 1];
  $("facts").textContent = `${s.rate} Hz · tick ${newest ? newest.tick : 0} · missed deadlines ${s.misses}` +
    (newest ? ` · chunk delay ${newest.delay} ticks` : "") +
    (s.losses ? ` · inference lost ${s.losses} ×` : "") + ` · log ${s.log} ${s.log_message}`;
  [...$("actions").children].forEach(drawAction);
  bars($("latency"), s.latencies.bounds.map(String).concat("more"), s.latencies.counts);
  lateness();
  const found = Object.entries(s.interventions).sort();
  $("interventions").replaceChildren(...(found.length ? found : [["none", ""]]).map(([name, n]) => {
    const row = document.createElement("tr");
    for (const text of [name.replaceAll("_", " "), n]) {
      const cell = document.createElement("td"); cell.textContent = text; row.append(cell);
    }
    return row;
  }));
  $("camerabox").hidden = !s.cameras.length;
  document.querySelector("main").classList.toggle("seeing", s.cameras.length > 0);
}

async function poll() {
  try {
    const answer = await fetch(`/state?since=${since}&chunks=${chunksSince}`);
    const s = await answer.json();
    show(s);
    await Promise.all((s.cameras || []).map(camera));
  } catch (error) {
    $("status").textContent = "monitor is gone"; $("status").className = "badge died";
  }
  setTimeout(poll, 100);
}

$("stop").addEventListener("click", async () => {
  const answer = await fetch("/stop", {method: "POST", headers: {"X-Mode-Monitor": "stop"}});
  if (!answer.ok) $("status").textContent = "could not stop: " + await answer.text();
});
poll();
"""
