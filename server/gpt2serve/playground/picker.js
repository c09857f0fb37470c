// The choice of a model by typing: a combobox with a list, after the ARIA Authoring Practices.
// The server searches; the page never holds more than a list's worth of models.

import { server } from "./api.js";
import { avatar } from "./avatar.js";
import { byId, element, setText } from "./dom.js";

const LIST_LENGTH = 20;
const PAUSE_MS = 150;

export class Picker {
  #input = byId("model");
  #popup = byId("model-popup");
  #list = byId("model-list");
  #entries = [];
  #active = -1;
  #chosen = "";
  #timer = 0;
  #request = new AbortController();
  #searching = false;
  #choosesFirst = false; // Enter came before the list did
  #onChoice;
  #onProblem;

  constructor({ onChoice, onProblem }) {
    this.#onChoice = onChoice;
    this.#onProblem = onProblem;
    this.#input.addEventListener("input", () => this.#search(PAUSE_MS));
    this.#input.addEventListener("click", () => this.#popup.hidden && this.#openAll());
    this.#input.addEventListener("keydown", (event) => this.#onKey(event));
    this.#input.addEventListener("blur", () => this.#leave());
    // A press on the list must not take the focus from the input.
    this.#popup.addEventListener("mousedown", (event) => event.preventDefault());
    this.#list.addEventListener("click", (event) => {
      const option = event.target.closest("[role=option]");
      if (option) this.#choose(this.#entries[option.dataset.index]);
    });
  }

  /** Shows `id` as the choice, whoever made it. */
  set value(id) {
    this.#chosen = this.#input.value = id;
    this.#close();
  }

  get value() {
    return this.#chosen;
  }

  #onKey(event) {
    const open = !this.#popup.hidden;
    const keys = {
      ArrowDown: () => (open ? this.#move(+1) : this.#openAll()),
      ArrowUp: () => (open ? this.#move(-1) : this.#openAll()),
      Enter: () => this.#onEnter(),
      Escape: () => this.#leave(),
    };
    const act = keys[event.key];
    if (!act || event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
    event.preventDefault();
    act();
  }

  #onEnter() {
    if (this.#searching) this.#choosesFirst = true;
    else if (!this.#popup.hidden && this.#active >= 0) this.#choose(this.#entries[this.#active]);
  }

  /** The whole list; what is typed now replaces the name of the model. */
  #openAll() {
    this.#input.select();
    this.#search(0, "");
  }

  #search(pause, text = this.#input.value.trim()) {
    this.#forget();
    this.#searching = true;
    this.#timer = setTimeout(() => this.#ask(text, this.#request.signal), pause);
  }

  async #ask(text, signal) {
    try {
      const found = await server.searchModels(text, LIST_LENGTH, signal);
      this.#searching = false;
      this.#show(found);
    } catch (error) {
      if (signal.aborted) return;
      this.#close();
      this.#onProblem(error);
    }
  }

  /** Drops what was asked for and has not come: its answer would be out of date. */
  #forget() {
    clearTimeout(this.#timer);
    this.#request.abort();
    this.#request = new AbortController();
    this.#searching = this.#choosesFirst = false;
  }

  #show({ models, next }) {
    this.#entries = models;
    if (this.#choosesFirst && models.length > 0) return this.#choose(models[0]);
    this.#list.replaceChildren(...models.map(option));
    const count = models.length === 0 ? "No model matches" : `${models.length} models`;
    byId("model-count").textContent = next ? `The first ${count}` : count;
    setText(byId("model-more"), next ? "There are more: type to narrow" : models.length ? "" : count);
    this.#popup.hidden = false;
    this.#input.setAttribute("aria-expanded", "true");
    this.#highlight(models.length > 0 ? 0 : -1);
  }

  #move(by) {
    const count = this.#entries.length;
    if (count > 0) this.#highlight((this.#active + by + count) % count);
  }

  #highlight(index) {
    this.#list.children[this.#active]?.setAttribute("aria-selected", "false");
    this.#active = index;
    const option = this.#list.children[index];
    option?.setAttribute("aria-selected", "true");
    option?.scrollIntoView({ block: "nearest" });
    if (option) this.#input.setAttribute("aria-activedescendant", option.id);
    else this.#input.removeAttribute("aria-activedescendant");
  }

  #choose(entry) {
    this.value = entry.id;
    this.#onChoice(entry.id);
  }

  /** Without a choice: what was chosen before stays. */
  #leave() {
    this.value = this.#chosen;
  }

  #close() {
    this.#forget();
    this.#popup.hidden = true;
    this.#input.setAttribute("aria-expanded", "false");
    this.#highlight(-1);
    byId("model-count").textContent = "";
  }
}

function option({ id, title, handle, picture }, index) {
  const name = element("span", { className: "name" }, title || id);
  const about = element("span", { className: "handle" });
  if (handle) about.append(element("bdi", {}, handle));
  if (title) about.append(...(handle ? [" · "] : []), element("bdi", {}, id));
  const made = element(
    "li",
    { id: `model-option-${index}`, role: "option", ariaSelected: "false" },
    avatar({ id, name: title, picture }),
    element("span", { className: "names" }, name, about),
  );
  made.dataset.index = index;
  return made;
}

/** A button that chooses the model, for readers who know no name. */
export function suggestion({ id, title, picture }, onChoice) {
  const face = avatar({ id, name: title, picture });
  const button = element("button", { type: "button" }, face, element("span", { className: "name" }, title || id));
  button.addEventListener("click", () => onChoice(id));
  return button;
}
