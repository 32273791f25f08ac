// The description of the model: name, critical notices, labels with thresholds, and its model card.

import { findThreshold, isMultiLabel, METHODS } from "./card.js";
import { fill, find, formatBytes, make, makeExact, pluralize } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

const MAX_NAMED_LABELS = 6; // in the first sentence of the page

// Write the answer of /model.json into the page.
export function showModel(model) {
  document.title = `${model.name} · fastcxr serve`;
  fill(find("name"), model.name);
  const nLabels = model.labels.length;
  const task = isMultiLabel(model)
    ? `Detects ${pluralize(nLabels, "finding")} in chest radiographs`
    : `Classifies chest radiographs into ${pluralize(nLabels, "class", "classes")}`;
  fill(find("lede"), `${task}${nLabels <= MAX_NAMED_LABELS ? `: ${model.labels.join(", ")}` : ""}.`);
  fill(find("notices"), model.notices.map(makeNotice));
  const { max_files: nFiles, max_file_bytes: fileBytes } = model.limits;
  const limits = `At most ${formatBytes(fileBytes)} per file.`;
  fill(find("limits"), `${limits} The page sends more than ${pluralize(nFiles, "file")} in several requests.`);
  find("files").disabled = false;
  find("model").hidden = false;
  fill(find("facts"), makeFacts(model), makeThresholds(model));
  find("model-card-part").hidden = !model.model_card;
  fill(find("model-card"), renderMarkdown(model.model_card));
}

function makeNotice({ level, title, text }) {
  return make("div", { class: level === "critical" ? "critical" : "notice", role: "note" }, make("b", {}, title), text);
}

function makeFacts(model) {
  const facts = {
    Task: isMultiLabel(model) ? "several findings per image (multi-label)" : "one class per image (single-label)",
    "Image size": `${model.image_size} × ${model.image_size} px`,
    "Out-of-distribution (OOD) detector": model.has_ood_detector ? "yes" : "no",
    "Abstention threshold": model.uncertain_below ? makeExact(model.uncertain_below) : "not set",
    "Saliency maps": METHODS[model.saliency] ?? "not available",
    "fastcxr version": model.version,
    Use: model.warning,
  };
  const makeRow = ([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value));
  return make("dl", { class: "facts" }, Object.entries(facts).map(makeRow));
}

function makeThresholds(model) {
  const headings = [isMultiLabel(model) ? "Finding" : "Class", "Threshold"];
  const head = make("tr", {}, headings.map((heading) => make("th", { scope: "col" }, heading)));
  const rows = model.labels.map((label) => {
    const threshold = findThreshold(model, label);
    const cell = threshold === null ? make("span", { class: "muted" }, "not set") : makeExact(threshold);
    return make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, cell));
  });
  return make("table", { class: "thresholds" }, make("thead", {}, head), make("tbody", {}, rows));
}
