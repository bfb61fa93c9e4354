"use strict";
(async () => {
  const { chart, legends, failures } = JSON.parse(document.getElementById("data").textContent);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const NOTHING = 255;

  // Colours of what is measured, from the least to the most.
  const STOPS = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];
  for (const bar of all(".ramp i")) bar.style.background = `linear-gradient(90deg, ${STOPS})`;
  const rgb = (color) => [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  const abgr = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const between = (share) => {
    const at = Math.min(share * (STOPS.length - 1), STOPS.length - 1.001);
    const [low, high] = [STOPS[Math.floor(at)], STOPS[Math.floor(at) + 1]].map(rgb);
    return low.map((value, i) => Math.round(value + (high[i] - value) * (at % 1)));
  };
  const RAMP = Uint32Array.from({ length: 256 }, (_, i) => (i === NOTHING ? 0 : abgr(between(i / 254))));

  // One unit of the map is one pixel of the area, y upwards; distances are metres.
  const place = (x, y) => L.latLng(-y, x);
  const crs = L.extend({}, L.CRS.Simple, {
    distance: (a, b) => (chart.metres || 1) * Math.hypot(a.lat - b.lat, a.lng - b.lng),
  });
  const area = L.latLngBounds(place(0, 0), place(chart.width, chart.height));
  const map = L.map("map", {
    crs, attributionControl: false, scrollWheelZoom: false, preferCanvas: true,
    minZoom: -12, maxZoom: 5, zoomSnap: 0, maxBounds: area.pad(0.5),
    zoomAnimation: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  });
  map.fitBounds(area, { padding: [8, 8] });
  map.setMinZoom(map.getZoom() - 1);
  if (chart.metres) L.control.scale({ imperial: false }).addTo(map);
  // Who scrolls past the map does not want to zoom it.
  map.on("focus click", () => map.scrollWheelZoom.enable());
  map.on("blur", () => map.scrollWheelZoom.disable());

  const boundsOf = ({ width, height, step }) => L.latLngBounds(place(0, 0), place(width * step, height * step));

  async function inflate(data) {
    const packed = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // Classes have colours of their own, and can be left out one by one.
  const hidden = {};
  function colorsOf(name) {
    const legend = legends[name];
    if (!legend) return RAMP;
    const isShown = (value) => value in legend && !(hidden[name] && hidden[name].has(value));
    return Uint32Array.from({ length: 256 }, (_, value) => (isShown(value) ? abgr(rgb(legend[value].color)) : 0));
  }

  // A raster of values; drawn when it is first shown, and again when colours change.
  // Of several bands one is shown.
  async function raster(name, facts) {
    const values = await inflate(facts.data);
    const canvas = L.DomUtil.create("canvas");
    const size = facts.width * facts.height;
    let isDrawn = false;
    const layer = L.svgOverlay(canvas, boundsOf(facts));
    layer.band = 0;
    layer.bands = values.length / size;
    layer.draw = () => {
      const [table, picture] = [colorsOf(name), new ImageData(facts.width, facts.height)];
      const pixels = new Uint32Array(picture.data.buffer);
      const first = layer.band * size;
      for (let i = 0; i < size; i++) pixels[i] = table[values[first + i]];
      [canvas.width, canvas.height] = [facts.width, facts.height];
      canvas.getContext("2d").putImageData(picture, 0, 0);
      isDrawn = true;
    };
    layer.on("add", () => isDrawn || layer.draw());
    layer.at = (x, y, band = 0) =>
      values[band * size + Math.floor(y / facts.step) * facts.width + Math.floor(x / facts.step)];
    return layer;
  }

  // What files say is text, never markup.
  const words = (...lines) => {
    const box = L.DomUtil.create("div");
    for (const line of lines) L.DomUtil.create("div", "", box).textContent = line;
    return box;
  };
  const number = (value, digits) => value.toLocaleString("en", { maximumFractionDigits: digits });

  function polygons({ features, step }) {
    const group = L.layerGroup();
    for (const feature of features) {
      const rings = feature.rings.map((steps) => {
        let [x, y] = steps;
        const ring = [place(x, y)];
        for (let i = 2; i < steps.length; i++) {
          if (i % 2) x += steps[i]; else y += steps[i];
          ring.push(place(x, y));
        }
        return ring;
      });
      const { name, color } = legends.mask[feature.class];
      const lines = [name];
      if (feature.hectares !== null) lines.push(`${step > 1 ? "about " : ""}${number(feature.hectares, 2)} ha`);
      L.polygon(rings, { color: "#ffffff", weight: 0.8, opacity: 0.7, fillColor: color, fillOpacity: 0.25, smoothFactor: 0.5 })
        .bindTooltip(words(...lines), { sticky: true }).addTo(group);
    }
    return group;
  }

  function holes() {
    const group = L.layerGroup();
    for (const { shard, window: [row, col, height, width], reason } of failures) {
      const [x, y] = [col - chart.origin[0], row - chart.origin[1]];
      L.rectangle(L.latLngBounds(place(x, y), place(x + width, y + height)), { color: "#d4351c", weight: 2, dashArray: "6 4", fillOpacity: 0.15 })
        .bindTooltip(words(`failed shard ${shard.join(", ")}`, reason), { sticky: true }).addTo(group);
    }
    return group;
  }

  const layers = {};
  if (chart.picture) layers.picture = L.imageOverlay(chart.picture.href, boundsOf(chart.picture), { alt: "the scene" });
  try {
    for (const [name, facts] of Object.entries(chart.rasters)) {
      layers[name] = await raster(name, facts);
    }
    if (chart.shards) layers.shards = await raster("shards", chart.shards);
  } catch (error) {
    document.getElementById("trouble").hidden = false;
  }
  if (chart.polygons) layers.polygons = polygons(chart.polygons);
  if (failures.length) layers.failures = holes();

  // Whatever is shown lies in the order of the list.
  Object.values(layers).forEach((layer, i) => layer.setZIndex && layer.setZIndex(i + 1));
  for (const box of all("[data-layer]")) {
    const layer = layers[box.dataset.layer];
    if (!layer) { box.disabled = true; continue; }
    const show = () => (box.checked ? layer.addTo(map) : layer.remove());
    box.addEventListener("change", show);
    show();
  }
  for (const slider of all("[data-opacity]")) {
    const layer = layers[slider.dataset.opacity];
    const fade = () => layer && layer.setOpacity(slider.value / 100);
    slider.addEventListener("input", fade);
    fade();
  }

  for (const choice of all("[data-band]")) {
    choice.addEventListener("change", () => {
      const layer = layers[choice.dataset.band];
      layer.band = Number(choice.value);
      layer.draw();
    });
  }

  // A legend is of one raster or of several.
  for (const legend of all("[data-legend]")) {
    const boxes = [...legend.querySelectorAll("[data-class]")];
    const sieve = () => {
      for (const name of legend.dataset.legend.split(" ")) {
        hidden[name] = new Set(boxes.filter((box) => !box.checked).map((box) => Number(box.dataset.class)));
        if (layers[name]) layers[name].draw();
      }
    };
    for (const box of boxes) box.addEventListener("change", sieve);
    for (const button of legend.querySelectorAll("[data-all]")) {
      button.addEventListener("click", () => {
        for (const box of boxes) box.checked = button.dataset.all === "true";
        sieve();
      });
    }
    sieve();
  }

  const [a, b, c, d, e, f] = chart.transform;
  const digits = Math.min(12, Math.max(0, Math.ceil(1 - Math.log10(Math.hypot(a, d)))));
  const readout = document.getElementById("readout");
  const share = (value) => (value / 254).toFixed(2);
  // What a raster says of a place; of several bands the greatest three.
  function told(name, layer, x, y) {
    const value = layer.at(x, y);
    if (legends[name]) {
      const text = value in legends[name] ? legends[name][value].name : "nodata";
      return [name === "mask" ? text : `${name}: ${text}`];
    }
    if (value === NOTHING) return [];
    if (layer.bands === 1) return [`${name} ${share(value)}`];
    const values = Array.from({ length: layer.bands }, (_, band) => [layer.at(x, y, band), band]);
    const most = values.sort(([a], [b]) => b - a).slice(0, 3);
    return [most.map(([chance, band]) => `${legends.mask[band].name} ${share(chance)}`).join(", ")];
  }
  map.on("mousemove click", ({ latlng }) => {
    const [x, y] = [latlng.lng, -latlng.lat];
    if (x < 0 || y < 0 || x >= chart.width || y >= chart.height) return;
    const found = [`x ${number(a * x + b * y + c, digits)}, y ${number(d * x + e * y + f, digits)}`];
    const rasters = Object.keys(chart.rasters).filter((name) => layers[name]);
    for (const name of rasters) found.push(...told(name, layers[name], x, y));
    readout.textContent = found.join("  ·  ");
  });
  document.body.dataset.ready = "true";
})();
