"use strict";
(() => {
  const by = (id) => document.getElementById(id);
  const root = by("review"), stage = by("stage"), note = by("note");
  const history = [], pictures = new Map();
  let pairs = [], categories = [], at = -1, view = "side", outlined = true, waiting = 0, failed = 0;
  let queue = Promise.resolve();

  const passes = (pair, kind, text) => {
    if (text && !`${pair.prompt}\n${pair.prompt_id}\n${pair.train_id}`.toLowerCase().includes(text)) return false;
    if (kind === "all") return true;
    if (kind === "open") return pair.category === null;
    if (kind === "called") return pair.called;
    if (kind === "note") return pair.note !== "";
    if (kind === "differ") return Object.values(pair.others).some((said) => said !== pair.category);
    return pair.category === kind;
  };
  const shown = (i) => passes(pairs[i], by("filter").value, by("search").value.trim().toLowerCase());
  const step = (from, by_) => {
    for (let i = from + by_; i >= 0 && i < pairs.length; i += by_) if (shown(i)) return i;
    return -1;
  };

  const load = (i) => {
    if (i < 0 || i >= pairs.length) return null;
    let both = pictures.get(i);
    if (!both) {
      both = {};
      for (const side of ["generated", "training"]) {
        const image = new Image();
        image.alt = side === "generated" ? "generated image" : "nearest training image";
        image.decoding = "async";
        image.src = `${side}/${i}`;
        both[side] = image;
      }
      pictures.set(i, both);
      if (pictures.size > 16) pictures.delete(pictures.keys().next().value);
    }
    return both;
  };

  const place = (figure, image, corners) => {
    const frame = figure.querySelector(".frame");
    frame.replaceChildren(image);
    const fit = () => {
      const shape = image.naturalWidth / image.naturalHeight || 1;
      frame.style.aspectRatio = String(shape);
      frame.style.setProperty("--shape", String(shape));
      image.classList.toggle("small", Math.max(image.naturalWidth, image.naturalHeight) <= 160);
      figure.dataset.loaded = "yes";
      align();
    };
    figure.dataset.loaded = "";
    image.className = "";
    image.style.transform = "";
    if (image.complete && image.naturalWidth) fit();
    else {
      image.onload = () => { if (image.parentNode === frame) fit(); };
      image.onerror = () => {
        if (image.parentNode !== frame) return;
        const text = document.createElement("div");
        text.className = "none";
        text.textContent = "this picture is not to be had";
        frame.replaceChildren(text);
        figure.dataset.loaded = "missing";
      };
    }
    if (corners && outlined) {
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "0 0 1 1");
      svg.setAttribute("preserveAspectRatio", "none");
      const polygon = document.createElementNS("http://www.w3.org/2000/svg", "polygon");
      polygon.setAttribute("points", corners.map((corner) => corner.join(",")).join(" "));
      svg.append(polygon);
      frame.append(svg);
    }
  };

  // The training picture laid over the generated one: both reach from -1 to 1, y downwards.
  const align = () => {
    const over = stage.querySelector("img.over");
    if (!over) return;
    const m = pairs[at].matrix, w = over.parentNode.clientWidth, h = over.parentNode.clientHeight;
    over.style.transform = m
      ? `matrix(${m[0]},${(m[3] * h) / w},${(m[1] * w) / h},${m[4]},${(m[2] * w) / 2},${(m[5] * h) / 2})`
      : "";
  };

  const draw = () => {
    const pair = pairs[at];
    root.dataset.at = String(at);
    root.dataset.category = pair && pair.category ? pair.category : "";
    by("problem").hidden = failed === 0;
    const labelled = pairs.filter((one) => one.category !== null).length;
    by("position").textContent = pair ? `${at + 1} of ${pairs.length}, ${labelled} labelled` : `no such pair; ${labelled} of ${pairs.length} labelled`;
    by("saved").textContent = waiting ? `keeping ${waiting} …` : "";
    by("undo").disabled = history.length === 0;
    by("previous").disabled = !pair || step(at, -1) < 0;
    by("next").disabled = !pair || step(at, 1) < 0;
    stage.hidden = !pair;
    for (const button of by("categories").children) {
      button.setAttribute("aria-pressed", String(Boolean(pair) && pair.category === button.dataset.category));
      button.disabled = !pair;
    }
    if (!pair) return;
    const both = load(at);
    place(by("generated"), both.generated, pair.generated);
    place(by("training"), both.training, pair.training);
    stage.dataset.view = view;
    if (view !== "side") {
      const over = both.training;
      over.className = "over";
      by("generated").querySelector(".frame").append(over);
      over.onload = align;
      align();
    }
    const others = Object.entries(pair.others).map(([name, said]) => `${name} says ${said}`).join("; ");
    by("words").textContent = [pair.words, others].filter(Boolean).join(" · ");
    by("prompt").textContent = pair.prompt;
    by("ids").textContent = `prompt ${pair.prompt_id}, draw ${pair.draw}; training image ${pair.train_id}`;
    if (document.activeElement !== note) note.value = pair.note;
    for (let i = at, more = 0; more < 4 && i >= 0; i = step(i, 1), more += 1) load(i);
  };

  const go = (i) => {
    if (i === at) return;
    keepNote();
    at = i;
    note.value = i >= 0 && pairs[i] ? pairs[i].note : "";
    draw();
  };

  const keep = (i, category, text) => {
    const pair = pairs[i];
    pair.category = category;
    pair.note = text;
    if (category === null) pair.others = {};
    waiting += 1;
    queue = queue.then(async () => {
      try {
        const answer = await fetch("label", {
          method: "POST", headers: { "Content-Type": "application/json" },
          body: JSON.stringify({ pair: i, category, note: text }),
        });
        const said = await answer.json();
        if (!answer.ok) throw new Error(said.error || answer.statusText);
        pair.others = said.others;
      } catch (problem) {
        failed += 1;
        pair.category = null;
        by("problem").textContent = `Pair ${i + 1} was not kept (${problem.message}). Is diffmem review still running? Label it again.`;
      } finally {
        waiting -= 1;
        root.dataset.kept = String(Number(root.dataset.kept || 0) + 1);
        draw();
      }
    });
  };

  const keepNote = () => {
    const pair = pairs[at];
    if (!pair || note.value === pair.note) return;
    history.push([at, pair.category, pair.note]);
    keep(at, pair.category, note.value);
  };

  const say = (category) => {
    const pair = pairs[at];
    if (!pair) return;
    failed = 0;
    history.push([at, pair.category, pair.note]);
    const next = step(at, 1);
    keep(at, category, note.value);
    if (next >= 0) go(next);
    else draw();
  };

  const undo = () => {
    const last = history.pop();
    if (!last) return;
    const [i, category, text] = last;
    at = i;
    note.value = text;
    keep(i, category, text);
    draw();
  };

  const look = (name) => {
    view = name;
    for (const button of document.querySelectorAll("[data-view]")) {
      if (button.tagName === "BUTTON") button.setAttribute("aria-pressed", String(button.dataset.view === name));
    }
    draw();
  };

  const border = () => {
    outlined = !outlined;
    by("outline").setAttribute("aria-pressed", String(outlined));
    draw();
  };

  const refilter = () => {
    if (at >= 0 && shown(at)) draw();
    else {
      keepNote();
      at = step(-1, 1);
      note.value = at >= 0 ? pairs[at].note : "";
      draw();
    }
  };

  setInterval(() => stage.classList.toggle("flip"), 500);
  addEventListener("resize", () => { if (pairs.length) align(); });
  addEventListener("beforeunload", (event) => {
    keepNote();
    if (waiting) event.preventDefault();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = ["TEXTAREA", "INPUT", "SELECT"].includes(event.target.tagName);
    if (typing) {
      if (event.key === "Escape" || (event.key === "Enter" && event.target === note && !event.shiftKey)) {
        event.preventDefault();
        event.target.blur();
      }
      return;
    }
    const number = "12345".indexOf(event.key);
    const actions = {
      z: undo, v: () => look("side"), o: () => look(view === "overlay" ? "side" : "overlay"),
      f: () => look(view === "flicker" ? "side" : "flicker"), b: border, n: () => note.focus(), "/": () => by("search").focus(),
      ArrowRight: () => { if (step(at, 1) >= 0) go(step(at, 1)); }, ArrowLeft: () => { if (step(at, -1) >= 0) go(step(at, -1)); },
    };
    const action = number >= 0 && event.key ? () => say(categories[number]) : actions[event.key];
    if (action) {
      event.preventDefault();
      action();
    }
  });
  note.addEventListener("blur", keepNote);
  by("filter").addEventListener("change", () => { by("filter").blur(); refilter(); });
  by("search").addEventListener("input", refilter);
  by("undo").addEventListener("click", undo);
  by("outline").addEventListener("click", border);
  by("next").addEventListener("click", () => go(step(at, 1)));
  by("previous").addEventListener("click", () => go(step(at, -1)));
  for (const button of document.querySelectorAll("button[data-view]")) {
    button.addEventListener("click", () => look(button.dataset.view));
  }

  fetch("pairs").then((answer) => answer.json()).then((found) => {
    pairs = found.pairs;
    categories = found.categories;
    categories.forEach((name, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.category = name;
      button.append(name, " ");
      const key = document.createElement("kbd");
      key.textContent = String(i + 1);
      button.append(key);
      button.addEventListener("click", () => say(name));
      by("categories").append(button);
    });
    at = pairs.findIndex((pair) => pair.category === null);
    if (at < 0) at = pairs.length ? 0 : -1;
    root.dataset.state = "ready";
    if (at >= 0) note.value = pairs[at].note;
    draw();
  }).catch((problem) => {
    failed = 1;
    by("problem").hidden = false;
    by("problem").textContent = `The pairs cannot be had (${problem.message}). Is diffmem review still running?`;
  });
})();
