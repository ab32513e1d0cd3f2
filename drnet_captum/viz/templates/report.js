"use strict";
(() => {
  const PAGE = 72; // tiles of a layer before it asks for more
  const THUMBNAILS = 6; // of a module
  const data = JSON.parse(document.getElementById("data").textContent);
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // Names come in as text nodes only, so that none of them is ever read as markup.
  function make(tag, properties = {}, ...children) {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function fill(image, id) {
    image.src = data.images[id];
    image.classList.toggle("pixels", image.src.startsWith("data:image/png"));
    return image;
  }

  const picture = (id, alt) => fill(make("img", { alt, decoding: "async" }), id);
  const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
  const number = (value) => (value === 0 ? "0" : Number(value.toPrecision(3)).toString().replace("-", "−"));

  function thumbnail(unit) {
    const id = unit.filter ?? unit.exemplars[0]?.[0] ?? unit.projection;
    return id === null || id === undefined ? make("span", { className: "blank" }) : picture(id, "");
  }

  // One unit, in the dialog. `browsed` is what the arrows go through.

  const dialog = find("#unit");
  let browsed = [];
  let place = 0;

  function bars(pairs) {
    const longest = Math.max(...pairs.map(([, value]) => Math.abs(value))) || 1;
    return make("ol", { className: "bars" }, ...pairs.map(([name, value]) => {
      const bar = make("span", { className: value < 0 ? "bar against" : "bar" });
      bar.style.left = 0;
      bar.style.width = `${(100 * Math.abs(value)) / longest}%`;
      return make("li", {},
        make("span", { className: "name", title: name }, name),
        make("span", { className: "track" }, bar),
        make("span", { className: "value" }, number(value)));
    }));
  }

  const part = (title, caption, content) =>
    make("section", {}, make("h3", {}, title), make("p", {}, caption), content);

  function patches(unit) {
    return make("div", { className: "patches" }, ...unit.exemplars.map(([id, value, source]) =>
      make("figure", { title: source }, picture(id, `A piece of ${source}`), make("figcaption", {},
        make("span", { className: "value" }, number(value)), make("span", {}, source)))));
  }

  function pixels(unit) {
    const figure = (id, caption) => make("figure", {}, picture(id, caption), make("figcaption", {}, caption));
    return make("div", { className: "pair" },
      unit.exemplars.length ? figure(unit.exemplars[0][0], "The strongest piece") : null,
      figure(unit.projection, "What in it excited the unit"));
  }

  function concepts(unit) {
    return make("dl", { className: "concepts" }, ...unit.concepts.flatMap(([source, name]) =>
      [make("dt", {}, source), make("dd", {}, name)]));
  }

  function details({ layer, unit }) {
    const parts = [];
    if (unit.exemplars.length) parts.push(part("What it responds to",
      "The pieces of photos that excited it most, the strongest first, and how strongly.", patches(unit)));
    if (unit.projection !== null) parts.push(part("Traced back to pixels",
      "The excitement is led back through the network to the pixels that caused it.", pixels(unit)));
    if (unit.filter !== null) parts.push(part("Its filter",
      "The weights it lays over the pixels. Grey is zero, brighter excites, darker holds back.",
      make("div", { className: "pair" }, picture(unit.filter, "The unit’s filter"))));
    if (unit.stimuli.length) parts.push(part("Drawn test patterns",
      "How strongly it responded to the drawn patterns that excited it most.", bars(unit.stimuli)));
    if (unit.served.length) parts.push(part("Classes it serves",
      "How much it adds to the network’s score for a class, on average. A hollow bar counts against the class.",
      bars(unit.served)));
    if (unit.concepts.length) parts.push(part("Other names for it",
      "What other ways of naming units call it.", concepts(unit)));
    const selective = unit.score > 0 ? ` · selectivity ${number(unit.score)} of 1` : "";
    return [
      make("p", {}, `${layer.name}, unit ${unit.index}`),
      make("h2", { id: "unit-title" }, unit.label),
      unit.family === unit.label ? make("p", {}, selective.slice(3)) : make("p", {}, unit.family + selective),
      ...parts,
    ];
  }

  function turn(to) {
    place = to;
    find("#unit-body").replaceChildren(...details(browsed[place]));
    find("#position").textContent = `${place + 1} of ${browsed.length}`;
    find("#previous").disabled = place === 0;
    find("#next").disabled = place === browsed.length - 1;
    dialog.scrollTop = 0;
  }

  function show(units, at) {
    browsed = units;
    turn(at);
    dialog.showModal();
  }

  find("#previous").addEventListener("click", () => turn(place - 1));
  find("#next").addEventListener("click", () => turn(place + 1));
  find("#close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog && event.clientX < dialog.getBoundingClientRect().left) dialog.close();
  });
  // On the document: a button that was just disabled has lost the focus.
  document.addEventListener("keydown", (event) => {
    if (!dialog.open) return;
    if (event.key === "ArrowLeft" && place > 0) turn(place - 1);
    if (event.key === "ArrowRight" && place < browsed.length - 1) turn(place + 1);
  });

  // Layers: their tiles are made when they are opened.

  const layers = all(".layer").map((element, index) => {
    const { name, units } = data.layers[index];
    const layer = { element, name, hits: [], stale: true, wasOpen: index === 0 };
    layer.units = units.map((unit) => ({ layer, unit, text: words(unit) }));
    layer.hits = layer.units;
    element.addEventListener("toggle", () => element.open && fillTiles(layer));
    find(".tiles", element).addEventListener("click", (event) => {
      const tile = event.target.closest(".tile");
      if (tile) show(layer.hits, Number(tile.dataset.at));
    });
    return layer;
  });

  function words({ label, family, concepts, served }) {
    const classes = served.filter(([, value]) => value > 0);
    const names = [label, family, ...concepts.map(([, name]) => name), ...classes.map(([name]) => name)];
    return names.join("\n").toLowerCase();
  }

  function fillTiles(layer) {
    if (!layer.stale) return;
    layer.stale = false;
    const tiles = find(".tiles", layer.element);
    tiles.replaceChildren(...layer.hits.slice(0, PAGE).map(tile));
    const left = layer.hits.length - PAGE;
    if (left <= 0) return;
    const rest = make("button", { type: "button", className: "rest" }, `Show ${plural(left, "more unit")}`);
    rest.addEventListener("click", () => {
      rest.replaceWith(...layer.hits.slice(PAGE).map((hit, index) => tile(hit, PAGE + index)));
      find(`[data-at="${PAGE}"]`, tiles).focus();
    });
    tiles.append(rest);
  }

  function tile({ unit }, at) {
    const element = make("button", { type: "button", className: "tile", title: unit.label }, thumbnail(unit),
      make("span", { className: "label" }, unit.label),
      make("span", { className: "number" }, `unit ${unit.index}`));
    element.setAttribute("aria-haspopup", "dialog");
    element.dataset.at = at;
    return element;
  }

  // Search.

  const search = find("#search");
  const chips = all(".chip");
  let filtered = false;

  function apply() {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const families = new Set(chips.filter((chip) => chip.ariaPressed === "true").map((chip) => chip.dataset.family));
    const before = filtered;
    filtered = wanted.length > 0 || families.size > 0;
    for (const layer of layers) {
      if (!before) layer.wasOpen = layer.element.open;
      layer.hits = layer.units.filter(({ unit, text }) =>
        (families.size === 0 || families.has(unit.family)) && wanted.every((word) => text.includes(word)));
      layer.stale = true;
      const [hits, total] = [layer.hits.length, layer.units.length];
      find(".hits", layer.element).textContent = filtered ? `${hits} of ${total}` : total;
      layer.element.hidden = filtered && hits === 0;
      layer.element.open = filtered ? hits > 0 : layer.wasOpen;
      if (layer.element.open) fillTiles(layer);
    }
    const matching = layers.filter((layer) => layer.hits.length > 0);
    const count = matching.reduce((sum, layer) => sum + layer.hits.length, 0);
    find("#count").textContent = count === 0 ? "No unit matches"
      : `${plural(count, "unit")} in ${plural(filtered ? matching.length : layers.length, "layer")}`;
    find("#none").hidden = count > 0;
    const chosen = [search.value.trim() && `“${search.value.trim()}”`, ...families].filter(Boolean);
    find("#none").textContent = `No unit matches ${chosen.join(", ")}.`;
  }

  if (layers.length > 0) {
    let pause;
    search.addEventListener("input", () => {
      clearTimeout(pause);
      pause = setTimeout(apply, 120);
    });
    for (const chip of chips) {
      chip.addEventListener("click", () => {
        chip.ariaPressed = chip.ariaPressed === "true" ? "false" : "true";
        apply();
      });
    }
    layers[0].element.open = true;
  }

  // Modules: the first members as pictures, all of them by number when asked for.

  const known = new Map(layers.flatMap((layer) => layer.units.map((one) => [`${layer.name}\n${one.unit.index}`, one])));

  for (const card of all(".module")) {
    const members = data.modules[card.dataset.module];
    const units = members.map(([name, index]) => known.get(`${name}\n${index}`)).filter(Boolean);
    find(".strip", card).append(...units.slice(0, THUMBNAILS).map((one, at) => {
      const title = `${one.unit.label} (${one.layer.name}, unit ${one.unit.index})`;
      const button = make("button", { type: "button", title, ariaLabel: title }, thumbnail(one.unit));
      button.addEventListener("click", () => show(units, at));
      return button;
    }));
    find(".more", card).addEventListener("toggle", () => {
      const list = find("dl", card);
      if (list.firstChild) return;
      for (const name of new Set(members.map(([layer]) => layer))) {
        const numbers = members.filter(([layer]) => layer === name).map(([, index]) => {
          const one = known.get(`${name}\n${index}`);
          if (!one) return make("span", {}, String(index));
          const button = make("button", { type: "button", title: one.unit.label }, String(index));
          button.addEventListener("click", () => show(units, units.indexOf(one)));
          return button;
        });
        list.append(make("dt", {}, name), make("dd", {}, ...numbers));
      }
    });
  }

  for (const image of all("img[data-image]")) fill(image, Number(image.dataset.image));
})();
