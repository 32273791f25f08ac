// Elements, and text that is safe to show. No function of this page writes HTML: data is always a text node.

const UNPRINTABLE = /(?![\t\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/gu;

// Replace characters that can disorder a page: control characters, lone surrogates, bidi overrides.
export function clean(text) {
  return String(text).replace(UNPRINTABLE, "\ufffd");
}

// Replace these characters in a JSON text by their escapes.
export function escapeHidden(json) {
  const escape = (unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return json.replace(UNPRINTABLE, (character) => character.split("").map(escape).join(""));
}

// Return an element. A child is an element or a text; null and false are left out, as attribute and as child.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : clean(value));
    }
  }
  element.append(...toNodes(children));
  return element;
}

// Replace all children of an element.
export function fill(element, ...children) {
  element.replaceChildren(...toNodes(children));
}

function toNodes(children) {
  const shown = children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
  return shown.map((child) => (child instanceof Node ? child : clean(child)));
}

// Return the parts of a file name, between which a line can break: after _ - . and /.
export function makeBreakable(name) {
  return name.split(/(?<=[_./-])/).flatMap((part) => [part, document.createElement("wbr")]);
}

export function find(id) {
  return document.getElementById(id);
}

// 0.95431 as "0.954"; a value below 1 is never shown as 1, and one above 0 never as 0.
export function formatProbability(value) {
  if (value > 0 && value < 0.0005) return "<0.001";
  return value >= 0.9995 && value < 1 ? ">0.999" : value.toFixed(3);
}

// Return a number with its exact value as title and attribute.
export function makeExact(value, text = formatProbability(value)) {
  return make("span", { title: String(value), "data-value": String(value) }, text);
}

export function formatBytes(bytes) {
  const megabytes = bytes / 1e6;
  return megabytes < 1 ? `${Math.ceil(bytes / 1e3)} kB` : `${megabytes.toFixed(megabytes < 10 ? 1 : 0)} MB`;
}

export function pluralize(number, noun, plural = `${noun}s`) {
  return `${number.toLocaleString("en")} ${number === 1 ? noun : plural}`;
}
