// The page's controls and the network behind them. One drawing at a time: while one is made, the newest wish waits and older ones are dropped.
import * as ort from "./onnxruntime/ort.wasm.bundle.min.mjs";
import {drawnAttributes, latent, slerp} from "./latents.js";

const NEIGHBOURS = 12;
const $ = id => document.getElementById(id);
let model, session, wish = null, busy = false;

// ---- The network

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is missing (${answer.status}): copy the whole folder.`);
  return answer;
}

async function unpacked(path) { // some servers unpack .gz files on the way, most do not
  const bytes = new Uint8Array(await (await fetched(path)).arrayBuffer());
  if (bytes[0] !== 0x1f || bytes[1] !== 0x8b) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function load() {
  model = await (await fetched("model.json")).json();
  ort.env.wasm.numThreads = 1;
  const [binary, weights] = await Promise.all([unpacked("onnxruntime/ort-wasm-simd-threaded.wasm.gz"), fetched(model.file)]);
  ort.env.wasm.wasmBinary = binary.buffer;
  session = await ort.InferenceSession.create(new Uint8Array(await weights.arrayBuffer()), {executionProviders: ["wasm"]});
}

// [{z: Float32Array, row: [numbers]}, ...] -> ImageData of each: (x + 1) * 127.5, rounded half to even as Python rounds.
async function draw(faces) {
  const z = new Float32Array(faces.length * model.z_dim);
  faces.forEach((face, i) => z.set(face.z, i * model.z_dim));
  const feeds = {[model.latent]: new ort.Tensor("float32", z, [faces.length, model.z_dim])};
  model.inputs.forEach((name, i) => {
    feeds[name] = new ort.Tensor("float32", Float32Array.from(faces, face => face.row[i]), [faces.length]);
  });
  const {data} = (await session.run(feeds))[model.output], side = model.size, area = side * side;
  return faces.map((_, n) => {
    const image = new ImageData(side, side);
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = (data[(3 * n + c) * area + i] + 1) * 127.5; // clamps, and rounds half to even
      image.data[4 * i + 3] = 255;
    }
    return image;
  });
}

// ---- What the controls ask for

function number(id) {
  const value = Number($(id).value);
  return $(id).value !== "" && Number.isSafeInteger(value) && value >= 0 ? value : null;
}

const sliders = () => [...document.querySelectorAll("#sliders input")];
const held = () => sliders().map(slider => Number(slider.value));
const rowOf = seed => (model.attributes.length && $("drawn").checked ? drawnAttributes(seed, model.attribute_table) : held());

function truncated(z, psi) {
  return psi === 1 ? z : z.map(value => value * Math.fround(psi));
}

function wanted() {
  const seed = number("seed"), other = number("other"), way = Number($("way").value), psi = Number($("truncation").value);
  if (seed === null || (way > 0 && other === null)) return null;
  let z = latent(seed, model.z_dim), row = rowOf(seed);
  if (way > 0) {
    z = slerp(z, latent(other, model.z_dim), way);
    row = rowOf(other).map((value, i) => row[i] + way * (value - row[i]));
  }
  const after = Array.from({length: NEIGHBOURS}, (_, i) => seed + 1 + i).filter(Number.isSafeInteger);
  const neighbours = after.map(n => ({seed: n, z: truncated(latent(n, model.z_dim), psi), row: rowOf(n)}));
  return {seed, other, way, psi, face: {z: truncated(z, psi), row}, neighbours};
}

// ---- What is shown

const plain = value => String(Math.round(value * 100) / 100);

function described({seed, other, way, face}) {
  const said = model.attributes.map((name, i) => `${name} ${plain(face.row[i])}`).join(", ");
  return (way > 0 ? `${Math.round(way * 100)} % of the way from face ${seed} to face ${other}` : `Face ${seed}`) + (said && `: ${said}`);
}

function command({seed, other, way, psi}) {
  const psiSaid = psi === 1 ? "" : ` --truncation ${plain(psi)}`;
  const where = model.attributes.length && !$("drawn").checked
    ? ` --where ${model.attributes.map((name, i) => `${name}=${plain(held()[i])}`).join(",")}` : "";
  if (way > 0) return `mien interpolate ${model.name} --seeds ${seed},${other}${where}${psiSaid} --out morph.gif`;
  return `mien sample ${model.name} --seed ${seed} --count 1${where}${psiSaid} --out face.png`;
}

function paint(canvas, image) {
  canvas.width = canvas.height = model.size;
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function outputs() {
  for (const slider of document.querySelectorAll("input[type=range]")) {
    const shown = slider.id === "way" ? `${Math.round(slider.value * 100)} %` : plain(slider.value);
    slider.parentElement.querySelector("output").textContent = shown;
  }
  $("sliders").classList.toggle("loose", $("drawn").checked);
}

function showNeighbours(faces, images) {
  const focused = [...$("neighbours").children].indexOf(document.activeElement);
  $("neighbours").replaceChildren(...images.map((image, i) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    button.type = "button";
    button.setAttribute("aria-label", `Face ${faces[i].seed}`);
    paint(canvas, image);
    button.append(canvas, String(faces[i].seed));
    button.addEventListener("click", () => { $("seed").value = faces[i].seed; $("way").value = 0; ask(); });
    return button;
  }));
  if (focused >= 0) $("neighbours").children[focused]?.focus();
}

async function ask() {
  outputs();
  wish = wanted();
  if (!wish) {
    $("status").textContent = "A face's number is a whole number from 0 on.";
    return;
  }
  if (busy) return;
  busy = true;
  try {
    while (wish) {
      const now = wish;
      wish = null;
      if ($("drawn").checked) sliders().forEach((slider, i) => { slider.value = now.face.row[i]; });
      outputs();
      const [image] = await draw([now.face]);
      paint($("face"), image);
      $("face").setAttribute("aria-label", described(now));
      $("status").textContent = described(now);
      $("command").textContent = command(now);
      $("download").disabled = false;
      if (!wish) showNeighbours(now.neighbours, await draw(now.neighbours));
      if (!wish) document.body.dataset.shown = JSON.stringify([now.seed, now.other, now.way, now.psi, now.face.row]);
    }
  } catch (error) {
    fail(error);
  } finally {
    busy = false;
  }
}

function fail(error) {
  $("status").textContent = `The face could not be drawn: ${error.message}`;
  $("status").classList.add("failed");
}

function download() {
  const way = Number($("way").value), name = `${model.name}-${number("seed")}${way > 0 ? `-${number("other")}-at-${plain(way)}` : ""}.png`;
  $("face").toBlob(blob => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }, "image/png");
}

// ---- Begin

function addSlider(name, i) {
  const box = document.createElement("div"), id = `attribute-${i}`;
  box.className = "slider";
  box.innerHTML = `<label for="${id}"></label><output for="${id}"></output><input id="${id}" type="range" min="0" max="1" step="0.01" value="0">`;
  box.firstChild.textContent = name.replaceAll("_", " ");
  box.querySelector("input").addEventListener("input", () => { $("drawn").checked = false; ask(); });
  $("sliders").append(box);
}

function random(id) {
  $(id).value = Math.floor(Math.random() * 1e6);
  ask();
}

function listen() {
  for (const id of ["seed", "other", "truncation", "way", "drawn"]) $(id).addEventListener("input", ask);
  const step = by => () => { $("seed").value = Math.max(0, (number("seed") ?? 0) + by); ask(); };
  $("previous").addEventListener("click", step(-1));
  $("next").addEventListener("click", step(1));
  $("random").addEventListener("click", () => random("seed"));
  $("other-random").addEventListener("click", () => random("other"));
  $("download").addEventListener("click", download);
  $("crisp").addEventListener("input", () => document.body.classList.toggle("crisp", $("crisp").checked));
  $("beyond").addEventListener("input", () => {
    for (const slider of sliders()) [slider.min, slider.max] = $("beyond").checked ? [-1, 2] : [0, 1];
    ask();
  });
  $("controls").addEventListener("submit", event => event.preventDefault());
}

try {
  await load();
  model.attributes.forEach(addSlider);
  $("attributes").hidden = !model.attributes.length;
  listen();
  await ask();
} catch (error) {
  fail(error);
}
