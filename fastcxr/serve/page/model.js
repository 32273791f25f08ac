// The description of the model: name, critical notices, labels with thresholds, and its model card.

import { isMultiLabel } from "./card.js";
import { fill, find, formatBytes, formatProbability, make, pluralize } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

// Write the answer of /model.json into the page.
export function showModel(model) {
  document.title = `${model.name} · fastcxr serve`;
  fill(find("name"), model.name);
  const labels = isMultiLabel(model) ? pluralize(model.labels.length, "finding") : pluralize(model.labels.length, "class", "classes");
  const task = isMultiLabel(model) ? `Detects ${labels} in chest radiographs` : `Classifies chest radiographs into ${labels}`;
  fill(find("lede"), `${task}${model.labels.length <= 6 ? `: ${model.labels.join(", ")}` : ""}.`);
  fill(find("notices"), model.notices.map(makeNotice));
  const { max_files: nFiles, max_file_bytes: fileBytes } = model.limits;
  fill(find("limits"), `At most ${formatBytes(fileBytes)} per file. The page sends more than ${pluralize(nFiles, "file")} in several requests.`);
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
    "Saliency maps": { grad_cam: "Grad-CAM", occlusion: "Occlusion" }[model.saliency] ?? "not available",
    "fastcxr version": model.version,
    Use: model.warning,
  };
  const rows = Object.entries(facts).map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)));
  return make("dl", { class: "facts" }, rows);
}

function makeThresholds(model) {
  const head = make("tr", {}, make("th", { scope: "col" }, isMultiLabel(model) ? "Finding" : "Class"), make("th", { scope: "col" }, "Threshold"));
  const rows = model.labels.map((label) => {
    const threshold = model.thresholds[label];
    const cell = threshold === undefined || threshold === null ? make("span", { class: "muted" }, "not set") : makeExact(threshold);
    return make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, cell));
  });
  return make("table", { class: "thresholds" }, make("thead", {}, head), make("tbody", {}, rows));
}

function makeExact(value) {
  return make("span", { title: String(value), "data-value": String(value) }, formatProbability(value));
}
