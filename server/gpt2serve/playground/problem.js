// What went wrong, where a reader sees it and a screen reader says it.

import { Problem } from "./client.js";
import { byId, setText } from "./dom.js";
import { blame, forgive } from "./settings.js";

export function showProblem(error) {
  if (!(error instanceof Problem)) throw error; // a mistake of ours belongs in the console
  forgive();
  byId("problem-title").textContent = error.title;
  setText(byId("problem-detail"), [error.detail, advice(error)].filter(Boolean).join(" "));
  byId("problem").hidden = false;
  if (error.status === 401) askForKey();
  else if (error.field) blame(error.field);
}

export function hideProblem() {
  forgive();
  byId("problem").hidden = true;
}

function advice({ status, retryAfter }) {
  if (status === 401) return "Enter an API key above.";
  if (!retryAfter) return "";
  return `Try again in ${retryAfter} ${retryAfter === 1 ? "second" : "seconds"}.`;
}

function askForKey() {
  byId("access").open = true;
  byId("key").focus();
}
