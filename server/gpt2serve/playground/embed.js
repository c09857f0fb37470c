// <gpt2-generate model="me/my-model" prompt="My dream is">: a prompt and what a model makes of it,
// on anybody's page. docs/embedding.md has its attributes, events and parts.

import { Client, Problem } from "./client.js";
import { View, WORDS } from "./embed-view.js";

const HERE = new URL("../", import.meta.url).href;

/** Attributes that are fields of the request; docs/http.md has their ranges. */
const NUMBERS = {
  count: { field: "num_return_sequences", whole: true },
  "max-new-tokens": { field: "max_new_tokens", whole: true },
  "min-new-tokens": { field: "min_new_tokens", whole: true },
  temperature: { field: "temperature" },
  "top-k": { field: "top_k", whole: true },
  "top-p": { field: "top_p" },
  "repetition-penalty": { field: "repetition_penalty" },
  "no-repeat-ngram-size": { field: "no_repeat_ngram_size", whole: true },
  seed: { field: "seed", whole: true },
};

class Gpt2Generate extends HTMLElement {
  static observedAttributes = ["prompt", ...Object.keys(WORDS)];

  #view;
  #running = null;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    this.#view = new View(root, { onGenerate: () => this.generate(), onStop: () => this.stop() });
  }

  connectedCallback() {
    this.#takeOver("prompt");
  }

  attributeChangedCallback(name, _, value) {
    if (name === "prompt") this.#view.prompt = value ?? "";
    else this.#view.word(name, value);
  }

  disconnectedCallback() {
    this.stop();
  }

  // Not `delegatesFocus`: with it, a press on a text goes to the field, and nobody can select it.
  focus(options) {
    this.#view.focus(options);
  }

  /** What stands in the field. */
  get prompt() {
    return this.#view.prompt;
  }

  set prompt(text) {
    this.#view.prompt = text;
  }

  /**
   * Continues the prompt, instead of what may be running. Resolves to what `gpt2-done` tells; to
   * null if it was stopped, or failed, which is shown.
   */
  async generate() {
    this.stop();
    const running = (this.#running = new AbortController());
    const { prompt } = this;
    this.#view.begin();
    try {
      const done = { prompt, ...(await this.#receive(prompt, running.signal)) };
      this.#view.announce(done.generations.map(({ text }) => prompt + text));
      this.#dispatch("gpt2-done", done);
      return done;
    } catch (error) {
      if (running.signal.aborted) this.#dispatch("gpt2-stop", { prompt });
      else this.#fail(error);
      return null;
    } finally {
      if (this.#running === running) this.#view.end(); // else another one is on its way
    }
  }

  /** The server notices that nobody listens any more, and stops too. */
  stop() {
    this.#running?.abort();
  }

  async #receive(prompt, signal) {
    const request = { ...this.#request(), prompt };
    const client = new Client(this.#server(), () => this.getAttribute("api-key") ?? "");
    const done = { generations: [] };
    for await (const events of client.generate(request, signal)) {
      signal.throwIfAborted();
      for (const event of events) this.#on(event, prompt, done);
    }
    return done;
  }

  #on(event, prompt, done) {
    if (event.token) {
      this.#view.append(event.index, prompt, event.token.text);
      this.#dispatch("gpt2-token", event);
    } else if (event.finish_reason) {
      this.#view.finish(event.index, prompt, event.text);
      done.generations[event.index] = event;
    } else {
      Object.assign(done, event); // model_version, usage, timing
    }
  }

  #request() {
    const request = { model: this.getAttribute("model") ?? "" };
    for (const [name, { field, whole }] of Object.entries(NUMBERS)) {
      const text = this.getAttribute(name);
      if (text !== null) request[field] = numberOf(name, text, whole);
    }
    return request;
  }

  #server() {
    const given = this.getAttribute("server");
    if (given === null) return HERE;
    try {
      return new URL(given.endsWith("/") ? given : `${given}/`, this.ownerDocument.baseURI);
    } catch {
      throw new Problem(wrong("server", given, "an address"));
    }
  }

  #fail(error) {
    if (!(error instanceof Problem)) throw error; // a mistake of ours belongs in the console
    const { title, detail, status, code, field, retryAfter, requestId } = error;
    this.#view.showProblem(error);
    this.#dispatch("gpt2-error", { title, detail, status, code, field, retryAfter, requestId });
  }

  /** A property that a script set before this class was there is in the way of ours. */
  #takeOver(name) {
    if (!Object.hasOwn(this, name)) return;
    const value = this[name];
    delete this[name];
    this[name] = value;
  }

  #dispatch(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail, bubbles: true, composed: true }));
  }
}

function numberOf(name, text, whole) {
  const value = Number(text);
  // A larger whole number would quietly become another one.
  const fits = whole ? Number.isSafeInteger(value) : Number.isFinite(value);
  if (!fits || text.trim() === "") {
    throw new Problem(wrong(name, text, whole ? "a whole number" : "a number"));
  }
  return value;
}

function wrong(name, text, wanted) {
  return { title: "An attribute is wrong", detail: `${name}="${text}" is not ${wanted}.`, field: name };
}

// A page may have loaded this file from another server already; `server` says which one to ask.
if (!customElements.get("gpt2-generate")) customElements.define("gpt2-generate", Gpt2Generate);
