"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-US");
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;
const FIRST_SPECIAL = 199998;
const CLAMP_TOKENS = 150;
const state = { found: [], at: 0, tokens: [], on: -1, starts: [], address: 0 };

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function wordOf(piece) {
  return data.words[Array.isArray(piece) ? piece.join(",") : piece];
}

/* ---- which examples ---- */

const texts = new Map();
function textOf(index) {
  if (!texts.has(index)) {
    const example = data.examples[index];
    const row = data.rows[example.row];
    const parts = [row.source, row.bad || ""];
    for (const block of example.blocks || []) {
      for (const span of block.spans) {
        parts.push(data.ids[span[0]].map((piece) => (piece < 0 ? " … " : wordOf(piece))).join(""));
      }
    }
    texts.set(index, parts.join("\n").toLowerCase());
  }
  return texts.get(index);
}

function noticesOf(example) {
  const row = data.rows[example.row];
  return row.bad ? ["bad row"] : row.notices.map((notice) => notice[0]);
}

function option(select, value, text) {
  const node = make("option", "", text);
  node.value = value;
  select.append(node);
}

function fillFilters() {
  const counts = new Map();
  let without = 0;
  for (const example of data.examples) {
    const kinds = new Set(noticesOf(example));
    if (!kinds.size) without += 1;
    for (const kind of kinds) counts.set(kind, (counts.get(kind) || 0) + 1);
  }
  option(element("notice"), "", "any");
  for (const [kind, count] of [...counts].sort((a, b) => b[1] - a[1])) {
    option(element("notice"), `=${kind}`, `${kind} (${number(count)})`);
  }
  option(element("notice"), "none", `none (${number(without)})`);
  option(element("channel"), "", "any");
  for (const channel of data.channels.slice(1)) {
    const count = data.examples.filter((example) => (example.trained || {})[channel]).length;
    option(element("channel"), channel, `${channel} (${number(count)})`);
  }
  const untrained = data.examples.filter((example) => !Object.keys(example.trained || {}).length).length;
  option(element("channel"), "none", `nothing (${number(untrained)})`);
}

function applyFilters(keep) {
  const kind = element("notice").value;
  const channel = element("channel").value;
  const words = element("search").value.toLowerCase();
  state.found = data.examples.map((_, index) => index).filter((index) => {
    const example = data.examples[index];
    const kinds = noticesOf(example);
    const trained = example.trained || {};
    if (kind === "none" ? kinds.length : kind && !kinds.includes(kind.slice(1))) return false;
    if (channel === "none" ? Object.keys(trained).length : channel && !trained[channel]) return false;
    return !words || textOf(index).includes(words);
  });
  const at = state.found.indexOf(keep);
  go(at < 0 ? 0 : at);
}

function go(at) {
  state.at = Math.max(0, Math.min(at, state.found.length - 1));
  const index = state.found[state.at];
  element("previous").disabled = state.at === 0;
  element("next").disabled = state.at >= state.found.length - 1;
  element("jump").value = index === undefined ? "0" : String(state.at + 1);
  const all = state.found.length === data.examples.length;
  element("count").textContent = `of ${number(state.found.length)}${all ? "" : " found"}`;
  /* Browsers refuse hundreds of these in a row, as a held key would ask for. */
  clearTimeout(state.address);
  if (index !== undefined) state.address = setTimeout(() => history.replaceState(null, "", `#${index + 1}`), 200);
  draw(index);
}

/* ---- one example ---- */

function draw(index) {
  const main = element("example");
  state.tokens = [];
  state.starts = [];
  point(-1);
  if (index === undefined) {
    main.replaceChildren(make("p", "empty", "No example matches."));
    return;
  }
  const example = data.examples[index];
  const row = data.rows[example.row];
  const nodes = [make("h2", "", row.source)];
  if (row.bad) {
    nodes.push(make("p", "meta gone", "This row cannot be used."), make("p", "", row.bad));
    main.replaceChildren(...nodes);
    return;
  }
  nodes.push(...headOf(example, row));
  const tokens = make("div", "tokens");
  tokens.tabIndex = 0;
  tokens.setAttribute("role", "group");
  tokens.setAttribute("aria-label", "Tokens. The arrow keys move from one to the next.");
  for (const block of example.blocks) tokens.append(blockOf(block));
  main.replaceChildren(...nodes, tokens);
  clamp(tokens);
  fold();
  highlight(tokens);
}

function headOf(example, row) {
  const turn = example.side || example.turn === null ? row.kind : example.whole ? `all ${row.turns} turns in one sequence` : `turn ${example.turn + 1} of ${row.turns}` + (example.actions > 1 ? `, action ${example.action + 1} of ${example.actions}` : "");
  const channels = Object.entries(example.trained).map(([name, count]) => `${name} ${number(count)}`);
  const trained = Object.values(example.trained).reduce((a, b) => a + b, 0);
  const parts = [turn, example.side, row.format, `effort ${row.effort} (${row.why})`, plural(example.tokens, "token")];
  parts.push(`${number(trained)} trained${channels.length ? ` (${channels.join(", ")})` : ""}`);
  const meta = make("p", "meta", parts.filter(Boolean).join(" · "));
  if (trained) {
    const jump = make("button", "", "Go to the trained part");
    jump.type = "button";
    jump.addEventListener("click", () => document.querySelector(".block.on-target").scrollIntoView({ block: "start" }));
    meta.append(jump);
  }
  const nodes = [meta];
  if (example.leftOut) nodes.push(make("p", "gone", example.leftOut));
  if (row.notices.length) {
    const list = make("ul", "notices");
    for (const [kind, count, text] of row.notices) {
      const item = make("li");
      item.append(make("b", "", count > 1 ? `${kind} ×${number(count)}` : kind), ` ${text}`);
      list.append(item);
    }
    nodes.push(list);
  }
  return nodes;
}

function blockOf(block) {
  const trained = block.spans.some((span) => span[2] > 0);
  const node = make("section", "block");
  if (trained) node.classList.add("on-target", block.channel);
  if (!block.spans.length) node.classList.add("absent");
  const side = make("div", "side");
  if (block.number) side.append(make("span", "number", String(block.number)));
  side.append(make("b", "", block.label));
  if (block.name) side.append(make("span", "tool", block.name.replace(/([._])/g, "$1\u200b")));
  const body = make("div", "body");
  if (block.spans.length) {
    const text = make("div", "text");
    text.dir = "auto";
    state.starts.push(state.tokens.length);
    block.spans.forEach((span, index) => drawSpan(text, block, span, block.spans[index + 1]));
    body.append(text);
  }
  for (const reason of block.reasons) body.append(make("p", "reason", data.reasons[reason]));
  node.append(side, body);
  return node;
}

function drawSpan(text, block, span, following) {
  const [ids, position, weight, channel, part, reason] = span;
  let at = position;
  for (const piece of data.ids[ids]) {
    if (piece < 0) {
      text.append(make("span", "gap", `${number(-piece)} tokens are not in this page`));
      at -= piece;
      continue;
    }
    const token = make("span", "t");
    const word = wordOf(piece);
    const special = piece >= FIRST_SPECIAL;
    if (special) token.classList.add("special");
    if (weight > 0) token.classList.add("trained", data.channels[channel]);
    if (weight > 0 && weight !== 1) token.classList.add("scaled");
    write(token, word);
    token.dataset.n = String(state.tokens.length);
    state.tokens.push({ token, ids: piece, word, position: at, weight, channel: data.channels[channel], part, reason: data.reasons[reason], label: block.label });
    text.append(token);
    at += Array.isArray(piece) ? piece.length : 1;
  }
  if (weight > 0 && weight !== 1 && (!following || following[2] !== weight)) text.append(make("span", "weight", `×${weight}`));
}

/* Text of a token: line feeds shown, escaped characters set apart. */
function write(node, word) {
  for (const part of word.split(/(\n|⟨U\+[0-9A-F]{4,6}⟩)/)) {
    if (part === "\n") node.append(make("span", "line"), "\n");
    else if (part.startsWith("⟨U+") && part.endsWith("⟩")) node.append(make("span", "escape", part));
    else if (part) node.append(part);
  }
}

function clamp(tokens) {
  for (const text of tokens.querySelectorAll(".block:not(.on-target) .text")) {
    const count = text.querySelectorAll(".t").length;
    if (count < CLAMP_TOKENS) continue;
    text.classList.add("clamped");
    const more = make("button", "more", `Show all ${number(count)} tokens`);
    more.type = "button";
    more.addEventListener("click", () => {
      const clamped = text.classList.toggle("clamped");
      more.textContent = clamped ? `Show all ${number(count)} tokens` : "Show less";
    });
    text.after(more);
  }
}

function fold() {
  const show = document.querySelector('input[name="show"]:checked').value;
  const main = element("example");
  main.classList.toggle("show-trained", show === "trained");
  main.classList.toggle("show-masked", show === "masked");
  for (const block of main.querySelectorAll(".block")) {
    const masked = block.querySelector(".t:not(.trained)");
    const hides = show === "trained" ? !block.matches(".on-target") : show === "masked" && !masked;
    block.classList.toggle("folded", hides);
  }
}

function highlight(tokens) {
  if (!window.Highlight || !CSS.highlights) return;
  CSS.highlights.delete("found");
  const words = element("search").value.toLowerCase();
  if (!words) return;
  const ranges = [];
  for (const text of tokens.querySelectorAll(".text")) ranges.push(...rangesIn(text, words));
  if (!ranges.length) return;
  CSS.highlights.set("found", new Highlight(...ranges));
  const holder = ranges[0].startContainer.parentElement;
  const clamped = holder.closest(".clamped");
  if (clamped) clamped.nextElementSibling.click();
  holder.scrollIntoView({ block: "center" });
}

function rangesIn(text, words) {
  const walker = document.createTreeWalker(text, NodeFilter.SHOW_TEXT);
  const nodes = [];
  let whole = "";
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (node.parentElement.matches(".gap, .weight")) continue;
    nodes.push([whole.length, node]);
    whole += node.data.toLowerCase();
  }
  const place = (offset, end) => {
    let index = nodes.findIndex(([start]) => (end ? start >= offset : start > offset));
    index = (index < 0 ? nodes.length : index) - 1;
    return [nodes[index][1], Math.min(offset - nodes[index][0], nodes[index][1].length)];
  };
  const ranges = [];
  for (let at = whole.indexOf(words); at >= 0 && ranges.length < 200; at = whole.indexOf(words, at + words.length)) {
    const range = document.createRange();
    range.setStart(...place(at, false));
    range.setEnd(...place(at + words.length, true));
    ranges.push(range);
  }
  return ranges;
}

/* ---- one token ---- */

function point(n, speak) {
  if (state.tokens[state.on]) state.tokens[state.on].token.classList.remove("on");
  state.on = n;
  const token = state.tokens[n];
  element("hint").hidden = Boolean(token);
  element("fields").hidden = !token;
  element("why").hidden = !(token && token.reason);
  if (!token) return;
  token.token.classList.add("on");
  const ids = [token.ids].flat();
  const quoted = token.word.replaceAll("\n", "↵").replaceAll("\t", "⇥");
  const fields = [
    ["text", ids[0] >= FIRST_SPECIAL ? quoted : `“${quoted}”`],
    [ids.length > 1 ? "ids" : "id", ids.join(" ")],
    ["weight", String(token.weight)],
    ["channel", token.channel],
    ["position", ids.length > 1 ? `${token.position}–${token.position + ids.length - 1}` : String(token.position)],
    ["part", token.part],
  ];
  element("fields").replaceChildren(...fields.map(([name, value]) => {
    const field = make("div");
    field.append(make("dt", "", name), make("dd", name === "text" ? "quoted" : "", value));
    return field;
  }));
  element("why").textContent = token.reason || "";
  if (speak) element("spoken").textContent = [...fields.map(([name, value]) => `${name} ${value}`), token.reason].filter(Boolean).join(", ");
}

function visibleToken(n, step) {
  for (let at = n; at >= 0 && at < state.tokens.length; at += step) {
    if (state.tokens[at].token.getClientRects().length) return at;
  }
  return -1;
}

function step(key) {
  const now = state.on;
  const last = state.tokens.length - 1;
  const block = state.starts.findLastIndex((start) => start <= now);
  const moves = {
    ArrowRight: () => visibleToken(now + 1, 1),
    ArrowLeft: () => visibleToken(now < 0 ? 0 : now - 1, -1),
    ArrowDown: () => visibleToken(block + 1 < state.starts.length ? state.starts[block + 1] : last, 1),
    ArrowUp: () => visibleToken(now > state.starts[block] ? state.starts[block] : state.starts[Math.max(0, block - 1)] || 0, 1),
    Home: () => visibleToken(0, 1),
    End: () => visibleToken(last, -1),
  };
  const to = moves[key] ? moves[key]() : undefined;
  if (to === undefined) return false;
  if (to >= 0) {
    point(to, true);
    state.tokens[to].token.scrollIntoView({ block: "nearest" });
  }
  return true;
}

/* ---- events ---- */

function tokenAt(event) {
  const node = event.target.closest && event.target.closest(".t");
  return node ? Number(node.dataset.n) : -1;
}

function onKey(event) {
  if (event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.matches("input, select, textarea")) return;
  if (event.target.closest(".tokens") && !event.target.matches("button")) {
    if (event.key === "Escape") document.activeElement.blur();
    else if (step(event.key)) event.preventDefault();
    return;
  }
  if (event.key === "ArrowRight") go(state.at + 1);
  else if (event.key === "ArrowLeft") go(state.at - 1);
  else return;
  event.preventDefault();
}

function fromHash() {
  const index = Number(location.hash.slice(1)) - 1;
  return data.examples[index] ? index : 0;
}

function listen() {
  element("previous").addEventListener("click", () => go(state.at - 1));
  element("next").addEventListener("click", () => go(state.at + 1));
  element("jump").addEventListener("change", () => go((Number.parseInt(element("jump").value, 10) || 1) - 1));
  for (const id of ["notice", "channel"]) element(id).addEventListener("change", () => applyFilters(state.found[state.at]));
  let waiting;
  element("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => applyFilters(state.found[state.at]), 150);
  });
  for (const input of document.querySelectorAll('input[name="show"]')) input.addEventListener("change", fold);
  element("edges").addEventListener("change", () => element("example").classList.toggle("edges", element("edges").checked));
  element("example").addEventListener("mouseover", (event) => tokenAt(event) >= 0 && point(tokenAt(event)));
  element("example").addEventListener("click", (event) => tokenAt(event) >= 0 && point(tokenAt(event), true));
  element("example").addEventListener("focusin", (event) => {
    if (event.target.matches(".tokens") && state.on < 0) point(visibleToken(0, 1), true);
  });
  document.addEventListener("keydown", onKey);
  window.addEventListener("hashchange", () => {
    if (state.found[state.at] === fromHash()) return;
    element("notice").value = element("channel").value = element("search").value = "";
    applyFilters(fromHash());
  });
}

element("title").textContent = data.title;
for (const line of data.facts) element("facts").append(make("p", "", line));
fillFilters();
listen();
applyFilters(fromHash());
