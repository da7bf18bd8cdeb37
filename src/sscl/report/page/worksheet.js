// The worksheet: the reviews and notes of the tiles, kept in the browser, downloaded and imported as CSV.

const KEY = `sscl.report.${content.id}`;
const indexOf = new Map(tiles.map((tile, index) => [tile.id, index]));
const nothing = Object.freeze({ review: "", note: "", changed: "", blind: "", blind_at: "", seen_before: "" });
let reviews = new Map(); // id of a tile -> an entry; also of tiles that this page does not show
let keeps = true; // whether the browser keeps the worksheet
let unsaved = false; // whether something would be lost by closing the page
const ENTRIES = ["blind", "blind_at", "seen_before", "review", "note", "changed"]; // in the order in which they are given
const SAME = { classes: JSON.stringify(gallery.classes), ...content.slide }; // in every row, for sscl to take as labels
const COLUMNS = ["report", "reviewer", "id", "true", "predicted", "confidence", "outcome", ...ENTRIES, ...Object.keys(SAME)];
const IMPORT_BYTES = 32 * 2 ** 20;

const reviewOf = (index) => reviews.get(tiles[index].id) ?? nothing;

function load() {
  try {
    const text = localStorage.getItem(KEY);
    localStorage.setItem(`${KEY}.test`, "1"); // some browsers read, and refuse to write
    localStorage.removeItem(`${KEY}.test`);
    if (text !== null) {
      const rows = JSON.parse(text).reviews;
      reviews = new Map(rows.map(([id, row]) => [id, entry(row)]));
    } else {
      reviews = new Map();
    }
  } catch (error) {
    refused(error);
  }
}

function entry(row) {
  const found = Object.fromEntries(ENTRIES.map((key) => [key, String(row[key] ?? "")]));
  if (!REVIEWS.includes(found.review)) found.review = "";
  if (!ANSWERS.includes(found.blind)) found.blind = found.blind_at = found.seen_before = "";
  return found;
}

function keep() {
  unsaved = true;
  if (!keeps) return;
  try {
    localStorage.setItem(KEY, JSON.stringify({ version: 2, reviews: [...reviews] }));
  } catch (error) {
    refused(error);
  }
}

function refused(error) {
  keeps = false;
  byId("kept").textContent =
    `This browser cannot store the worksheet (${error.name}): download it before you close the page.`;
  byId("kept").classList.add("warning");
}

function setReview(index, change) {
  const { id } = tiles[index];
  const next = { ...reviewOf(index), ...change, changed: new Date().toISOString() };
  if (next.review === "" && next.note === "" && next.blind === "") reviews.delete(id);
  else reviews.set(id, next);
  keep();
  if (filter.review !== "" || filter.text !== "") byId("again").hidden = false;
  showReview(index);
  showProgress();
}

/** Set a review; clear it if it is set already. */
function review(index, word) {
  if (veiled(index)) {
    say("Name the class first: blind review shows the prediction then.");
    return;
  }
  const same = reviewOf(index).review === word;
  setReview(index, { review: same ? "" : word });
  if (!same) reviewed(index);
}

/** Do what a button of a tile says. */
function press(index, { review: word, answer: named }) {
  if (word !== undefined) review(index, word);
  else if (named !== undefined) answer(index, named);
}

/** Review or answer a tile by a key; whether the key does either. */
function reviewByKey(index, key) {
  const word = REVIEWS.find((allowed) => allowed[0] === key);
  if (word !== undefined) review(index, word);
  else if (blind && /^[0-9]$/.test(key)) answer(index, key === "0" ? CANNOT_TELL : gallery.classes[Number(key) - 1]);
  else return false;
  return true;
}

/** Fill the place where one tile is answered or reviewed; `most`: answers up to which there are buttons. */
function fillReview(controls, index, most) {
  const hidden = veiled(index);
  controls.setAttribute("aria-label", hidden ? "Which class is it?" : "Do you agree with the predicted class?");
  controls.replaceChildren(...(hidden ? answerControls(index, { most, words: true }) : reviewButtons(null, true)));
  for (const control of controls.children) control.tabIndex = 0;
}

/** Show the review and the note of the tile there. */
function showReviewIn(controls, field, index) {
  const { review: word, note } = reviewOf(index);
  markButtons(controls, word);
  if (field.value !== note) field.value = note; // not under the caret of who is writing
}

function markButtons(controls, word) {
  for (const button of controls.querySelectorAll("[data-review]")) {
    button.setAttribute("aria-pressed", String(button.dataset.review === word));
  }
}

function showProgress() {
  const known = [...reviews].filter(([id]) => indexOf.has(id)).map(([, row]) => row);
  const of = (word) => known.filter((row) => row.review === word).length;
  const [agree, disagree, unsure] = REVIEWS.map(of);
  const done = agree + disagree + unsure;
  const notes = known.filter((row) => row.note !== "").length;
  const answered = known.filter((row) => row.blind !== "").length;
  const parts = [`${agree} agree`, `${disagree} disagree`, `${unsure} unsure`, count(notes, "note")];
  const total = `${done.toLocaleString("en")} of ${count(tiles.length, "tile")} reviewed`;
  if (answered) parts.push(`${answered} answered blind`);
  byId("progress").textContent = done + notes + answered ? `${total}: ${parts.join(", ")}` : total;
  byId("blind-progress").textContent = `${answered.toLocaleString("en")} of ${count(tiles.length, "tile")} answered.`;
  byId("reset").disabled = done + notes + answered === 0;
}

function worksheet() {
  const reviewer = byId("reviewer").value.trim();
  const rows = [...tiles.keys()].filter(inWorksheet).map((index) => {
    const tile = tiles[index];
    const own = reviewOf(index);
    const truth = tile.label < 0 || blind ? "" : className(tile.label);
    const said = veiled(index) ? ["", ""] : [className(tile.prediction), facts[index].confidence.toFixed(4)];
    const outcome = blind ? "" : outcomeOf(index);
    const name = blind ? blindName(tile) : tile.id;
    return [content.id, reviewer, name, truth, ...said, outcome, ...ENTRIES.map((key) => own[key]), ...Object.values(SAME)];
  });
  const lines = [COLUMNS, ...rows].map((row) => row.map((cell) => quoted(guarded(cell))).join(","));
  return `\uFEFF${lines.join("\r\n")}\r\n`; // the mark tells spreadsheets that this is UTF-8
}

async function importWorksheet(file) {
  if (file.size > IMPORT_BYTES) {
    say(`${file.name}: ${Math.round(file.size / 2 ** 20)} MB, but worksheets have at most ${IMPORT_BYTES / 2 ** 20} MB; nothing was imported.`);
    return;
  }
  const text = decoded(await file.arrayBuffer());
  if (text === null) {
    say(`${file.name}: not UTF-8, so nothing was imported. In the spreadsheet, save it as “CSV UTF-8”.`);
    return;
  }
  const [header, ...rows] = parseCsv(text);
  const columns = (header ?? []).map((name) => name.trim().toLowerCase());
  const at = Object.fromEntries(["report", "id", ...ENTRIES].map((key) => [key, columns.indexOf(key)]));
  if (at.id < 0 || (at.review < 0 && at.note < 0 && at.blind < 0)) {
    say(`${file.name}: the first line must name the column id, and blind, review or note; nothing was imported.`);
    return;
  }
  const found = new Map();
  let unknown = 0;
  let unclear = 0;
  let foreign = 0;
  for (const row of rows) {
    const cell = (key) => (at[key] < 0 ? "" : unguarded((row[at[key]] ?? "").replace(/\r\n?/g, "\n")));
    const id = idOf(cell("id"));
    const word = cell("review").trim().toLowerCase();
    const review = REVIEWS.find((allowed) => word === allowed || word === allowed[0]) ?? "";
    const named = ANSWERS.find((text) => text === cell("blind").trim()) ?? "";
    if (word === "" && cell("note") === "" && cell("blind") === "") continue;
    if (cell("report") !== "" && cell("report") !== content.id) foreign++;
    if ((word !== "" && review === "") || (cell("blind") !== "" && named === "")) unclear++;
    if (!indexOf.has(id)) unknown++;
    else if (review !== "" || named !== "" || cell("note") !== "") {
      const given = Object.fromEntries(ENTRIES.map((key) => [key, cell(key)]));
      const own = named === "" ? (reviews.get(id) ?? nothing) : { ...given, blind: named };
      const { blind, blind_at, seen_before } = own; // a file without blind answers keeps those that are here
      const changed = given.changed || new Date().toISOString();
      found.set(id, entry({ ...given, review, changed, blind, blind_at, seen_before }));
    }
  }
  const differs = (id, next) => {
    const own = reviews.get(id);
    return own !== undefined && ["review", "note", "blind"].some((key) => own[key] !== next[key]);
  };
  const others = [...found].filter(([id, next]) => differs(id, next)).map(([id]) => id);
  if (others.length) {
    const answer = await ask(
      `${count(others.length, "tile has", "tiles have")} a different answer or note in ${file.name}. ` +
        "Replace yours?",
      ["Replace mine", "Keep mine"],
    );
    if (answer === null) {
      say("Nothing was imported.");
      return;
    }
    if (answer === "Keep mine") for (const id of others) found.delete(id);
  }
  for (const [id, next] of found) reviews.set(id, next);
  keep();
  const remarks = [`${count(found.size, "tile")} imported from ${file.name}`];
  if (unknown) remarks.push(`${count(unknown, "row")} for tiles that are not on this page`);
  if (unclear) {
    const words = `${REVIEWS.slice(0, -1).join(", ")} or ${REVIEWS.at(-1)}`;
    remarks.push(`${count(unclear, "row")} whose review is not ${words}, or whose blind answer is no class`);
  }
  if (foreign) remarks.push(`${count(foreign, "row")} from another report`);
  say(`${remarks.join("; ")}.`);
  apply({ keepPlace: true });
  showProgress();
}

async function onReset() {
  const known = tiles.filter((tile) => reviews.has(tile.id));
  const answer = await ask(
    `Delete the reviews and notes of ${count(known.length, "tile")} from this browser? Download the worksheet first ` +
      "if you may need them.",
    ["Delete"],
  );
  if (answer === null) return;
  for (const { id } of known) {
    const { blind: named, review: word } = reviews.get(id);
    if (named !== "" || word !== "") seen.add(id); // its prediction was on screen; a note alone does not show it
    reviews.delete(id);
  }
  keepBlind();
  keep();
  unsaved = false;
  say(`The reviews and notes of ${count(known.length, "tile")} were deleted.`);
  apply({ keepPlace: true });
  showProgress();
}

function listenToWorksheet() {
  byId("blind").addEventListener("change", onBlind);
  byId("reviewer").addEventListener("change", keepBlind);
  addEventListener("pagehide", keepBlind);
  document.addEventListener("visibilitychange", keepBlind);
  byId("download").addEventListener("click", () => {
    const reviewer = byId("reviewer").value.trim();
    download(`review_${reviewer === "" ? "" : `${reviewer}_`}${content.id}.csv`, "text/csv;charset=utf-8", [worksheet()]);
    unsaved = false;
  });
  byId("import").addEventListener("click", () => byId("file").click());
  byId("file").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (file) await importWorksheet(file);
    byId("file").value = ""; // the same file may be chosen again
  });
  byId("reset").addEventListener("click", onReset);
  // The same page in another window.
  addEventListener("storage", (event) => {
    if (event.key === `${KEY}.seen`) loadSeen();
    if (event.key !== KEY) return;
    load();
    refresh();
    showProgress();
  });
  addEventListener("beforeunload", (event) => {
    if (!keeps && unsaved) event.preventDefault();
  });
}
