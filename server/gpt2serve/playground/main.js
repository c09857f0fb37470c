// The page: a model is chosen, a request is made, its answer is shown.

import { apiKey, GENERATE_URL, server, setApiKey } from "./api.js";
import { avatar } from "./avatar.js";
import { announce, byId, copy, element, reveal, setText } from "./dom.js";
import { Picker, suggestion } from "./picker.js";
import { keepResults, Prediction, showPredictions, showTiming } from "./predictions.js";
import { hideProblem, showProblem } from "./problem.js";
import { Run } from "./run.js";
import { readSettings, requestOf, showDefaults, writeSettings } from "./settings.js";
import { LANGUAGES } from "./snippets.js";
import { makeTabs } from "./tabs.js";

const SUGGESTIONS = 6;
const LONGEST_ADDRESS = 6000; // proxies refuse lines of 8 kB
const form = byId("form");
const prompt = byId("prompt");
const picker = new Picker({ onChoice: visit, onProblem: showProblem });
let describing = new AbortController();
let name = ""; // of the model, as its card has it
let prefilled = ""; // the prompt that a card gave
let language = "curl";
let run = null;

// --- which model, prompt and settings: the address says so ------------------------------------

/** Somebody has chosen a model: a new entry in the history. */
function visit(id) {
  remember({ model: id, prompt: prompt.value === prefilled ? null : prompt.value });
  choose(id);
}

function remember({ model, prompt: text }) {
  const address = new URL(location.href);
  address.searchParams.set("model", model);
  if (text === null) address.searchParams.delete("prompt");
  else address.searchParams.set("prompt", text);
  writeSettings(address.searchParams);
  if (address.href.length > LONGEST_ADDRESS) address.searchParams.delete("prompt");
  address.search = address.search.replaceAll("%2F", "/"); // as people write ids
  const state = { prompt: text }; // the history keeps what the address cannot
  if (address.href === location.href) history.replaceState(state, "");
  else history.pushState(state, "", address);
}

/** Makes the page what the address says. */
function followAddress() {
  const query = new URLSearchParams(location.search);
  prompt.value = history.state?.prompt ?? query.get("prompt") ?? prefilled;
  readSettings(query);
  choose(query.get("model") ?? "");
}

/** Shows the model, or some of those that there are. */
async function choose(id) {
  const signal = turnTo(id);
  byId("suggestions").hidden = true;
  hideProblem();
  try {
    if (id) showModel(await server.describeModel(id, signal));
    else showSuggestions(await server.searchModels("", SUGGESTIONS, signal));
  } catch (error) {
    if (signal.aborted) return;
    hideModel();
    showProblem(error);
  }
  showSnippet();
}

/** What is still to come about another model is not wanted any more. */
function turnTo(id) {
  describing.abort();
  describing = new AbortController();
  picker.value = id;
  name = "";
  return describing.signal;
}

function showSuggestions({ models }) {
  hideModel();
  byId("suggestion-buttons").replaceChildren(...models.map((entry) => suggestion(entry, visit)));
  byId("suggestions").hidden = models.length === 0;
}

function hideModel() {
  byId("card").hidden = byId("examples").hidden = byId("same").hidden = true;
  document.title = "gpt2serve";
}

function showModel({ id, card, dimensions, generation_defaults: defaults, target, precision }) {
  name = card.title || card.handle || id;
  byId("card-avatar").replaceChildren(avatar({ id, name: card.title, picture: card.picture }));
  byId("card-name").textContent = name;
  setText(byId("card-handle"), card.handle);
  byId("card-facts").textContent = `${target} ${precision}, context of ${dimensions.context_length} tokens`;
  byId("card").hidden = false;
  document.title = `${name} · gpt2serve`;
  showDefaults(defaults);
  showExamples(card.example_prompts);
}

/** The card's first example becomes the prompt, unless somebody has written one. */
function showExamples(examples) {
  if (prompt.value === prefilled) prompt.value = prefilled = examples[0] ?? "";
  const buttons = examples.map((text) => {
    const button = element("button", { type: "button" }, element("span", { dir: "auto" }, text));
    button.addEventListener("click", () => {
      prompt.value = prefilled = text;
      showSnippet();
    });
    return button;
  });
  byId("examples").replaceChildren(...buttons);
  byId("examples").hidden = examples.length < 2;
}

// --- generating -------------------------------------------------------------------------------

/** Calls `work` with the form's request, or shows what is wrong with it. */
function withRequest(work) {
  try {
    work(requestOf(picker.value));
  } catch (problem) {
    showProblem(problem);
  }
}

function submit(request) {
  remember(request);
  const again = (seed, prediction) => {
    start({ ...request, num_return_sequences: 1, seed }, [prediction], keepResults());
  };
  const predictions = Array.from(
    { length: request.num_return_sequences },
    (_, index) => new Prediction(index + 1, request.prompt, again),
  );
  const undo = keepResults();
  showPredictions(predictions, name || request.model);
  start(request, predictions, undo);
}

/** One run at a time: a new one ends the one before. If it never begins, `undo` is called. */
async function start(request, predictions, undo) {
  run?.stop();
  hideProblem();
  const onFirstToken = () => reveal(byId("results"));
  const started = (run = new Run(request, predictions, { onTiming: showTiming, onFirstToken }));
  showRunning(true);
  try {
    await started.finished();
  } catch (error) {
    if (run !== started) return;
    if (!started.hasBegun) {
      started.takeBack();
      undo();
    }
    showProblem(error);
  } finally {
    if (run === started) showRunning(false);
  }
}

function showRunning(running) {
  const stop = byId("stop-button");
  if (!running && document.activeElement === stop) form.querySelector(".primary").focus();
  stop.hidden = !running;
  byId("cards").ariaBusy = String(running);
}

// --- the same request elsewhere ---------------------------------------------------------------

function showSnippet() {
  try {
    const request = requestOf(picker.value);
    byId("snippet-text").textContent = LANGUAGES[language](GENERATE_URL, request, apiKey() !== "");
    byId("same").hidden = false;
  } catch {} // while a number is half written, the last text stays
}

function useKey() {
  const key = byId("key").value.trim();
  if (key === apiKey()) return;
  setApiKey(key);
  showKey();
  choose(picker.value); // what was refused without a key may be there now
}

function showKey() {
  setText(byId("key-set"), apiKey() ? "set" : "");
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  withRequest(submit);
});
form.addEventListener("input", showSnippet);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
byId("stop-button").addEventListener("click", () => {
  run?.stop();
  announce("Stopped.");
});
byId("key").addEventListener("change", useKey);
byId("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault(); // a key is no request
  useKey();
});
byId("copy-snippet").addEventListener("click", (event) => {
  copy(byId("snippet-text").textContent, event.currentTarget);
});
makeTabs(document.querySelector("[role=tablist]"), byId("snippet"), (tab) => {
  language = tab.dataset.language;
  showSnippet();
});
window.addEventListener("popstate", followAddress);
byId("key").value = apiKey();
showKey();
followAddress();
