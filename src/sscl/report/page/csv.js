// Worksheets as CSV: quoting, guarding cells against spreadsheet formulas, parsing.

// A spreadsheet runs a cell that begins like a formula. A leading apostrophe keeps it text, and comes off again on
// import; text that begins with apostrophes and then a formula gets one more, so taking one off always restores it.
const FORMULA = /^'*[=+\-@\t\r\n＝＋－＠]/;
const guarded = (text) => (FORMULA.test(text) ? `'${text}` : text);
const unguarded = (text) => (text.startsWith("'") && FORMULA.test(text) ? text.slice(1) : text);
const quoted = (text) => (/[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

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

/** The text of a file in UTF-8, with or without a byte-order mark; null for any other encoding. */
function decoded(buffer) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(buffer);
  } catch {
    return null;
  }
}
