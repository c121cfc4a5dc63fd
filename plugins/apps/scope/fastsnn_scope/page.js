"use strict";
// The map of tokens and sites. Plain canvas, no library; the page says the same without it, as a table.
(async () => {
  const source = document.getElementById("data");
  if (!source) return;
  const all = JSON.parse(source.textContent), A = all.a, B = all.b;
  const cells = A.cells, sites = cells.sites, X = cells.columns, S = sites.length;
  const $ = (id) => document.getElementById(id);
  const clamp = (v, low, high) => Math.max(low, Math.min(high, v));
  const kl = A.divergence ? A.divergence.kl : null;
  const us = (A.speed || {}).layer_us || {};
  const twin = B && B.cells && B.cells.sites ? Object.fromEntries(B.cells.sites.map((r) => [r.site, r])) : null;
  const aligned = twin && B.cells.columns === X && String(B.cells.labels) === String(cells.labels);

  // -- numbers ------------------------------------------------------------------------------------------------------
  const percent = (v) => (100 * v).toFixed(1) + "%";
  const bytes = (n) => n < 1000 ? Math.round(n) + " B" : n < 1e6 ? (n / 1e3).toPrecision(3) + " kB" : (n / 1e6).toPrecision(3) + " MB";
  const short = (v) => v === null || v === undefined ? "–" : Number(v.toPrecision(4)).toString();
  const silent = (r, t) => 1 - r.active[t] / r.channels;
  const unread = (r, t) => (r.channels - r.active[t]) * r.row_bytes;
  const label = (t) => {
    const text = cells.labels[t];
    if (text === undefined) return cells.axis + " " + t;
    return [...text].map((c) => c === " " ? "␣" : c === "\n" ? "↵" : c === "\t" ? "⇥" : c === "\ufffd" ? "·" : c).join("") || "∅";
  };
  for (const r of sites) {
    r.unread = r.row_bytes * (r.channels - r.active.reduce((a, b) => a + b, 0) / X);
    r.us = r.readers.reduce((a, n) => a + (us[n] || 0), 0) || null;
    r.problems = r.channel_problems.reduce((a, p) => a + p.count, 0);
    r.words = [r.site, r.name, r.neuron, ...r.channel_problems.map((p) => p.kind)].join(" ").toLowerCase();
  }
  const most = (f) => sites.reduce((m, r) => { for (let t = 0; t < X; t++) m = Math.max(m, f(r, t)); return m; }, 0) || 1;
  const metrics = {
    silent: ["silent channels", silent, 1, percent],
    spikes: ["spikes per channel", (r, t) => r.spikes[t] / r.channels, 0, short],
    unread: ["bytes not read", unread, 0, bytes],
  };
  if (aligned) {
    metrics.other = ["silent channels of " + B.name, (r, t) => twin[r.site] ? silent(twin[r.site], t) : NaN, 1, percent];
    metrics.change = ["difference: " + B.name + " − " + A.name, (r, t) => twin[r.site] ? silent(twin[r.site], t) - silent(r, t) : NaN, 1, percent];
  }
  for (const m of Object.values(metrics)) m[2] = m[2] || most(m[1]);

  // -- the view, which the address keeps ----------------------------------------------------------------------------
  const view = {t: 0, s: 0, m: "silent", c: "spikes", q: "", o: "", x: 0, y: 0, z: 1, open: 0};
  let written = "";
  function read() {
    const text = location.hash.slice(1);
    if (!text.includes("=") || text === written) return false;
    const given = new URLSearchParams(text);
    for (const [key, old] of Object.entries(view)) {
      const v = given.get(key);
      if (v === null) continue;
      if (typeof old === "string") view[key] = v;
      else if (Number.isFinite(+v)) view[key] = +v;
    }
    view.t = clamp(Math.round(view.t), 0, X - 1);
    view.s = clamp(Math.round(view.s), 0, S - 1);
    if (!(view.m in metrics)) view.m = "silent";
    if (view.c !== "kl" || !kl) view.c = "spikes";
    return true;
  }
  let soon = 0;
  function keep() {
    clearTimeout(soon);
    soon = setTimeout(() => {
      const said = new URLSearchParams();
      for (const [key, v] of Object.entries(view)) if (v !== "" && v !== 0) said.set(key, typeof v === "number" ? +v.toFixed(3) : v);
      written = said.toString();
      try { history.replaceState(null, "", "#" + written); } catch { /* a notebook's frame has no address */ }
    }, 120);
  }

  // -- colours: cividis, dark is silent -----------------------------------------------------------------------------
  const stops = [[254, 232, 56], [188, 175, 111], [124, 123, 120], [65, 77, 107], [0, 34, 78]];
  const around = [[213, 94, 0], [236, 170, 120], [200, 200, 200], [110, 170, 214], [0, 84, 160]];
  function colour(v, ramp = stops) {
    if (Number.isNaN(v)) return [128, 128, 128];
    const at = clamp(v, 0, 1) * 4, i = Math.min(3, Math.floor(at));
    return ramp[i].map((c, k) => Math.round(c + (ramp[i + 1][k] - c) * (at - i)));
  }
  function shade(r, t) {
    const [, f, top] = metrics[view.m], v = f(r, t);
    if (view.m === "change") return colour(0.5 + v / 2, around);
    return colour(view.m === "spikes" ? 1 - v / top : v / top);
  }
  const css = (c) => `rgb(${c})`;
  const ink = () => getComputedStyle(document.body).color;
  const warm = () => getComputedStyle(document.body).getPropertyValue("--mark");

  // -- the map ------------------------------------------------------------------------------------------------------
  const map = $("map"), pen = map.getContext("2d"), sheet = document.createElement("canvas");
  sheet.width = X; sheet.height = S;
  const gutter = () => map.clientWidth > 640 ? 190 : 0;
  const wide = () => map.clientWidth - gutter(), high = () => map.clientHeight;
  const across = () => X / view.z, down = () => S / view.z;  // cells that are visible
  let dirty = false;
  window.spikescope = {view, frames: 0};
  function paint() {
    const brush = sheet.getContext("2d"), image = brush.createImageData(X, S);
    for (let s = 0, i = 0; s < S; s++) for (let t = 0; t < X; t++, i += 4) {
      const [r, g, b] = shade(sites[s], t);
      image.data[i] = r; image.data[i + 1] = g; image.data[i + 2] = b; image.data[i + 3] = 255;
    }
    brush.putImageData(image, 0, 0);
    const ramp = view.m === "change" ? around : view.m === "spikes" ? [...stops].reverse() : stops;
    $("ramp").style.background = `linear-gradient(to right, ${ramp.map(css)})`;
    const show = metrics[view.m][3], top = metrics[view.m][2];
    $("low").textContent = view.m === "change" ? "−100%" : show(0);
    $("high").textContent = show(top);
  }
  function draw() {
    dirty = false;
    window.spikescope.frames++;
    const dots = window.devicePixelRatio || 1, w = map.clientWidth, h = map.clientHeight, left = gutter();
    if (map.width !== Math.round(w * dots)) map.width = Math.round(w * dots);
    if (map.height !== Math.round(h * dots)) map.height = Math.round(h * dots);
    pen.setTransform(dots, 0, 0, dots, 0, 0);
    pen.clearRect(0, 0, w, h);
    pen.imageSmoothingEnabled = false;
    pen.drawImage(sheet, view.x, view.y, across(), down(), left, 0, wide(), h);
    const cw = wide() / across(), ch = h / down();
    const px = (t) => left + (t - view.x) * cw, py = (s) => (s - view.y) * ch;
    pen.lineWidth = 2;
    pen.strokeStyle = warm();
    const room = Math.max(cw, 7), tall = Math.max(ch, 7);
    pen.save();
    pen.beginPath(); pen.rect(left, 0, wide(), h); pen.clip();
    pen.globalAlpha = 0.35;
    pen.strokeRect(px(view.t), -2, cw, h + 4);
    pen.strokeRect(left - 2, py(view.s), w, ch);
    pen.globalAlpha = 1;
    for (const [line, width] of [["#fff", 5], ["#000", 2.5]]) {
      pen.strokeStyle = line; pen.lineWidth = width;
      pen.strokeRect(px(view.t) + cw / 2 - room / 2, py(view.s) + ch / 2 - tall / 2, room, tall);
    }
    pen.restore();
    if (!left) return;
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle"; pen.textAlign = "right";
    const every = Math.ceil(13 / ch), row = (s) => clamp(py(s) + ch / 2, 7, h - 7);
    for (let s = Math.max(0, Math.floor(view.y)); s < Math.min(S, view.y + down()); s++) {
      if (s !== view.s && (s % every || Math.abs(row(s) - row(view.s)) < 12)) continue;
      pen.fillStyle = s === view.s ? warm() : ink();
      let text = sites[s].site.replace("feedforward", "ffn").replace("attention", "attn");
      if (text.length > 28) text = "…" + text.slice(-27);
      pen.fillText(text, left - 8, row(s));
    }
  }
  function again() { if (!dirty) { dirty = true; requestAnimationFrame(draw); } }
  function bound() {
    view.z = clamp(view.z, 1, Math.max(1, Math.max(X / 8, S / 4)));
    view.x = clamp(view.x, 0, X - across());
    view.y = clamp(view.y, 0, S - down());
  }
  function zoom(by, fx = 0.5, fy = 0.5) {
    const cx = view.x + fx * across(), cy = view.y + fy * down();
    view.z *= by;
    view.z = clamp(view.z, 1, Math.max(1, Math.max(X / 8, S / 4)));
    view.x = cx - fx * across(); view.y = cy - fy * down();
    bound(); again(); keep();
  }
  function pan(dx, dy) { view.x += dx; view.y += dy; bound(); again(); keep(); }
  function reveal() {
    if (view.t < view.x) view.x = view.t;
    if (view.t + 1 > view.x + across()) view.x = view.t + 1 - across();
    if (view.s < view.y) view.y = view.s;
    if (view.s + 1 > view.y + down()) view.y = view.s + 1 - down();
    bound();
  }
  const pointers = new Map();
  let moved = 0;
  const at = (e) => {
    const box = map.getBoundingClientRect();
    return [clamp((e.clientX - box.left - gutter()) / wide(), 0, 1), clamp((e.clientY - box.top) / high(), 0, 1)];
  };
  map.addEventListener("pointerdown", (e) => { pointers.set(e.pointerId, e); moved = 0; map.setPointerCapture(e.pointerId); });
  map.addEventListener("pointermove", (e) => {
    const old = pointers.get(e.pointerId);
    if (!old) return;
    const dx = e.clientX - old.clientX, dy = e.clientY - old.clientY;
    moved += Math.abs(dx) + Math.abs(dy);
    if (pointers.size === 2) {
      const [other] = [...pointers.values()].filter((p) => p.pointerId !== e.pointerId);
      const far = (p) => Math.hypot(p.clientX - other.clientX, p.clientY - other.clientY) || 1;
      zoom(far(e) / far(old), ...at(e));
    } else pan(-dx * across() / wide(), -dy * down() / high());
    pointers.set(e.pointerId, e);
  });
  const drop = (e) => {
    if (pointers.delete(e.pointerId) && moved < 6 && e.type === "pointerup") {
      const [fx, fy] = at(e);
      choose(Math.floor(view.x + fx * across()), Math.floor(view.y + fy * down()));
      toggle(1);
    }
  };
  map.addEventListener("pointerup", drop);
  map.addEventListener("pointercancel", drop);
  map.addEventListener("wheel", (e) => {
    if (e.ctrlKey || e.metaKey) { e.preventDefault(); zoom(Math.exp(-e.deltaY / 200), ...at(e)); return; }
    if (view.z === 1) return;  // everything is visible: the page scrolls
    e.preventDefault();
    pan(e.deltaX * across() / wide(), e.deltaY * down() / high());
  }, {passive: false});
  map.addEventListener("keydown", (e) => {
    const step = e.shiftKey ? 8 : 1;
    const keys = {
      ArrowLeft: () => choose(view.t - step, view.s), ArrowRight: () => choose(view.t + step, view.s),
      ArrowUp: () => choose(view.t, view.s - step), ArrowDown: () => choose(view.t, view.s + step),
      Home: () => choose(0, view.s), End: () => choose(X - 1, view.s),
      PageUp: () => choose(view.t, 0), PageDown: () => choose(view.t, S - 1),
      "+": () => zoom(1.5), "=": () => zoom(1.5), "-": () => zoom(1 / 1.5),
      0: () => { Object.assign(view, {x: 0, y: 0, z: 1}); again(); keep(); },
      Enter: () => { toggle(1); $("cell").focus(); }, Escape: () => toggle(0),
    };
    if (e.ctrlKey || e.altKey || e.metaKey || !keys[e.key]) return;
    e.preventDefault();
    keys[e.key]();
  });

  // -- one cell -----------------------------------------------------------------------------------------------------
  let blob = null;
  async function unpack() {
    if (!all.blob || typeof DecompressionStream === "undefined") return;
    const raw = Uint8Array.from(atob(all.blob), (c) => c.charCodeAt(0));
    const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
    blob = await new Response(stream).arrayBuffer();
  }
  function parts(s) {
    if (!blob) return null;
    const {at: from, channels, traced} = all.places[s], counts = from + 2 * X, u = counts + channels.length * X;
    const wideBits = Uint32Array.from(new Uint16Array(blob, from, X), (v) => v << 16);
    return {
      channels, traced, threshold: new Float32Array(wideBits.buffer),
      counts: new Int8Array(blob, counts, channels.length * X), u: new Int8Array(blob, u, traced.length * X),
    };
  }
  function choose(t, s) {
    view.t = clamp(t, 0, X - 1);
    view.s = clamp(s, 0, S - 1);
    const r = sites[view.s], show = metrics[view.m];
    const beside = aligned && twin[r.site] ? `; ${B.name}: ${percent(silent(twin[r.site], view.t))}` : "";
    $("say").textContent = `${cells.labels.length ? label(view.t) + " " : ""}(${cells.axis} ${view.t}), ${r.site}: ${percent(silent(r, view.t))} silent${beside}, `
      + `${r.channels - r.active[view.t]} of ${r.channels} rows not read`;
    map.setAttribute("aria-label", `Map of ${S} sites and ${X} ${cells.axis}s, coloured by ${show[0]}. Chosen: ${$("say").textContent}`);
    reveal(); mark(); again(); keep();
    if (view.open) cell();
  }
  function toggle(open) {
    const inside = $("cell").contains(document.activeElement);
    view.open = open;
    $("cell").hidden = !open;
    if (open) cell();
    else if (inside) map.focus();
    keep();
  }
  function canvas(id, height) {
    const c = $(id), dots = window.devicePixelRatio || 1, w = c.clientWidth;
    c.style.height = height + "px";
    c.width = Math.round(w * dots); c.height = Math.round(height * dots);
    const p = c.getContext("2d");
    p.setTransform(dots, 0, 0, dots, 0, 0);
    return [p, w];
  }
  function cell() {
    const r = sites[view.s], t = view.t, p = parts(view.s), other = aligned ? twin[r.site] : null;
    $("cellname").textContent = `${label(t)} at ${r.site}`;
    const facts = [
      ["rows not read", `${r.channels - r.active[t]} of ${r.channels} (${percent(silent(r, t))})`],
      ["bytes not read", r.row_bytes ? `${bytes(unread(r, t))} of ${bytes(r.weight_bytes)}` : "no matrix is read row by row"],
      ["spikes", `${r.spikes[t]}, ${short(r.spikes[t] / r.channels)} a channel`],
      ["threshold", p ? short(p.threshold[t]) : "–"],
      ["time of its layers", r.us ? `${r.us.toFixed(0)} µs a ${A.speed.unit}` : "not timed alone"],
      ["neuron", r.neuron + (r.name ? `, ${r.name} in the spec` : "")],
      ["read by", r.readers.join(", ") || "–"],
    ];
    if (kl) facts.push(["KL from the dense weights", `${short(kl[t])} nats after this token`]);
    if (other) facts.push([B.name, `${percent(silent(other, t))} silent, ${other.spikes[t]} spikes, ${bytes(unread(other, t))} not read`]);
    for (const f of r.channel_problems) facts.push([`${f.kind} channels`, `${f.count}: ${f.channels.join(", ")}${f.count > f.channels.length ? " …" : ""}. ${f.fix}`]);
    $("facts").replaceChildren(...facts.map(([name, value]) => {
      const box = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = name; dd.textContent = value;
      box.append(dt, dd);
      return box;
    }));
    for (const id of ["raster", "rastername", "membrane", "membranename"]) $(id).hidden = !p;
    if (!p) return;
    const span = 48, first = clamp(t - span / 2, 0, Math.max(0, X - span)), n = Math.min(span, X - first);
    const C = p.channels.length, each = clamp(Math.floor(190 / C), 3, 10);
    $("rastername").textContent = `Raster: ${C} of ${r.channels} channels, ${cells.axis}s ${first} to ${first + n - 1}`;
    const [pen1, w] = canvas("raster", C * each), step = w / n;
    for (let c = 0; c < C; c++) for (let i = 0; i < n; i++) {
      const v = p.counts[c * X + first + i];
      if (!v) continue;
      const deep = clamp(Math.log2(1 + Math.abs(v)) / 4, 0.3, 1);
      pen1.fillStyle = v > 0 ? `rgba(20,110,190,${deep})` : `rgba(214,94,10,${deep})`;
      pen1.fillRect(i * step, c * each, Math.max(1, step - 1), each - 1);
    }
    pen1.strokeStyle = warm(); pen1.lineWidth = 2;
    pen1.strokeRect((t - first) * step, 0, step, C * each);
    let here = 0;
    for (let c = 0; c < C; c++) here += p.counts[c * X + t] !== 0;
    $("raster").setAttribute("aria-label", `${here} of the ${C} channels shown spike at this ${cells.axis}; blue counts are positive, orange negative.`);
    const [pen2, w2] = canvas("membrane", 150), mid = 75, colours = ["#0072b2", "#d55e00", "#009e73"];
    let top = 1;
    for (let k = 0; k < p.traced.length; k++) for (let i = 0; i < n; i++) top = Math.max(top, Math.abs(p.u[k * X + first + i]) / 16);
    const y = (v) => mid - v / top * 66;
    pen2.strokeStyle = ink(); pen2.globalAlpha = 0.45; pen2.setLineDash([4, 3]); pen2.lineWidth = 1;
    for (const level of [1, -1]) { pen2.beginPath(); pen2.moveTo(0, y(level)); pen2.lineTo(w2, y(level)); pen2.stroke(); }
    pen2.setLineDash([]); pen2.globalAlpha = 1; pen2.lineWidth = 1.6;
    const said = p.traced.map((channel, k) => {
      pen2.strokeStyle = pen2.fillStyle = colours[k];
      pen2.beginPath();
      for (let i = 0; i < n; i++) pen2[i ? "lineTo" : "moveTo"]((i + 0.5) * w2 / n, y(p.u[k * X + first + i] / 16));
      pen2.stroke();
      pen2.font = "11px system-ui, sans-serif";
      pen2.fillText(`channel ${channel}`, 4 + 84 * k, 11);
      return `channel ${channel} at ${short(p.u[k * X + t] / 16)} thresholds`;
    });
    pen2.strokeStyle = warm(); pen2.globalAlpha = 0.5;
    pen2.strokeRect((t - first) * w2 / n, 0, w2 / n, 150);
    pen2.globalAlpha = 1;
    $("membrane").setAttribute("aria-label", `Dashed: one threshold. Here ${said.join(", ")}.`);
  }
  $("close").onclick = () => toggle(0);
  $("cell").addEventListener("keydown", (e) => { if (e.key === "Escape") { e.preventDefault(); toggle(0); map.focus(); } });
  $("open").onclick = () => { toggle(1); $("cell").focus(); };
  $("in").onclick = () => zoom(1.5);
  $("out").onclick = () => zoom(1 / 1.5);
  $("fit").onclick = () => { Object.assign(view, {x: 0, y: 0, z: 1}); again(); keep(); };

  // -- the strip of tokens ------------------------------------------------------------------------------------------
  const strip = $("strip"), boxes = [];
  for (let t = 0; t < X; t++) {
    const b = document.createElement("button");
    b.type = "button"; b.tabIndex = -1; b.textContent = cells.labels.length ? label(t) : t;
    b.onclick = () => choose(t, view.s);
    boxes.push(b);
  }
  strip.append(...boxes);
  strip.addEventListener("keydown", (e) => {
    const by = {ArrowRight: 1, ArrowLeft: -1, Home: -X, End: X}[e.key];
    if (!by) return;
    e.preventDefault();
    choose(view.t + by, view.s);
    boxes[view.t].focus();
  });
  function tint() {
    const total = sites.reduce((a, r) => a + r.channels, 0);
    const f = view.c === "kl" ? (t) => kl[t] : (t) => sites.reduce((a, r) => a + r.spikes[t], 0) / total;
    const values = boxes.map((_, t) => f(t)), low = Math.min(...values), top = Math.max(...values);
    boxes.forEach((b, t) => {
      const v = (values[t] - (view.c === "kl" ? 0 : low)) / ((top - (view.c === "kl" ? 0 : low)) || 1);
      b.style.backgroundColor = `rgba(225, 120, 20, ${(0.05 + 0.75 * v).toFixed(3)})`;
      b.title = `${label(t)}: ` + (view.c === "kl" ? short(values[t]) + " nats" : short(values[t]) + " spikes per channel");
      b.setAttribute("aria-label", b.title);
    });
  }
  function mark() {
    const old = strip.querySelector("[aria-current]");
    if (old) { old.removeAttribute("aria-current"); old.tabIndex = -1; }
    const now = boxes[view.t];
    now.setAttribute("aria-current", "true");
    now.tabIndex = 0;
    const box = strip.getBoundingClientRect(), here = now.getBoundingClientRect();
    if (here.top < box.top || here.bottom > box.bottom) strip.scrollTop += here.top - box.top - 30;
    for (const row of $("sites").tBodies[0].rows) row.classList.toggle("chosen", +row.dataset.site === view.s);
  }

  // -- the table of sites -------------------------------------------------------------------------------------------
  const columns = [
    ["site", (r) => r.site, (r) => r.site], ["in the spec", (r) => r.name, (r) => r.name || "–"],
    ["channels", (r) => r.channels, (r) => r.channels], ["silent", (r) => r.silent_fraction, (r) => percent(r.silent_fraction)],
    ["spikes / channel", (r) => r.spikes_per_channel, (r) => r.spikes_per_channel.toFixed(3)],
    ["bytes behind", (r) => r.weight_bytes, (r) => bytes(r.weight_bytes)], ["not read", (r) => r.unread, (r) => bytes(r.unread)],
    ["µs", (r) => r.us || 0, (r) => r.us ? r.us.toFixed(0) : "–"],
    ["findings", (r) => r.problems, (r) => r.channel_problems.map((p) => `${p.count} ${p.kind}`).join(", ") || "–"],
  ];
  if (twin) columns.splice(4, 0, ["silent, " + B.name, (r) => twin[r.site] ? twin[r.site].silent_fraction : -1, (r) => twin[r.site] ? percent(twin[r.site].silent_fraction) : "–"]);
  function listed() {
    const words = view.q.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = sites.map((r, s) => [r, s]).filter(([r]) => words.every((w) => r.words.includes(w)));
    const by = columns.findIndex(([name]) => name === view.o.replace(/^-/, "")), sign = view.o.startsWith("-") ? -1 : 1;
    if (by >= 0) {
      const value = columns[by][1];
      rows.sort(([a], [b]) => sign * (typeof value(a) === "string" ? value(a).localeCompare(value(b), "en", {numeric: true}) : value(a) - value(b)));
    }
    return rows;
  }
  function head() {
    const row = document.createElement("tr");
    for (const [name] of columns) {
      const th = document.createElement("th"), b = document.createElement("button");
      th.scope = "col"; b.type = "button"; b.textContent = name;
      b.onclick = () => { view.o = view.o === "-" + name ? name : view.o === name ? "" : "-" + name; table(); keep(); };
      th.append(b); row.append(th);
    }
    $("sites").tHead.replaceChildren(row);
  }
  function table() {
    [...$("sites").tHead.rows[0].cells].forEach((th, i) => {
      const name = columns[i][0], now = view.o === name ? "ascending" : view.o === "-" + name ? "descending" : "none";
      th.setAttribute("aria-sort", now);
    });
    const rows = listed();
    $("sites").tBodies[0].replaceChildren(...rows.map(([r, s]) => {
      const tr = document.createElement("tr");
      tr.dataset.site = s;
      columns.forEach(([, value, show], i) => {
        const td = document.createElement("td");
        if (i) { td.textContent = show(r); if (typeof value(r) === "number" && i < columns.length - 1) td.className = "n"; }
        else {
          const b = document.createElement("button");
          b.type = "button"; b.textContent = r.site;
          b.onclick = () => choose(view.t, s);
          td.append(b);
        }
        tr.append(td);
      });
      return tr;
    }));
    $("count").textContent = `${rows.length} of ${S} sites`;
    mark();
  }
  $("filter").oninput = () => { view.q = $("filter").value; table(); keep(); };

  // -- files --------------------------------------------------------------------------------------------------------
  function save(name, kind, body) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(body instanceof Blob ? body : new Blob([body], {type: kind}));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  const quote = (v) => /[",\n]/.test(v) ? `"${String(v).replaceAll('"', '""')}"` : v;
  function svg() {
    const size = [Math.max(2, Math.min(8, 900 / X)), 9], rows = [];
    for (let s = 0; s < S; s++) for (let t = 0, from = 0; t < X; t++) {
      const c = css(shade(sites[s], t).map((v) => v & ~7));
      if (t + 1 < X && c === css(shade(sites[s], t + 1).map((v) => v & ~7))) continue;
      rows.push(`<rect x="${(200 + from * size[0]).toFixed(1)}" y="${s * size[1]}" width="${((t + 1 - from) * size[0]).toFixed(1)}" height="${size[1]}" fill="${c}"/>`);
      from = t + 1;
    }
    const safe = (text) => text.replace(/[&<>]/g, (c) => ({"&": "&amp;", "<": "&lt;", ">": "&gt;"})[c]);
    const names = sites.map((r, s) => `<text x="195" y="${s * size[1] + 7.5}" font-size="7" text-anchor="end">${safe(r.site)}</text>`);
    return `<svg xmlns="http://www.w3.org/2000/svg" width="${200 + X * size[0]}" height="${S * size[1]}" font-family="sans-serif">${names.join("")}${rows.join("")}</svg>`;
  }
  const files = {
    json: () => save("spikescope.json", "application/json", JSON.stringify({a: A, b: B}, null, 1)),
    csv: () => save("sites.csv", "text/csv", [columns.map(([n]) => quote(n)), ...listed().map(([r]) => columns.map(([, v]) => quote(v(r))))].map((r) => r.join(",")).join("\n") + "\n"),
    svg: () => save("map.svg", "image/svg+xml", svg()),
    png: () => map.toBlob((b) => save("map.png", "", b)),
  };
  window.spikescope.svg = svg;
  for (const b of document.querySelectorAll("[data-save]")) b.onclick = files[b.dataset.save];

  // -- begin --------------------------------------------------------------------------------------------------------
  for (const [key, [name]] of Object.entries(metrics)) $("metric").append(new Option(name, key));
  $("metric").onchange = () => { view.m = $("metric").value; paint(); choose(view.t, view.s); };
  $("tint").onchange = () => { view.c = $("tint").value; tint(); keep(); };
  if (!kl) $("by").hidden = true;
  function show() {
    $("metric").value = view.m; $("tint").value = view.c; $("filter").value = view.q;
    bound(); paint(); tint(); table(); choose(view.t, view.s); toggle(view.open ? 1 : 0);
  }
  $("app").hidden = false; $("plain").hidden = true;
  map.style.height = clamp(S * 13, 200, Math.min(460, 0.6 * innerHeight)) + "px";
  head();
  read();
  show();
  await unpack();
  if (view.open) cell();
  addEventListener("hashchange", () => { if (read()) show(); });
  new ResizeObserver(() => { again(); if (view.open) cell(); }).observe(map);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { again(); if (view.open) cell(); });
  if (location.hash.includes("=")) $("explore").scrollIntoView();
  window.spikescope.ready = true;
})();
