// The 3D viewer, which is unpacked on a click.

async function unpacked(text) {
  const stream = new Blob([bytesOf(text)]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function openViewer(button) {
  if (!document.createElement("canvas").getContext("webgl2")) {
    byId("no-webgl").hidden = false;
    button.disabled = true;
    return;
  }
  button.disabled = true;
  button.textContent = "Opening\u2026";
  const data = JSON.parse(byId("viewer-data").textContent);
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked(data.code));
  document.head.append(script);
  byId("viewer-stage").hidden = byId("viewer-tools").hidden = false;
  const viewer = new window.niivue.Niivue({
    backColor: [0, 0, 0, 1], show3Dcrosshair: true, isRadiologicalConvention: true,
    sagittalNoseLeft: true, multiplanarShowRender: window.niivue.SHOW_RENDER.ALWAYS,
    dragAndDropEnabled: false, logLevel: "error", crosshairWidth: 0.4, crosshairWidthUnit: "percent",
    crosshairColor: [0.47, 1, 0.75, 0.8], multiplanarPadPixels: 6,
  });
  await viewer.attachTo("gl");
  const names = ["fixed", "warped"];
  for (const name of names) {
    await viewer.loadFromArrayBuffer(await unpacked(data[name]), `${name}.nii`);
  }
  const blend = () => viewer.setOpacity(1, Number(byId("opacity").value));
  byId("opacity").addEventListener("input", blend);
  byId("slice-type").addEventListener("change", (e) => viewer.setSliceType(Number(e.target.value)));
  blend();
  viewer.setSliceType(3);
  button.hidden = true;
  document.body.dataset.viewer = "open";
}
