// The model's words on the page, and for screen readers.

/** Seconds of silence after which words begin a new line. */
const PAUSE = 1.5;
/** Milliseconds without a word after which a screen reader is given those before. */
const ANNOUNCE_AFTER = 1000;
/** Words that it is given at the latest. */
const ANNOUNCE_AT_ONCE = 12;

/** Shows words as they are heard. Screen readers get them in groups, from an element of their own. */
export class Transcript {
  /**
   * @param {HTMLElement} element that is read and scrolled; it holds a hint, which stands there until there are words
   * @param {HTMLElement} spoken that is announced
   */
  constructor(element, spoken) {
    this.element = element;
    this.spoken = spoken;
    this.hint = element.firstElementChild;
    this.clear();
  }

  /** Show nothing but the hint. */
  clear() {
    clearTimeout(this.timer);
    this.element.replaceChildren(this.hint);
    this.spoken.textContent = "";
    this.shown = new Map();
    this.unannounced = [];
    this.line = null;
    this.end = 0;
  }

  /** Show a word, or what was added to one. @param {{text: string, start: number, end: number}} word */
  show(word) {
    if (!this.shown.has(word)) this.shown.set(word, this.#add(word));
    const atEnd = this.element.scrollHeight - this.element.scrollTop - this.element.clientHeight < 60;
    this.shown.get(word).textContent = word.text;
    this.end = word.end;
    if (atEnd) this.element.scrollTop = this.element.scrollHeight;
    clearTimeout(this.timer);
    if (this.unannounced.length >= ANNOUNCE_AT_ONCE) this.#announce();
    else this.timer = setTimeout(() => this.#announce(), ANNOUNCE_AFTER);
  }

  #add(word) {
    if (!this.shown.size) this.element.replaceChildren();
    if (!this.line || word.start - this.end > PAUSE) {
      const paragraph = document.createElement("p");
      const time = document.createElement("time");
      time.textContent = clock(word.start);
      this.line = document.createElement("span");
      paragraph.append(time, this.line);
      this.element.append(paragraph);
    }
    const span = document.createElement("span");
    this.line.append(span, " ");
    this.unannounced.push(word);
    return span;
  }

  #announce() {
    this.spoken.textContent = this.unannounced.map((word) => word.text).join(" ");
    this.unannounced = [];
  }
}

/** Seconds as minutes and seconds. @param {number} seconds */
export function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
