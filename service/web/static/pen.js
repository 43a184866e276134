// Drawing on a canvas of a model's own pixels, with mouse, finger, pen or keys. What is transparent is not drawn.

import { $ } from "./dom.js";

const WIDTH = 2.6 / 32, ERASER = 4.5 / 32; // of the picture's width: as wide as the strokes of handwritten digits
const THINNEST = 1.5; // pixels: a thinner stroke would leave none that is more than half covered
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const canvas = $("canvas"), context = canvas.getContext("2d", { willReadFrequently: true });
let at = null; // where a stroke is, in pixels of the picture
let key = { x: 0, y: 0, down: false }; // the pen of the keyboard, at a pixel

/** An empty canvas of this size. */
export function prepare(width, height) {
  [canvas.width, canvas.height] = [width, height];
  canvas.parentElement.style.aspectRatio = `${width} / ${height}`;
  key = { x: Math.floor(width / 2), y: Math.floor(height / 2), down: false };
  showKey();
}

export const erase = () => context.clearRect(0, 0, canvas.width, canvas.height);

/** Draw an image over everything, as large as fits. */
export function place(image) {
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  const scale = Math.max(canvas.width / width, canvas.height / height);
  erase();
  context.globalCompositeOperation = "source-over";
  context.drawImage(image, (canvas.width - width * scale) / 2, (canvas.height - height * scale) / 2, width * scale, height * scale);
}

/** How many pixels are drawn, and how many are not. */
export function count() {
  const drawn = alphas().filter((alpha) => alpha > 127).length;
  return { drawn, free: canvas.width * canvas.height - drawn };
}

const alphas = () => context.getImageData(0, 0, canvas.width, canvas.height).data.filter((_, index) => index % 4 === 3);

/** PNGs as data URLs: the picture on black, and the mask, white where nothing is drawn. */
export function pictures() {
  const mask = new ImageData(canvas.width, canvas.height);
  alphas().forEach((alpha, index) => mask.data.set([...Array(3).fill(alpha > 127 ? 0 : 255), 255], 4 * index));
  return {
    image: url((over) => (over.fillRect(0, 0, canvas.width, canvas.height), over.drawImage(canvas, 0, 0))),
    mask: url((over) => over.putImageData(mask, 0, 0)),
  };
}

function url(paint) {
  const other = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  paint(other.getContext("2d"));
  return other.toDataURL("image/png");
}

function stroke(x, y) {
  const erasing = $("eraser").checked;
  context.globalCompositeOperation = erasing ? "destination-out" : "source-over";
  Object.assign(context, { strokeStyle: "#fff", lineCap: "round", lineJoin: "round", lineWidth: Math.max(THINNEST, canvas.width * (erasing ? ERASER : WIDTH)) });
  context.beginPath();
  context.moveTo(...(at ?? [x, y]));
  context.lineTo(x + 0.01, y); // without a length there would be no dot
  context.stroke();
  at = [x, y];
}

function follow(event) {
  const box = canvas.getBoundingClientRect();
  const moves = event.getCoalescedEvents?.() ?? [];
  for (const one of moves.length ? moves : [event]) {
    stroke(((one.clientX - box.left) / box.width) * canvas.width, ((one.clientY - box.top) / box.height) * canvas.height);
  }
}

function showKey() {
  $("pen-key").style.left = `${(100 * (key.x + 0.5)) / canvas.width}%`;
  $("pen-key").style.top = `${(100 * (key.y + 0.5)) / canvas.height}%`;
  $("pen-key").classList.toggle("down", key.down);
  $("pen-state").textContent = `The pen is ${key.down ? "down" : "up"}, in column ${key.x} and row ${key.y}.`;
}

function press(event) {
  if (event.key === " ") key.down = !key.down;
  else if (KEYS[event.key]) {
    const [x, y] = KEYS[event.key];
    key.x = Math.min(canvas.width - 1, Math.max(0, key.x + x));
    key.y = Math.min(canvas.height - 1, Math.max(0, key.y + y));
  } else return;
  event.preventDefault();
  if (key.down) stroke(key.x + 0.5, key.y + 0.5);
  else at = null;
  showKey();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button) return;
  canvas.setPointerCapture(event.pointerId);
  at = null;
  follow(event);
});
canvas.addEventListener("pointermove", (event) => canvas.hasPointerCapture(event.pointerId) && follow(event));
canvas.addEventListener("keydown", press);
