// Drawing of a plane's slice in every mode, with maps and contours, and the legend.

function draw(plane) {
  const { canvas } = plane, side = state.mode === "side";
  const scale = window.devicePixelRatio || 1, cssWidth = canvas.clientWidth || 400;
  const aspect = Math.max(side ? plane.aspect / 2 : plane.aspect, 0.12);
  const width = Math.round(cssWidth * scale), height = Math.round(width * aspect);
  if (canvas.width !== width || canvas.height !== height) {
    [canvas.width, canvas.height] = [width, height];
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  const panels = side
    ? [{ x: 0, width: width / 2, image: "fixed" }, { x: width / 2, width: width / 2, image: "moving" }]
    : [{ x: 0, width, image: state.mode }];
  for (const panel of panels) drawPanel(context, plane, panel, height, scale);
}

function drawPanel(context, plane, { x, width, image }, height, scale) {
  context.save();
  context.beginPath();
  context.rect(x, 0, width, height);
  context.clip();
  context.translate(x, 0);
  drawImages(context, plane, image, width, height);
  drawMap(context, plane, width, height);
  if (state.contours) drawContours(context, plane, width, height, scale);
  drawCross(context, plane, width, height, scale);
  drawWords(context, plane, image, width, height, scale);
  context.restore();
}

function drawImages(context, plane, image, width, height) {
  const fixed = () => part(context, plane.layers.fixed, plane.k, width, height, FIXED_TINT);
  const moving = () => part(context, plane.layers[state.when], plane.k, width, height, MOVING_TINT);
  if (image === "fixed" || (image === "flicker" && state.fixedTurn)) return fixed();
  if (image === "moving" || image === "flicker") return moving();
  fixed();
  context.save();
  context.beginPath();
  if (image === "swipe") {
    context.rect(state.swipe * width, 0, width, height);
  } else {
    const tile = Math.max(width, height) / TILES;
    for (let row = 0; row * tile < height; row++) {
      for (let column = (row + 1) % 2; column * tile < width; column += 2) {
        context.rect(column * tile, row * tile, tile, tile);
      }
    }
  }
  context.clip();
  moving();
  context.restore();
  if (image === "swipe") {
    context.fillStyle = "rgba(255,255,255,0.85)";
    context.fillRect(state.swipe * width - 1, 0, 2, height);
  }
}

function part(context, layer, k, width, height, tint) {
  layer.draw(context, k, 0, 0, width, height);
  context.globalCompositeOperation = "multiply";
  context.fillStyle = tint;
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
}

// A canvas of a map's own size in which `paint` sets the four channels of each pixel.
function painted(layer, k, paint) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [layer.width, layer.height];
  const context = canvas.getContext("2d"), values = layer.values(k);
  const pixels = context.createImageData(layer.width, layer.height);
  for (let i = 0; i < values.length; i++) paint(values[i], pixels.data, 4 * i);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

function drawMap(context, plane, width, height) {
  if (state.map === "none") return;
  if (state.map === "grid") return drawGrid(context, plane, width, height);
  const painter = state.map === "jacobian" ? paintJacobian : paintAmount;
  context.drawImage(painted(plane.layers[state.map], plane.k, painter), 0, 0, width, height);
  if (state.map !== "jacobian") return;
  const folds = painted(plane.layers.folds, plane.k, (value, data, at) => {
    data.set(value > 127 ? [...views.fold_colour, 255] : [0, 0, 0, 0], at);
  });
  context.imageSmoothingEnabled = false;
  context.drawImage(folds, 0, 0, width, height);
  context.imageSmoothingEnabled = true;
}

function paintJacobian(value, data, at) {
  const opacity = Math.min(0.85, Math.abs(value - 127.5) / 90);
  for (let c = 0; c < 3; c++) data[at + c] = jacobianColours[3 * value + c];
  data[at + 3] = 255 * opacity;
}

// From dark blue through green to yellow; unknown pixels stay transparent.
const AMOUNT = [[38, 20, 92], [33, 102, 142], [33, 165, 133], [122, 209, 81], [253, 231, 37]];
function amountColour(share) {
  const at = Math.min(0.9999, Math.max(0, share)) * (AMOUNT.length - 1), i = Math.floor(at);
  return AMOUNT[i].map((low, c) => low + (at - i) * (AMOUNT[i + 1][c] - low));
}

function paintAmount(value, data, at) {
  data.set(value < 16 ? [0, 0, 0, 0] : [...amountColour((value - 24) / 231), 165], at);
}

function drawGrid(context, plane, width, height) {
  const { rows, columns, unit_mm: unit } = plane.nodes;
  const mm = [plane.size[0] * plane.spacing[0], plane.size[1] * plane.spacing[1]];
  const node = (row, column) => {
    const at = 2 * ((plane.k * rows + row) * columns + column);
    const down = (row + 0.5) / rows + (plane.offsets[at] * unit) / mm[0];
    const along = (column + 0.5) / columns + (plane.offsets[at + 1] * unit) / mm[1];
    return [along * width, down * height];
  };
  context.strokeStyle = "rgba(255,214,110,0.9)";
  context.lineWidth = Math.max(1, width / 420);
  context.beginPath();
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const here = node(row, column);
      if (column + 1 < columns) { context.moveTo(...here); context.lineTo(...node(row, column + 1)); }
      if (row + 1 < rows) { context.moveTo(...here); context.lineTo(...node(row + 1, column)); }
    }
  }
  context.stroke();
}

function drawContours(context, plane, width, height, scale) {
  for (const { path, layer, colour } of outlines(plane, plane.k)) {
    context.save();
    const stretch = [width / layer.width, height / layer.height];
    context.scale(...stretch);
    context.strokeStyle = colour;
    context.lineWidth = (1.2 * scale) / Math.max(...stretch);
    context.stroke(path);
    context.restore();
  }
}

function drawCross(context, plane, width, height, scale) {
  if (!state.point) return;
  const [column, row] = plane.index(state.point);
  const x = ((column + 0.5) / plane.size[1]) * width, y = ((row + 0.5) / plane.size[0]) * height;
  context.fillStyle = "rgba(120,255,190,0.75)";
  for (const [left, top, wide, high] of [
    [x, 0, scale, y - 9 * scale], [x, y + 9 * scale, scale, height],
    [0, y, x - 9 * scale, scale], [x + 9 * scale, y, width, scale],
  ]) context.fillRect(left, top, wide, high);
}

function drawWords(context, plane, image, width, height, scale) {
  const moving = state.when === "after" ? "warped" : "before";
  const words = {
    swipe: ["fixed", moving], checker: ["fixed", moving], fixed: ["fixed"],
    moving: [moving], flicker: [state.fixedTurn ? "fixed" : moving],
  }[image];
  const write = (text, x, y, align, baseline, colour, weight) => {
    context.font = `${weight} ${12 * scale}px system-ui, "DejaVu Sans", sans-serif`;
    [context.textAlign, context.textBaseline] = [align, baseline];
    context.lineWidth = 3 * scale;
    context.lineJoin = "round";
    context.strokeStyle = "rgba(0,0,0,0.8)";
    context.strokeText(text, x, y);
    context.fillStyle = colour;
    context.fillText(text, x, y);
  };
  const tint = (word) => (word.startsWith("fixed") ? FIXED_TINT : MOVING_TINT);
  const edge = 6 * scale;
  write(words[0], edge, edge, "left", "top", tint(words[0]), 600);
  if (words[1]) write(words[1], width - edge, edge, "right", "top", tint(words[1]), 600);
  const [left, right, top, bottom] = ENDS[plane.name], letters = "rgb(127,224,195)";
  write(left, edge, height / 2, "left", "middle", letters, 600);
  write(right, width - edge, height / 2, "right", "middle", letters, 600);
  if (height > 90 * scale) {
    write(top, width / 2, edge, "center", "top", letters, 600);
    write(bottom, width / 2, height - edge, "center", "bottom", letters, 600);
  }
}

let queued = false;
function redraw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => { queued = false; planes.forEach(draw); });
}

// ---- Legend ---------------------------------------------------------------------------------

function ramp(colour) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [140, 12];
  const context = canvas.getContext("2d");
  for (let x = 0; x < 140; x++) {
    context.fillStyle = `rgb(${colour(x / 139).map(Math.round)})`;
    context.fillRect(x, 0, 1, 12);
  }
  return canvas;
}

function swatch(colour) {
  const dot = document.createElement("i");
  dot.className = "dot";
  dot.style.background = colour;
  return dot;
}

function legend() {
  const box = byId("legend");
  box.replaceChildren();
  const line = (...parts) => {
    const span = document.createElement("span");
    span.append(...parts);
    box.append(span);
  };
  const top = views.jacobian_range;
  if (state.map === "jacobian") {
    const colour = (t) => [...jacobianColours.slice(3 * Math.round(255 * t), 3 * Math.round(255 * t) + 3)];
    line(`Jacobian determinant, contraction 1/${top}`, ramp(colour), `${top} expansion`);
    line(swatch(`rgb(${views.fold_colour})`), "folds (of all voxels nearest to the slice)");
  } else if (state.map === "confidence") {
    line("confidence 0", ramp(amountColour), "1");
  } else if (state.map === "inverse") {
    line("distance after mapping and inverse 0", ramp(amountColour), `${views.inverse_top_mm} mm or more`);
  } else if (state.map === "grid") {
    line("where the deformation takes even lines, without the initial alignment");
  }
  if (state.contours && planes[0].labels.length) {
    const values = [...new Set(planes.flatMap((p) => p.labels.flatMap((map) => map.values)))];
    const labels = values.sort((a, b) => a - b).slice(0, 40).flatMap((v) => {
      const item = document.createElement("span");
      item.append(swatch(labelColour(v)), String(v));
      return item;
    });
    const list = document.createElement("span");
    list.className = "labels";
    list.append(...labels);
    line("labels of the moving image ", list);
  }
}
