// The slices that the page holds, their pixels and their contours.
const byId = (id) => document.getElementById(id);
const views = JSON.parse(byId("views").textContent);
const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const FIXED_TINT = "rgb(222,241,255)", MOVING_TINT = "rgb(255,231,200)";
const ENDS = { axial: "RLAP", coronal: "RLSI", sagittal: "APSI" };
const TILES = 7, FLICKER_MS = 600;
const jacobianColours = bytesOf(views.jacobian_colours);
const state = {
  mode: "swipe", when: "after", map: "none", contours: byId("contours").checked,
  swipe: 0.5, fixedTurn: true, playing: false, point: null,
};

// ---- Slices ---------------------------------------------------------------------------------

class Layer {
  // All slices of one kind, one below the other in an image.
  constructor(data) {
    Object.assign(this, data);
    this.image = new Image();
    this.image.src = data.src;
    this.ready = this.image.decode();
    this.cache = new Map();
  }

  draw(context, k, x, y, width, height) {
    context.drawImage(
      this.image, 0, k * this.pitch, this.width, this.height, x, y, width, height);
  }

  // Grey values of a slice, one byte for each pixel.
  values(k) {
    if (!this.cache.has(k)) {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [this.width, this.height];
      const context = canvas.getContext("2d", { willReadFrequently: true });
      this.draw(context, k, 0, 0, this.width, this.height);
      const data = context.getImageData(0, 0, this.width, this.height).data;
      this.cache.set(k, Uint8Array.from({ length: data.length / 4 }, (_, i) => data[4 * i]));
    }
    return this.cache.get(k);
  }
}

class Plane {
  constructor(data) {
    Object.assign(this, data);
    this.layers = Object.fromEntries(
      Object.entries(data.layers).map(([name, layer]) => [name, new Layer(layer)]));
    this.labels = data.labels.map((map) => (
      { values: map.values, before: new Layer(map.before), after: new Layer(map.after) }));
    this.offsets = new Int8Array(bytesOf(data.nodes.offsets).buffer);
    this.canvas = byId(`canvas-${this.name}`);
    this.slider = byId(`slider-${this.name}`);
    this.output = byId(`position-${this.name}`);
    this.outlines = new Map();
    this.aspect = (this.size[0] * this.spacing[0]) / (this.size[1] * this.spacing[1]);
  }

  get k() { return Number(this.slider.value); }

  get ready() {
    const labels = this.labels.flatMap((map) => [map.before.ready, map.after.ready]);
    return Promise.all([...Object.values(this.layers).map((layer) => layer.ready), ...labels]);
  }

  // Column, row and slice of a point in LPS mm, and back.
  index(point) { return apply(this.from_lps, point); }
  point(column, row) { return apply(this.to_lps, [column, row, this.k]); }

  show(k) {
    this.slider.value = Math.max(0, Math.min(this.positions.length - 1, k));
    const mm = this.positions[this.k];
    const end = { axial: "IS", coronal: "AP", sagittal: "RL" }[this.name][mm < 0 ? 0 : 1];
    this.output.textContent = `${this.k + 1}/${this.positions.length} · ${end} ${Math.abs(mm).toFixed(0)} mm`;
    this.slider.setAttribute("aria-valuetext", `slice ${this.k + 1}, ${end} ${Math.abs(mm).toFixed(0)} mm`);
  }
}

const apply = (matrix, [x, y, z]) => matrix.map((r) => r[0] * x + r[1] * y + r[2] * z + r[3]);
const planes = views.planes.map((plane) => new Plane(plane));

// ---- Contours -------------------------------------------------------------------------------

// Marching squares: the line at which the values, interpolated between pixels, cross the level.
function isoline(inside, width, height) {
  const path = new Path2D();
  for (let y = 0; y < height - 1; y++) {
    for (let x = 0; x < width - 1; x++) {
      const i = y * width + x;
      const corners = [inside(i), inside(i + 1), inside(i + 1 + width), inside(i + width)];
      const crossings = [];
      for (let e = 0; e < 4; e++) {
        const a = corners[e], b = corners[(e + 1) % 4];
        if (a > 0 === b > 0) continue;
        const t = a / (a - b);
        crossings.push([[x + t, y], [x + 1, y + t], [x + 1 - t, y + 1], [x, y + 1 - t]][e]);
      }
      for (let c = 0; c + 1 < crossings.length; c += 2) {
        path.moveTo(crossings[c][0] + 0.5, crossings[c][1] + 0.5);
        path.lineTo(crossings[c + 1][0] + 0.5, crossings[c + 1][1] + 0.5);
      }
    }
  }
  return path;
}

function smoothed(values, width, height) {
  const out = new Float32Array(values.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let sum = 0, weight = 0;
      for (let dy = -1; dy <= 1; dy++) {
        for (let dx = -1; dx <= 1; dx++) {
          const u = x + dx, v = y + dy;
          if (u < 0 || v < 0 || u >= width || v >= height) continue;
          const w = (2 - Math.abs(dx)) * (2 - Math.abs(dy));
          sum += w * values[v * width + u];
          weight += w;
        }
      }
      out[y * width + x] = sum / weight;
    }
  }
  return out;
}

function outlines(plane, k) {
  const key = `${k} ${state.when}`;
  if (plane.outlines.has(key)) return plane.outlines.get(key);
  const found = [];
  for (const map of plane.labels) {
    const layer = map[state.when], values = layer.values(k);
    for (const number of new Set(values)) {
      if (!number) continue;
      const value = map.values[number - 1];
      const path = isoline((i) => (values[i] === number ? 1 : -1), layer.width, layer.height);
      found.push({ path, layer, colour: labelColour(value) });
    }
  }
  if (!plane.labels.length) {
    const layer = plane.layers.fixed;
    const values = smoothed(layer.values(k), layer.width, layer.height);
    for (const level of views.levels) {
      const path = isoline((i) => values[i] - level - 0.5, layer.width, layer.height);
      found.push({ path, layer, colour: "rgb(93,220,255)" });
    }
  }
  plane.outlines.set(key, found);
  return found;
}

const labelColour = (value) => `rgb(${views.label_colours[value % views.label_colours.length]})`;
