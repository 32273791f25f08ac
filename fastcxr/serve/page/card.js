// The card of a file: thumbnail, result in words, one bar per label, saliency map; or the reason without a result.

import { fill, formatProbability, make, makeBreakable, makeExact, pluralize } from "./dom.js";

const N_COLORS = 7; // of classes, as in the report
const N_TOP_LABELS = 5; // shown before the disclosure, if there are more than MAX_OPEN_LABELS
const MAX_OPEN_LABELS = 8;
export const METHODS = { grad_cam: "Grad-CAM", occlusion: "Occlusion" };
const THUMBNAIL_TYPES = ["image/png", "image/jpeg", "image/bmp"]; // formats that both fastcxr and browsers read

// Return the card of an entry {name, file}. `actions`: remove() and explain(label, onBusy), which returns the answer.
export function makeCard(entry, model, actions) {
  const body = make("div", { class: "card-body" });
  const remove = make("button", { type: "button", class: "remove", "aria-label": `Remove ${entry.name}` }, "×");
  remove.addEventListener("click", actions.remove);
  const head = make("div", { class: "card-head" }, make("h3", { class: "path" }, makeBreakable(entry.name)), remove);
  const element = make("li", { class: "card" }, head, body);
  const address = THUMBNAIL_TYPES.includes(entry.file.type) ? URL.createObjectURL(entry.file) : null;

  return {
    element,
    remove,
    showState(text) {
      element.className = "card pending";
      fill(body, make("p", { class: "muted" }, text));
    },
    showReason(reason) {
      element.className = "card failed";
      fill(body, make("p", { class: "reason" }, make("b", {}, "No result. "), reason));
    },
    showResult(row, critical) {
      element.className = "card";
      const thumbnail = makeThumbnail(entry.name, address, model);
      const image = make("div", { class: "image" }, thumbnail);
      const map = model.saliency ? makeMapControls(entry, row, model, actions, { element, image, thumbnail }) : null;
      const text = make("div", { class: "card-text" }, describeRow(row, model), makeBars(row, model), map);
      fill(body, critical.length > 0 && makeStamp(critical), image, text);
    },
    release() {
      if (address) URL.revokeObjectURL(address);
    },
  };
}

// Return [label, probability] pairs of a row: classes in the order of the model, findings by probability.
export function listProbabilities(row, model) {
  const pairs = model.labels.map((label) => [label, row[`prob_${label}`]]);
  return isMultiLabel(model) || pairs.length > MAX_OPEN_LABELS ? sortByProbability(pairs) : pairs;
}

// Return the threshold of a label, or null; a label may have the name of a property of all objects.
export function findThreshold(model, label) {
  return Object.hasOwn(model.thresholds, label) ? model.thresholds[label] : null;
}

export function isMultiLabel(model) {
  return model.task === "multi_label";
}

// Return the result of a row in one line.
export function summarize(row, model) {
  if (row.error) return "unreadable";
  if (row.in_distribution === "no") return "out-of-distribution";
  if (!isMultiLabel(model)) {
    return `predicted ${row.predicted}, probability ${formatProbability(row[`prob_${row.predicted}`])}`;
  }
  const present = listPresent(row, model);
  return present.length ? `${countReached(present)}: ${present.join(", ")}` : "no finding reaches its threshold";
}

function sortByProbability(pairs) {
  return pairs.toSorted(([, first], [, second]) => second - first);
}

function listPresent(row, model) {
  return listProbabilities(row, model).map(([label]) => label).filter((label) => row[`decision_${label}`] === "yes");
}

function countReached(findings) {
  const [number, one] = [findings.length, "1 finding reaches its threshold"];
  return number === 1 ? one : `${number} findings reach their thresholds`;
}

function makeStamp(titles) {
  const heading = "Model with critical notices: do not rely on this prediction. ";
  return make("p", { class: "stamp" }, make("b", {}, heading), titles.join("; "));
}

function makeThumbnail(name, address, model) {
  const hint = model.saliency ? "The saliency map shows the model input." : "";
  const absent = make("span", { class: "why" }, `The browser cannot show this file. ${hint}`);
  if (!address) return absent;
  const image = make("img", { src: address, alt: `Radiograph ${name}`, loading: "lazy", decoding: "async" });
  image.addEventListener("error", () => image.replaceWith(absent));
  return image;
}

function describeRow(row, model) {
  const lines = [makeVerdict(row, model), make("p", {}, describeOod(row, model))];
  const uncertain = describeUncertain(row, model);
  if (uncertain) lines.push(make("p", { class: "warn" }, make("b", {}, "Uncertain: "), uncertain));
  for (const warning of (row.warnings || "").split(/; (?=FCX-)/).filter(Boolean)) {
    const [, code, text] = warning.match(/^(FCX-\w+) ?([\s\S]*)$/) ?? [null, "", warning];
    lines.push(make("p", { class: "warn" }, make("b", {}, "Warning: "), text, " ", make("small", {}, code)));
  }
  return lines;
}

function makeVerdict(row, model) {
  const [top, probability] = sortByProbability(listProbabilities(row, model))[0];
  const isOod = row.in_distribution === "no";
  if (isOod) {
    const missing = isMultiLabel(model) ? "no decisions" : "no predicted class";
    const most = make("span", {}, `Most probable: ${top} `, makeNumber(probability));
    const verdict = make("b", { class: "warn" }, `Out-of-distribution: ${missing}`);
    return make("p", { class: "verdict" }, verdict, make("br"), most);
  }
  if (!isMultiLabel(model)) {
    const number = makeNumber(row[`prob_${row.predicted}`]);
    return make("p", { class: "verdict" }, make("span", {}, "Predicted "), make("b", {}, row.predicted), " ", number);
  }
  const present = listPresent(row, model);
  if (!present.length) return make("p", { class: "verdict" }, make("b", {}, "No finding reaches its threshold"));
  const heading = make("span", {}, `${countReached(present)}: `);
  return make("p", { class: "verdict" }, heading, make("b", {}, present.join(", ")));
}

function describeOod(row, model) {
  if (!model.has_ood_detector) return "Not checked for out-of-distribution: the model has no detector.";
  const score = makeExact(row.ood_score, row.ood_score.toFixed(3));
  const verdict = row.in_distribution === "no" ? "Unlike the training images" : "In-distribution";
  return [`${verdict}: OOD score `, score, " (above 1 is out-of-distribution)."];
}

// Return the reason of uncertain=yes, or an empty text; out-of-distribution has its own line.
function describeUncertain(row, model) {
  if (row.uncertain !== "yes" || row.in_distribution === "no") return "";
  const reasons = [];
  const most = Math.max(...model.labels.map((label) => row[`prob_${label}`]));
  if (model.uncertain_below && most < model.uncertain_below) {
    const minimum = formatProbability(model.uncertain_below);
    reasons.push(`the highest probability is below the abstention threshold of ${minimum}`);
  }
  const reached = model.labels.filter((label) => row[`prob_${label}`] >= (findThreshold(model, label) ?? Infinity));
  if (Object.keys(model.thresholds).length && reached.length === 0) reasons.push("no class reaches its threshold");
  if (reached.length > 1) reasons.push(`${reached.length} classes reach their thresholds (${reached.join(", ")})`);
  return `${reasons.join("; ") || "see the thresholds of the model"}.`;
}

function makeNumber(probability) {
  const number = makeExact(probability);
  number.className = "p";
  return number;
}

function makeBars(row, model) {
  const pairs = listProbabilities(row, model);
  const nTop = pairs.length <= MAX_OPEN_LABELS ? pairs.length : N_TOP_LABELS;
  const isTop = ([label], k) => k < nTop || row[`decision_${label}`] === "yes";
  const makeList = (chosen) => make("ul", { class: "bars" }, chosen.map((pair) => makeBar(pair, row, model)));
  const rest = pairs.filter((pair, k) => !isTop(pair, k));
  if (!rest.length) return makeList(pairs);
  const noun = isMultiLabel(model) ? ["more finding"] : ["more class", "more classes"];
  const summary = make("summary", {}, pluralize(rest.length, ...noun));
  return [makeList(pairs.filter(isTop)), make("details", { class: "more" }, summary, makeList(rest))];
}

function makeBar([label, value], row, model) {
  const isPresent = isMultiLabel(model) ? row[`decision_${label}`] === "yes" : row.predicted === label;
  const threshold = findThreshold(model, label);
  const track = make("div", { class: "track", "aria-hidden": "true" }, make("i"));
  track.firstChild.style.width = `${100 * value}%`;
  let words = null;
  if (threshold !== null) {
    const tick = make("u", { title: `Threshold ${threshold}` });
    tick.style.left = `${100 * Math.min(1, threshold)}%`;
    track.append(tick);
    const reached = value >= threshold && row.in_distribution !== "no" ? ", reached" : "";
    words = make("span", { class: "hidden" }, ` (threshold ${formatProbability(threshold)}${reached})`);
  }
  const color = isMultiLabel(model) ? "finding" : `color-${model.labels.indexOf(label) % N_COLORS}`;
  const attributes = { class: `bar-row ${color}${isPresent ? " present" : ""}`, "data-label": label };
  return make("li", attributes, make("span", { class: "of" }, label), makeNumber(value), words, track);
}

function makeMapControls(entry, row, model, actions, { element, image, thumbnail }) {
  const [best] = sortByProbability(listProbabilities(row, model))[0];
  const chosen = isMultiLabel(model) ? (listPresent(row, model)[0] ?? best) : row.predicted || best;
  const labels = listProbabilities(row, model).map(([label]) => label);
  const makeOption = (label) => make("option", { value: label, selected: label === chosen }, label);
  const select = make("select", {}, labels.map(makeOption));
  const show = make("button", { type: "button" }, "Show saliency map");
  const hide = make("button", { type: "button", hidden: true }, "Hide saliency map");
  const note = make("p", { class: "map-note", role: "status" });
  let isBusy = false;

  show.addEventListener("click", async () => {
    if (isBusy) return; // a disabled button would lose the keyboard focus
    isBusy = true;
    fill(note, "Computing the saliency map …");
    const onBusy = (seconds) => fill(note, `The server is busy. Next attempt in ${pluralize(seconds, "second")}.`);
    try {
      showMap(await actions.explain(select.value, onBusy));
    } catch (error) {
      fill(note, error.name === "AbortError" ? "" : error.message);
    }
    isBusy = false;
  });

  hide.addEventListener("click", () => {
    element.classList.remove("mapped");
    fill(image, thumbnail);
    fill(note);
    hide.hidden = true;
    show.focus();
  });

  function showMap(answer) {
    const hasImage = answer.image.startsWith("data:image/");
    const probability = answer.probability === null ? "" : ` ${formatProbability(answer.probability)}`;
    const title = `${METHODS[answer.method] ?? answer.method}, ${answer.label}${probability}.`;
    const sides = [
      "Left: the model input. Right: the input with the saliency map; yellow marks the largest contribution.",
      "A contributing region is not necessarily a sign of the disease.",
    ].join(" ");
    if (hasImage) {
      const alt = `Model input of ${entry.name}, and the input with the saliency map of ${answer.label}`;
      fill(image, make("img", { src: answer.image, alt, class: "map" }));
    } else {
      fill(image, thumbnail);
    }
    element.classList.toggle("mapped", hasImage);
    hide.hidden = !hasImage;
    const ood = answer.in_distribution === "no" && make("b", { class: "warn" }, " ", describeOod(answer, model));
    fill(note, make("b", {}, title), ood, " ", hasImage ? `${sides} ${answer.note}` : `No map: ${answer.note}.`);
  }

  const label = make("label", {}, make("span", {}, isMultiLabel(model) ? "Finding " : "Class "), select);
  return make("div", { class: "map-controls" }, label, make("div", { class: "tools" }, show, hide), note);
}
