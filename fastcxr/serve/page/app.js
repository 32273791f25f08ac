// The page of `fastcxr serve`: choose files, send them in requests within the limits of the server, show results.
// Files and results exist in the memory of this page only.

import { makeSaliencyMap, predict, readModel } from "./api.js";
import { isMultiLabel, makeCard, summarize } from "./card.js";
import { saveText, toCsv, toJson } from "./download.js";
import { fill, find, formatBytes, make, pluralize } from "./dom.js";
import { takeDroppedFiles } from "./drop.js";
import { showModel } from "./model.js";

const FILES_PER_REQUEST = 8; // small, so that the first results appear early
const PART_BYTES = 1000; // of the multipart header of a file, at most
const MAX_SUMMARIES = 3; // results that screen readers announce; more are counted

let model = null;
// in the order of adding: {name, file, state, row, critical, card}; state: waiting, sent, unsent, done or failed
let entries = [];
let running = null; // AbortController of the requests in progress

async function start() {
  try {
    model = await readModel();
  } catch (error) {
    showAlert(error.message, "Try again", start);
    return;
  }
  fill(find("alert"));
  showModel(model);
  sendWaiting();
}

function addFiles(files) {
  const added = files.map((file) => addEntry(file.relativePath || file.name || "image", file));
  find("cards").prepend(...added.map((entry) => entry.card.element));
  showCounts();
  sendWaiting();
}

function addEntry(path, file) {
  const entry = { name: makeUniqueName(path), file, state: "waiting", row: null, critical: [] };
  const actions = {
    remove: () => removeEntry(entry),
    explain: async (label, onBusy) => makeSaliencyMap(file.name, await readFile(file), label, { onBusy }),
  };
  entry.card = makeCard(entry, model, actions);
  entry.card.showState("Waiting");
  entries.push(entry);
  const limit = Math.min(model.limits.max_file_bytes, model.limits.max_request_bytes - PART_BYTES);
  if (file.size > limit) {
    failEntry(entry, `The file has ${formatBytes(file.size)}, the server accepts ${formatBytes(limit)} per file.`);
  }
  return entry;
}

// "scan.png" of a second folder becomes "scan (2).png", so that each row of a download has its own path.
function makeUniqueName(path) {
  const names = new Set(entries.map((entry) => entry.name));
  const [, stem, suffix] = path.match(/^(.*?)(\.[^./]*)?$/s);
  let name = path;
  for (let number = 2; names.has(name); number += 1) name = `${stem} (${number})${suffix ?? ""}`;
  return name;
}

function failEntry(entry, reason) {
  Object.assign(entry, { state: "failed", row: { path: entry.name, error: reason } });
  entry.card.showReason(reason);
}

// Send all waiting files, one request at a time.
async function sendWaiting() {
  if (running || !model || !entries.some((entry) => entry.state === "waiting")) return;
  running = new AbortController();
  const { signal } = running;
  const sent = [];
  fill(find("alert"));
  try {
    for (let batch = takeBatch(); batch.length; batch = takeBatch()) {
      showProgress(sent.length, batch);
      await sendBatch(batch, signal);
      sent.push(...batch);
    }
    showSummary(sent.filter((entry) => entries.includes(entry)));
  } catch (error) {
    if (error.name !== "AbortError") stopAfter(error);
  } finally {
    running = null;
    find("progress").hidden = true;
    showCounts();
  }
  if (signal.aborted) sendWaiting(); // files that were added after the removal of all others
}

// Return the next waiting files that fit into one request.
function takeBatch() {
  const { max_files: maxFiles, max_request_bytes: maxBytes } = model.limits;
  const batch = [];
  let bytes = 0;
  for (const entry of entries.filter((one) => one.state === "waiting")) {
    bytes += entry.file.size + PART_BYTES;
    if (batch.length === Math.min(maxFiles, FILES_PER_REQUEST) || (batch.length && bytes > maxBytes)) break;
    batch.push(entry);
  }
  return batch;
}

async function sendBatch(batch, signal) {
  const parts = [];
  for (const entry of batch) {
    entry.state = "sent";
    entry.card.showState("Sent, waiting for the result");
    try {
      parts.push([entry, await readFile(entry.file)]);
    } catch (error) {
      failEntry(entry, error.message);
    }
  }
  if (!parts.length) return;
  try {
    const uploads = parts.map(([entry, blob]) => [entry.file.name || "image", blob]);
    const answer = await predict(uploads, { signal, onBusy: showBusy });
    parts.forEach(([entry], k) => showRow(entry, answer.predictions[k], answer.critical));
  } catch (error) {
    const isOneFileToBlame = [400, 408, 413, 415].includes(error.status);
    if (!isOneFileToBlame) throw error;
    if (parts.length === 1) failEntry(parts[0][0], error.message);
    else for (const [entry] of parts) await sendBatch([entry], signal);
  }
}

// Read a file into memory, so that a file that was changed or removed is no failure of the request.
async function readFile(file) {
  try {
    return new Blob([await file.arrayBuffer()], { type: file.type });
  } catch {
    throw new Error("The browser cannot read this file: it was moved or changed, or it is a folder.");
  }
}

function showRow(entry, row, critical) {
  if (!row) return failEntry(entry, "The answer of the server has no row for this file.");
  Object.assign(entry, { state: row.error ? "failed" : "done", row: { ...row, path: entry.name }, critical });
  if (row.error) entry.card.showReason(row.error);
  else entry.card.showResult(row, critical);
}

// Keep the files without an answer, and offer to send them again.
function stopAfter(error) {
  const unsent = entries.filter((entry) => entry.state === "waiting" || entry.state === "sent");
  for (const entry of unsent) {
    entry.state = "unsent";
    entry.card.showState("Not sent");
  }
  fill(find("status"));
  showAlert(error.message, `Send ${pluralize(unsent.length, "file")} again`, () => {
    for (const entry of entries.filter((one) => one.state === "unsent")) entry.state = "waiting";
    fill(find("alert"));
    find("files").focus();
    sendWaiting();
  });
}

function showAlert(message, label, action) {
  const button = make("button", { type: "button" }, label);
  button.addEventListener("click", action);
  fill(find("alert"), make("p", { class: "alert" }, make("span", {}, message), button));
}

function showBusy(seconds) {
  fill(find("status"), `The server is busy with other requests. Next attempt in ${pluralize(seconds, "second")}.`);
}

function showProgress(nSent, batch) {
  const total = nSent + entries.filter((entry) => entry.state === "waiting").length;
  find("progress").hidden = false;
  find("progress").max = total;
  find("progress").value = nSent;
  const names = batch.length === 1 ? make("bdi", {}, batch[0].name) : pluralize(batch.length, "file");
  fill(find("status"), `${nSent} of ${pluralize(total, "file")} done. Sent: `, names, ".");
}

function showSummary(sent) {
  const rows = sent.map((entry) => entry.row).filter(Boolean);
  const count = (isCounted) => rows.filter(isCounted).length;
  const nUnreadable = count((row) => row.error);
  const nOod = count((row) => row.in_distribution === "no");
  const verb = isMultiLabel(model) ? "predicted" : "classified";
  const counts = `${pluralize(rows.length - nUnreadable - nOod, "image")} ${verb}, ${nUnreadable} without result`;
  const ood = model.has_ood_detector ? `, ${nOod} out-of-distribution` : "";
  const results = sent.filter((entry) => entry.row).map((entry) => `${entry.name}: ${summarize(entry.row, model)}.`);
  const spoken = results.length <= MAX_SUMMARIES && make("span", { class: "hidden" }, ` ${results.join(" ")}`);
  fill(find("status"), `${counts}${ood}.`, spoken);
}

function showCounts() {
  find("results").hidden = !entries.length;
  const hasRows = entries.some((entry) => entry.row);
  find("json").disabled = find("csv").disabled = !hasRows;
}

function removeEntry(entry) {
  const next = entry.card.element.nextElementSibling ?? entry.card.element.previousElementSibling;
  entry.card.element.remove();
  entry.card.release();
  entries = entries.filter((other) => other !== entry);
  showCounts();
  (next?.querySelector(".remove") ?? find("files")).focus();
}

function removeAll() {
  running?.abort(new DOMException("Removed", "AbortError"));
  for (const entry of entries) entry.card.release();
  entries = [];
  fill(find("cards"));
  fill(find("alert"));
  fill(find("status"), "All results removed.");
  showCounts();
  find("files").focus();
}

function save(suffix, type, toText) {
  const rows = entries.map((entry) => entry.row).filter(Boolean);
  const critical = [...new Set(entries.flatMap((entry) => entry.critical))];
  saveText(`predictions.${suffix}`, type, toText(rows, model, critical));
}

find("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = ""; // so that the same file can be chosen again
  if (model) addFiles(files);
});
window.addEventListener("dragover", (event) => {
  event.preventDefault(); // a file that is dropped beside the zone would replace the page
  find("drop").classList.add("over");
});
window.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("drop").classList.remove("over");
});
window.addEventListener("drop", async (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  const files = await takeDroppedFiles(event.dataTransfer);
  if (model) addFiles(files);
});
window.addEventListener("paste", (event) => {
  const files = [...(event.clipboardData?.files ?? [])];
  if (model && files.length) addFiles(files);
});
find("json").addEventListener("click", () => save("json", "application/json", toJson));
find("csv").addEventListener("click", () => save("csv", "text/csv", toCsv));
find("clear").addEventListener("click", removeAll);
start();
