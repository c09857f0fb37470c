// Small helpers. Text only ever becomes text: nothing here, or elsewhere, parses HTML.

export const byId = (id) => document.getElementById(id);

/** A new element with properties and children; a child that is a string becomes text. */
export function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Shows `text`, or hides the element if there is none. */
export function setText(node, text) {
  node.textContent = text;
  node.hidden = !text;
}

/** Has a screen reader say `text`. */
export function announce(text) {
  byId("announcer").append(element("p", {}, text));
}

/** Scrolls to `node` if little or nothing of it is in sight. */
export function reveal(node) {
  if (node.getBoundingClientRect().top < innerHeight * 0.75) return;
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  node.scrollIntoView({ block: "start", behavior: still ? "instant" : "smooth" });
}

/** Copies `text`; `button` says so for a moment. */
export async function copy(text, button) {
  button.dataset.label ??= button.textContent;
  button.textContent = (await write(text)) ? "Copied" : "Not copied";
  announce(button.textContent);
  setTimeout(() => (button.textContent = button.dataset.label), 1500);
}

async function write(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return writeTheOldWay(text);
  }
}

// The clipboard of today is for pages behind TLS or on localhost only.
function writeTheOldWay(text) {
  const field = element("textarea", { value: text, className: "visually-hidden" });
  const focused = document.activeElement;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  return done;
}
