// The form: what is asked for, the model's own defaults, and the field that is to blame.

import { byId, setText } from "./dom.js";
import { Problem } from "./client.js";

const form = byId("form");
const details = byId("settings");
const MOST_PREDICTIONS = 256; // of which each is a card; the server's own limit may be lower
const NUMBERS = [
  "temperature",
  "top_k",
  "top_p",
  "max_new_tokens",
  "min_new_tokens",
  "repetition_penalty",
  "no_repeat_ngram_size",
];
let drawsForUs = false; // "Draw at random" was set by this page, for one model

/** The request that the form describes, without what is left to the model. Throws `Problem`. */
export function requestOf(model) {
  if (!model) throw wrong("model", "Choose a model first.");
  const { prompt, do_sample, seed, stop } = form.elements;
  const request = { model, prompt: prompt.value, num_return_sequences: predictions() };
  for (const name of NUMBERS) {
    const number = numberIn(name);
    if (number !== null) request[name] = number;
  }
  if (do_sample.value) request.do_sample = do_sample.value === "true";
  const stops = stop.value.split("\n").filter(Boolean);
  if (stops.length > 0) request.stop = stops.map((line) => line.replaceAll("\\n", "\n"));
  if (seed.value.trim()) request.seed = seedOf(seed.value.trim());
  return request;
}

function predictions() {
  const count = numberIn("num_return_sequences") ?? 5;
  if (count <= MOST_PREDICTIONS) return count;
  throw wrong("num_return_sequences", `This page shows at most ${MOST_PREDICTIONS} predictions.`);
}

/** What stands in the field; null if it is empty. */
function numberIn(name) {
  const field = form.elements[name];
  if (field.validity.badInput) throw wrong(name, "This is not a number.");
  return field.value === "" ? null : Number(field.value);
}

function seedOf(text) {
  const seed = Number(text);
  if (/^\d+$/.test(text) && Number.isSafeInteger(seed)) return seed;
  // The server takes larger ones, but a number of JavaScript would not be what was typed.
  throw wrong("seed", `A seed is a whole number, here from 0 to ${Number.MAX_SAFE_INTEGER}.`);
}

function wrong(field, detail) {
  return new Problem({ title: "A value is wrong", detail, field });
}

/** Shows the model's own defaults in the fields that are empty. */
export function showDefaults(defaults) {
  for (const name of NUMBERS) {
    form.elements[name].placeholder = defaults[name] ?? "";
  }
  const { max_new_tokens: most, min_new_tokens: fewest, do_sample } = form.elements;
  most.placeholder = defaults.max_new_tokens ?? lengthWithPrompt(defaults.max_length) ?? "what fits";
  fewest.placeholder = defaults.min_new_tokens ?? lengthWithPrompt(defaults.min_length) ?? "0";
  do_sample.options[0].text = `default (${defaults.do_sample ? "yes" : "no"})`;
  if (drawsForUs) do_sample.value = "";
  // Several predictions of a model that takes the likeliest token would all be the same.
  drawsForUs = !defaults.do_sample && !do_sample.value;
  if (drawsForUs) do_sample.value = "true";
  showChanges();
}

function lengthWithPrompt(length) {
  return length ? `${length} in all` : null;
}

/** Writes what is set into the query of an address. */
export function writeSettings(query) {
  for (const field of linked()) {
    if (field.value === usual(field)) query.delete(field.name);
    else query.set(field.name, field.value);
  }
}

/** Sets what the query of an address says. */
export function readSettings(query) {
  for (const field of linked()) field.value = query.get(field.name) ?? usual(field);
  drawsForUs = false;
  showChanges();
}

function linked() {
  return [form.elements.num_return_sequences, ...settings()];
}

function usual(field) {
  return field.defaultValue ?? ""; // a select has none
}

function settings() {
  return [...details.querySelectorAll("input, select, textarea")];
}

function showChanges() {
  const changed = settings().filter((field) => field.value !== "").length;
  setText(byId("changed"), changed ? `${changed} changed` : "");
}

/** Marks the field of that name and goes there; false if the form has none. */
export function blame(name) {
  const field = form.elements[name];
  if (!field) return false;
  const folded = field.closest("details");
  if (folded) folded.open = true;
  field.setAttribute("aria-invalid", "true");
  field.setAttribute("aria-describedby", "problem-detail");
  field.focus();
  return true;
}

export function forgive() {
  for (const field of form.querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
}

details.addEventListener("input", showChanges);
form.elements.do_sample.addEventListener("input", () => (drawsForUs = false));
byId("reset").addEventListener("click", () => {
  for (const field of settings()) field.value = "";
  drawsForUs = false;
  showChanges();
  form.dispatchEvent(new Event("input")); // the snippets follow
});
