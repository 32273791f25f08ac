// Requests to the server of this page. The token of the address is repeated in a header of each request.

const MAX_ATTEMPTS = 40;
const MAX_WAIT_SECONDS = 30;

// The server answered with an error: `message` is one line with the problem and its fix.
export class RequestError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// No answer: the server is not running, or the connection failed.
export class NoServerError extends Error {
  constructor() {
    super("The server does not answer. Check that fastcxr serve is still running, then try again.");
  }
}

export async function readModel() {
  return readAnswer(await send("model.json", {}));
}

// Return the rows of predictions for [name, blob] pairs, in their order, and the summary of the server.
export async function predict(parts, options) {
  const form = new FormData();
  for (const [name, blob] of parts) form.append("files", blob, name);
  return post("predict", form, options);
}

export async function makeSaliencyMap(name, blob, label, options) {
  const form = new FormData();
  form.append("files", blob, name);
  form.append("label", label);
  return post("saliency", form, options);
}

// Repeat a refused request after the time that the server states; onBusy(seconds) is called before each wait.
async function post(path, form, { signal, onBusy = () => {} } = {}) {
  for (let attempt = 1; ; attempt += 1) {
    const response = await send(path, { method: "POST", body: form, signal });
    if (response.status !== 429 || attempt === MAX_ATTEMPTS) return readAnswer(response);
    const seconds = readRetryAfter(response);
    onBusy(seconds);
    await wait(seconds, signal);
  }
}

async function send(path, options) {
  try {
    return await fetch(path, { ...options, cache: "no-store", credentials: "same-origin", redirect: "error" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    if (await isAlive()) throw new RequestError(0, "The server closed the connection before it answered.");
    throw new NoServerError();
  }
}

async function isAlive() {
  try {
    return (await fetch("healthz", { cache: "no-store" })).ok;
  } catch {
    return false;
  }
}

async function readAnswer(response) {
  const body = await response.json().catch(() => null);
  if (response.ok && body) return body;
  throw new RequestError(response.status, body?.error || `The server answered with status ${response.status}.`);
}

function readRetryAfter(response) {
  const seconds = Number(response.headers.get("Retry-After"));
  return Number.isFinite(seconds) && seconds > 0 ? Math.min(seconds, MAX_WAIT_SECONDS) : 1;
}

function wait(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
