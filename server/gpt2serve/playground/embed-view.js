// What <gpt2-generate> shows. Text only ever becomes text, and styles come as a sheet, so that the
// strictest Content-Security-Policy of the page around has nothing to say against it.

import { element, setText } from "./dom.js";
import { sheet } from "./embed-style.js";

/** Attributes that are words to show, for pages in other languages. */
export const WORDS = {
  label: "Generate",
  "stop-label": "Stop",
  "prompt-label": "Prompt",
  notice: "Written by a machine.",
};

export class View {
  #root;
  #shown = [];
  #prompt = part("textarea", "prompt", { id: "prompt", rows: 2, dir: "auto" });
  #label = part("label", "label", { htmlFor: "prompt" });
  #generate = part("button", "button", { type: "submit" });
  #stop = part("button", "button stop", { type: "button", hidden: true });
  #problem = part("p", "error", { role: "alert", hidden: true });
  #results = part("div", "results");
  #notice = part("p", "notice", { hidden: true });
  #announcer = element("div", { className: "visually-hidden", role: "status" });
  #words = {
    label: this.#generate,
    "stop-label": this.#stop,
    "prompt-label": this.#label,
    notice: this.#notice,
  };

  constructor(root, { onGenerate, onStop }) {
    this.#root = root;
    root.adoptedStyleSheets = [sheet];
    const form = part("form", "form");
    const actions = part("div", "actions");
    actions.append(this.#generate, this.#stop);
    form.append(this.#label, this.#prompt, actions);
    root.append(form, this.#problem, this.#results, this.#notice, this.#announcer);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      onGenerate();
    });
    this.#prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) onGenerate();
    });
    this.#stop.addEventListener("click", onStop);
    for (const name of Object.keys(WORDS)) this.word(name, null);
  }

  get prompt() {
    return this.#prompt.value;
  }

  set prompt(text) {
    this.#prompt.value = text;
  }

  focus(options) {
    this.#prompt.focus(options);
  }

  /** Words of the page's own, or ours if it has none. */
  word(name, text) {
    this.#words[name].textContent = text?.trim() || WORDS[name];
  }

  begin() {
    this.#shown = [];
    this.#results.replaceChildren();
    this.#announcer.replaceChildren();
    setText(this.#problem, "");
    this.#notice.hidden = true;
    this.#stop.hidden = false;
    this.#results.ariaBusy = "true";
  }

  append(index, prompt, text) {
    this.#made(index, prompt).append(text);
  }

  finish(index, prompt, text) {
    this.#made(index, prompt).textContent = text;
  }

  end() {
    if (this.#root.activeElement === this.#stop) this.#generate.focus();
    this.#stop.hidden = true;
    this.#results.ariaBusy = "false";
  }

  showProblem({ title, detail, retryAfter }) {
    const wait = retryAfter ? `Try again in ${retryAfter} s.` : "";
    setText(this.#problem, [`${title}.`, detail, wait].filter(Boolean).join(" "));
  }

  /** Whole texts only: token by token, nobody could listen to it. */
  announce(texts) {
    const words = [this.#notice.textContent, ...texts];
    this.#announcer.append(...words.map((text) => element("p", {}, text)));
  }

  /** Where the text goes that the model makes for this sequence. */
  #made(index, prompt) {
    if (!this.#shown[index]) {
      const made = part("span", "text");
      const result = part("p", "result", { dir: "auto" });
      const given = part("span", "given");
      given.textContent = prompt;
      result.append(given, made);
      this.#shown[index] = made;
      this.#results.append(result);
      this.#notice.hidden = false;
    }
    return this.#shown[index];
  }
}

/** An element that pages can style as `gpt2-generate::part(names)`. */
function part(name, names, properties = {}) {
  const made = element(name, properties);
  made.setAttribute("part", names);
  return made;
}
