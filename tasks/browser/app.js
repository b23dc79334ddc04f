"use strict";
// A suite's report: everything is drawn here from data that lies beside it in small scripts, each of which calls `receive`. Scripts, because a page
// that is opened from a folder may load nothing else. All text of the data goes through textContent: none of it is ever read as HTML.

const main = document.getElementById("main");
const asked = new Map();

function receive(name, value) {
  asked.get(name)?.resolve(value);
}

function load(name) {
  if (!asked.has(name)) {
    const entry = {};
    entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
    asked.set(name, entry);
    const script = document.createElement("script");
    script.src = `data/${name}.js`;
    script.onerror = () => { asked.delete(name); entry.reject(new Error(`data/${name}.js is missing; write the report again`)); };
    document.head.append(script);
  }
  return asked.get(name).promise;
}

function make(tag, attributes = {}, ...children) {
  const node = tag.startsWith("svg:") ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return node;
}

function paint(...nodes) {
  main.replaceChildren(...nodes.flat(Infinity).filter(Boolean));
}

const digits = (value, number = 3) => (value === null || value === undefined ? "–" : value.toFixed(number));
const share = (value) => (value === null || value === undefined ? "–" : value === 0 ? "0" : value < 1e-3 ? value.toExponential(1) : `${(100 * value).toPrecision(3)}%`);
const count = (value) => value.toLocaleString("en");
const link = (place, ...children) => make("a", { href: `#/${place}` }, ...children);
const numbers = (pairs) => make("ul", { class: "numbers" }, pairs.filter(Boolean).map(([name, value]) => make("li", {}, make("b", {}, value), make("span", {}, name))));

// The suite

const METRICS = {
  fvu: ["fraction of variance unexplained", (d) => d.fvu, 3, false],
  delta: ["delta loss, nats a token", (d) => d.delta, 3, false],
  l0: ["L0, active latents a token", (d) => d.l0, 1, null],
  dead: ["dead latents, share", (d) => d.dead, 3, false],
  simulation: ["simulation score of explanations", (d) => d.explained?.trained.pearson?.mean ?? null, 2, true],
};

function colour(value, low, high) {
  // From violet to yellow by way of green (the ends of viridis), dark text on the light half.
  const at = high > low ? (value - low) / (high - low) : 0.5;
  return { background: `hsl(${285 - 225 * at} 55% ${30 + 38 * at}%)`, ink: at > 0.45 ? "#111" : "#fff" };
}

function tiles(suite, metric) {
  const [, of, places] = METRICS[metric];
  const values = suite.dictionaries.map(of).filter((value) => value !== null);
  const low = Math.min(...values), high = Math.max(...values);
  const layers = [...new Set(suite.dictionaries.map((d) => d.layer))].sort((a, b) => a - b);
  const kinds = ["resid_post", "mlp_out", "attn_z"].filter((kind) => suite.dictionaries.some((d) => d.kind === kind));
  const cell = (d) => {
    const value = of(d), shade = value === null ? null : colour(value, low, high);
    const tile = link(`d/${d.id}`, digits(value, places));
    tile.className = "tile";
    tile.title = `${d.site} ${d.name}`;
    if (shade) tile.style.cssText = `background:${shade.background};color:${shade.ink}`;
    return tile;
  };
  return make("table", { class: "tiles" },
    make("thead", {}, make("tr", {}, make("th", {}, "layer"), kinds.map((kind) => make("th", { style: "text-align:left" }, kind)))),
    make("tbody", {}, layers.map((layer) => make("tr", {}, make("th", {}, String(layer)),
      kinds.map((kind) => make("td", {}, suite.dictionaries.filter((d) => d.layer === layer && d.kind === kind).map(cell)))))));
}

const KIND_COLOURS = { resid_post: "#0072B2", mlp_out: "#D55E00", attn_z: "#009E73" };

function scatter(dictionaries, of, label) {
  const width = 460, height = 300, left = 52, bottom = 34, right = 10, top = 10;
  const points = dictionaries.filter((d) => d.l0 > 0);
  if (!points.length) return null;
  const xs = points.map((d) => Math.log10(d.l0)), ys = points.map(of);
  const x0 = Math.min(...xs) - 0.1, x1 = Math.max(...xs) + 0.1, y1 = Math.max(...ys) * 1.05 || 1, y0 = Math.min(0, ...ys.map((y) => y * 1.2));
  const x = (value) => left + (width - left - right) * (Math.log10(value) - x0) / (x1 - x0);
  const y = (value) => height - bottom - (height - bottom - top) * (value - y0) / (y1 - y0);
  const line = (a, b, c, d) => make("svg:line", { x1: a, y1: b, x2: c, y2: d, stroke: "var(--line)" });
  const text = (where, anchor, ...words) => make("svg:text", { ...where, "text-anchor": anchor }, ...words);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${label} against L0` });
  for (const tick of [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].filter((t) => Math.log10(t) >= x0 && Math.log10(t) <= x1)) {
    svg.append(line(x(tick), top, x(tick), height - bottom), text({ x: x(tick), y: height - bottom + 14 }, "middle", String(tick)));
  }
  for (let i = 0; i <= 4; i++) {
    const value = y0 + (y1 - y0) * i / 4;
    svg.append(line(left, y(value), width - right, y(value)), text({ x: left - 5, y: y(value) + 4 }, "end", value.toPrecision(2)));
  }
  svg.append(text({ x: (left + width) / 2, y: height - 4 }, "middle", "L0 (active latents a token)"));
  for (const d of points) {
    const dot = make("svg:circle", { cx: x(d.l0), cy: y(of(d)), r: 5, fill: KIND_COLOURS[d.kind], "fill-opacity": 0.85 },
      make("svg:title", {}, `${d.site} ${d.name}: L0 ${digits(d.l0, 1)}, ${label} ${digits(of(d))}`));
    svg.append(make("svg:a", { href: `#/d/${d.id}` }, dot));
  }
  return make("figure", { style: "margin:0" }, make("figcaption", { class: "quiet" }, label), svg);
}

async function showSuite() {
  const suite = await load("suite");
  const place = make("div", { class: "scroll" });
  const choice = make("select", { "aria-label": "Colour by", onchange: () => place.replaceChildren(tiles(suite, choice.value)) },
    Object.entries(METRICS).filter(([, [, of]]) => suite.dictionaries.some((d) => of(d) !== null)).map(([name, [words]]) => make("option", { value: name }, words)));
  const explained = suite.dictionaries.filter((d) => d.explained);
  const score = (subject, name) => (subject?.[name] ? digits(subject[name].mean, 2) : "–");
  paint(
    make("h1", {}, suite.title),
    make("p", { class: "quiet" }, `${count(suite.dictionaries.length)} of ${count(suite.total)} dictionaries on ${suite.model} are trained and scored.`),
    suite.failures.length ? make("section", {}, make("h2", {}, "Failed"), make("ul", {}, suite.failures.map((line) => make("li", {}, line)))) : null,
    make("h2", {}, "Every dictionary"), make("div", { class: "bar" }, make("label", {}, "coloured by ", choice)), place,
    make("h2", {}, "Fidelity at a given sparsity"),
    make("p", { class: "quiet" }, Object.entries(KIND_COLOURS).filter(([kind]) => suite.dictionaries.some((d) => d.kind === kind))
      .map(([kind, fill]) => [make("span", { style: `color:${fill}` }, "● "), `${kind}  `])),
    make("div", { class: "beside" }, scatter(suite.dictionaries, (d) => d.fvu, "fraction of variance unexplained"), scatter(suite.dictionaries, (d) => d.delta, "delta loss (nats a token)")),
    explained.length ? make("section", {}, make("h2", {}, "What latents mean"), make("p", { class: "quiet" }, suite.legend), make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, ["dictionary", "explained", "simulation", "control", "detection", "control", "fuzzing", "control"].map((head) => make("th", {}, head)))),
      make("tbody", {}, explained.map((d) => make("tr", {}, make("td", {}, link(`d/${d.id}`, `${d.site} ${d.name}`)), make("td", {}, count(d.explained.trained.explained)),
        ["pearson", "detection", "fuzzing"].flatMap((name) => [d.explained.trained, d.explained.control].map((subject) => make("td", {}, score(subject, name))))))))),
      make("p", {}, link("rate", "Rate latents"), " without knowing whose they are; jumpsuite ratings joins the answers.")) : null,
  );
  place.replaceChildren(tiles(suite, choice.value));
  trail();
}

// A dictionary

function bars(labels, values, title) {
  const width = 460, height = 170, bottom = 26, step = width / values.length, high = Math.max(...values, 1);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
  values.forEach((value, i) => {
    const tall = (height - bottom - 16) * value / high;
    svg.append(make("svg:rect", { x: i * step + 1, y: height - bottom - tall, width: step - 2, height: tall, fill: "var(--link)" }, make("svg:title", {}, `${labels[i]}: ${count(value)}`)));
    if (value) svg.append(make("svg:text", { x: (i + 0.5) * step, y: height - bottom - tall - 3, "text-anchor": "middle" }, count(value)));
    svg.append(make("svg:text", { x: (i + 0.5) * step, y: height - 10, "text-anchor": "middle" }, labels[i]));
  });
  return make("figure", { style: "margin:0" }, make("figcaption", { class: "quiet" }, title), svg);
}

function curve(begins, values, title) {
  const width = 460, height = 190, left = 52, bottom = 34, top = 10, right = 10, known = values.filter((value) => value !== null);
  if (!known.length) return null;
  const low = Math.min(0, ...known), high = Math.max(0, ...known, low + 1e-9) * 1.05, at = (i) => left + (width - left - right) * (begins.length > 1 ? i / (begins.length - 1) : 0.5);
  const y = (value) => height - bottom - (height - bottom - top) * (value - low) / (high - low);
  const svg = make("svg:svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": title });
  for (let i = 0; i <= 3; i++) {
    const value = low + (high - low) * i / 3;
    svg.append(make("svg:line", { x1: left, y1: y(value), x2: width - right, y2: y(value), stroke: "var(--line)" }), make("svg:text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }, value.toPrecision(2)));
  }
  const shown = begins.map((begin, i) => [at(i), values[i], begin]).filter(([, value]) => value !== null);
  svg.append(make("svg:polyline", { points: shown.map(([x, value]) => `${x},${y(value)}`).join(" "), fill: "none", stroke: "var(--link)", "stroke-width": 2 }));
  for (const [x, value, begin] of shown) {
    svg.append(make("svg:circle", { cx: x, cy: y(value), r: 3.5, fill: "var(--link)" }, make("svg:title", {}, `from position ${begin}: ${digits(value)}`)), make("svg:text", { x, y: height - 18, "text-anchor": "middle" }, String(begin)));
  }
  svg.append(make("svg:text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "position in the sequence, from"));
  return make("figure", { style: "margin:0" }, make("figcaption", { class: "quiet" }, title), svg);
}

const rows = new Map(); // of dictionaries that were looked at: their latents

async function latentsOf(d) {
  if (!rows.has(d.id)) {
    const all = [];
    for (let first = 0; first < d.width; first += d.latents_a_file) {
      const part = await load(`${d.id}/latents-${first}`);
      part.frequency.forEach((frequency, i) => all.push({ latent: first + i, frequency, text: "", score: null }));
      for (const [latent, text, ...scores] of part.explained) Object.assign(all[latent], { text, score: scores[0], scores, lower: text.toLowerCase() });
    }
    rows.set(d.id, all);
  }
  return rows.get(d.id);
}

const HEIGHT = 32;
const kept = new Map(); // of dictionaries: what was searched for, the order, and the place, for who comes back

function latentTable(d, all) {
  const state = kept.get(d.id) ?? { query: "", column: "score", down: true, top: 0, selected: 0 };
  kept.set(d.id, state);
  let shown = [];
  const body = make("div", { class: "body", tabindex: "0", role: "listbox", "aria-label": "Latents" }), spacer = make("div"), said = make("span", { class: "quiet", role: "status" });
  body.append(spacer);
  const search = make("input", { type: "search", placeholder: "search explanations, or a latent's number", "aria-label": "Search latents", value: state.query });

  function draw() {
    state.top = body.scrollTop;
    const first = Math.max(0, Math.floor(body.scrollTop / HEIGHT) - 4), last = Math.min(shown.length, first + Math.ceil(body.clientHeight / HEIGHT) + 9);
    spacer.style.height = `${shown.length * HEIGHT}px`;
    body.replaceChildren(spacer, ...shown.slice(first, last).map((row, i) => {
      const line = link(`l/${d.id}/${row.latent}`, make("span", {}, String(row.latent)), make("span", {}, share(row.frequency)), make("span", {}, digits(row.score, 2)), make("span", { title: row.text }, row.text || (row.frequency ? "" : "dead on this text")));
      line.className = "row";
      line.tabIndex = -1;
      line.setAttribute("role", "option");
      line.setAttribute("aria-selected", String(first + i === state.selected));
      line.style.top = `${(first + i) * HEIGHT}px`;
      return line;
    }));
  }

  function choose() {
    const query = search.value.trim().toLowerCase(), number = /^\d+$/.test(query) ? Number(query) : null;
    state.query = search.value;
    shown = number !== null ? all.filter((row) => row.latent === number) : query ? all.filter((row) => (row.lower ?? "").includes(query)) : all.slice();
    const of = (row) => row[state.column], sign = state.down ? -1 : 1;
    // What has no value goes last, whichever way it is sorted.
    shown.sort((a, b) => (of(a) === null || of(a) === "" ? 1 : 0) - (of(b) === null || of(b) === "" ? 1 : 0) || (of(a) < of(b) ? -sign : of(a) > of(b) ? sign : a.latent - b.latent));
    said.textContent = `${count(shown.length)} of ${count(all.length)} latents`;
    state.selected = Math.min(state.selected, Math.max(0, shown.length - 1));
    draw();
  }

  search.addEventListener("input", () => { state.selected = 0; body.scrollTop = 0; choose(); });
  body.addEventListener("scroll", draw);
  body.addEventListener("keydown", (event) => {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 12, PageUp: -12, Home: -shown.length, End: shown.length }[event.key];
    if (steps !== undefined) {
      state.selected = Math.max(0, Math.min(shown.length - 1, state.selected + steps));
      const top = state.selected * HEIGHT;
      if (top < body.scrollTop) body.scrollTop = top;
      else if (top + HEIGHT > body.scrollTop + body.clientHeight) body.scrollTop = top + HEIGHT - body.clientHeight;
      draw();
      event.preventDefault();
    } else if (event.key === "Enter" && shown.length) {
      location.hash = `#/l/${d.id}/${shown[state.selected].latent}`;
    }
  });
  const columns = [["latent", "latent"], ["frequency", "fires on"], ["score", "score"], ["text", "explanation"]];
  const head = make("div", { class: "head" }, columns.map(([column, words]) => make("button", { type: "button", onclick: () => {
    state.down = state.column === column ? !state.down : column !== "latent" && column !== "text";
    state.column = column;
    body.scrollTop = 0;
    choose();
  } }, words)));
  const table = make("section", {}, make("div", { class: "bar" }, search, said), make("div", { class: "grid" }, head, body),
    make("p", { class: "keys" }, make("kbd", {}, "/"), " search  ", make("kbd", {}, "↑"), " ", make("kbd", {}, "↓"), " choose  ", make("kbd", {}, "Enter"), " open"));
  return { table, begin: () => { const top = state.top; choose(); body.scrollTop = top; draw(); } };
}

async function showDictionary(id) {
  const suite = await load("suite"), d = suite.dictionaries.find((each) => each.id === id);
  if (!d) throw new Error(`${id} is not in this report`);
  const section = make("section", {}, make("p", { class: "quiet" }, d.explained ? "Loading its latents …" : "Its latents are not explained yet: run jumpsuite explain, then jumpsuite report."));
  paint(
    make("h1", {}, `${d.site} ${d.name}`),
    numbers([["latents", count(d.width)], ["L0, active latents a token", digits(d.l0, 1)], ["fraction of variance unexplained", digits(d.fvu)],
      ["delta loss, nats a token", digits(d.delta) + (d.delta_interval ? ` ± ${digits((d.delta_interval[1] - d.delta_interval[0]) / 2)}` : "")], ["with the site's mean in its place", digits(d.mean, 2)],
      ["with zeros in its place", digits(d.zero, 2)], ["KL from the intact model, nats a token", digits(d.divergence)], ["cosine with the activation", digits(d.cosine)], ["relative norm", digits(d.relative_norm)],
      ["uniformity of active latents", digits(d.uniformity, 2)], ["dead latents", share(d.dead)], ...Object.entries(d.dense).map(([frequency, latents]) => [`latents on more than ${100 * frequency}% of tokens`, share(latents)])]),
    make("div", { class: "beside" },
      bars(d.histogram.log10_edges.slice(0, -1).map((edge) => digits(edge, 1)), d.histogram.latents, "latents by how often they fire (log10 of the share of tokens, from)"),
      d.simulation ? bars([...Array(10).keys()].map((i) => digits(i / 10, 1)), d.simulation, "explained latents by simulation score (from)") : null,
      curve(d.by_position.begins, d.by_position.fvu, "fraction of variance unexplained, by position"),
      curve(d.by_position.begins, d.by_position.delta, "delta loss, by position")),
    make("h2", {}, "Latents"), section);
  trail([`d/${id}`, `${d.site} ${d.name}`]);
  if (!d.explained) return;
  const { table, begin } = latentTable(d, await latentsOf(d));
  section.replaceChildren(table);
  begin();
}

// A latent

function example(entry, text, highest) {
  const [kind, context, positions, values] = entry, tokens = text.tokens[context - text.first], of = new Map(positions.map((position, i) => [position, values[i]]));
  const line = make("span", { class: "text" }, tokens.map((token, position) => {
    const value = of.get(position);
    return make("span", value ? { style: `background:rgba(var(--fires),${(0.12 + 0.7 * value / highest).toFixed(2)})`, title: `${value.toPrecision(3)}` } : {}, token);
  }));
  return make("div", { class: "example" }, make("span", { class: "peak" }, kind === "quiet" ? "quiet" : Math.max(...values).toPrecision(3)), line);
}

async function showLatent(id, latent) {
  const suite = await load("suite"), d = suite.dictionaries.find((each) => each.id === id);
  if (!d?.explained || !(latent >= 0 && latent < d.width)) throw new Error(`${id} has no latent ${latent} in this report`);
  const first = Math.floor(latent / d.pages_a_file) * d.pages_a_file, all = await latentsOf(d), row = all[latent];
  const page = (await load(`${id}/pages-${first}`))[latent - first];
  const places = [...new Set(page.examples.map(([, context]) => Math.floor(context / suite.contexts_a_file) * suite.contexts_a_file))];
  const texts = new Map(await Promise.all(places.map(async (place) => [place, await load(`text/${place}`)])));
  const highest = Math.max(...page.examples.flatMap(([, , , values]) => values), 1e-9);
  const shown = (kind) => page.examples.filter(([of]) => of === kind).map((entry) => example(entry, texts.get(Math.floor(entry[1] / suite.contexts_a_file) * suite.contexts_a_file), highest));
  const part = (title, nodes) => (nodes.length ? make("section", {}, make("h2", {}, title), nodes) : null);
  const tokens = (pairs) => make("p", {}, pairs.map(([token, value]) => [make("span", { class: "token", title: value.toFixed(1) }, token), " "]));
  const score = (i) => digits(row.scores?.[i] ?? null, 2);
  paint(
    make("h1", {}, `Latent ${latent}`),
    make("p", { class: "said" }, row.text || (row.frequency ? "not explained: not among the latents that were drawn" : "fires nowhere in this text")),
    numbers([["fires on", share(row.frequency)], row.scores && ["simulation", score(0)], row.scores && ["rank correlation", score(1)], row.scores && ["detection", score(2)], row.scores && ["fuzzing", score(3)]]),
    part("Where it is highest", shown("top")),
    part("Drawn at random from where it fires", shown("sample")),
    part("Drawn at random from where it does not", shown("quiet")),
    make("div", { class: "beside" },
      page.raised.length ? make("section", {}, make("h2", {}, "Tokens that it makes likelier"), tokens(page.raised)) : null,
      page.lowered.length ? make("section", {}, make("h2", {}, "Tokens that it makes less likely"), tokens(page.lowered)) : null),
    page.nearest.length ? make("section", {}, make("h2", {}, "Nearest latents, by the cosine of their decoder directions"), make("div", { class: "scroll" }, make("table", {}, make("tbody", {},
      page.nearest.map(([other, cosine]) => make("tr", {}, make("td", {}, link(`l/${id}/${other}`, String(other))), make("td", {}, digits(cosine, 2)), make("td", { style: "text-align:left" }, all[other].text))))))) : null,
    make("p", { class: "keys" }, make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " the latents beside it  ", make("kbd", {}, "Esc"), " back to all"),
  );
  trail([`d/${id}`, `${d.site} ${d.name}`], [`l/${id}/${latent}`, `latent ${latent}`]);
}

// The rating page: latents of all dictionaries and of random directions, in an order and under names that tell nothing.

const ANSWERS = { y: "yes", m: "maybe", n: "no" };

async function showRating() {
  const suite = await load("suite"), items = await load("rating"), place = `jumpsuite-rating-${suite.name}`;
  const kept = JSON.parse(localStorage.getItem(place) ?? '{"rater":"","ratings":{}}');
  const keep = () => localStorage.setItem(place, JSON.stringify(kept));
  const waiting = items.findIndex((item) => !(item.name in kept.ratings));
  rating.at = rating.at ?? (waiting < 0 ? 0 : waiting);

  function draw() {
    const item = items[rating.at], given = kept.ratings[item.name], highest = Math.max(...item.examples.flatMap(([, , , values]) => values), 1e-9);
    const text = (tokens) => ({ first: 0, tokens: [tokens] });
    const shown = (kind) => item.examples.filter(([of]) => of === kind).map(([, tokens, places, values]) => example([kind, 0, places, values], text(tokens), highest));
    paint(
      make("h1", {}, `Latent ${rating.at + 1} of ${count(items.length)}`),
      make("p", {}, "Do the marked tokens, in their contexts, have something in common that you could say in a sentence?"),
      make("div", { class: "bar" }, Object.entries(ANSWERS).map(([key, answer]) => make("button", { type: "button", "aria-pressed": String(given === answer), onclick: () => rating.give(key) }, `${answer} `, make("kbd", {}, key)))),
      make("h2", {}, "Where it is highest"), shown("top"), make("h2", {}, "Drawn at random from where it fires"), shown("sample"),
      make("p", { class: "keys" }, make("kbd", {}, "←"), " ", make("kbd", {}, "→"), " the ones before and after"),
      make("div", { class: "bar" }, make("span", { role: "status" }, `${count(items.filter((each) => each.name in kept.ratings).length)} of ${count(items.length)} rated, kept in this browser`),
        make("label", {}, "your name ", make("input", { value: kept.rater, onchange: (event) => { kept.rater = event.target.value; keep(); } })),
        make("button", { type: "button", onclick: save }, "Save as a file")));
  }

  function save() {
    const data = new Blob([JSON.stringify({ suite: suite.name, rater: kept.rater, ratings: kept.ratings }, null, 1)], { type: "application/json" });
    const file = make("a", { href: URL.createObjectURL(data), download: `rating-${suite.name}-${kept.rater || "anonymous"}.json` });
    file.click();
    URL.revokeObjectURL(file.href);
  }

  rating.go = (step) => { rating.at = Math.max(0, Math.min(items.length - 1, rating.at + step)); draw(); scrollTo(0, 0); };
  rating.give = (key) => { kept.ratings[items[rating.at].name] = ANSWERS[key]; keep(); rating.go(1); };
  draw();
  trail(["rate", "rating"]);
}

const rating = {};

// Where one is

function trail(...steps) {
  document.getElementById("trail").replaceChildren(...steps.flatMap(([place, words]) => ["› ", link(place, words), " "]));
  document.title = [...steps.map(([, words]) => words).reverse(), "Jumpsuite"].join(" · ");
}

async function show() {
  const [kind, site, name, latent] = location.hash.slice(2).split("/").map(decodeURIComponent);
  try {
    if (kind === "d") await showDictionary(`${site}/${name}`);
    else if (kind === "l") await showLatent(`${site}/${name}`, Number(latent));
    else if (kind === "rate") await showRating();
    else await showSuite();
    if (kind !== "d") scrollTo(0, 0);
  } catch (error) {
    paint(make("h1", {}, "Not here"), make("p", {}, error.message), make("p", {}, link("", "to the suite")));
  }
}

// One after another: a place that takes long to load must not be drawn over the one that was gone to since.
let drawn = show();
addEventListener("hashchange", () => { drawn = drawn.then(show); });
addEventListener("keydown", (event) => {
  if (event.target.matches("input, select") || event.ctrlKey || event.metaKey || event.altKey) return;
  const [kind, site, name, latent] = location.hash.slice(2).split("/");
  if (event.key === "/" && document.querySelector("input[type=search]")) {
    document.querySelector("input[type=search]").focus();
    event.preventDefault();
  } else if (kind === "rate" && rating.go && event.key in ANSWERS) rating.give(event.key);
  else if (kind === "rate" && rating.go && event.key === "ArrowRight") rating.go(1);
  else if (kind === "rate" && rating.go && event.key === "ArrowLeft") rating.go(-1);
  else if (kind === "l" && event.key === "Escape") location.hash = `#/d/${site}/${name}`;
  else if (kind === "l" && event.key === "ArrowRight") location.hash = `#/l/${site}/${name}/${Number(latent) + 1}`;
  else if (kind === "l" && event.key === "ArrowLeft" && Number(latent) > 0) location.hash = `#/l/${site}/${name}/${Number(latent) - 1}`;
});
load("suite").then((suite) => { document.getElementById("home").textContent = suite.name; document.getElementById("footer").textContent = suite.made; });
