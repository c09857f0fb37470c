// The server's routes, wherever they are mounted: relative to this file.

import { readEvents } from "./sse.js";

const ROOT = new URL("../", import.meta.url);
const KEY = `gpt2serve key ${ROOT.pathname}`;

export const GENERATE_URL = new URL("generate", ROOT).href;

const UNREACHABLE = {
  title: "The server cannot be reached",
  detail: "It may be restarting, or the network may be down. Try again in a moment.",
};
const BROKEN_OFF = {
  title: "The answer broke off",
  detail: "The connection ended before the text did. Try again in a moment.",
};

/** What went wrong, in words to show: an RFC 9457 document of the server, or one like it. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, field = null, retryAfter = null }) {
    super(title);
    Object.assign(this, { title, detail, status, field, retryAfter });
  }
}

/** Models whose id, name or handle has `text` in it: `{models, next}`. */
export async function searchModels(text, limit, signal) {
  const query = new URLSearchParams({ search: text, limit });
  return (await call(`models?${query}`, { signal })).json();
}

export async function describeModel(id, signal) {
  return (await call(`models/${id}/info`, { signal })).json();
}

/**
 * The events of a generation, in arrays as they arrive; see docs/http.md for their shapes. Texts
 * come without the prompt, which the page shows anyway.
 * Throws `Problem`, or what `signal` was aborted with.
 */
export async function* generate(request, signal) {
  const response = await call("generate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...request, return_full_text: false, stream: true }),
    signal,
  });
  for await (const datas of unbroken(readEvents(response.body), signal)) {
    const done = datas.indexOf("[DONE]");
    const events = (done < 0 ? datas : datas.slice(0, done)).map((data) => JSON.parse(data));
    const failed = events.find((event) => event.error);
    yield events.filter((event) => !event.error);
    if (failed) throw new Problem(failed.error);
    if (done >= 0) return;
  }
  throw new Problem(BROKEN_OFF);
}

async function* unbroken(stream, signal) {
  try {
    yield* stream;
  } catch {
    signal.throwIfAborted();
    throw new Problem(BROKEN_OFF);
  }
}

async function call(path, options) {
  const key = apiKey();
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  const response = await reached(new URL(path, ROOT), { ...options, headers });
  if (!response.ok) throw await problemOf(response);
  return response;
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    options.signal.throwIfAborted();
    throw new Problem(UNREACHABLE);
  }
}

async function problemOf(response) {
  const { status } = response;
  const retryAfter = Number.parseInt(response.headers.get("Retry-After"), 10) || null;
  try {
    return new Problem({ ...(await response.json()), status, retryAfter });
  } catch {
    // Something between us and the server has answered in its own way.
    return new Problem({ title: `The answer was ${status} ${response.statusText}`, status, retryAfter });
  }
}

// A browser may refuse to store anything; the key then lasts as long as the page.
let keyOfThisPage = "";

export function apiKey() {
  try {
    return sessionStorage.getItem(KEY) ?? keyOfThisPage;
  } catch {
    return keyOfThisPage;
  }
}

export function setApiKey(key) {
  keyOfThisPage = key;
  try {
    if (key) sessionStorage.setItem(KEY, key);
    else sessionStorage.removeItem(KEY);
  } catch {} // see above
}
