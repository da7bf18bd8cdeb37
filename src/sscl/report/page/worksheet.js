// The worksheet: the reviews and notes of the tiles, kept in the browser, downloaded and imported as CSV.

const KEY = `sscl.report.${content.id}`;
const indexOf = new Map(tiles.map((tile, index) => [tile.id, index]));
const nothing = Object.freeze({ review: "", note: "", changed: "" });
let reviews = new Map(); // id of a tile -> {review, note, changed}; also of tiles that this page does not show
let keeps = true; // whether the browser keeps the worksheet
let unsaved = false; // whether something would be lost by closing the page
const COLUMNS = ["report", "id", "true", "predicted", "confidence", "outcome", "review", "note", "changed"];
const IMPORT_BYTES = 32 * 2 ** 20;

const reviewOf = (index) => reviews.get(tiles[index].id) ?? nothing;

function load() {
  try {
    const text = localStorage.getItem(KEY);
    localStorage.setItem(`${KEY}.test`, "1"); // some browsers read, and refuse to write
    localStorage.removeItem(`${KEY}.test`);
    if (text !== null) {
      const rows = JSON.parse(text).reviews;
      reviews = new Map(rows.map(([id, review, note, changed]) => [id, entry(review, note, changed)]));
    } else {
      reviews = new Map();
    }
  } catch (error) {
    refused(error);
  }
}

function entry(review, note, changed) {
  return { review: REVIEWS.includes(review) ? review : "", note: String(note ?? ""), changed: String(changed ?? "") };
}

function keep() {
  unsaved = true;
  if (!keeps) return;
  try {
    const rows = [...reviews].map(([id, { review, note, changed }]) => [id, review, note, changed]);
    localStorage.setItem(KEY, JSON.stringify({ version: 1, reviews: rows }));
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
  if (next.review === "" && next.note === "") reviews.delete(id);
  else reviews.set(id, next);
  keep();
  if (filter.review !== "" || filter.text !== "") byId("again").hidden = false;
  showReview(index);
  showProgress();
}

function showProgress() {
  const known = tiles.map((tile) => reviews.get(tile.id) ?? nothing);
  const of = (word) => known.filter((row) => row.review === word).length;
  const [agree, disagree, unsure] = REVIEWS.map(of);
  const done = agree + disagree + unsure;
  const notes = known.filter((row) => row.note !== "").length;
  const parts = [`${agree} agree`, `${disagree} disagree`, `${unsure} unsure`, count(notes, "note")];
  const total = `${done.toLocaleString("en")} of ${count(tiles.length, "tile")} reviewed`;
  byId("progress").textContent = done + notes ? `${total}: ${parts.join(", ")}` : total;
  byId("reset").disabled = done + notes === 0;
}

function worksheet() {
  const rows = tiles.map((tile, index) => {
    const { review, note, changed } = reviewOf(index);
    const truth = tile.label < 0 ? "" : className(tile.label);
    const confidence = facts[index].confidence.toFixed(4);
    return [content.id, tile.id, truth, className(tile.prediction), confidence, outcomeOf(index), review, note, changed];
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
  const at = Object.fromEntries(["report", "id", "review", "note", "changed"].map((key) => [key, columns.indexOf(key)]));
  if (at.id < 0 || (at.review < 0 && at.note < 0)) {
    say(`${file.name}: the first line must name the column id, and review or note; nothing was imported.`);
    return;
  }
  const found = new Map();
  let unknown = 0;
  let unclear = 0;
  let foreign = 0;
  for (const row of rows) {
    const cell = (key) => (at[key] < 0 ? "" : unguarded((row[at[key]] ?? "").replace(/\r\n?/g, "\n")));
    const word = cell("review").trim().toLowerCase();
    const review = REVIEWS.find((allowed) => word === allowed || word === allowed[0]) ?? "";
    if (word === "" && cell("note") === "") continue;
    if (cell("report") !== "" && cell("report") !== content.id) foreign++;
    if (word !== "" && review === "") unclear++;
    if (!indexOf.has(cell("id"))) unknown++;
    else if (review !== "" || cell("note") !== "") {
      found.set(cell("id"), entry(review, cell("note"), cell("changed") || new Date().toISOString()));
    }
  }
  const differs = (id, next) => {
    const own = reviews.get(id);
    return own !== undefined && (own.review !== next.review || own.note !== next.note);
  };
  const others = [...found].filter(([id, next]) => differs(id, next)).map(([id]) => id);
  if (others.length) {
    const answer = await ask(
      `${count(others.length, "tile has", "tiles have")} a different review or note in ${file.name}. ` +
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
  if (unclear) remarks.push(`${count(unclear, "row")} whose review is not ${REVIEWS.slice(0, -1).join(", ")} or ${REVIEWS.at(-1)}`);
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
