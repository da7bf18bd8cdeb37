// Blind review: a tile shows its picture alone until the reviewer has named its class. Until blind review is left,
// true classes and the names of files, which often hold a class, stay hidden, and the order is random.

const CANNOT_TELL = "(cannot tell)";
const ANSWERS = [...gallery.classes, CANNOT_TELL];
const MOST_BUTTONS = 4; // answers of a cell; of more, a list
const seen = new Set(); // ids of tiles whose prediction was on screen before their class was named; "": of all
let blind = false;
let blindChosen = null; // "yes" or "no", where the reader has turned it on or off; else the page says

const veiled = (index) => blind && reviewOf(index).blind === "";
const nameOf = (index) => (blind ? `tile ${blindRanks()[index] + 1}` : tiles[index].id);

/** FNV-1a, 32 bits. */
function hashOf(text) {
  let value = 0x811c9dc5;
  for (const byte of new TextEncoder().encode(text)) value = Math.imul(value ^ byte, 0x01000193) >>> 0;
  return value;
}

/** What `make` returns, made when it is first asked for: a slide has many tiles. */
function once(make) {
  let made;
  return () => (made ??= make());
}

// The same order for all reviewers of a report, so that those who stop early have tiles in common.
const blindRanks = once(() => {
  const hashes = tiles.map((tile) => hashOf(content.id + tile.id));
  const order = tiles.map((_, index) => index).sort((a, b) => hashes[a] - hashes[b] || a - b);
  const rank = new Array(tiles.length);
  order.forEach((index, place) => (rank[index] = place));
  return rank;
});

// What a worksheet of blind review calls a tile (data/worksheets.py); names of files often hold a class.
const blindName = ({ id }) => `blind-${[content.id, `2${content.id}`].map((key) => hex(hashOf(key + id))).join("")}`;
const blindIds = once(() => new Map(tiles.map((tile) => [blindName(tile), tile.id])));
const idOf = (name) => (name.startsWith("blind-") ? (blindIds().get(name) ?? name) : name);

function hex(value) {
  return value.toString(16).padStart(8, "0");
}

function loadBlind() {
  try {
    blindChosen = localStorage.getItem(`${KEY}.blind`);
    blind = blindChosen === null ? gallery.blind : blindChosen === "yes";
    loadSeen();
    byId("reviewer").value = localStorage.getItem(`${KEY}.reviewer`) ?? "";
  } catch (error) {
    blind = gallery.blind;
    refused(error);
  }
}

/** Add what this and other windows have shown. */
function loadSeen() {
  for (const id of JSON.parse(localStorage.getItem(`${KEY}.seen`) ?? "[]")) seen.add(id);
}

function keepBlind() {
  try {
    loadSeen();
    if (blindChosen !== null) localStorage.setItem(`${KEY}.blind`, blindChosen);
    localStorage.setItem(`${KEY}.seen`, JSON.stringify([...seen]));
    localStorage.setItem(`${KEY}.reviewer`, byId("reviewer").value);
  } catch (error) {
    refused(error);
  }
}

/** Remember tiles that are on screen with their prediction. */
function markSeen(indices) {
  if (!blind) for (const index of indices) if (reviewOf(index).blind === "") seen.add(tiles[index].id);
}

function answer(index, text) {
  if (!veiled(index) || !ANSWERS.includes(text)) return;
  const before = seen.has("") || seen.has(tiles[index].id) ? "yes" : "no";
  setReview(index, { blind: text, blind_at: new Date().toISOString(), seen_before: before });
  redraw(index);
}

/** Take a blind answer back: the prediction has been seen now, so that the next answer says so. */
function takeBack(index) {
  seen.add(tiles[index].id);
  keepBlind();
  setReview(index, { blind: "", blind_at: "", seen_before: "" });
  redraw(index);
}

/** Buttons or a list to name the class of a tile; `most`: answers up to which there are buttons, `words` on them. */
function answerControls(index, { most = MOST_BUTTONS, words = false } = {}) {
  if (ANSWERS.length > most) {
    const options = [element("option", { value: "", textContent: "which class?" })];
    options.push(...ANSWERS.map((text) => element("option", { value: text, textContent: text })));
    const list = element("select", { className: "answer", "aria-label": `Class of ${nameOf(index)}` }, ...options);
    list.dataset.index = index;
    return [list];
  }
  return ANSWERS.map((text) => {
    const button = element("button", { type: "button", title: text, "aria-label": text, tabIndex: -1 });
    button.textContent = text !== CANNOT_TELL ? text : words ? "cannot tell" : "?";
    button.dataset.answer = text;
    button.dataset.index = index;
    return button;
  });
}

function onAnswer(event) {
  const list = event.target.closest("select.answer");
  if (list !== null && list.value !== "") answer(Number(list.dataset.index), list.value);
}

async function onBlind(event) {
  const open = shownToBe(event.target.checked);
  if (event.target.checked || open === 0) {
    setBlind(event.target.checked);
    return;
  }
  event.target.checked = true;
  const chosen = await ask(
    `${count(open, "tile has", "tiles have")} no answer yet. Once a prediction has been on screen, a later answer to ` +
      "its tile is marked as not blind. Leave the blind review?",
    ["Leave"],
  );
  if (chosen !== null) setBlind(false);
}

/** Tiles that would show their prediction: none while blind review begins. */
function shownToBe(blindNext) {
  return blindNext ? 0 : tiles.filter((_, index) => reviewOf(index).blind === "").length;
}

function setBlind(on) {
  blind = on;
  blindChosen = on ? "yes" : "no";
  keepBlind();
  showBlind();
  setFilters({});
  showProgress();
}

function showBlind() {
  byId("blind").checked = blind;
  root.classList.toggle("blind", blind);
  byId("blind-note").hidden = !blind;
  const keys = gallery.classes.slice(0, 9).map((name, label) => `${label + 1} ${name}`);
  byId("blind-keys").textContent = [...keys, "0 cannot tell"].join(", ");
  showReviewFilters();
}
