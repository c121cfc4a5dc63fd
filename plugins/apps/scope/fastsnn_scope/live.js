"use strict";
// Curves of a training run; asks the process that serves it for new rows, and nobody else.
(() => {
  const {name, rows, follow} = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const colours = () => dark.matches ? ["#6db3ee", "#f09a52", "#3fc9a3", "#dd9cc8"] : ["#1f6fae", "#b4530f", "#0b7a5d", "#9a4f82"];
  const percent = (v) => (100 * v).toFixed(1) + "%", four = (v) => Number(v.toPrecision(4)).toString();
  const count = (v) => Math.round(v).toLocaleString("en");
  const charts = [
    ["Loss in nats", {loss: "training", held_out: "held out"}, four, false],
    ["Accuracy", {accuracy: "accuracy"}, percent, false],
    ["Silent", {silent: "channels", silent_bytes: "weight bytes"}, percent, true],
    ["Speed per second", {tokens_per_second: "tokens", samples_per_second: "samples"}, count, true],
    ["Gradient norm", {gradient_norm: "norm"}, four, true],
  ];
  $("name").textContent = name;
  const make = (tag, text, parent) => { const e = document.createElement(tag); e.textContent = text; parent.append(e); return e; };
  const newest = (key) => { for (let i = rows.length - 1; i >= 0; i--) if (typeof rows[i][key] === "number") return rows[i][key]; return null; };
  const drawn = charts.map(([title, keys, show, zero]) => {
    const box = document.createElement("div");
    make("h3", title, box);
    const canvas = make("canvas", "", box);
    canvas.setAttribute("role", "img");
    canvas.style.width = "100%"; canvas.style.height = "190px";
    $("charts").append(box);
    return {box, canvas, title, keys, show, zero};
  });
  function chart({box, canvas, title, keys, show, zero}) {
    const lines = Object.entries(keys).map(([key, said]) => [said, rows.filter((r) => typeof r[key] === "number").map((r) => [r.step, r[key]])]).filter(([, l]) => l.length);
    box.hidden = !lines.length;
    if (!lines.length) return;
    const dots = devicePixelRatio || 1, w = canvas.clientWidth, h = 190, left = 58, foot = 22, top = 18;
    canvas.width = Math.round(w * dots); canvas.height = Math.round(h * dots);
    const pen = canvas.getContext("2d"), values = lines.flatMap(([, l]) => l.map(([, v]) => v)), steps = lines.flatMap(([, l]) => l.map(([s]) => s));
    const least = zero ? 0 : Math.min(...values), rough = (Math.max(...values, least + 1e-9) - least) / 3, power = 10 ** Math.floor(Math.log10(rough));
    const each = [1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) * power;  // round numbers beside the lines
    const low = Math.floor(least / each + 1e-6) * each, high = Math.ceil(Math.max(...values, low + each) / each - 1e-6) * each, first = Math.min(...steps), last = Math.max(...steps, first + 1);
    const x = (s) => left + (s - first) / (last - first) * (w - left - 8), y = (v) => h - foot - (v - low) / (high - low) * (h - foot - top);
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.font = "11px system-ui, sans-serif";
    pen.fillStyle = getComputedStyle(document.body).color; pen.strokeStyle = "rgba(128,128,128,.35)";
    for (let v = low; v < high + each / 2; v += each) {
      pen.beginPath(); pen.moveTo(left, y(v)); pen.lineTo(w - 8, y(v)); pen.stroke();
      pen.textAlign = "right"; pen.textBaseline = "middle"; pen.fillText(show(v), left - 6, y(v));
    }
    pen.textAlign = "left"; pen.fillText("step " + first, left, h - 8);
    pen.textAlign = "right"; pen.fillText(last, w - 8, h - 8);
    pen.textAlign = "left";
    lines.forEach(([said, line], i) => {
      pen.strokeStyle = pen.fillStyle = colours()[i]; pen.lineWidth = 1.8;
      pen.beginPath();
      line.forEach(([s, v], n) => pen[n ? "lineTo" : "moveTo"](x(s), y(v)));
      pen.stroke();
      for (const [s, v] of line.length < 40 ? line : line.slice(-1)) { pen.beginPath(); pen.arc(x(s), y(v), 2.4, 0, 7); pen.fill(); }
      pen.fillText(said, left + 4 + 90 * i, 8);
    });
    canvas.setAttribute("aria-label", `${title}: ` + lines.map(([said, l]) => `${said} ${show(l[0][1])} at step ${l[0][0]}, ${show(l.at(-1)[1])} at step ${l.at(-1)[0]}`).join("; "));
  }
  function show(state) {
    $("state").textContent = `${rows.length} rows, step ${rows.length ? rows.at(-1).step : "–"}${state}`;
    $("cards").replaceChildren();
    for (const [, keys, how] of charts) for (const [key, said] of Object.entries(keys)) {
      const v = newest(key);
      if (v === null) continue;
      const li = make("li", "", $("cards"));
      make("h2", key.replaceAll("_", " "), li);
      make("p", how(v), li).className = "figure";
    }
    drawn.forEach(chart);
    const sites = rows.findLast((r) => r.silent_sites)?.silent_sites || {};
    $("silent").hidden = !Object.keys(sites).length;
    $("rows").replaceChildren();
    for (const [site, v] of Object.entries(sites)) {
      const tr = make("tr", "", $("rows"));
      make("td", site, tr);
      make("td", percent(v), tr).className = "n";
    }
  }
  async function more() {
    let state = "; looking for more every two seconds";
    try {
      const answer = await fetch("/rows?after=" + rows.length);
      if (!answer.ok) throw 0;
      rows.push(...await answer.json());
    } catch { state = "; the process that served this page is gone"; }
    show(state);
    setTimeout(more, 2000);
  }
  show(follow ? "" : "");
  if (follow) more();
  addEventListener("resize", () => drawn.forEach(chart));
  dark.addEventListener("change", () => drawn.forEach(chart));
})();
