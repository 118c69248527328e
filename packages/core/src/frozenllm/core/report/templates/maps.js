"use strict";
(() => {
  const SVG = "http://www.w3.org/2000/svg";

  function make(tag, attributes = {}, parent = null, text = null) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  function unpack(base64) {
    const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
    const view = new DataView(bytes.buffer);
    return Array.from({ length: bytes.length / 2 }, (_, i) => view.getUint16(2 * i, true));
  }

  function drawMark(mark, width, height) {
    const [shape, token, ...xy] = mark;
    const unit = Math.max(width, height);
    let node;
    if (shape === "rect") {
      node = document.createElementNS(SVG, "rect");
      const [x0, y0, x1, y1] = xy;
      const values = { x: x0 * width, y: y0 * height, width: (x1 - x0) * width, height: (y1 - y0) * height };
      for (const [name, value] of Object.entries(values)) node.setAttribute(name, value.toFixed(3));
      node.setAttribute("fill-opacity", 0.62);
    } else if (shape === "point") {
      node = document.createElementNS(SVG, "circle");
      const values = { cx: xy[0] * width, cy: xy[1] * height, r: 0.011 * unit };
      for (const [name, value] of Object.entries(values)) node.setAttribute(name, value.toFixed(3));
    } else {
      node = document.createElementNS(SVG, "polyline");
      const points = [];
      for (let i = 0; i < xy.length; i += 2) points.push(`${(xy[i] * width).toFixed(2)},${(xy[i + 1] * height).toFixed(2)}`);
      node.setAttribute("points", points.join(" "));
      node.setAttribute("fill", "none");
      node.setAttribute("stroke-width", (0.009 * unit).toFixed(3));
      node.setAttribute("stroke-linejoin", "round");
    }
    node.setAttribute("class", "mark");
    return { node, token, shape, unit };
  }

  class Maps {
    constructor(root) {
      this.root = root;
      this.data = JSON.parse(root.querySelector("script").textContent);
      this.controls = root.querySelector(".controls");
      this.holder = root.querySelector(".samples");
      this.state = root.querySelector(".state");
      this.threshold = root.querySelector("[name=threshold]");
      this.activation = root.querySelector("[name=activation]");
      this.sample = root.querySelector("[name=sample]");
      this.outline = root.querySelector("[name=outline]");
      this.views = [];
      root.querySelector(".legend i").style.background = `linear-gradient(to right, ${this.data.colours.join(", ")})`;
      this.fill();
      this.controls.hidden = false;
      root.querySelector(".bar").hidden = false;
      this.build();
    }

    fill() {
      for (const name of this.data.activations) make("option", { value: name }, this.activation, name.replaceAll("_", " "));
      const count = this.data.samples.length;
      if (count > 1) make("option", { value: "all" }, this.sample, `all ${count}`);
      this.data.samples.forEach((sample, i) => make("option", { value: i }, this.sample, `${i + 1}: ${sample.views[0].title}`));
      if (count > 1 && !this.data.together) this.sample.value = "0";
      const arms = this.root.querySelector("fieldset");
      this.data.arms.forEach((arm, i) => {
        const label = make("label", {}, arms);
        const box = make("input", { type: "checkbox", value: i }, label);
        box.checked = true;
        const swatch = make("i", { class: "swatch" }, label);
        swatch.style.background = arm.colour;
        swatch.style.marginLeft = "5px";
        label.append(arm.name);
        box.addEventListener("change", () => this.build());
      });
      const known = this.data.samples.some((sample) => sample.views.some((view) => view.relevant));
      this.outline.parentElement.hidden = !known;
      this.threshold.addEventListener("input", () => this.update());
      this.activation.addEventListener("change", () => this.update());
      this.outline.addEventListener("change", () => this.update());
      this.sample.addEventListener("change", () => this.build());
    }

    build() {
      this.holder.replaceChildren();
      this.views = [];
      const shown = new Set([...this.root.querySelectorAll("fieldset input:checked")].map((box) => Number(box.value)));
      this.data.samples.forEach((sample, number) => {
        if (this.sample.value !== "all" && Number(this.sample.value) !== number) return;
        const views = sample.views.filter((view) => shown.has(view.arm));
        if (!views.length) return;
        const part = make("div", { class: "sample", "data-sample": number }, this.holder);
        make("h3", {}, part, `Sample ${number + 1}`);
        const row = make("div", { class: "views" }, part);
        for (const view of views) this.buildView(view, row);
      });
      this.update();
    }

    buildView(view, row) {
      const arm = this.data.arms[view.arm];
      const box = make("div", { class: view.frames.length > 1 ? "view video" : "view", "data-arm": view.arm }, row);
      const head = make("h4", {}, box);
      make("i", { class: "swatch" }, head).style.background = arm.colour;
      head.append(arm.name);
      make("p", {}, box, view.title);
      const count = make("p", { class: "count" });
      const strip = make("div", { class: "frames" }, box);
      const marks = [];
      for (const frame of view.frames) {
        const figure = make("figure", {}, strip);
        const holder = make("div", { class: "frame" }, figure);
        const image = make("img", { alt: `${view.title}${frame.caption ? ", " + frame.caption : ""}` }, holder);
        image.src = this.data.pictures[frame.picture];
        const [width, height] = frame.size;
        if (Math.max(width, height) < 128) image.className = "tiny";
        const svg = document.createElementNS(SVG, "svg");
        svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
        svg.setAttribute("preserveAspectRatio", "none");
        svg.setAttribute("aria-hidden", "true");
        for (const entry of this.data.marks[frame.marks]) {
          const mark = drawMark(entry, width, height);
          svg.append(mark.node);
          marks.push(mark);
        }
        holder.append(svg);
        if (frame.caption) make("figcaption", {}, figure, frame.caption);
      }
      box.append(count);
      this.views.push({ view, marks, count });
    }

    chosen(view) {
      const name = this.activation.value;
      if (name in view.activations) return name;
      const fallback = `${name.split(" at ")[0]} at host`;
      return fallback in view.activations ? fallback : null;
    }

    update() {
      const limit = Number(this.threshold.value);
      const text = (limit / 100).toFixed(2);
      this.root.querySelector("output").textContent = text;
      this.threshold.setAttribute("aria-valuetext", `activation of at least ${text}`);
      this.state.textContent = `Shown: ${this.activation.value.replaceAll("_", " ")}, tokens of at least ${text}.`;
      for (const entry of this.views) this.updateView(entry, limit / 100, text);
    }

    updateView({ view, marks, count }, threshold, text) {
      const name = this.chosen(view);
      if (name === null) {
        for (const mark of marks) mark.node.setAttribute("display", "none");
        count.textContent = "This arm has no such activation.";
        return;
      }
      const values = unpack(view.activations[name]);
      const least = Math.round(threshold * this.data.scale);
      const last = this.data.colours.length - 1;
      const all = new Set(), on = new Set();
      for (const { node, token, shape, unit } of marks) {
        const visible = values[token] >= least;
        all.add(token);
        if (visible) on.add(token);
        const colour = this.data.colours[Math.round((values[token] / this.data.scale) * last)];
        const outlined = this.outline.checked && view.relevant && view.relevant[token] === "1";
        node.setAttribute("display", visible || outlined ? "inline" : "none");
        node.setAttribute("data-shown", visible ? "1" : "0");
        if (shape === "line") {
          node.setAttribute("stroke", visible ? colour : "#ffffff");
          node.setAttribute("stroke-dasharray", outlined ? `${0.02 * unit} ${0.012 * unit}` : "none");
        } else {
          node.setAttribute("fill", visible ? colour : "none");
          node.setAttribute("stroke", outlined ? "#ff4d6d" : "none");
          node.setAttribute("stroke-width", 0.008 * unit);
        }
      }
      const other = name === this.activation.value ? "" : ` (${name.replaceAll("_", " ")})`;
      let sentence = `${on.size} of ${all.size} tokens at ${text} or more${other}`;
      if (view.relevant) {
        const relevant = [...all].filter((token) => view.relevant[token] === "1");
        const both = relevant.filter((token) => on.has(token)).length;
        const union = relevant.length + on.size - both;
        sentence += `; ${both} of ${relevant.length} relevant ones, IoU ${union ? (both / union).toFixed(2) : "0.00"}`;
      }
      count.textContent = `${sentence}.`;
    }
  }

  for (const root of document.querySelectorAll(".maps")) new Maps(root);
  addEventListener("beforeprint", () => {
    for (const part of document.querySelectorAll("details")) part.open = true;
  });
})();
