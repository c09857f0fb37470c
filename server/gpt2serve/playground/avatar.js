// A model's face: its card's picture, or a letter on a colour of its own.

import { element } from "./dom.js";

const PICTURE = /^(https:\/\/|data:image\/)/;

/** `picture` is shown if it is of the addresses that the page allows, and can be loaded. */
export function avatar({ id, name, picture }) {
  const face = element("span", { className: "avatar", ariaHidden: "true" }, initial(name) ?? initial(id.split("/").at(-1)));
  face.style.setProperty("--hue", hueOf(id));
  if (PICTURE.test(picture ?? "")) face.append(pictureOf(picture));
  return face;
}

function pictureOf(address) {
  const image = element("img", { alt: "", decoding: "async", loading: "lazy" });
  image.addEventListener("error", () => image.remove());
  image.src = address;
  return image;
}

/** The first letter or digit; undefined if there is none, as in a name of emoji. */
function initial(name = "") {
  return name.match(/[\p{L}\p{N}]/u)?.[0].toUpperCase();
}

/** The same for the same id, 0 to 359. */
function hueOf(id) {
  let hash = 0;
  for (const character of id) hash = (hash * 31 + character.codePointAt(0)) % 1_000_003;
  return (hash * 137) % 360; // so that neighbours differ
}
