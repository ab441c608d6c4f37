// The search page: an indexed picture is a query, by a click or by its file.

const PORTION = 200; // pictures shown before "Show more"
let portion = PORTION;

const nameOf = ({ name, file }) => `${name} ${file}`.trim();

function tile(i, caption) {
  const picture = DATA.pictures[i];
  const image = element("img", { src: picture.thumbnail, alt: nameOf(picture) });
  const node = button(image, () => show(i), { class: "tile" });
  node.append(caption);
  return node;
}

function show(i) {
  const { file } = DATA.pictures[i], query = tile(i, `query: ${file}`);
  query.classList.add("query");
  const nearest = DATA.neighbors[i].map((j, rank) =>
    tile(j, `${DATA.pictures[j].name} ${DATA.cosines[i][rank].toFixed(2)}`));
  $("found").replaceChildren(query, ...nearest);
  $("status").textContent = `Neighbors of ${file}, nearest first, with their cosines.`;
  $("status").scrollIntoView({ block: "nearest" });
}

function list() {
  const wanted = $("filter").value.toLowerCase();
  const all = DATA.pictures.flatMap((picture, i) =>
    (nameOf(picture).toLowerCase().includes(wanted) ? [i] : []));
  $("all").replaceChildren(...all.slice(0, portion).map((i) => tile(i, DATA.pictures[i].name)));
  $("more").hidden = all.length <= portion;
}

// The same checksum as zlib.crc32: tells whether a file is one of the indexed ones.
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

async function ask(file) {
  if (!file) return;
  const crc = crc32(new Uint8Array(await file.arrayBuffer()));
  const i = DATA.pictures.findIndex((picture) => picture.crc === crc);
  if (i >= 0) {
    show(i);
    return;
  }
  $("found").replaceChildren();
  $("status").textContent = `${file.name} is not among the indexed pictures, and a page without `
    + `Python cannot embed it: use \`sobook search … --query ${file.name}\`, or the notebook.`;
}

$("file").onchange = (event) => ask(event.target.files[0]);
$("filter").oninput = () => {
  portion = PORTION;
  list();
};
$("more").onclick = () => {
  portion += PORTION;
  list();
};
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask(event.dataTransfer.files[0]);
  });
}
$("count").textContent = `${DATA.pictures.length} pictures are indexed.`;
list();
