// The grid of tiles. Only the rows on screen are in the document, so the work does not grow with the number of tiles.

const OVERSCAN_ROWS = 2;
const GAP_PX = 12;
const grid = byId("grid");
const toolbar = byId("toolbar");
let shown = []; // indices of the tiles that match, in order
let current = 0; // place in `shown` of the tile that has, or would get, the focus
let columns = 1;
let rowHeight = 1;
const rows = new Map(); // number of a row -> its element, for those in the document
const places = new Map(); // tile's index -> its place in `shown`

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

/** Put the visible rows, a few around them and that of the current tile into the document; remove all others. */
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
  const first = Math.max(0, Math.floor(-top / rowHeight));
  const last = Math.floor((innerHeight - top) / rowHeight);
  markSeen(shown.slice(first * columns, Math.max(0, last + 1) * columns));
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

/** The cell at a place, undefined where it is not in the document, or there is no such place. */
function cellAt(place) {
  return rows.get(Math.floor(place / columns))?.children[place % columns];
}

function cellOf(place) {
  const index = shown[place];
  const tile = tiles[index];
  const hidden = veiled(index);
  const canvas = tile.map === "" || hidden ? null : canvasOf(index);
  const picture = element("div", { className: "frame" }, ...layers(index, canvas));
  if (tile.remark !== "" && !hidden) {
    const short = tile.box === null ? "no evidence" : "no localisation";
    picture.append(element("span", { className: "remark", title: tile.remark, textContent: short }));
  }
  const cell = element(
    "div",
    {
      className: "tile",
      role: "gridcell",
      tabIndex: place === current ? 0 : -1,
      "aria-colindex": (place % columns) + 1,
    },
    picture,
    element("div", { className: "id", title: nameOf(index) }, element("bdi", { textContent: nameOf(index) })),
    ...(blind ? blindLines(index) : openLines(index)),
    element("div", { className: "review" }, ...(hidden ? answerControls(index) : reviewButtons(index))),
  );
  cell.dataset.index = index;
  showCellReview(cell, index);
  return cell;
}

/** What is predicted, and the true class. */
function openLines(index) {
  const tile = tiles[index];
  const fact = facts[index];
  const said = element(
    "div",
    { className: `said ${fact.wrong ? "wrong" : fact.right ? "right" : "unknown"}` },
    element("span", { className: "sign", textContent: fact.wrong ? "✕" : fact.right ? "✓" : "·" }),
    ...predicted(index),
  );
  const truth = element(
    "div",
    { className: "truth" },
    element("span", { className: "name" }, "true ", element("bdi", { textContent: className(tile.label) })),
  );
  if (fact.abstained) truth.append(element("span", { className: "abstained", textContent: "abstained" }));
  else if (tile.agreement !== null) {
    truth.append(element("span", { title: "annotators who agree", textContent: tile.agreement }));
  }
  return [said, truth];
}

/** The reviewer's own answer, and then what is predicted; never the true class. */
function blindLines(index) {
  const own = reviewOf(index).blind;
  if (own === "") return [element("div", { className: "said", textContent: "which class?" }), element("div", { className: "truth", textContent: "\u00a0" })];
  const yours = element("span", { className: "name" }, "you said ", element("bdi", { textContent: own }));
  return [element("div", { className: "said" }, ...predicted(index)), element("div", { className: "truth" }, yours)];
}

function predicted(index) {
  return [
    element("bdi", { className: "name", textContent: className(tiles[index].prediction) }),
    element("span", { className: "confidence", textContent: percent(facts[index].confidence) }),
  ];
}

/** Show the review of a tile in its cell, and describe the whole cell to screen readers. */
function showCellReview(cell, index) {
  const tile = tiles[index];
  const { review, note } = reviewOf(index);
  markButtons(cell, review);
  cell.dataset.review = review;
  cell.classList.toggle("noted", note !== "");
  const ends = `${review || "not reviewed"}${note === "" ? "" : "; has a note"}`;
  if (blind) {
    const said = `you said ${reviewOf(index).blind}, predicted ${className(tile.prediction)}; ${ends}`;
    cell.setAttribute("aria-label", `${nameOf(index)}: ${veiled(index) ? "which class?" : said}`);
    return;
  }
  const agreement = tile.agreement === null ? "" : `, ${tile.agreement} annotators agree`;
  cell.setAttribute(
    "aria-label",
    `${tile.id}: predicted ${className(tile.prediction)}, ${percent(facts[index].confidence)}; ` +
      `true class ${className(tile.label)}; ${outcomeOf(index)}${agreement}` +
      `${tile.remark === "" ? "" : `; ${tile.remark}`}; ${ends}`,
  );
}

function showReview(index) {
  const cell = cellAt(places.get(index));
  if (cell) showCellReview(cell, index);
  if (large.open && shown[current] === index) showReviewIn(largeReview, byId("large-note"), index);
}

/** Show what another window has changed. */
function refresh() {
  rebuild();
  if (large.open) showLarge();
}

/** Make a tile's cell anew, and the large view where it shows that tile: more than its review has changed. */
function redraw(index) {
  const cell = cellAt(places.get(index));
  if (cell) {
    const hadFocus = cell.contains(document.activeElement);
    const next = cellOf(places.get(index));
    cell.replaceWith(next);
    if (hadFocus) next.focus({ preventScroll: true });
    drawSoon();
  }
  if (large.open && shown[current] === index) {
    showLarge();
    byId("large-side").focus({ preventScroll: true });
  }
}

/** Make a place the current one, scroll to it, and give it the focus unless the large view has it. */
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

function onGridClick(event) {
  const cell = event.target.closest(".tile");
  if (cell === null) return;
  const place = places.get(Number(cell.dataset.index));
  const { review: word, answer: named } = event.target.dataset;
  if (event.target.matches("select")) return;
  if (word !== undefined || named !== undefined) {
    moveTo(place);
    press(Number(cell.dataset.index), event.target.dataset);
  } else if (event.target.closest(".frame")) openLarge(place);
  else moveTo(place);
}
