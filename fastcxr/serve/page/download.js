// Files with all results of the page, in the formats of `fastcxr predict`. The browser writes them, not the server.

import { escapeHidden, make } from "./dom.js";

const FORMULA = /^'*[=+\-@\t\r]/;
const NUMBER = /^'*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;

// Return the text of a JSON file: the summary, the warnings on the model, and one row per file.
export function toJson(rows, model, critical) {
  const isUnreadable = (row) => Boolean(row.error);
  const isOod = (row) => row.in_distribution === "no";
  const summary = {
    warning: model.warning,
    model: model.name,
    version: model.version,
    critical,
    n_classified: rows.filter((row) => !isUnreadable(row) && !isOod(row)).length,
    n_unreadable: rows.filter(isUnreadable).length,
    n_ood: rows.filter(isOod).length,
    predictions: rows,
  };
  return `${escapeHidden(JSON.stringify(summary, null, 2))}\n`;
}

// Return the text of a CSV file: the columns of the rows, then those of the model, which are equal in all rows.
// Cells that a spreadsheet would run as a formula get an apostrophe.
export function toCsv(rows, model, critical) {
  const names = [...new Set(rows.flatMap((row) => Object.keys(row)))];
  const ofModel = { model: model.name, version: model.version, warning: model.warning, critical: critical.join("; ") };
  const makeCells = (row) => [...names.map((name) => row[name] ?? ""), ...Object.values(ofModel)];
  const lines = [[...names, ...Object.keys(ofModel)], ...rows.map(makeCells)];
  return lines.map((cells) => `${cells.map(toCell).join(",")}\n`).join("");
}

function toCell(value) {
  let text = String(value);
  if (typeof value !== "number" && FORMULA.test(text) && !NUMBER.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function saveText(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
