// The server that this page came from, wherever it is mounted: relative to this file.

import { Client } from "./client.js";

const ROOT = new URL("../", import.meta.url);
const KEY = `gpt2serve key ${ROOT.pathname}`;

export const GENERATE_URL = new URL("generate", ROOT).href;
export const server = new Client(ROOT, apiKey);

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
