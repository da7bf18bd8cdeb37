// Tables of many rows: sorted by a column, and searched by the name in their first.

const SEARCHED_FROM = 15; // rows

function sortedBy(head, down) {
  const number = (row) => Number.parseFloat(row.cells[head.cellIndex].textContent.replaceAll(",", ""));
  const text = (row) => row.cells[head.cellIndex].textContent.trim();
  const of = head.classList.contains("number")
    ? (a, b) => (number(a) || 0) - (number(b) || 0)
    : (a, b) => text(a).localeCompare(text(b), "en", { numeric: true });
  return (a, b) => (down ? of(b, a) : of(a, b));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells];
  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "sort";
    button.textContent = head.textContent;
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      const down = before === null ? head.classList.contains("number") : before === "ascending"; // the most first
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.append(...[...body.rows].sort(sortedBy(head, down)));
    });
    head.replaceChildren(button);
  }
  if (body.rows.length < SEARCHED_FROM) continue;
  const find = document.createElement("input");
  find.type = "search";
  const label = document.createElement("label");
  label.className = "find";
  const shown = document.createElement("span");
  shown.className = "quiet";
  shown.setAttribute("role", "status");
  label.append("Find ", find);
  find.addEventListener("input", () => {
    const wanted = find.value.trim().toLowerCase();
    let left = 0;
    for (const row of body.rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
      if (!row.hidden) left++;
    }
    shown.textContent = wanted === "" ? "" : ` ${left} of ${body.rows.length}`;
  });
  label.append(shown);
  table.closest(".scroll").before(label);
}
