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
  for (const tile of known) reviews.delete(tile.id);
  keep();
  unsaved = false;
  say(`The reviews and notes of ${count(known.length, "tile")} were deleted.`);
  apply({ keepPlace: true });
  showProgress();
}
