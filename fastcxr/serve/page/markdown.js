// The model card: a small part of markdown as elements. Text that is not understood is shown as it is.

import { make } from "./dom.js";

// Return the elements of a markdown text: headings, nested lists with tasks, tables, code and paragraphs.
export function renderMarkdown(text) {
  const lines = text.replace(/^---\n[\s\S]*?\n---\n/, "").split(/\r?\n/);
  const elements = [];
  while (lines.length) {
    const line = lines[0];
    if (!line.trim()) lines.shift();
    else if (/^(```|~~~)/.test(line)) elements.push(takeCode(lines));
    else if (/^#{1,6} /.test(line)) elements.push(makeHeading(lines.shift()));
    else if (ITEM.test(line)) elements.push(takeList(lines, indentOf(line)));
    else if (isTable(lines)) elements.push(takeTable(lines));
    else elements.push(takeParagraph(lines));
  }
  return elements;
}

const ITEM = /^(\s*)(?:[-*+]|\d+[.)]) (.*)$/;
const SEPARATOR = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

const indentOf = (line) => line.match(/^\s*/)[0].length;
const startsBlock = (line) => !line.trim() || /^(#{1,6} |```|~~~)/.test(line) || ITEM.test(line);
const isTable = (lines) => lines[0].includes("|") && lines.length > 1 && SEPARATOR.test(lines[1]);

function makeHeading(line) {
  const [marks, title] = [line.match(/^#+/)[0], line.replace(/^#+ /, "")];
  return make(`h${Math.min(6, marks.length + 2)}`, {}, renderInline(title)); // the page has h1 and h2
}

function takeCode(lines) {
  const fence = lines.shift().slice(0, 3);
  const code = [];
  while (lines.length && !lines[0].startsWith(fence)) code.push(lines.shift());
  lines.shift();
  return make("pre", {}, code.join("\n"));
}

function takeList(lines, indent) {
  const list = make(/^\s*\d/.test(lines[0]) ? "ol" : "ul");
  while (lines.length && ITEM.test(lines[0]) && indentOf(lines[0]) >= indent) {
    if (indentOf(lines[0]) > indent) {
      (list.lastElementChild ?? list).append(takeList(lines, indentOf(lines[0])));
      continue;
    }
    let text = lines.shift().match(ITEM)[2];
    while (lines.length && !startsBlock(lines[0]) && indentOf(lines[0]) > indent) text += ` ${lines.shift().trim()}`;
    list.append(makeItem(text));
  }
  return list;
}

function makeItem(text) {
  const task = text.match(/^\[([ xX])\] (.*)$/);
  if (!task) return make("li", {}, renderInline(text));
  const isDone = task[1] !== " ";
  const attributes = { class: "task", role: "img", "aria-label": isDone ? "completed" : "to complete" };
  const mark = make("span", attributes, isDone ? "☑" : "☐");
  return make("li", { class: "task-item" }, mark, renderInline(task[2]));
}

function takeTable(lines) {
  const head = splitCells(lines.shift());
  lines.shift();
  const rows = [];
  while (lines.length && lines[0].includes("|")) rows.push(splitCells(lines.shift()));
  const makeRow = (tag, cells) => make("tr", {}, cells.map((cell) => make(tag, {}, renderInline(cell))));
  const body = make("tbody", {}, rows.map((row) => makeRow("td", row)));
  const table = make("table", {}, make("thead", {}, makeRow("th", head)), body);
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Table" }, table);
}

function splitCells(line) {
  const cells = line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/);
  return cells.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function takeParagraph(lines) {
  const words = [lines.shift().trim()];
  while (lines.length && !startsBlock(lines[0])) words.push(lines.shift().trim());
  return make("p", {}, renderInline(words.join(" ")));
}

// Code and bold text become elements. A link is shown as its text and address: the page opens no other address.
function renderInline(text) {
  const parts = text.replace(/!?\[([^\]]+)\]\(([^)\s]+)\)/g, "$1 ($2)").split(/(`[^`]+`|\*\*[^*]+\*\*)/);
  return parts.filter(Boolean).map((part) => {
    if (/^`[^`]+`$/.test(part)) return make("code", {}, part.slice(1, -1));
    return /^\*\*[^*]+\*\*$/.test(part) ? make("b", {}, part.slice(2, -2)) : part;
  });
}
