// The page: one question at a time, asked of /search, shown as cards that are questions themselves.
// Everything from the server is put in by textContent; nothing is ever parsed as HTML.
"use strict";

const SIZES = [12, 24, 48, 100];
const SENDABLE = ["image/jpeg", "image/png", "image/webp", "image/gif"];
const LARGEST = 7_500_000; // bytes sent as they are; what is larger, or of another format, is drawn again
const MOST_PIXELS = 25_000_000; // what the server takes
const SIDE = 1600; // pixels of what is drawn again
const NAMES = { text: ["text", "texts"], image: ["picture", "pictures"], "image,text": ["picture with text", "pictures with text"] };

const at = (id) => document.getElementById(id);
const numbers = new Intl.NumberFormat("en");
let picture = null; // {blob, id}: what is searched with besides the words; `id` where the index shows it
let about = null;
let running = null; // AbortController of the search under way
let links = []; // object URLs of the pictures on the page, where a token is needed to read them
let size = 0; // place in SIZES

// ---- the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const token = sessionStorage.getItem("puma-token");
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  const answer = await fetch(path, { ...options, headers });
  if (answer.ok) return answer;
  if (answer.status === 401) {
    await askToken();
    return call(path, options);
  }
  const refusal = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, refusal.error?.message ?? `the server answered ${answer.status}`);
}

function askToken() {
  const door = at("door");
  sessionStorage.removeItem("puma-token");
  if (!door.open) door.showModal();
  return new Promise((resolve) => door.addEventListener("close", resolve, { once: true }));
}

at("door").addEventListener("cancel", (event) => event.preventDefault());
at("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("puma-token", at("token").value.trim());
  at("token").value = "";
  at("door").close();
});

function ask(question, model, signal) {
  const { text, want, k } = question;
  const fields = { ...(text && { text }), ...(want && { want }), k, model };
  if (!question.blob) {
    const headers = { "Content-Type": "application/json" };
    return call("search", { method: "POST", headers, body: JSON.stringify(fields), signal }).then((one) => one.json());
  }
  const form = new FormData();
  for (const [name, value] of Object.entries(fields)) form.append(name, String(value));
  form.append("image", question.blob, "picture");
  return call("search", { method: "POST", body: form, signal }).then((one) => one.json());
}

async function askPatiently(question, model, signal) {
  for (let tries = 3; ; tries--) {
    try {
      return await ask(question, model, signal);
    } catch (error) {
      if (error.status !== 503 || tries === 0) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

// ---- asking

const wanted = () => document.querySelector("input[name=want]:checked").value;
const comparing = () => at("compare").checked;

async function search({ remember = true, more = false } = {}) {
  const text = at("text").value.trim();
  if (!text && !picture) return start();
  if (!more) size = 0;
  if (remember) history.pushState(null, "", link(text));
  running?.abort();
  const mine = (running = new AbortController());
  document.body.ariaBusy = "true";
  say("Searching …");
  const question = { text, want: wanted(), k: SIZES[size], blob: picture?.blob };
  const models = comparing() ? ["student", "teacher"] : ["student"];
  const before = performance.now();
  try {
    const answers = await Promise.all(models.map((model) => askPatiently(question, model, mine.signal)));
    if (mine !== running) return;
    const milliseconds = Math.round(performance.now() - before);
    if (comparing()) await readAbout(); // the teacher is loaded by now, and can say how large it is
    show(answers, milliseconds);
    return true;
  } catch (error) {
    if (error.name === "AbortError" || mine !== running) return;
    clear();
    say(error instanceof Refused ? sentence(error.message) : "The server can't be reached.", true);
  } finally {
    if (mine === running) document.body.ariaBusy = "false";
  }
}

function link(text) {
  const parts = new URLSearchParams();
  if (text) parts.set("q", text);
  if (picture?.id) parts.set("image", picture.id);
  if (wanted()) parts.set("want", wanted());
  if (comparing()) parts.set("compare", "1");
  return `?${parts}`;
}

async function follow() {
  // Puts the address into the form; an uploaded picture is not in it and stays where it is not replaced.
  const parts = new URLSearchParams(location.search);
  at("text").value = parts.get("q") ?? "";
  const radio = [...document.getElementsByName("want")].find((one) => one.value === (parts.get("want") ?? ""));
  if (radio) radio.checked = true;
  at("compare").checked = parts.has("compare") && "teacher" in (about?.models ?? {});
  if (parts.get("image")) {
    if (!(await attachShown(parts.get("image")))) return;
  } else {
    attach(null);
  }
  search({ remember: false });
}

async function searchWith(result) {
  at("text").value = result.text ?? "";
  if (result.image) {
    if (!(await attachShown(result.image))) return;
  } else {
    attach(null);
  }
  if (!(await search())) return; // something else was asked meanwhile
  scrollTo({ top: 0, behavior: "smooth" });
  at("results").querySelector(".card")?.focus({ preventScroll: true });
}

// ---- pictures

function attach(next) {
  if (picture) URL.revokeObjectURL(at("chip-image").src);
  picture = next;
  at("chip").hidden = !next;
  at("file").value = "";
  if (next) at("chip-image").src = URL.createObjectURL(next.blob);
  else at("chip-image").removeAttribute("src");
  at("text").placeholder = next ? "Add words, if you like" : "Describe it, or drop a picture";
}

const read = async (id) => (await call(`image/${encodeURIComponent(id)}`)).blob();

async function attachShown(id) {
  try {
    attach({ id, blob: await read(id) });
    return true;
  } catch (error) {
    say(sentence(error.message), true);
    return false;
  }
}

async function attachFile(file) {
  try {
    attach({ id: null, blob: await sendable(file) });
  } catch {
    return say("This file is not a picture that your browser can read. Give a JPEG, PNG, WebP or GIF.", true);
  }
  search();
}

async function sendable(file) {
  const plain = SENDABLE.includes(file.type) && file.size <= LARGEST;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch (error) {
    if (plain) return file; // the server says what is wrong with it
    throw error;
  }
  return plain && bitmap.width * bitmap.height <= MOST_PIXELS ? file : redraw(bitmap);
}

function redraw(bitmap) {
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white"; // what is transparent is white wherever Puma reads it; JPEG alone would make it black
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("not drawn"))), "image/jpeg", 0.92);
  });
}

async function fill(image, id) {
  if (!sessionStorage.getItem("puma-token")) {
    image.src = `image/${encodeURIComponent(id)}`;
    return;
  }
  image.src = URL.createObjectURL(await read(id)); // an image's own request can't carry the token
  links.push(image.src);
}

// ---- showing

function say(text, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
}

function sentence(text) {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;
}

function clear() {
  links.forEach((url) => URL.revokeObjectURL(url));
  links = [];
  at("results").replaceChildren();
  at("more").hidden = true;
}

function show(answers, milliseconds) {
  clear();
  const [student, teacher] = answers;
  const count = student.results.length;
  const kind = NAMES[student.query.want]?.[count === 1 ? 0 : 1] ?? (count === 1 ? "result" : "results");
  const instruction = student.query.instruction ? ` · asked as “${student.query.instruction}”` : "";
  if (!teacher) {
    at("results").append(list(student.results));
    say(`${count} ${kind} in ${milliseconds} ms${instruction}`);
  } else {
    const pair = element("div", "pair");
    pair.append(column("student", student.results, teacher.results), column("teacher", teacher.results, student.results));
    at("results").append(pair);
    const ids = new Set(teacher.results.map((one) => one.id));
    const common = student.results.filter((one) => ids.has(one.id)).length;
    say(`${common} of ${count} ${kind} in common${instruction}`);
  }
  at("more").hidden = count < SIZES[size] || size + 1 >= SIZES.length;
}

function column(model, mine, others) {
  const box = element("div", model);
  const { layers, parameters } = about?.models[model] ?? {};
  const head = element("h2", "", model === "student" ? "Student" : "Teacher");
  const info = element("p", "size", layers ? `${layers} layers · ${millions(parameters)} parameters` : "");
  const places = new Map(others.map((one, place) => [one.id, place + 1]));
  box.append(head, info, list(mine, (one) => places.get(one.id) ?? 0, model === "student" ? "teacher" : "student"));
  return box;
}

function millions(count) {
  return count >= 1e9 ? `${(count / 1e9).toFixed(1)} billion` : `${(count / 1e6).toFixed(1)} million`;
}

function list(results, placeElsewhere = null, elsewhere = "") {
  const items = element("ol", "");
  results.forEach((result, index) => {
    const item = at("card").content.cloneNode(true);
    const card = item.querySelector(".card");
    describe(card, result, index + 1);
    if (placeElsewhere) {
      const place = placeElsewhere(result);
      card.querySelector(".also").textContent = place ? `${elsewhere} ${place}` : "only here";
      card.querySelector(".also").classList.toggle("alone", !place);
    }
    items.append(item);
  });
  return items;
}

function describe(card, result, rank) {
  card.dataset.id = result.id;
  card.querySelector(".words").textContent = result.text ?? "";
  const facts = Object.entries(result.metadata ?? {}).map(([name, value]) => `${name}: ${plain(value)}`);
  card.querySelector(".facts").textContent = facts.join(" · ");
  card.querySelector(".rank").textContent = `${rank}`;
  card.querySelector(".score").textContent = result.score.toFixed(3);
  card.querySelector(".bar i").style.setProperty("--score", Math.max(0, Math.min(1, result.score)));
  const name = `${rank}: ${result.text ?? `picture ${result.id}`}, score ${result.score.toFixed(3)}`;
  card.ariaLabel = `${name}. Search with it`;
  card.title = `${result.id} · search with it`;
  if (result.image) fill(card.querySelector("img"), result.image).catch(() => {});
  else {
    card.querySelector(".shot").remove();
    card.classList.add("text-only");
  }
  card.addEventListener("click", () => searchWith(result));
  for (const [on, off] of [["mouseenter", "mouseleave"], ["focus", "blur"]]) {
    card.addEventListener(on, () => twins(result.id, true));
    card.addEventListener(off, () => twins(result.id, false));
  }
}

const plain = (value) => (typeof value === "string" ? value : JSON.stringify(value));

function twins(id, on) {
  for (const card of document.querySelectorAll(".pair .card")) {
    if (card.dataset.id === id) card.classList.toggle("twin", on);
  }
}

function element(tag, name, text = "") {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.textContent = text;
  return element;
}

// ---- the start

async function readAbout() {
  about = await (await call("about")).json();
  const counts = Object.entries(about.modalities).map(([kind, count]) => {
    return `${numbers.format(count)} ${NAMES[kind][count === 1 ? 0 : 1]}`;
  });
  at("about").textContent = counts.join(" · ");
  for (const label of document.querySelectorAll("[data-kind]")) label.hidden = !(label.dataset.kind in about.modalities);
  at("compare-label").hidden = !("teacher" in about.models);
}

function start() {
  running?.abort();
  document.body.ariaBusy = "false";
  clear();
  if (location.search) history.pushState(null, "", "./");
  if (!about?.examples.length) return say("");
  say("Start with words, with a picture, or with something from the index:");
  const items = list(about.examples);
  items.querySelectorAll(".card").forEach((card) => {
    card.classList.add("example");
    card.ariaLabel = `Search with ${card.querySelector(".words").textContent || `picture ${card.dataset.id}`}`;
  });
  at("results").append(items);
}

async function open() {
  try {
    await readAbout();
  } catch (error) {
    return say(error instanceof Refused ? sentence(error.message) : "The server can't be reached.", true);
  }
  if (location.search) follow();
  else start();
}

// ---- hands

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
at("attach").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => at("file").files[0] && attachFile(at("file").files[0]));
at("remove").addEventListener("click", () => {
  attach(null);
  at("text").focus();
  search();
});
at("more").addEventListener("click", async () => {
  const shown = at("results").querySelectorAll(".card").length;
  size += 1;
  await search({ remember: false, more: true });
  at("results").querySelectorAll(".card")[comparing() ? 0 : shown]?.focus();
});
for (const control of [...document.getElementsByName("want"), at("compare")]) {
  control.addEventListener("change", () => search());
}
addEventListener("popstate", follow);

addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])].find((one) => one.type.startsWith("image/"));
  if (!file) return;
  event.preventDefault();
  attachFile(file);
});

let depth = 0; // dragenter and dragleave come for every element on the way
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.includes("Files")) return;
  depth += 1;
  at("drop").hidden = false;
});
addEventListener("dragleave", () => {
  depth = Math.max(0, depth - 1);
  at("drop").hidden = depth === 0;
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").hidden = true;
  if (event.dataTransfer.files[0]) attachFile(event.dataTransfer.files[0]);
});

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("door").open) return;
  const typing = event.target.matches("input[type=search]");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    at("text").select();
    at("text").focus();
  } else if (event.key === "Escape") {
    at("text").value = "";
    attach(null);
    start();
    at("text").focus();
  } else if (event.key.startsWith("Arrow")) {
    move(event, typing);
  }
});

function move(event, typing) {
  const cards = [...at("results").querySelectorAll(".card")];
  const here = cards.indexOf(event.target);
  if (typing && event.key === "ArrowDown" && cards.length) {
    event.preventDefault();
    cards[0].focus();
  }
  if (here < 0) return;
  event.preventDefault();
  const next = nearest(cards, cards[here], event.key);
  if (next) next.focus();
  else if (event.key === "ArrowUp") at("text").focus();
}

function nearest(cards, from, key) {
  // The nearest card in the direction of the arrow; what lies aside counts three times.
  const [across, along] = key === "ArrowLeft" || key === "ArrowRight" ? ["x", "y"] : ["y", "x"];
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  const middle = (card) => {
    const box = card.getBoundingClientRect();
    return { x: box.left + box.width / 2, y: box.top + box.height / 2 };
  };
  const start = middle(from);
  const away = (card) => {
    const other = middle(card);
    const forward = sign * (other[across] - start[across]);
    return forward < 10 ? Infinity : forward + 3 * Math.abs(other[along] - start[along]);
  };
  const best = cards.reduce((one, other) => (away(other) < away(one) ? other : one), from);
  return best === from ? null : best;
}

open();
