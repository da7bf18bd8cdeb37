// Fill the page and listen: the only file that runs anything.

function start() {
  const total = (predicate) => tiles.filter((_, index) => predicate(index)).length;
  const classes = (key) => {
    const sizes = new Array(gallery.classes.length).fill(0);
    for (const tile of tiles) if (tile[key] >= 0) sizes[tile[key]]++;
    return gallery.classes.map((name, label) => [String(label), `${name} (${sizes[label]})`]);
  };
  const unknown = total((index) => tiles[index].label < 0);
  fillSelect("true", [["", "all"], ...classes("label"), ...(unknown ? [["-1", `unknown (${unknown})`]] : [])]);
  fillSelect("predicted", [["", "all"], ...classes("prediction")]);
  const known = unknown < tiles.length; // none is where tiles were only predicted
  byId("true").closest("label").hidden = !known;
  const outcomes = Object.entries(OUTCOMES)
    .map(([key, [text, test]]) => [key, text, total((index) => test(facts[index]))])
    .filter(([key, , number]) => number || (known && (key === "right" || key === "wrong")))
    .filter(([key]) => key !== "decided" || facts.some((fact) => fact.abstained));
  fillSelect("outcome", [["", "all"], ...outcomes.map(([key, text, number]) => [key, `${text} (${number})`])]);
  const sortable = {
    loss: tiles.some((tile) => tile.loss !== null),
    "least-agreement": facts.some((fact) => fact.agreement !== null),
    "most-agreement": facts.some((fact) => fact.agreement !== null),
  };
  const sorts = Object.entries(SORTS).filter(([key]) => sortable[key] ?? true);
  fillSelect("sort", sorts.map(([key, [text]]) => [key, text])); // prettier-ignore

  const [chosen, ...notes] = gallery.notes;
  byId("chosen").textContent = chosen ?? "";
  byId("notes").replaceChildren(...notes.map((note) => element("li", { textContent: note })));
  byId("notes").closest("details").hidden = notes.length === 0;
  byId("legend").textContent =
    `Heatmap: evidence (${gallery.target}), scaled to the maximum of each tile, so colours cannot be compared between ` +
    `tiles. Box: the region around the maximum, of at least ${Math.round(100 * gallery.threshold)}% of that maximum` +
    `${tiles.some((tile) => tile.further.length) ? "; thin boxes: further regions of as much" : ""}.`;
  paintScale("colours", (level) => [...colours.subarray(3 * level, 3 * level + 3), 255]);

  load();
  loadBlind();
  showBlind();
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

  listenToWorksheet();
  grid.addEventListener("change", onAnswer);
  largeReview.addEventListener("change", onAnswer);
  byId("large-back").addEventListener("click", () => takeBack(shown[current]));
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
  largeReview.addEventListener("click", (event) => press(shown[current], event.target.dataset));
  byId("large-note").addEventListener("input", (event) => setReview(shown[current], { note: event.target.value }));
  byId("previous").addEventListener("click", () => moveTo(current - 1));
  byId("next").addEventListener("click", () => moveTo(current + 1));
  byId("close").addEventListener("click", () => large.close());
  large.addEventListener("close", () => {
    viewing = false;
    moveTo(current);
  });
  byId("large-box").addEventListener("click", () => downloadBox(shown[current]));
  byId("boxes-file").addEventListener("click", () => downloadBoxes(shown));

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
}

start();
