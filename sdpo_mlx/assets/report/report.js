"use strict";
// Everything foreign reaches the page through textContent alone.
const made = (tag, text, name) => {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (name) node.className = name;
  return node;
};
const signed = (d) => (d < 0 ? "−" : "+") + Math.abs(d).toFixed(2);
const percent = (p) => (100 * p).toFixed(p < 0.0995 ? 2 : 1) + " %";
// Twice as far apart is one shade more.
const shade = (d) => {
  if (d === null || d === undefined || Math.abs(d) < 0.05) return "";
  const level = Math.min(6, Math.max(1, Math.round(Math.log2(Math.abs(d) / 0.05)) + 1));
  return (d < 0 ? "n" : "p") + level;
};
const visible = (text) =>
  text === "" ? "(part of a character)" : text.slice(0, 80).replace(/\n/g, "⏎").replace(/ /g, "␣");

function paint(row, frame, focusable) {
  frame.replaceChildren();
  row.pieces.forEach((piece, i) => {
    const d = row.d ? row.d[i] : null;
    const token = made("span", piece, "t " + shade(d));
    const part = row.parts.indexOf(i);
    if (part >= 0) {
      token.classList.add("part");
      token.append(made("sup", String(part + 1)));
    }
    if (focusable) {
      token.tabIndex = i === 0 ? 0 : -1;
      token.dataset.token = String(i);
      token.setAttribute("aria-label", visible(piece) + (d === null ? "" : ", " + signed(d)));
      token.setAttribute("role", "button");
    }
    frame.append(token);
  });
}

function explain(row, i, tip) {
  tip.replaceChildren();
  const d = row.d ? row.d[i] : null;
  const line = made("div");
  line.append("token ", made("code", visible(row.pieces[i])));
  line.append(d === null ? " (not distilled)" : "  log q − log p " + signed(d));
  tip.append(line);
  if (!row.top) {
    tip.append(made("div", "The candidates were not kept for this answer (log.candidates)."));
    return;
  }
  const table = made("table"), head = made("tr");
  head.append(made("th", "student"), made("th", ""), made("th", "self-teacher"), made("th", ""));
  table.append(head);
  const [student, teacher] = row.top[i];
  for (let k = 0; k < Math.max(student.length, teacher.length); k++) {
    const tr = made("tr");
    for (const side of [student, teacher]) {
      const cell = made("td");
      if (side[k]) cell.append(made("code", visible(side[k][0])));
      tr.append(cell, made("td", side[k] ? percent(side[k][1]) : ""));
    }
    table.append(tr);
  }
  tip.append(table);
}

function follow(rows, problem, frame) {
  frame.replaceChildren();
  rows.filter((row) => row.problem === problem && row.index === 0).forEach((row) => {
    const box = made("div"), map = made("div", undefined, "map");
    paint(row, map, false);
    box.append(made("p", "step " + row.step + ", " + (row.success ? "right" : row.kind)), map);
    frame.append(box);
  });
}

function start(section) {
  const rows = JSON.parse(section.querySelector('script[type="application/json"]').textContent);
  const at = (name) => section.querySelector("." + name);
  const [problems, answers, map, tip] = ["problem", "answer", "map", "tip"].map(at);
  let row = rows[0];

  const show = (i) => {
    explain(row, i, tip);
  };
  const focus = (i) => {
    const tokens = map.querySelectorAll("[data-token]");
    const next = tokens[Math.min(tokens.length - 1, Math.max(0, i))];
    tokens.forEach((token) => (token.tabIndex = token === next ? 0 : -1));
    next.focus();
  };
  const choose = (chosen) => {
    row = chosen;
    paint(row, map, true);
    at("verdict").textContent =
      "step " + row.step + ", answer " + row.index + ": " + (row.success ? "right" : row.kind) + ", reward " + row.reward;
    at("feedback").textContent = row.feedback.trim() || "(nothing)";
    at("teacher").textContent = row.teacher.length ? row.teacher.join("\n\n") : "(no context: nothing was distilled)";
    at("parts").replaceChildren(
      ...row.parts.map((i) => {
        const item = made("li"), go = made("button", "at " + visible(row.pieces[i]) + ": log q − log p " + signed(row.d[i]));
        go.type = "button";
        go.addEventListener("click", () => focus(i));
        item.append(go);
        return item;
      })
    );
    if (row.parts.length) show(row.parts[0]);
    else if (row.pieces.length) show(0);
  };
  const list = () => {
    const here = rows.filter((each) => each.problem === problems.value);
    answers.replaceChildren(
      ...here.map((each) => {
        const option = made("option", "step " + each.step + ", answer " + each.index + (each.top ? ", with candidates" : ""));
        option.value = String(rows.indexOf(each));
        return option;
      })
    );
    const best = here.find((each) => each.top && each.parts.length) || here.find((each) => each.top) || here[0];
    answers.value = String(rows.indexOf(best));
    choose(best);
    follow(rows, problems.value, at("time"));
  };

  const names = [...new Set(rows.map((each) => each.problem))].sort();
  problems.replaceChildren(...names.map((name) => Object.assign(made("option", name), { value: name })));
  const times = (name) => rows.filter((each) => each.problem === name && each.index === 0).length;
  const parted = rows.filter((each) => each.top && each.parts.length);
  const telling = parted.find((each) => times(each.problem) > 1) || parted[0] || rows[0];
  problems.value = telling.problem;
  problems.addEventListener("change", list);
  answers.addEventListener("change", () => choose(rows[Number(answers.value)]));
  map.addEventListener("pointerover", (event) => {
    const token = event.target.closest("[data-token]");
    if (token) show(Number(token.dataset.token));
  });
  map.addEventListener("focusin", (event) => {
    const token = event.target.closest("[data-token]");
    if (token) show(Number(token.dataset.token));
  });
  map.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const token = event.target.closest("[data-token]");
    if (!step || !token) return;
    event.preventDefault();
    focus(Number(token.dataset.token) + step);
  });
  list();
}

document.querySelectorAll("section.tokens").forEach(start);
document.querySelectorAll('input[name="axis"]').forEach((choice) =>
  choice.addEventListener("change", () =>
    document.querySelectorAll(".charts").forEach((group) => (group.hidden = group.dataset.axis !== choice.value))
  )
);
