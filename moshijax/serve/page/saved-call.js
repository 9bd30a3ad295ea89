// A recording as one page that plays and shows it, needs nothing else, and can be sent to anybody.

import { RATE } from "./pcm.js";
import { clock } from "./transcript.js";

/** CSS pixels of a second, and of half the height of a waveform. */
const SECOND = 110;
const HALF = 38;
/** Rows of words under the model's waveform: where the first begins, their height, how many. */
const WORDS_TOP = 82;
const WORD_ROW = 22;
const WORD_ROWS = 2;
/** About the width of a letter, in CSS pixels. */
const LETTER = 7.5;
/** Seconds between two marks of time. */
const MARKS = 5;

/** The empty page. Asked for when this page loads, as the server may be gone when a call is saved. */
const empty = fetch(new URL("saved-call.html", import.meta.url)).then((response) => response.text());

/** The page of a recording. @param {import("./recording.js").Recording} recording @returns {Promise<Blob>} */
export async function savedCall(recording) {
  const page = new DOMParser().parseFromString(await empty, "text/html");
  const { title, began, facts } = recording.about;
  page.title = title;
  page.querySelector("h1").textContent = title;
  const all = [["Began", began.toLocaleString()], ["Length", clock(recording.seconds)], ...facts];
  page.getElementById("facts").append(...all.map(([name, value]) => fact(page, name, value)));

  const timeline = page.getElementById("timeline");
  const width = Math.ceil(recording.seconds * SECOND);
  timeline.dataset.scale = SECOND;
  timeline.style.width = `${width}px`;
  for (const [side, peaks] of Object.entries(recording.peaks)) {
    const picture = timeline.querySelector(`svg.${side}`);
    picture.setAttribute("width", width);
    picture.setAttribute("viewBox", `0 ${-HALF} ${width} ${2 * HALF}`);
    picture.querySelector("path").setAttribute("d", outline(peaks, (recording.pieces[0]?.model.length ?? 0) / RATE));
  }
  timeline.append(...placed(page, recording.words), ...times(page, recording.seconds));
  page.getElementById("text").append(...recording.words.flatMap((word) => [span(page, word), " "]));
  page.getElementById("audio").textContent = await base64(recording.wav());
  return new Blob(["<!doctype html>\n", page.documentElement.outerHTML], { type: "text/html" });
}

function fact(page, name, value) {
  const [row, term, text] = ["div", "dt", "dd"].map((tag) => page.createElement(tag));
  term.textContent = name;
  text.textContent = value;
  row.append(term, text);
  return row;
}

function span(page, { text, start }) {
  const element = page.createElement("span");
  element.textContent = text;
  element.dataset.start = start.toFixed(3);
  return element;
}

/** The path of a waveform of bars, one for each piece of sound. */
function outline(peaks, seconds) {
  const pitch = seconds * SECOND;
  return peaks
    .map((peak, index) => {
      const half = Math.max(0.5, HALF * peak);
      const [left, wide] = [index * pitch, 0.6 * pitch].map((value) => value.toFixed(1));
      return `M${left} ${(-half).toFixed(1)}h${wide}v${(2 * half).toFixed(1)}h-${wide}z`;
    })
    .join("");
}

/** Words at their times; one that would cover the word before it goes into the next row. */
function placed(page, words) {
  const ends = Array(WORD_ROWS).fill(0);
  return words.map((word) => {
    const left = word.start * SECOND;
    const free = ends.findIndex((end) => end <= left);
    const row = free < 0 ? ends.indexOf(Math.min(...ends)) : free;
    ends[row] = left + (word.text.length + 2) * LETTER;
    const element = span(page, word);
    element.style.left = `${left.toFixed(0)}px`;
    element.style.top = `${WORDS_TOP + row * WORD_ROW}px`;
    return element;
  });
}

function times(page, seconds) {
  return Array.from({ length: Math.floor(seconds / MARKS) + 1 }, (_, index) => {
    const element = page.createElement("time");
    element.textContent = clock(index * MARKS);
    element.style.left = `${index * MARKS * SECOND}px`;
    return element;
  });
}

function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
