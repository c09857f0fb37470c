// The cards of the results, one for each sequence.

import { announce, byId, copy, element } from "./dom.js";

const REASONS = { eos: "end of text", length: "length limit", stop: "stop text" };

export class Prediction {
  #made;
  #facts;
  #again;
  #number;
  #prompt;
  #text = "";

  /** `onAgain(seed, prediction)` is called when somebody wants this very text once more. */
  constructor(number, prompt, onAgain) {
    this.#number = number;
    this.#prompt = prompt;
    this.node = byId("prediction").content.cloneNode(true).firstElementChild;
    this.#made = this.node.querySelector(".made");
    this.#facts = this.node.querySelector(".facts");
    this.#again = this.node.querySelector(".again");
    const title = this.node.querySelector("h3");
    title.textContent = `Prediction ${number}`;
    title.id = `prediction-${number}`;
    this.node.setAttribute("aria-labelledby", title.id);
    this.node.querySelector(".prompt").textContent = prompt;
    const copyButton = this.node.querySelector(".copy");
    copyButton.ariaLabel = `Copy prediction ${number}`;
    copyButton.addEventListener("click", () => copy(this.#prompt + this.#text, copyButton));
    this.#again.ariaLabel = `Make prediction ${number} again from its seed`;
    this.#again.addEventListener("click", () => onAgain(this.seed, this));
    this.start();
  }

  /** Empties the card for a run; returns a function that takes this back. */
  start() {
    const [text, made, facts] = [this.#text, [...this.#made.childNodes], [...this.#facts.children]];
    const undo = () => {
      this.#text = text;
      this.#made.replaceChildren(...made);
      this.#end(...facts);
    };
    this.ended = false;
    this.#text = "";
    this.#made.replaceChildren();
    this.#facts.replaceChildren();
    this.node.classList.add("running");
    return undo;
  }

  append(text) {
    this.#text += text;
    this.#made.append(text);
  }

  /** The server's last word: text without the prompt, reason, tokens, seed. */
  finish({ text, finish_reason: reason, tokens, seed }) {
    this.seed = seed;
    this.#text = this.#made.textContent = text;
    this.#end(
      element("span", { className: "seed" }, `seed ${seed}`),
      element("span", {}, `${tokens} tokens, ${REASONS[reason] ?? reason}`),
    );
    this.#again.hidden = false;
    // Whole texts only: token by token, nobody could listen to it.
    announce(`Prediction ${this.#number}: ${this.#prompt}${text}`);
  }

  /** Nothing more comes: it was stopped, or it failed. */
  breakOff(word) {
    if (!this.ended) this.#end(element("span", {}, word));
  }

  #end(...facts) {
    this.ended = true;
    this.node.classList.remove("running");
    this.#facts.replaceChildren(...facts);
  }
}

/** Puts new cards in place of those before. */
export function showPredictions(predictions, name) {
  byId("announcer").replaceChildren();
  // A name that is written from right to left, or turns the rest around, stays what it is.
  const by = element("span", {}, "Written by a machine, not by ", element("bdi", {}, name), ".");
  byId("notice").replaceChildren(by);
  byId("cards").replaceChildren(...predictions.map((prediction) => prediction.node));
  byId("results").hidden = false;
}

/** A function that brings back the results that are shown now. */
export function keepResults() {
  const { hidden } = byId("results");
  const kept = ["notice", "cards", "timing"].map(byId).map((node) => [node, [...node.childNodes]]);
  return () => {
    for (const [node, children] of kept) node.replaceChildren(...children);
    byId("results").hidden = hidden;
  };
}

/** `timing`: what is known, in milliseconds and tokens per second. */
export function showTiming({ queue, load, first, rate }) {
  const facts = [
    ["Queue", milliseconds(queue)],
    ["Load", milliseconds(load)],
    ["First token", milliseconds(first)],
    ["Speed", rate && `${Math.round(rate).toLocaleString("en")} tokens/s`],
  ];
  const shown = facts.filter(([, value]) => value);
  byId("timing").replaceChildren(
    ...shown.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value))),
  );
}

function milliseconds(value) {
  if (value === undefined) return "";
  if (value >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value < 9.95 ? Number(value.toFixed(1)) : Math.round(value)} ms`;
}
