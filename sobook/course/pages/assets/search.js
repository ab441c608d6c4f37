// The search page: an indexed picture is a query, by a click or by its file.

const nameOf = ({ name, file }) => `${name} ${file}`.trim();

function tile(i, caption) {
  const picture = DATA.pictures[i];
  const image = element("img", { src: picture.thumbnail, alt: nameOf(picture) });
  const node = button(image, () => show(i), { class: "tile" });
  node.append(caption);
  return node;
}

function show(i) {
  const { file } = DATA.pictures[i];
  const query = tile(i, `query: ${file}`);
  query.classList.add("query");
  const nearest = DATA.neighbors[i].map((j, rank) =>
    tile(j, `${DATA.pictures[j].name} ${DATA.cosines[i][rank].toFixed(2)}`),
  );
  $("found").replaceChildren(query, ...nearest);
  $("status").textContent = `Neighbors of ${file}, nearest first, with their cosines.`;
  $("status").scrollIntoView({ block: "nearest" });
}

function list() {
  const wanted = $("filter").value.toLowerCase();
  const tiles = DATA.pictures.flatMap((picture, i) =>
    nameOf(picture).toLowerCase().includes(wanted) ? [tile(i, picture.name)] : [],
  );
  $("all").replaceChildren(...tiles);
}

// zlib.crc32 of a file: gzip writes it before the last four bytes.
async function crc32(file) {
  const zipped = file.stream().pipeThrough(new CompressionStream("gzip"));
  const bytes = await new Response(zipped).arrayBuffer();
  return new DataView(bytes).getUint32(bytes.byteLength - 8, true);
}

async function ask(file) {
  if (!file) return;
  const crc = await crc32(file);
  const i = DATA.pictures.findIndex((picture) => picture.crc === crc);
  if (i >= 0) {
    show(i);
    return;
  }
  $("found").replaceChildren();
  $("status").textContent =
    `${file.name} is not among the indexed pictures, and a page without ` +
    `Python cannot embed it: use \`sobook search … --query ${file.name}\`, or the notebook.`;
}

$("file").onchange = (event) => ask(event.target.files[0]);
$("filter").oninput = list;
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") ask(event.dataTransfer.files[0]);
  });
}
$("count").textContent = `${DATA.pictures.length} pictures are indexed.`;
list();
