"use strict";

// The gallery of a report: which tiles are shown, their heatmaps, the large view, the worksheet.
//
// Only the rows in sight are in the document, so that work does not grow with the number of tiles. A heatmap is drawn
// once, at full opacity, onto a canvas over its tile; the slider is that canvas's CSS opacity, which is the same blend.
// All text of the report enters by textContent: nothing here makes HTML of a string.
(() => {
  const content = JSON.parse(document.getElementById("page-data").textContent);
  const gallery = content.gallery;
  if (gallery === null) return;

  const byId = (id) => document.getElementById(`page-${id}`);
  const tiles = gallery.tiles;
  const REVIEWS = ["agree", "disagree", "unsure"];
  const OVERSCAN_ROWS = 2;
  const GAP_PX = 12;
  const MAP_SIDE_PX = Math.min(gallery.size_px, 256); // of the canvas; above that a map has nothing more to show
  const CANVAS_BYTES = 64 * 2 ** 20; // that heatmaps out of sight may keep
  const FRAME_MS = 8; // of a frame, for drawing heatmaps
  const IMPORT_BYTES = 32 * 2 ** 20;
  // Okabe & Ito's colours without black: classes in QuPath.
  const CLASS_COLOURS = [
    [0, 114, 178],
    [213, 94, 0],
    [0, 158, 115],
    [204, 121, 167],
    [230, 159, 0],
    [86, 180, 233],
    [240, 228, 66],
  ];

  // ---- small things -------------------------------------------------------------------------------------------------

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

  /** A share as whole percent that never claims certainty: 0.9996 is >99%. */
  function percent(share) {
    if (share > 0.995 && share < 1) return ">99%";
    if (share < 0.005 && share > 0) return "<1%";
    return `${Math.round(100 * share)}%`;
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

  // ---- what is known of a tile --------------------------------------------------------------------------------------

  const names = new Intl.Collator("en", { numeric: true });
  const nameRank = new Map([...tiles].sort((a, b) => names.compare(a.id, b.id)).map((tile, rank) => [tile.id, rank]));
  const facts = tiles.map((tile) => ({
    confidence: tile.probabilities[tile.prediction],
    agreement: shareOf(tile.agreement),
    wrong: tile.label >= 0 && tile.label !== tile.prediction,
    right: tile.label >= 0 && tile.label === tile.prediction,
    undecided: tile.decided === false,
    name: nameRank.get(tile.id),
    text: `${tile.id}\n${tile.group ?? ""}`.toLowerCase(),
  }));

  /** "6/7" as a number, null where it is no share. */
  function shareOf(text) {
    const found = /^(\d+)\/(\d+)$/.exec(text ?? "");
    return found && Number(found[2]) > 0 ? Number(found[1]) / Number(found[2]) : null;
  }

  function outcomeOf(index) {
    const { wrong, right, undecided } = facts[index];
    const word = wrong ? "wrong" : right ? "right" : "true class unknown";
    return undecided ? `${word}, undecided` : word;
  }

  // ---- the worksheet ------------------------------------------------------------------------------------------------

  const KEY = `sscl.report.${content.id}`;
  const indexOf = new Map(tiles.map((tile, index) => [tile.id, index]));
  const nothing = Object.freeze({ review: "", note: "", changed: "" });
  let reviews = new Map(); // id of a tile -> {review, note, changed}; also of tiles that this page does not show
  let keeps = true; // whether the browser keeps the worksheet
  let unsaved = false; // whether something would be lost by closing the page

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
      `This browser does not keep the worksheet (${error.name}): download it before you close the page.`;
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

  // A spreadsheet takes a cell that begins like a formula for one. The apostrophe keeps it text, and comes off again on
  // import; text that begins with apostrophes and then a formula gets one more, so that taking one off always restores.
  const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/;
  const guarded = (text) => (FORMULA.test(text) ? `'${text}` : text);
  const unguarded = (text) => (text.startsWith("'") && FORMULA.test(text) ? text.slice(1) : text);
  const quoted = (text) => (/[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  const COLUMNS = ["report", "id", "true", "predicted", "confidence", "outcome", "review", "note", "changed"];

  function worksheet() {
    const rows = tiles.map((tile, index) => {
      const { review, note, changed } = reviewOf(index);
      const truth = tile.label < 0 ? "" : className(tile.label);
      const sure = facts[index].confidence.toFixed(4);
      return [content.id, tile.id, truth, className(tile.prediction), sure, outcomeOf(index), review, note, changed];
    });
    const lines = [COLUMNS, ...rows].map((row) => row.map((cell) => quoted(guarded(cell))).join(","));
    return `\uFEFF${lines.join("\r\n")}\r\n`; // the mark tells spreadsheets that this is UTF-8
  }

  /** Rows of a CSV file as spreadsheets write them: comma, semicolon or tab, quotes, any line end. */
  function parseCsv(text) {
    const first = /^sep=(.)\r?\n/i.exec(text);
    if (first) text = text.slice(first[0].length);
    const delimiter = first ? first[1] : delimiterOf(text);
    const rows = [];
    let row = [];
    let cell = "";
    let inQuotes = false;
    const endCell = () => {
      row.push(cell);
      cell = "";
    };
    const endRow = () => {
      endCell();
      if (row.length > 1 || row[0] !== "") rows.push(row);
      row = [];
    };
    for (let at = 0; at < text.length; at++) {
      const letter = text[at];
      if (inQuotes) {
        if (letter !== '"') cell += letter;
        else if (text[at + 1] === '"') cell += text[++at];
        else inQuotes = false;
      } else if (letter === '"' && cell === "") inQuotes = true;
      else if (letter === delimiter) endCell();
      else if (letter === "\n" || letter === "\r") {
        if (letter === "\r" && text[at + 1] === "\n") at++;
        endRow();
      } else cell += letter;
    }
    endRow();
    return rows;
  }

  function delimiterOf(text) {
    const counts = new Map([",", ";", "\t"].map((letter) => [letter, 0]));
    let inQuotes = false;
    for (const letter of text) {
      if (letter === '"') inQuotes = !inQuotes;
      else if (!inQuotes && (letter === "\n" || letter === "\r")) break;
      else if (!inQuotes && counts.has(letter)) counts.set(letter, counts.get(letter) + 1);
    }
    return [...counts].reduce((best, next) => (next[1] > best[1] ? next : best))[0];
  }

  function decoded(buffer) {
    const bytes = new Uint8Array(buffer);
    if (bytes[0] === 0xff && bytes[1] === 0xfe) return new TextDecoder("utf-16le").decode(buffer);
    if (bytes[0] === 0xfe && bytes[1] === 0xff) return new TextDecoder("utf-16be").decode(buffer);
    try {
      return new TextDecoder("utf-8", { fatal: true }).decode(buffer);
    } catch {
      return new TextDecoder("windows-1252").decode(buffer); // what spreadsheets save as "CSV" on Windows
    }
  }

  async function importWorksheet(file) {
    if (file.size > IMPORT_BYTES) {
      say(`${file.name}: ${Math.round(file.size / 2 ** 20)} MB is no worksheet of this page; nothing was read.`);
      return;
    }
    const [header, ...rows] = parseCsv(decoded(await file.arrayBuffer()));
    const columns = (header ?? []).map((name) => name.trim().toLowerCase());
    const at = Object.fromEntries(["report", "id", "review", "note", "changed"].map((key) => [key, columns.indexOf(key)]));
    if (at.id < 0 || (at.review < 0 && at.note < 0)) {
      say(`${file.name}: must have a column id and a column review or note in its first line; nothing was read.`);
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
        `${count(others.length, "tile has", "tiles have")} another review or note here than in ${file.name}. ` +
          "Replace yours by those of the file?",
        ["Replace mine", "Keep mine"],
      );
      if (answer === null) {
        say("Nothing was read.");
        return;
      }
      if (answer === "Keep mine") for (const id of others) found.delete(id);
    }
    for (const [id, next] of found) reviews.set(id, next);
    keep();
    const remarks = [`${count(found.size, "tile")} read from ${file.name}`];
    if (unknown) remarks.push(`${count(unknown, "row")} for tiles that this page does not have`);
    if (unclear) remarks.push(`${count(unclear, "row")} whose review is none of ${REVIEWS.join(", ")}`);
    if (foreign) remarks.push(`${count(foreign, "row")} written by another report`);
    say(`${remarks.join("; ")}.`);
    apply({ keepPlace: true });
    showProgress();
  }

  // ---- boxes for QuPath ---------------------------------------------------------------------------------------------

  function feature(tile, index) {
    const scale = (tile.source_px ?? gallery.size_px) / gallery.size_px;
    const [x0, y0, x1, y1] = tile.box.map((value) => Math.round(1000 * value * scale) / 1000);
    const probabilities = tile.probabilities.map((value, label) => [`Probability: ${className(label)}`, value]);
    const { review, note } = reviewOf(index);
    return {
      type: "Feature",
      geometry: { type: "Polygon", coordinates: [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]] }, // prettier-ignore
      properties: {
        objectType: "annotation",
        name: tile.id,
        image: tile.id,
        classification: {
          name: className(tile.prediction),
          color: CLASS_COLOURS[tile.prediction % CLASS_COLOURS.length],
        },
        measurements: Object.fromEntries([
          ...probabilities,
          ["Heatmap maximum", tile.maximum],
          ["Box threshold", gallery.threshold],
          ["Box share of tile", ((tile.box[2] - tile.box[0]) * (tile.box[3] - tile.box[1])) / gallery.size_px ** 2],
        ]),
        metadata: {
          Image: tile.id,
          Explains: gallery.target,
          "True class": className(tile.label),
          Pixels: tile.source_px === null ? `of the ${gallery.size_px} px tile` : "of the file",
          ...(review === "" ? {} : { Review: review }),
          ...(note === "" ? {} : { Note: note }),
        },
      },
    };
  }

  function downloadBoxes(indices, name) {
    const features = indices.filter((index) => tiles[index].box !== null).map((index) => feature(tiles[index], index));
    download(name, "application/geo+json", [JSON.stringify({ type: "FeatureCollection", features }, null, 1)]);
  }

  // ---- heatmaps -----------------------------------------------------------------------------------------------------

  const colours = bytesOf(gallery.colours);
  const axis = axisOf(gallery.map_side, MAP_SIDE_PX);
  const line = new Float32Array(gallery.map_side); // of the map, between two of its rows
  const kept = new Map(); // tile's index -> its canvas, the least used first

  /** For each pixel of a line: the cells it lies between, and how far from the first; edges repeat, centres align. */
  function axisOf(cells, pixels) {
    const low = new Uint16Array(pixels);
    const high = new Uint16Array(pixels);
    const part = new Float32Array(pixels);
    for (let pixel = 0; pixel < pixels; pixel++) {
      const place = Math.max(0, ((pixel + 0.5) * cells) / pixels - 0.5);
      low[pixel] = Math.min(Math.floor(place), cells - 1);
      high[pixel] = Math.min(low[pixel] + 1, cells - 1);
      part[pixel] = place - low[pixel];
    }
    return { low, high, part };
  }

  function drawMap(canvas, tile) {
    const { low, high, part } = axis;
    const side = gallery.map_side;
    const values = bytesOf(tile.map);
    const image = new ImageData(MAP_SIDE_PX, MAP_SIDE_PX);
    const pixels = image.data;
    for (let y = 0, at = 0; y < MAP_SIDE_PX; y++) {
      const above = low[y] * side;
      const below = high[y] * side;
      for (let x = 0; x < side; x++) line[x] = values[above + x] + part[y] * (values[below + x] - values[above + x]);
      for (let x = 0; x < MAP_SIDE_PX; x++, at += 4) {
        const value = line[low[x]] + part[x] * (line[high[x]] - line[low[x]]);
        const level = 3 * Math.round(value);
        pixels[at] = colours[level];
        pixels[at + 1] = colours[level + 1];
        pixels[at + 2] = colours[level + 2];
        pixels[at + 3] = gallery.alpha * value; // rounded by the array
      }
    }
    canvas.width = canvas.height = MAP_SIDE_PX;
    canvas.getContext("2d").putImageData(image, 0, 0);
  }

  const waiting = []; // cells whose heatmap is not drawn yet
  let drawing = false;

  function drawSoon() {
    if (drawing || !waiting.length) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      const end = performance.now() + FRAME_MS;
      while (waiting.length && performance.now() < end) {
        const { canvas, index } = waiting.shift();
        if (canvas.isConnected) drawMap(canvas, tiles[index]);
        else kept.delete(index); // scrolled past before its turn
      }
      drawSoon();
    });
  }

  /** The canvas of a tile in the grid: an old one where it is still there. */
  function canvasOf(index) {
    let canvas = kept.get(index);
    kept.delete(index);
    if (canvas === undefined) {
      canvas = element("canvas", { className: "heat", "aria-hidden": "true" });
      waiting.push({ canvas, index });
    }
    kept.set(index, canvas);
    for (const [old, past] of kept) {
      if (kept.size * MAP_SIDE_PX ** 2 * 4 <= CANVAS_BYTES) break;
      if (!past.isConnected && old !== index) kept.delete(old);
    }
    return canvas;
  }

  /** What shows a tile: its picture, the heatmap over it, the box over both. */
  function layers(index, canvas) {
    const tile = tiles[index];
    const found = [];
    const picture = element("img", { alt: `Tile ${tile.id}`, decoding: "async", draggable: false });
    if (tile.image.startsWith("data:image/")) picture.src = tile.image;
    found.push(picture);
    if (canvas) found.push(canvas);
    if (canvas && tile.box !== null) {
      const box = element("div", { className: "box", "aria-hidden": "true" });
      const [x0, y0, x1, y1] = tile.box.map((value) => (100 * value) / gallery.size_px);
      Object.assign(box.style, { left: `${x0}%`, top: `${y0}%`, width: `${x1 - x0}%`, height: `${y1 - y0}%` });
      found.push(box);
    }
    return found;
  }

  // ---- the grid -----------------------------------------------------------------------------------------------------

  const grid = byId("grid");
  const toolbar = byId("toolbar");
  const filter = { text: "", truth: "", predicted: "", outcome: "", review: "", sort: "unsure" };
  let shown = []; // indices of the tiles that match, in order
  let current = 0; // place in `shown` of the tile that has, or would get, the focus
  let columns = 1;
  let rowHeight = 1;
  const rows = new Map(); // number of a row -> its element, for those in the document
  const places = new Map(); // tile's index -> its place in `shown`

  const OUTCOMES = {
    right: ["right", (fact) => fact.right],
    wrong: ["wrong", (fact) => fact.wrong],
    decided: ["wrong, yet decided", (fact) => fact.wrong && !fact.undecided],
    undecided: ["undecided", (fact) => fact.undecided],
    unknown: ["true class unknown", (fact) => !fact.right && !fact.wrong],
  };
  const REVIEW_FILTERS = {
    none: ["not reviewed", (own) => own.review === ""],
    any: ["reviewed", (own) => own.review !== ""],
    agree: ["agree", (own) => own.review === "agree"],
    disagree: ["disagree", (own) => own.review === "disagree"],
    unsure: ["unsure", (own) => own.review === "unsure"],
    note: ["with a note", (own) => own.note !== ""],
  };
  // What is unknown comes last, ties by name.
  const last = (value) => value ?? Infinity;
  const SORTS = {
    unsure: ["least sure first", (index) => facts[index].confidence],
    sure: ["surest first", (index) => -facts[index].confidence],
    error: ["largest error first", (index) => last(tiles[index].loss === null ? null : -tiles[index].loss)],
    disputed: ["most disputed first", (index) => last(facts[index].agreement)],
    agreed: ["least disputed first", (index) => last(facts[index].agreement === null ? null : -facts[index].agreement)],
    name: ["name", (index) => facts[index].name],
  };

  function matches(index) {
    const tile = tiles[index];
    if (filter.truth !== "" && tile.label !== Number(filter.truth)) return false;
    if (filter.predicted !== "" && tile.prediction !== Number(filter.predicted)) return false;
    if (filter.outcome !== "" && !OUTCOMES[filter.outcome][1](facts[index])) return false;
    if (filter.review !== "" && !REVIEW_FILTERS[filter.review][1](reviewOf(index))) return false;
    const text = filter.text.trim().toLowerCase();
    return text === "" || facts[index].text.includes(text) || reviewOf(index).note.toLowerCase().includes(text);
  }

  /** Find the tiles that match and show them, from the first on; `keepPlace`: where the reader is. */
  function apply({ keepPlace = false } = {}) {
    const before = shown[current];
    const key = SORTS[filter.sort][1];
    const value = tiles.map((_, index) => key(index));
    shown = tiles.map((_, index) => index).filter(matches);
    shown.sort((a, b) => (value[a] === value[b] ? facts[a].name - facts[b].name : value[a] - value[b]));
    places.clear();
    shown.forEach((index, place) => places.set(index, place));
    current = (keepPlace ? places.get(before) : undefined) ?? 0;
    byId("again").hidden = true;
    const wrong = shown.filter((index) => facts[index].wrong).length;
    const undecided = shown.filter((index) => facts[index].undecided).length;
    const also = [`${wrong.toLocaleString("en")} wrong`, undecided ? `${undecided.toLocaleString("en")} undecided` : ""];
    const some = shown.length < tiles.length ? `${shown.length.toLocaleString("en")} of ` : "";
    byId("count").textContent = shown.length
      ? `${some}${count(tiles.length, "tile")}: ${also.filter(Boolean).join(", ")}`
      : `none of ${count(tiles.length, "tile")}`;
    byId("nothing").hidden = shown.length > 0;
    byId("nothing").textContent = tiles.length
      ? "No tile matches these filters. “Clear filters” brings all of them back."
      : "This report has no tiles.";
    const withBox = shown.filter((index) => tiles[index].box !== null).length;
    byId("boxes-file").disabled = withBox === 0;
    byId("boxes-file").textContent = `Download ${count(withBox, "box", "boxes")} (GeoJSON)`;
    const all = ["text", "truth", "predicted", "outcome", "review"].every((name) => filter[name] === "");
    byId("clear").disabled = all;
    for (const button of document.querySelectorAll(".confusion button")) {
      const { true: truth, predicted } = button.dataset;
      button.setAttribute("aria-pressed", String(truth === filter.truth && predicted === filter.predicted));
    }
    rebuild();
    const hidden = covered() + GAP_PX - grid.getBoundingClientRect().top;
    if (!keepPlace && hidden > GAP_PX) {
      scrollBy({ top: -hidden, behavior: "instant" }); // a new order is read from its beginning
      fill();
    }
  }

  /** Pixels at the top of the window that the tools cover. */
  function covered() {
    return getComputedStyle(toolbar).position === "sticky" ? toolbar.offsetHeight : 0;
  }

  /** Lay the grid out anew: after a change of what is shown, of the tiles' size, or of the window's. */
  function rebuild() {
    const hadFocus = grid.contains(document.activeElement);
    for (const element of rows.values()) element.remove();
    rows.clear();
    waiting.length = 0;
    for (const [index, canvas] of kept) if (canvas.width !== MAP_SIDE_PX) kept.delete(index); // never drawn
    const width = grid.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP_PX) / (Number(byId("size").value) + GAP_PX)));
    grid.style.setProperty("--columns", columns);
    grid.setAttribute("aria-rowcount", Math.ceil(shown.length / columns));
    grid.setAttribute("aria-colcount", columns);
    if (shown.length) {
      const first = Math.floor(current / columns);
      addRow(first);
      rowHeight = rows.get(first).offsetHeight + GAP_PX;
      rows.get(first).style.top = `${first * rowHeight}px`;
    }
    grid.style.height = `${Math.max(0, Math.ceil(shown.length / columns) * rowHeight - GAP_PX)}px`;
    fill();
    if (hadFocus) cellAt(current)?.focus({ preventScroll: true });
  }

  /** Bring the document up to what is in sight: those rows, a few around them, and that of the current tile. */
  function fill() {
    const top = grid.getBoundingClientRect().top;
    const end = Math.ceil(shown.length / columns) - 1;
    const from = Math.max(0, Math.floor(-top / rowHeight) - OVERSCAN_ROWS);
    const to = Math.min(end, Math.floor((innerHeight - top) / rowHeight) + OVERSCAN_ROWS);
    const own = Math.floor(current / columns);
    for (const [number, element] of rows) {
      if ((number < from || number > to) && number !== own) {
        element.remove();
        rows.delete(number);
      }
    }
    if (own <= end && !rows.has(own)) addRow(own);
    for (let number = from; number <= to; number++) if (!rows.has(number)) addRow(number);
    drawSoon();
  }

  function addRow(number) {
    const made = element("div", { className: "row", role: "row", "aria-rowindex": number + 1 });
    made.style.top = `${number * rowHeight}px`;
    made.dataset.row = number;
    const start = number * columns;
    for (let place = start; place < Math.min(start + columns, shown.length); place++) made.append(cellOf(place));
    const after = [...grid.children].find((other) => Number(other.dataset.row) > number);
    grid.insertBefore(made, after ?? null);
    rows.set(number, made);
  }

  function cellAt(place) {
    return rows.get(Math.floor(place / columns))?.children[place % columns];
  }

  function cellOf(place) {
    const index = shown[place];
    const tile = tiles[index];
    const fact = facts[index];
    const picture = element("div", { className: "frame" }, ...layers(index, tile.map === "" ? null : canvasOf(index)));
    const sign = element("span", { className: "sign", textContent: fact.wrong ? "✕" : fact.right ? "✓" : "·" });
    const said = element(
      "div",
      { className: `said ${fact.wrong ? "wrong" : fact.right ? "right" : "unknown"}` },
      sign,
      element("bdi", { className: "name", textContent: className(tile.prediction) }),
      element("span", { className: "sure", textContent: percent(fact.confidence) }),
    );
    const truth = element(
      "div",
      { className: "truth" },
      element("span", { className: "name" }, "true ", element("bdi", { textContent: className(tile.label) })),
    );
    if (fact.undecided) truth.append(element("span", { className: "undecided", textContent: "undecided" }));
    else if (tile.agreement !== null) {
      truth.append(element("span", { title: "annotators who agree", textContent: tile.agreement }));
    }
    if (tile.map === "") picture.append(element("span", { className: "empty", textContent: "no evidence" }));
    const cell = element(
      "div",
      {
        className: "tile",
        role: "gridcell",
        tabIndex: place === current ? 0 : -1,
        "aria-colindex": (place % columns) + 1,
      },
      picture,
      element("div", { className: "id", title: tile.id }, element("bdi", { textContent: tile.id })),
      said,
      truth,
      element("div", { className: "review" }, ...reviewButtons(index)),
    );
    cell.dataset.index = index;
    showCellReview(cell, index);
    return cell;
  }

  function reviewButtons(index, words = false) {
    return REVIEWS.map((word) => {
      const button = element("button", {
        type: "button",
        className: word,
        tabIndex: words ? 0 : -1,
        title: word,
        "aria-label": word,
        textContent: words ? word : word[0].toUpperCase(),
      });
      button.dataset.review = word;
      if (index !== null) button.dataset.index = index;
      return button;
    });
  }

  /** Show on a cell what its reviewer said, and tell it to screen readers with all else. */
  function showCellReview(cell, index) {
    const tile = tiles[index];
    const { review, note } = reviewOf(index);
    for (const button of cell.querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(button.dataset.review === review));
    }
    cell.dataset.review = review;
    cell.classList.toggle("noted", note !== "");
    const agreement = tile.agreement === null ? "" : `, annotators agree ${tile.agreement}`;
    cell.setAttribute(
      "aria-label",
      `${tile.id}: predicted ${className(tile.prediction)}, ${percent(facts[index].confidence)}; ` +
        `true class ${className(tile.label)}; ${outcomeOf(index)}${agreement}` +
        `${tile.map === "" ? "; no positive evidence" : ""}; ${review || "not reviewed"}${note === "" ? "" : "; has a note"}`,
    );
  }

  function showReview(index) {
    const place = places.get(index);
    const cell = place === undefined ? undefined : cellAt(place);
    if (cell) showCellReview(cell, index);
    if (large.open && shown[current] === index) showLargeReview(index);
  }

  /** Make a place the current one, bring it into sight, and give it the focus unless the large view has it. */
  function moveTo(place) {
    if (!shown.length) return;
    const before = cellAt(current);
    if (before) before.tabIndex = -1;
    current = Math.max(0, Math.min(shown.length - 1, place));
    const row = Math.floor(current / columns);
    const top = grid.getBoundingClientRect().top + row * rowHeight;
    const below = top + rowHeight - innerHeight;
    const above = top - covered() - GAP_PX;
    if (above < 0 || rowHeight > innerHeight - covered()) scrollBy({ top: above, behavior: "instant" });
    else if (below > 0) scrollBy({ top: Math.min(below, above), behavior: "instant" });
    fill();
    const cell = cellAt(current);
    cell.tabIndex = 0;
    if (large.open) showLarge();
    else cell.focus({ preventScroll: true });
  }

  // ---- the large view -----------------------------------------------------------------------------------------------

  const large = byId("large");
  const largeCanvas = element("canvas", { className: "heat", "aria-hidden": "true" });
  const largeReview = large.querySelector(".large-review");
  largeReview.append(...reviewButtons(null, true));
  let viewing = false; // until the large view has given the focus back

  function openLarge(place, { note = false } = {}) {
    moveTo(place);
    viewing = true;
    large.showModal();
    showLarge();
    if (note) byId("large-note").focus();
    else byId("large-side").focus({ preventScroll: true });
  }

  function showLarge() {
    const index = shown[current];
    const tile = tiles[index];
    const fact = facts[index];
    byId("large-title").querySelector("bdi").textContent = tile.id;
    byId("large-place").textContent =
      `${(current + 1).toLocaleString("en")} of ${shown.length.toLocaleString("en")}, ${outcomeOf(index)}`;
    byId("previous").disabled = current === 0;
    byId("next").disabled = current === shown.length - 1;
    if (tile.map !== "") drawMap(largeCanvas, tile);
    byId("large-heat").replaceChildren(...layers(index, tile.map === "" ? null : largeCanvas));
    byId("large-plain").replaceChildren(...layers(index, null));
    byId("large-target").textContent =
      tile.map === "" ? "no positive evidence, so no heatmap and no box" : `evidence: ${gallery.target}`;
    const order = tile.probabilities.map((_, label) => label);
    order.sort((a, b) => tile.probabilities[b] - tile.probabilities[a]);
    byId("large-probabilities").replaceChildren(
      byId("large-probabilities").caption,
      ...order.slice(0, 12).map((label) => {
        const bar = element("div", { className: "bar" });
        bar.style.width = `${100 * tile.probabilities[label]}%`;
        return element(
          "tr",
          {},
          element("th", { scope: "row" }, element("bdi", { textContent: className(label) })),
          element("td", { className: "bars", "aria-hidden": "true" }, bar),
          element("td", { className: "number", textContent: tile.probabilities[label].toFixed(3) }),
        );
      }),
    );
    const lines = [
      ["true class", className(tile.label)],
      ["outcome", outcomeOf(index)],
      ["annotators", [tile.agreement === null ? "" : `${tile.agreement} agree`, votesOf(tile)].filter(Boolean).join("; ")],
      ["group", tile.group ?? ""],
      ["loss", tile.loss === null ? "" : tile.loss.toFixed(3)],
      ["heatmap's maximum", tile.map === "" ? "" : `${tile.maximum.toPrecision(3)} (before scaling)`],
      ["box", tile.box === null ? "none" : boxText(tile)],
      ["file", tile.source_px === null ? "" : `${tile.source_px} × ${tile.source_px} px`],
    ];
    byId("large-facts").replaceChildren(
      ...lines
        .filter(([, text]) => text !== "")
        .map(([name, text]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: text }))),
    );
    byId("large-box").disabled = tile.box === null;
    showLargeReview(index);
  }

  function votesOf(tile) {
    return tile.votes === null ? "" : `${count(tile.votes, "vote")} for ${className(gallery.classes.length - 1)}`;
  }

  function boxText(tile) {
    const [x0, y0, x1, y1] = tile.box;
    const share = ((x1 - x0) * (y1 - y0)) / gallery.size_px ** 2;
    return `${x1 - x0} × ${y1 - y0} px at (${x0}, ${y0}) of the ${gallery.size_px} px tile, ${percent(share)} of it`;
  }

  function showLargeReview(index) {
    const { review, note } = reviewOf(index);
    for (const button of largeReview.children) {
      button.setAttribute("aria-pressed", String(button.dataset.review === review));
    }
    const field = byId("large-note");
    if (field.value !== note) field.value = note; // not under the caret of who is writing
  }

  /** Take a review, or take it back when it is there already. */
  function review(index, word) {
    const same = reviewOf(index).review === word;
    setReview(index, { review: same ? "" : word });
    if (!same && byId("advance").checked && shown[current] === index && current + 1 < shown.length) moveTo(current + 1);
  }

  // ---- how things look ----------------------------------------------------------------------------------------------

  const root = document.documentElement;
  const heat = { percent: 100, before: 100 };

  function setHeat(value) {
    heat.percent = Math.max(0, Math.min(100, value));
    root.style.setProperty("--heat", heat.percent / 100);
    for (const input of document.querySelectorAll(".heat-range")) input.value = heat.percent;
    for (const output of document.querySelectorAll(".heat-value")) output.value = `${heat.percent}%`;
  }

  function toggleHeat() {
    if (heat.percent > 0) heat.before = heat.percent;
    setHeat(heat.percent > 0 ? 0 : heat.before);
  }

  function setBoxes(visible) {
    root.classList.toggle("no-boxes", !visible);
    for (const input of document.querySelectorAll(".boxes-check")) input.checked = visible;
  }

  // ---- keys ---------------------------------------------------------------------------------------------------------

  const STEPS = {
    ArrowLeft: () => -1,
    ArrowRight: () => 1,
    ArrowUp: () => -columns,
    ArrowDown: () => columns,
    PageUp: () => -columns * Math.max(1, Math.floor((innerHeight - toolbar.offsetHeight) / rowHeight)),
    PageDown: () => columns * Math.max(1, Math.floor((innerHeight - toolbar.offsetHeight) / rowHeight)),
    Home: () => -current,
    End: () => shown.length - 1 - current,
  };
  const LOOKS = {
    b: () => setBoxes(root.classList.contains("no-boxes")),
    h: toggleHeat,
    "+": () => setHeat(heat.percent + 10),
    "=": () => setHeat(heat.percent + 10),
    "-": () => setHeat(heat.percent - 10),
    "?": () => byId("help").showModal(),
  };

  function onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const { target, key } = event;
    if (byId("help").open || byId("ask").open) return;
    if (target === byId("large-note") && key === "Escape") {
      event.preventDefault(); // leaves the note, not the large view
      byId("large-side").focus({ preventScroll: true });
      return;
    }
    if (target.matches("textarea, select, input:not([type=checkbox], [type=range])")) return;
    const inGrid = grid.contains(target);
    const small = key.length === 1 ? key.toLowerCase() : key;
    if ((large.open || inGrid || target === document.body || byId("gallery").contains(target)) && small in LOOKS) {
      LOOKS[small]();
    } else if (!shown.length || !(large.open || inGrid)) return;
    else if (key in STEPS && !target.matches("input")) {
      if (large.open && !["ArrowLeft", "ArrowRight"].includes(key)) return; // the others scroll it
      const next = current + STEPS[key]();
      // Up from the first row and down from the last stay; a page ends at the ends.
      if (!key.startsWith("Page") && (next < 0 || next >= shown.length)) {
        if (key === "ArrowDown" && Math.floor(current / columns) < Math.floor((shown.length - 1) / columns)) {
          moveTo(shown.length - 1);
        }
      } else moveTo(next);
    } else if (small === "a" || small === "d" || small === "u") {
      review(shown[current], REVIEWS.find((word) => word[0] === small));
    } else if (small === "n") {
      if (large.open) byId("large-note").focus();
      else openLarge(current, { note: true });
    } else if (key === "Enter" && inGrid && !target.matches("button")) openLarge(current);
    else return;
    event.preventDefault();
  }

  // ---- from here on it runs -----------------------------------------------------------------------------------------

  function fillSelect(id, options) {
    byId(id).replaceChildren(...options.map(([value, text]) => element("option", { value, textContent: text })));
  }

  function start() {
    const total = (predicate) => tiles.filter((_, index) => predicate(index)).length;
    const classes = (key) =>
      gallery.classes.map((name, label) => [String(label), `${name} (${total((index) => tiles[index][key] === label)})`]);
    const unknown = total((index) => tiles[index].label < 0);
    fillSelect("true", [["", "all"], ...classes("label"), ...(unknown ? [["-1", `unknown (${unknown})`]] : [])]);
    fillSelect("predicted", [["", "all"], ...classes("prediction")]);
    const outcomes = Object.entries(OUTCOMES)
      .map(([key, [text, test]]) => [key, text, total((index) => test(facts[index]))])
      .filter(([key, , number]) => number || key === "right" || key === "wrong")
      .filter(([key]) => key !== "decided" || facts.some((fact) => fact.undecided));
    fillSelect("outcome", [["", "all"], ...outcomes.map(([key, text, number]) => [key, `${text} (${number})`])]);
    fillSelect("review", [["", "all"], ...Object.entries(REVIEW_FILTERS).map(([key, [text]]) => [key, text])]);
    const known = {
      error: tiles.some((tile) => tile.loss !== null),
      disputed: facts.some((fact) => fact.agreement !== null),
      agreed: facts.some((fact) => fact.agreement !== null),
    };
    const sorts = Object.entries(SORTS).filter(([key]) => known[key] ?? true);
    fillSelect("sort", sorts.map(([key, [text]]) => [key, text])); // prettier-ignore

    byId("note").textContent = gallery.note;
    byId("note").hidden = gallery.note === "";
    byId("legend").textContent =
      `Heatmap: evidence (${gallery.target}) between none and each tile's own maximum, so two tiles cannot be compared by ` +
      `colour. Box: the largest region of at least ${Math.round(100 * gallery.threshold)}% of that maximum.`;
    const strip = new ImageData(256, 1);
    for (let level = 0; level < 256; level++) strip.data.set([...colours.subarray(3 * level, 3 * level + 3), 255], 4 * level);
    byId("colours").getContext("2d").putImageData(strip, 0, 0);

    load();
    byId("gallery").hidden = false;
    byId("worksheet").open = innerWidth >= 640; // a phone shows tiles first
    setHeat(100);
    setBoxes(true);
    showProgress();
    apply();
    listen();
  }

  function listen() {
    const filters = { true: "truth", predicted: "predicted", outcome: "outcome", review: "review", sort: "sort" };
    for (const [id, key] of Object.entries(filters)) {
      byId(id).addEventListener("change", (event) => {
        filter[key] = event.target.value;
        apply();
      });
    }
    byId("find").addEventListener("input", (event) => {
      filter.text = event.target.value;
      apply();
    });
    byId("clear").addEventListener("click", () => {
      setFilters({});
      byId("find").focus(); // the button itself goes out of use
    });
    byId("again").addEventListener("click", () => apply());
    byId("size").addEventListener("change", rebuild);
    byId("keys").addEventListener("click", () => byId("help").showModal());
    for (const input of document.querySelectorAll(".heat-range")) {
      input.addEventListener("input", () => setHeat(Number(input.value)));
    }
    for (const input of document.querySelectorAll(".boxes-check")) {
      input.addEventListener("change", () => setBoxes(input.checked));
    }
    for (const button of document.querySelectorAll(".confusion button")) button.addEventListener("click", onConfusion);

    grid.addEventListener("click", onGridClick);
    grid.addEventListener("focusin", (event) => {
      const cell = event.target.closest(".tile");
      const place = places.get(Number(cell?.dataset.index));
      // A dialog that closes hands the focus to the tile it was opened from, not to the one it shows.
      if (viewing || place === undefined || place === current) return;
      const before = cellAt(current);
      if (before) before.tabIndex = -1;
      current = place;
      cell.tabIndex = 0;
    });
    largeReview.addEventListener("click", (event) => {
      const word = event.target.dataset.review;
      if (word !== undefined) review(shown[current], word);
    });
    byId("large-note").addEventListener("input", (event) => setReview(shown[current], { note: event.target.value }));
    byId("previous").addEventListener("click", () => moveTo(current - 1));
    byId("next").addEventListener("click", () => moveTo(current + 1));
    byId("close").addEventListener("click", () => large.close());
    large.addEventListener("close", () => {
      viewing = false;
      moveTo(current);
    });
    byId("large-box").addEventListener("click", () => {
      downloadBoxes([shown[current]], `${tiles[shown[current]].id}.geojson`);
    });

    byId("download").addEventListener("click", () => {
      download(`review_${content.id}.csv`, "text/csv;charset=utf-8", [worksheet()]);
      unsaved = false;
    });
    byId("import").addEventListener("click", () => byId("file").click());
    byId("file").addEventListener("change", async (event) => {
      const [file] = event.target.files;
      if (file) await importWorksheet(file);
      byId("file").value = ""; // the same file may be chosen again
    });
    byId("boxes-file").addEventListener("click", () => downloadBoxes(shown, `boxes_${content.id}.geojson`));
    byId("reset").addEventListener("click", onReset);

    document.addEventListener("keydown", onKey);
    let asked = false;
    const refill = () => {
      if (asked) return;
      asked = true;
      requestAnimationFrame(() => {
        asked = false;
        fill();
      });
    };
    addEventListener("scroll", refill, { passive: true });
    addEventListener("resize", refill, { passive: true });
    let width = grid.clientWidth;
    new ResizeObserver(() => {
      if (grid.clientWidth === width) return;
      width = grid.clientWidth;
      rebuild();
    }).observe(grid);
    // The same report in another window.
    addEventListener("storage", (event) => {
      if (event.key !== KEY) return;
      load();
      for (const cell of grid.querySelectorAll(".tile")) showCellReview(cell, Number(cell.dataset.index));
      if (large.open) showLargeReview(shown[current]);
      showProgress();
    });
    addEventListener("beforeunload", (event) => {
      if (!keeps && unsaved) event.preventDefault();
    });
  }

  /** Set the given filters and clear the others; the order stays. */
  function setFilters(given) {
    Object.assign(filter, { text: "", truth: "", predicted: "", outcome: "", review: "" }, given);
    byId("find").value = filter.text;
    byId("true").value = filter.truth;
    byId("predicted").value = filter.predicted;
    byId("outcome").value = filter.outcome;
    byId("review").value = filter.review;
    apply();
  }

  function onConfusion(event) {
    const { true: truth, predicted } = event.currentTarget.dataset;
    if (event.currentTarget.getAttribute("aria-pressed") === "true") {
      setFilters({});
      return;
    }
    setFilters({ truth, predicted });
    const title = document.getElementById("page-title-gallery");
    toolbar.scrollIntoView({ block: "start" });
    title.focus({ preventScroll: true });
  }

  function onGridClick(event) {
    const cell = event.target.closest(".tile");
    if (cell === null) return;
    const place = places.get(Number(cell.dataset.index));
    const word = event.target.dataset.review;
    if (word !== undefined) {
      moveTo(place);
      review(Number(cell.dataset.index), word);
    } else if (event.target.closest(".frame")) openLarge(place);
    else moveTo(place);
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

  start();
})();
