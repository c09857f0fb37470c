// The server's API, for whoever knows its address.

import { readEvents } from "./sse.js";

const BROKEN_OFF = {
  title: "The answer broke off",
  detail: "The connection ended before the text did. Try again in a moment.",
};

const NO_KEY = {
  title: "This is no API key",
  detail: "It has characters that no key has: it may be cut short, or another text.",
  code: "unauthorized",
};

/** What went wrong, in words to show: an RFC 9457 document of the server, or one like it. */
export class Problem extends Error {
  constructor({ title, detail = "", status = 0, code = null, field = null, ...answer }) {
    super(title);
    const { retryAfter = null, requestId = null } = answer;
    Object.assign(this, { title, detail, status, code, field, retryAfter, requestId });
  }
}

export class Client {
  #root;
  #key;

  /** `root` is the URL that the routes are below, with a slash at its end; `key()` may be "". */
  constructor(root, key) {
    this.#root = root;
    this.#key = key;
  }

  /** Models whose id, name or handle has `text` in it: `{models, next}`. */
  async searchModels(text, limit, signal) {
    const query = new URLSearchParams({ search: text, limit });
    return (await this.#call(`models?${query}`, { signal })).json();
  }

  async describeModel(id, signal) {
    const parts = id.split("/").map(encodeURIComponent);
    return (await this.#call(`models/${parts.join("/")}/info`, { signal })).json();
  }

  /**
   * The events of a generation, in arrays as they arrive; see docs/http.md for their shapes. Texts
   * come without the prompt, which the page shows anyway.
   * Throws `Problem`, or what `signal` was aborted with.
   */
  async *generate(request, signal) {
    const response = await this.#call("generate", {
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
      if (failed) throw new Problem({ ...failed.error, requestId: requestIdOf(response) });
      if (done >= 0) return;
    }
    throw new Problem(BROKEN_OFF);
  }

  async #call(path, options) {
    const key = this.#key();
    const headers = new Headers(options.headers);
    if (key) authorize(headers, key);
    const response = await reached(new URL(path, this.#root), { ...options, headers });
    if (!response.ok) throw await problemOf(response);
    return response;
  }
}

async function* unbroken(stream, signal) {
  try {
    yield* stream;
  } catch {
    signal.throwIfAborted();
    throw new Problem(BROKEN_OFF);
  }
}

/** Throws `Problem` if the key has characters that no header can carry, such as an ellipsis. */
function authorize(headers, key) {
  try {
    headers.set("Authorization", `Bearer ${key}`);
  } catch {
    throw new Problem(NO_KEY);
  }
}

async function reached(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    options.signal.throwIfAborted();
    throw new Problem(unreachable(url));
  }
}

// A browser does not tell a page whether nobody answered or the answer is not for it.
function unreachable(url) {
  const reasons = ["It may be restarting, or the network may be down."];
  if (url.origin !== location.origin) {
    reasons.push(`Or it does not let pages of ${location.origin} in: see its --cors-origins.`);
  }
  return {
    title: "The server cannot be reached",
    detail: [...reasons, "Try again in a moment."].join(" "),
  };
}

async function problemOf(response) {
  const { status, statusText } = response;
  const retryAfter = Number.parseInt(response.headers.get("Retry-After"), 10) || null;
  const answer = { status, retryAfter, requestId: requestIdOf(response) };
  try {
    return new Problem({ ...(await response.json()), ...answer });
  } catch {
    // Something between us and the server has answered in its own way.
    return new Problem({ title: `The answer was ${status} ${statusText}`.trim(), ...answer });
  }
}

function requestIdOf(response) {
  return response.headers.get("X-Request-Id");
}
