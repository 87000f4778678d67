"use strict";
// Untrusted text reaches the page through textContent only.
const made = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const signed = (d) => (d < 0 ? "−" : "+") + Math.abs(d).toFixed(2);
const percent = (p) => (100 * p).toFixed(p < 0.0995 ? 2 : 1) + " %";
// One shade more for each doubling.
const shade = (d) => {
  if (d === null || d === undefined || Math.abs(d) < 0.05) return "";
  const level = Math.min(6, Math.max(1, Math.round(Math.log2(Math.abs(d) / 0.05)) + 1));
  return (d < 0 ? "n" : "p") + level;
};
const visible = (text) =>
  text === "" ? "(part of a character)" : text.slice(0, 80).replace(/\n/g, "⏎").replace(/ /g, "␣");

// A shaded token that is invisible gets a symbol.
const sign = (piece) => (piece === "" ? "◌" : piece.trim() ? "" : piece.includes("\n") ? "⏎" : "␣".repeat(piece.length));
const times = (d) => {
  const factor = Math.exp(Math.min(Math.abs(d), 23));
  const shown = factor < 10 ? factor.toFixed(1) : Math.round(factor).toLocaleString("en");
  return factor < 1.05 ? "as likely" : shown + " times " + (d < 0 ? "less" : "more") + " likely";
};
const SHORT = 400; // tokens of a rollout beside others

function paint(row, frame, focusable) {
  frame.replaceChildren();
  const count = focusable ? row.pieces.length : Math.min(row.pieces.length, SHORT);
  for (let i = 0; i < count; i++) {
    const piece = row.pieces[i], d = row.d ? row.d[i] : null, shaded = shade(d);
    const token = made("span", piece, "t " + shaded);
    if (shaded && sign(piece)) token.dataset.sign = sign(piece);
    const part = row.parts.indexOf(i);
    if (part >= 0) token.dataset.part = String(part + 1);
    if (focusable) {
      token.tabIndex = i === 0 ? 0 : -1;
      token.dataset.token = String(i);
      token.setAttribute("aria-label", visible(piece) + (d === null ? "" : ", " + signed(d)));
      token.setAttribute("role", "button");
    }
    frame.append(token);
  }
  const more = row.cut + row.pieces.length - count;
  if (more) frame.append(made("span", " … and " + more.toLocaleString("en") + " tokens more", "more"));
}

function explain(row, i, tip) {
  tip.replaceChildren();
  if (row.held) return tip.append("Held out: sampled to evaluate, and not scored token by token.");
  const d = row.d ? row.d[i] : null;
  const line = made("div");
  line.append("token " + (i + 1) + " of " + (row.pieces.length + row.cut) + ": ", made("code", visible(row.pieces[i])));
  if (d === null) line.append(" (not distilled)");
  else line.append(made("b", "  log q − log p " + signed(d)), ": to the self-teacher " + times(d));
  tip.append(line);
  if (!row.top) {
    if (d !== null) tip.append(made("div", "The most likely tokens were not stored for this rollout (log.candidates).", "soft"));
    return;
  }
  const table = made("table"), head = made("tr");
  for (const name of ["student", "self-teacher"]) {
    const cell = made("th", name);
    cell.colSpan = 2;
    cell.scope = "colgroup";
    head.append(cell);
  }
  table.append(head);
  const [student, teacher] = row.top[i];
  for (let k = 0; k < Math.max(student.length, teacher.length); k++) {
    const tr = made("tr");
    for (const side of [student, teacher]) {
      const cell = made("td");
      if (side[k]) {
        cell.append(made("code", visible(side[k][0])));
        if (side[k][0] === row.pieces[i]) cell.className = "own";
      }
      tr.append(cell, made("td", side[k] ? percent(side[k][1]) : ""));
    }
    table.append(tr);
  }
  tip.append(table);
}

const verdict = (row) =>
  row.turn < row.turns ? "not the last turn" : (row.success ? "right" : row.kind) + (row.finish === "length" ? ", cut off" : "");
const place = (row) =>
  "step " + row.step + (row.held ? "" : ", rollout " + row.index) + (row.turns > 1 ? ", turn " + row.turn + " of " + row.turns : "");
const isFirst = (row) => row.index === 0 && row.turn === row.turns;

function follow(rows, problem, frame, open) {
  const found = rows.filter((row) => row.problem === problem && isFirst(row));
  frame.replaceChildren(
    ...found.map((row) => {
      const box = made("div"), map = made("div", undefined, "map"), go = made("button", place(row));
      const line = made("p", undefined, row.success ? "right" : "wrong");
      go.type = "button";
      go.addEventListener("click", () => open(row));
      line.append(go, ": " + (row.success ? "✓ " : "✗ ") + verdict(row));
      paint(row, map, false);
      map.tabIndex = 0;
      map.setAttribute("role", "region");
      map.setAttribute("aria-label", "rollout of " + place(row));
      box.append(line, map);
      return box;
    })
  );
  const seen = new Set(found.map((row) => row.step)).size;
  if (seen < 2) frame.prepend(made("p", "Only one step has rollouts of this problem here; problems with more steps come first in the list.", "soft"));
}

// The token on the next or the last line that stands nearest.
function beside(tokens, at, way) {
  const here = tokens[at].getClientRects()[0] || tokens[at].getBoundingClientRect();
  let best = at, line = null, nearest = Infinity;
  for (let i = at + way; i >= 0 && i < tokens.length; i += way) {
    const box = tokens[i].getClientRects()[0];
    if (!box || Math.abs(box.top - here.top) < here.height / 2) continue;
    if (line === null) line = box.top;
    if (Math.abs(box.top - line) > here.height / 2) break;
    if (Math.abs(box.left - here.left) < nearest) [nearest, best] = [Math.abs(box.left - here.left), i];
  }
  return best;
}

function start(section) {
  const block = section.querySelector('script[type="application/json"]');
  if (!block) return;
  const rows = JSON.parse(block.textContent);
  const at = (name) => section.querySelector("." + name);
  const [problems, answers, map, tip] = ["problem", "answer", "map", "tip"].map(at);
  let row = rows[0], tokens = [], current = 0;

  const show = (i) => {
    if (tokens[current]) tokens[current].classList.remove("shown");
    tokens[i].classList.add("shown");
    current = i;
    explain(row, i, tip);
  };
  const focus = (i) => {
    const next = tokens[Math.min(tokens.length - 1, Math.max(0, i))];
    map.querySelectorAll('[tabindex="0"]').forEach((token) => (token.tabIndex = -1));
    next.tabIndex = 0;
    next.focus();
  };
  const choose = (chosen) => {
    row = chosen;
    answers.value = String(rows.indexOf(row));
    paint(row, map, true);
    [tokens, current] = [[...map.querySelectorAll("[data-token]")], 0];
    map.scrollTop = 0;
    at("verdict").textContent = place(row) + ": " + verdict(row) + (row.turn < row.turns ? "" : ", reward " + row.reward);
    at("asked").textContent = row.asked.join("\n\n") || "(not kept)";
    at("feedback").textContent = row.feedback.trim() || "(nothing)";
    const none = row.held ? "(nothing: a held-out problem is never trained on)" : "(no context: nothing was distilled)";
    at("teacher").textContent = row.teacher.join("\n\n") || none;
    at("parts").replaceChildren(
      ...row.parts.map((i) => {
        const item = made("li"), go = made("button", visible(row.pieces[i]) + " " + signed(row.d[i]));
        go.type = "button";
        go.addEventListener("click", () => focus(i));
        item.append(go);
        return item;
      })
    );
    if (row.pieces.length) show(row.parts.length ? row.parts[0] : 0);
    else tip.replaceChildren("This rollout has no tokens.");
  };
  const list = () => {
    const here = rows.filter((each) => each.problem === problems.value);
    answers.replaceChildren(
      ...here.map((each) => {
        const option = made("option", place(each) + ", " + verdict(each) + (each.top ? ", with candidates" : ""));
        option.value = String(rows.indexOf(each));
        return option;
      })
    );
    choose(here.find((each) => each.top && each.parts.length) || here.find((each) => each.top) || here[0]);
    follow(rows, problems.value, at("time"), (chosen) => {
      choose(chosen);
      section.querySelector(".pair").scrollIntoView();
      focus(current);
    });
  };

  const names = [...new Set(rows.map((each) => each.problem))].sort();
  const steps = (name) => new Set(rows.filter((each) => each.problem === name && isFirst(each)).map((each) => each.step)).size;
  const counted = new Map(names.map((name) => [name, steps(name)]));
  const held = new Set(rows.filter((each) => each.held).map((each) => each.problem));
  const trained = names.filter((name) => !held.has(name));
  const groups = [
    ["at several steps", trained.filter((name) => counted.get(name) > 1)],
    ["once", trained.filter((name) => counted.get(name) < 2)],
    ["held out, at each evaluation", names.filter((name) => held.has(name))],
  ];
  problems.replaceChildren(
    ...groups.filter(([, each]) => each.length).map(([label, each]) => {
      const group = made("optgroup");
      group.label = label;
      group.append(...each.map((name) => Object.assign(made("option", name), { value: name })));
      return group;
    })
  );
  const parted = rows.filter((each) => each.top && each.parts.length);
  const telling = parted.find((each) => counted.get(each.problem) > 1) || parted[0] || rows[0];
  problems.value = telling.problem;
  problems.addEventListener("change", list);
  answers.addEventListener("change", () => choose(rows[Number(answers.value)]));
  for (const event of ["pointerover", "focusin", "click"])
    map.addEventListener(event, (happened) => {
      const token = happened.target.closest("[data-token]");
      if (token) show(Number(token.dataset.token));
    });
  map.addEventListener("keydown", (event) => {
    const token = event.target.closest("[data-token]");
    if (!token) return;
    const i = Number(token.dataset.token);
    const next = {
      ArrowRight: () => i + 1,
      ArrowLeft: () => i - 1,
      ArrowDown: () => beside(tokens, i, 1),
      ArrowUp: () => beside(tokens, i, -1),
      Home: () => 0,
      End: () => tokens.length - 1,
    }[event.key];
    if (!next) return;
    event.preventDefault();
    focus(next());
  });
  list();
}

// The values of a chart at the pointer, or at the place that the arrow keys chose; at first those of the end.
function read(figure) {
  const places = [...figure.querySelectorAll(".at")], caption = figure.querySelector("figcaption");
  const titles = places.map((place) => place.querySelector("title").textContent);
  let at = places.length - 1;
  const show = (i) => {
    places[at].classList.remove("shown");
    at = Math.min(places.length - 1, Math.max(0, i));
    places[at].classList.add("shown");
    caption.textContent = titles[at];
  };
  if (!places.length) return;
  places.forEach((place) => place.querySelector("title").remove()); // the browser's own tip would cover the curve
  caption.textContent = titles[at];
  for (const event of ["pointerover", "click"])
    figure.addEventListener(event, (happened) => {
      const i = places.indexOf(happened.target);
      if (i >= 0) show(i);
    });
  figure.addEventListener("keydown", (event) => {
    const i = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: places.length - 1 }[event.key];
    if (i === undefined) return;
    event.preventDefault();
    show(i);
  });
}

document.querySelectorAll("figure").forEach(read);
document.querySelectorAll("section.tokens").forEach(start);
document.querySelectorAll('input[name="axis"]').forEach((choice) =>
  choice.addEventListener("change", () =>
    document.querySelectorAll(".charts").forEach((group) => (group.hidden = group.dataset.axis !== choice.value))
  )
);
// On paper nothing can be opened.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((each) => (each.open = true)));
