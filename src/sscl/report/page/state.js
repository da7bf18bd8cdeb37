// What every other file needs: the report's data, small functions, what is known about each tile.
//
// The scripts of this folder run as one function, in the order of SCRIPTS in __init__.py. All text of the report goes in
// through textContent: no string becomes HTML.

const content = JSON.parse(document.getElementById("page-data").textContent);
const gallery = content.gallery;

const root = document.documentElement;
const byId = (id) => document.getElementById(`page-${id}`);
const tiles = gallery.tiles;
const REVIEWS = ["agree", "disagree", "unsure"];

/** A new element; `properties` are its DOM properties, those with a hyphen its attributes. */
function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}

const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const className = (index) => (index < 0 ? "unknown" : gallery.classes[index]);

/** A fraction as whole percent that never claims certainty: 0.9996 is >99%. */
function percent(fraction) {
  if (fraction > 0.995 && fraction < 1) return ">99%";
  if (fraction < 0.005 && fraction > 0) return "<1%";
  return `${Math.round(100 * fraction)}%`;
}

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

function download(name, kind, parts) {
  const url = URL.createObjectURL(new Blob(parts, { type: kind }));
  const link = element("a", { href: url, download: name.replace(/[^\w.-]+/g, "_").slice(-120) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000); // a slow disk may still be reading
}

/** Ask before something is lost; resolves to the answer chosen, or null. */
function ask(text, answers) {
  const dialog = byId("ask");
  byId("ask-text").textContent = text;
  return new Promise((resolve) => {
    let chosen = null;
    const buttons = [...answers, "Cancel"].map((answer) => {
      const button = element("button", { type: "button", textContent: answer });
      button.addEventListener("click", () => {
        chosen = answer === "Cancel" ? null : answer;
        dialog.close();
      });
      return button;
    });
    byId("ask-answers").replaceChildren(...buttons);
    dialog.addEventListener("close", () => resolve(chosen), { once: true });
    dialog.showModal();
    buttons.at(-1).focus(); // Enter by accident does no harm
  });
}

function say(text) {
  byId("message").textContent = text;
}

const names = new Intl.Collator("en", { numeric: true });
const nameRank = new Map([...tiles].sort((a, b) => names.compare(a.id, b.id)).map((tile, rank) => [tile.id, rank]));
const facts = tiles.map((tile) => ({
  confidence: tile.probabilities[tile.prediction],
  agreement: fractionOf(tile.agreement),
  wrong: tile.label >= 0 && tile.label !== tile.prediction,
  right: tile.label >= 0 && tile.label === tile.prediction,
  abstained: tile.decided === false,
  name: nameRank.get(tile.id),
  text: `${tile.id}\n${tile.group ?? ""}`.toLowerCase(),
}));

/** "6/7" as a number, null for any other text. */
function fractionOf(text) {
  const found = /^(\d+)\/(\d+)$/.exec(text ?? "");
  return found && Number(found[2]) > 0 ? Number(found[1]) / Number(found[2]) : null;
}

function outcomeOf(index) {
  const { wrong, right, abstained } = facts[index];
  const word = wrong ? "wrong" : right ? "correct" : "true class unknown";
  return abstained ? `${word}, abstained` : word;
}
