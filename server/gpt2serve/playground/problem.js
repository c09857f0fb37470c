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
  byId("problem").scrollIntoView({ block: "nearest" });
  if (wantsKey(error)) askForKey();
  else if (error.field) blame(error.field);
}

export function hideProblem() {
  forgive();
  byId("problem").hidden = true;
}

function wantsKey({ status, code }) {
  return status === 401 || code === "unauthorized";
}

function advice(error) {
  const { status, retryAfter, requestId } = error;
  if (wantsKey(error)) return "Enter an API key below.";
  const words = [];
  if (retryAfter) words.push(`Try again in ${retryAfter} ${retryAfter === 1 ? "second" : "seconds"}.`);
  // What the operator needs to find this in the log.
  if (status >= 500 && requestId) words.push(`The request's id is ${requestId}.`);
  return words.join(" ");
}

function askForKey() {
  byId("access").open = true;
  byId("key").focus();
}
