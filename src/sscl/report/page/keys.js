// Opacity of heatmaps, boxes on or off, and the keyboard.

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
  } else if (small === "n") {
    if (large.open) byId("large-note").focus();
    else openLarge(current, { note: true });
  } else if (key === "Enter" && inGrid && !target.matches("button")) openLarge(current);
  else if (!reviewByKey(shown[current], small)) return;
  event.preventDefault();
}
