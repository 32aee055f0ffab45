// Modes, sliders, keys and buttons.

const reducedMotion = window.matchMedia("(prefers-reduced-motion: reduce)").matches;

function setMode(mode) {
  state.mode = mode;
  state.playing = mode === "flicker" && !reducedMotion;
  document.querySelector(`input[name=mode][value=${mode}]`).checked = true;
  layOut();
  refresh();
}

// Shows planes of one height side by side, and the two flat planes of thick slabs one above the other.
function layOut() {
  const box = byId("planes"), flat = planes.filter((plane) => plane.aspect < 0.6).length === 2;
  const kinds = { side: "wide", swipe: "swiping" };
  box.className = `planes ${kinds[state.mode] ?? ""} ${flat ? "flat" : ""}`;
  const shares = planes.map((plane) => `${Math.min(1.8, Math.max(0.4, 1 / plane.aspect))}fr`);
  box.style.setProperty("--columns", shares.join(" "));
  for (const plane of planes) {
    plane.canvas.parentElement.classList.toggle("main-plane", flat && plane.aspect >= 0.6);
  }
}

function refresh() {
  const play = byId("play");
  play.hidden = state.mode !== "flicker";
  play.textContent = state.playing ? "Pause" : "Play";
  byId("contours").checked = state.contours;
  byId("map").value = state.map;
  document.querySelector(`input[name=when][value=${state.when}]`).checked = true;
  legend();
  redraw();
}

function moveTo(plane, point) {
  state.point = point;
  for (const other of planes) {
    if (other !== plane) other.show(Math.round(other.index(point)[2]));
  }
  redraw();
}

function step(plane, change) {
  plane.show(plane.k + change);
  if (state.point) {
    const [column, row] = plane.index(state.point);
    state.point = plane.point(column, row);
  }
  redraw();
}

function pointed(plane, event) {
  const box = plane.canvas.getBoundingClientRect();
  let along = (event.clientX - box.left) / box.width;
  const down = (event.clientY - box.top) / box.height;
  if (state.mode === "swipe") {
    state.swipe = Math.min(1, Math.max(0, along));
    return redraw();
  }
  if (state.mode === "side") along = (along * 2) % 1;
  moveTo(plane, plane.point(along * plane.size[1] - 0.5, down * plane.size[0] - 0.5));
}

const MODES = ["swipe", "checker", "flicker", "side"];
function pressed(plane, event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const onCanvas = event.target === plane.canvas, key = event.key.toLowerCase();
  const actions = {
    b: () => { state.when = state.when === "after" ? "before" : "after"; refresh(); },
    c: () => { state.contours = !state.contours; refresh(); },
    m: () => {
      const options = [...byId("map").options].map((option) => option.value);
      state.map = options[(options.indexOf(state.map) + 1) % options.length];
      refresh();
    },
  };
  MODES.forEach((mode, i) => { actions[String(i + 1)] = () => setMode(mode); });
  if (onCanvas) {
    const swipe = (change) => () => {
      state.swipe = Math.min(1, Math.max(0, state.swipe + change));
      redraw();
    };
    Object.assign(actions, {
      arrowup: () => step(plane, 1), arrowdown: () => step(plane, -1),
      pageup: () => step(plane, 5), pagedown: () => step(plane, -5),
      home: () => step(plane, -1000), end: () => step(plane, 1000),
      arrowleft: swipe(-0.05), arrowright: swipe(0.05),
      " ": () => { state.playing = false; state.fixedTurn = !state.fixedTurn; refresh(); },
    });
  }
  if (!actions[key]) return;
  event.preventDefault();
  actions[key]();
}

function connect() {
  for (const plane of planes) {
    plane.show(Number(plane.slider.value));
    plane.slider.addEventListener("input", () => step(plane, 0));
    plane.canvas.addEventListener("pointerdown", (event) => {
      plane.canvas.setPointerCapture(event.pointerId);
      pointed(plane, event);
    });
    plane.canvas.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) pointed(plane, event);
    });
    plane.canvas.parentElement.addEventListener("keydown", (event) => pressed(plane, event));
  }
  for (const input of document.querySelectorAll("input[name=mode]")) {
    input.addEventListener("change", () => setMode(input.value));
  }
  for (const input of document.querySelectorAll("input[name=when]")) {
    input.addEventListener("change", () => { state.when = input.value; refresh(); });
  }
  byId("contours").addEventListener("change", (e) => { state.contours = e.target.checked; refresh(); });
  byId("map").addEventListener("change", (e) => { state.map = e.target.value; refresh(); });
  byId("play").addEventListener("click", () => { state.playing = !state.playing; refresh(); });
  setInterval(() => {
    if (state.mode !== "flicker" || !state.playing) return;
    state.fixedTurn = !state.fixedTurn;
    redraw();
  }, FLICKER_MS);
  window.addEventListener("resize", redraw);
  window.addEventListener("beforeprint", () => planes.forEach(draw));
}

async function copy(button) {
  const text = byId(button.dataset.copy).innerText, label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    // Some browsers do not let a local file access the clipboard; then the text is selected instead.
    window.getSelection().selectAllChildren(byId(button.dataset.copy));
    button.textContent = "Selected; press Ctrl+C";
  }
  setTimeout(() => { button.textContent = label; }, 2500);
}

function start() {
  connect();
  for (const button of document.querySelectorAll("[data-copy]")) {
    button.addEventListener("click", () => copy(button));
  }
  const open = byId("open-viewer");
  open?.addEventListener("click", () => openViewer(open));
  Promise.all(planes.map((plane) => plane.ready)).then(() => {
    setMode(state.mode);
    requestAnimationFrame(() => { document.body.dataset.ready = "yes"; });
  });
}

start();
