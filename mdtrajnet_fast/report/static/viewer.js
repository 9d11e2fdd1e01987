// The 3D view: one model of 3Dmol.js whose atoms are moved from frame to frame.
"use strict";

class Player {
  constructor(holder, movie) {
    const bytes = Uint8Array.from(atob(movie.positions), (c) => c.charCodeAt(0));
    this.places = new DataView(bytes.buffer);
    this.movie = movie;
    this.frame = 0;
    this.playing = null; // the timer
    this.style = { stick: { radius: 0.13 }, sphere: { scale: movie.bonds.length ? 0.24 : 0.4 } };
    this.viewer = $3Dmol.createViewer(holder, { antialias: true, backgroundColor: this.background() });
    if (!this.viewer) throw new Error("no WebGL");
    const atoms = movie.elements.map((elem, k) => ({ elem, serial: k, ...this.place(0, k), bonds: [], bondOrder: [] }));
    for (const [i, j] of movie.bonds) for (const [a, b] of [[i, j], [j, i]]) {
      atoms[a].bonds.push(b);
      atoms[a].bondOrder.push(1);
    }
    this.model = this.viewer.addModel();
    this.model.addAtoms(atoms);
    this.atoms = this.model.selectedAtoms({});
    if (movie.cell) this.drawCell(movie.cell);
    this.model.setStyle({}, this.style);
    this.viewer.zoomTo();
    this.viewer.zoom(movie.cell ? 1.1 : 1.25);
    this.viewer.render();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.viewer.setBackgroundColor(this.background()));
  }

  background() {
    return getComputedStyle(document.documentElement).getPropertyValue("--card").trim();
  }

  place(frame, atom) {
    const { origin, step, elements } = this.movie;
    const at = (axis) => origin + step * this.places.getUint16(2 * (3 * (frame * elements.length + atom) + axis), true);
    return { x: at(0), y: at(1), z: at(2) };
  }

  drawCell([a, b, c]) {
    const corner = (i, j, k) => ({ x: i * a[0] + j * b[0] + k * c[0], y: i * a[1] + j * b[1] + k * c[1], z: i * a[2] + j * b[2] + k * c[2] });
    const draw = (start, end) => this.viewer.addLine({ start, end, color: "#808890" });
    for (const i of [0, 1]) for (const j of [0, 1]) {
      draw(corner(0, i, j), corner(1, i, j));
      draw(corner(i, 0, j), corner(i, 1, j));
      draw(corner(i, j, 0), corner(i, j, 1));
    }
  }

  get length() {
    return this.movie.times.length;
  }

  show(frame) {
    this.frame = frame;
    this.atoms.forEach((atom, k) => Object.assign(atom, this.place(frame, k)));
    this.model.setStyle({}, this.style); // its shapes are made again of where atoms are now
    this.viewer.render();
  }
}

(function () {
  const get = (id) => document.getElementById(id);
  const [holder, play, slider, speed, time] = ["viewer", "play", "frame", "speed", "time"].map(get);
  let player;
  try {
    player = new Player(holder, report.movie);
  } catch (error) {
    holder.textContent = "The 3D view needs WebGL, which this browser does not offer here.";
    document.querySelector(".controls").hidden = true;
    return;
  }
  const times = report.movie.times;
  const spacing = times.length > 1 ? times[1] - times[0] : 0;
  const TICK = 1000 / 30; // ms
  for (const frames of [1, 2, 5, 10, 20]) {
    speed.append(new Option(`${Number((frames * spacing * 0.03).toPrecision(2))} ps/s`, frames));
  }
  slider.max = player.length - 1;

  function show(frame) {
    player.show(frame);
    slider.value = frame;
    const text = `${(times[frame] / 1000).toFixed(3)} ps`;
    slider.setAttribute("aria-valuetext", text);
    time.textContent = `${text}, frame ${frame + 1} of ${player.length}.`;
  }

  function toggle(on = player.playing === null) {
    clearInterval(player.playing);
    player.playing = on ? setInterval(() => show((player.frame + Number(speed.value)) % player.length), TICK) : null;
    play.textContent = on ? "Pause" : "Play";
    play.setAttribute("aria-pressed", on);
  }

  play.addEventListener("click", () => toggle());
  slider.addEventListener("input", () => { toggle(false); show(Number(slider.value)); });
  const turns = { ArrowLeft: [-10, "y"], ArrowRight: [10, "y"], ArrowUp: [-10, "x"], ArrowDown: [10, "x"] };
  holder.addEventListener("keydown", (event) => {
    if (event.key in turns) player.viewer.rotate(...turns[event.key]);
    else if (event.key === "+") player.viewer.zoom(1.2);
    else if (event.key === "-") player.viewer.zoom(1 / 1.2);
    else if (event.key === " ") toggle();
    else return;
    player.viewer.render();
    event.preventDefault();
  });
  // Until the view is clicked the wheel scrolls the page.
  holder.addEventListener("wheel", (event) => { if (document.activeElement !== holder) event.stopPropagation(); }, { capture: true });
  holder.addEventListener("pointerdown", () => holder.focus({ preventScroll: true }));
  show(0);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) toggle(true);
})();
