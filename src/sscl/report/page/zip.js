// Names that every file system takes, and zip archives without compression (PKWARE's APPNOTE, 4.3).

const utf8 = new TextEncoder();
const NAME_BYTES = 200; // a file system takes 255

/** A file's name of letters and digits of any script and harmless signs; of a long one, the end. */
function safeName(text) {
  const letters = [...text.replace(/[^\p{L}\p{M}\p{N} ._()+,=@#-]/gu, "_")];
  while (utf8.encode(letters.join("")).length > NAME_BYTES) letters.shift();
  const name = letters.join("").replace(/^[. ]+/, "_");
  return /^(con|prn|aux|nul|com\d|lpt\d)?(\.|$)/i.test(name) ? `_${name}` : name; // Windows has devices of these names
}

/** The names of images' files; where several are the same in either case, with their folders, and then numbered. */
function namesOfFiles(ids) {
  const key = (name) => name.normalize("NFC").toLowerCase();
  const own = ids.map((id) => safeName(id.split(/[\\/]/).at(-1)));
  const times = new Map();
  for (const name of own) times.set(key(name), (times.get(key(name)) ?? 0) + 1);
  const taken = new Set();
  return own.map((bare, index) => {
    const name = times.get(key(bare)) > 1 ? safeName(ids[index]) : bare;
    let free = name;
    for (let number = 2; taken.has(key(free)); number++) free = `${name}_${number}`;
    taken.add(key(free));
    return free;
  });
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

function crc32(bytes) {
  let value = ~0;
  for (const byte of bytes) value = CRC_TABLE[(value ^ byte) & 255] ^ (value >>> 8);
  return ~value >>> 0;
}

const u16 = (...values) => values.flatMap((value) => [value & 255, (value >>> 8) & 255]);
const u32 = (...values) => values.flatMap((value) => u16(value, value >>> 16));

/** The parts of an archive of [name, text] pairs, for a Blob. */
function zipped(files) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [name, text] of files) {
    const [path, bytes] = [utf8.encode(name), utf8.encode(text)];
    // Version 2.0, names in UTF-8, stored, 1980-01-01 00:00
    const both = [...u16(20, 0x800, 0, 0, 33), ...u32(crc32(bytes), bytes.length, bytes.length), ...u16(path.length, 0)];
    const local = Uint8Array.from([...u32(0x04034b50), ...both, ...path]);
    parts.push(local, bytes);
    directory.push(Uint8Array.from([...u32(0x02014b50), ...u16(20), ...both, ...u16(0, 0, 0), ...u32(0, offset), ...path]));
    offset += local.length + bytes.length;
  }
  const size = directory.reduce((sum, entry) => sum + entry.length, 0);
  const end = [...u32(0x06054b50), ...u16(0, 0, files.length, files.length), ...u32(size, offset), ...u16(0)];
  return [...parts, ...directory, Uint8Array.from(end)];
}
