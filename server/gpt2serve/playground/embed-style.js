// How <gpt2-generate> looks: fonts and colours of the page around it, light or dark, unless the
// page sets --gpt2-* properties or styles the parts.

export const sheet = new CSSStyleSheet();

sheet.replaceSync(`
:host {
  --_line: var(--gpt2-border, color-mix(in srgb, currentColor 35%, transparent));
  --_radius: var(--gpt2-radius, 6px);
  display: block;
}
:host([hidden]), [hidden] { display: none !important; }

form { margin: 0; }
label { display: block; margin-block-end: 0.25em; }

textarea {
  box-sizing: border-box;
  inline-size: 100%;
  padding: 0.5em;
  border: 1px solid var(--_line);
  border-radius: var(--_radius);
  background: var(--gpt2-background, transparent);
  color: inherit;
  font: inherit;
  resize: vertical;
}

[part~="actions"] { display: flex; gap: 0.5em; margin-block: 0.5em; }

button {
  padding: 0.4em 1em;
  border: 1px solid var(--gpt2-accent, currentColor);
  border-radius: var(--_radius);
  background: var(--gpt2-accent, transparent);
  color: var(--gpt2-on-accent, inherit);
  font: inherit;
  cursor: pointer;
}
[part~="stop"] { background: transparent; color: inherit; }

:focus-visible { outline: 3px solid var(--gpt2-accent, currentColor); outline-offset: 2px; }

p { margin-block: 0.5em; }
[part~="result"] { white-space: pre-wrap; overflow-wrap: anywhere; }
[part~="text"] { font-weight: var(--gpt2-text-weight, 600); }
[part~="notice"] { font-size: 0.85em; }
[part~="error"] {
  padding-inline-start: 0.75em;
  border-inline-start: 4px solid var(--gpt2-error, currentColor);
  white-space: pre-wrap;
}

.visually-hidden {
  position: absolute;
  inline-size: 1px;
  block-size: 1px;
  overflow: hidden;
  clip-path: inset(50%);
  white-space: nowrap;
}
`);
