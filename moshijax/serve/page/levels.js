// One side of the call to look at: its level now, and its sound of the last seconds.

/** Decibels at the left end of a meter. */
const FLOOR = -60;
/** Width and distance of the bars, in CSS pixels; each is one piece of sound. */
const BAR = 2;
const PITCH = 4;

/** Decibels below full scale of a peak in [0, 1]. */
export function decibels(peak) {
  return Math.max(FLOOR, 20 * Math.log10(Math.max(peak, 1e-6)));
}

/** A meter and a moving picture of the sound, in an element that has both. */
export class Side {
  /** @param {HTMLElement} element */
  constructor(element) {
    this.meter = element.querySelector("[role=meter]");
    this.bar = this.meter.firstElementChild;
    this.canvas = element.querySelector("canvas");
    this.colour = () => getComputedStyle(element).getPropertyValue("--side");
    this.quiet = () => getComputedStyle(element).getPropertyValue("--line");
    this.peaks = [];
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#draw(this.peaks));
  }

  /** Show peaks in [0, 1], the newest last. @param {number[]} peaks */
  show(peaks) {
    const level = decibels(peaks.at(-1) ?? 0);
    this.bar.style.transform = `scaleX(${1 - level / FLOOR})`;
    this.meter.setAttribute("aria-valuenow", Math.round(level));
    this.peaks = peaks;
    this.#draw(peaks);
  }

  #draw(peaks) {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const density = window.devicePixelRatio;
    const [wide, high] = [Math.round(width * density), Math.round(height * density)];
    if (this.canvas.width !== wide || this.canvas.height !== high) Object.assign(this.canvas, { width: wide, height: high });
    const context = this.canvas.getContext("2d");
    context.setTransform(density, 0, 0, density, 0, 0);
    context.clearRect(0, 0, width, height);
    const [colour, quiet] = [this.colour(), this.quiet()];
    const count = Math.floor(width / PITCH);
    for (let bar = 0; bar < count; bar++) {
      const peak = peaks[peaks.length - 1 - bar] ?? 0;
      // On a linear scale quiet speech would hardly be seen.
      const length = Math.max(BAR, height * (1 - decibels(peak) / FLOOR) ** 1.5);
      context.fillStyle = length > BAR ? colour : quiet;
      context.beginPath();
      context.roundRect(width - (bar + 1) * PITCH, (height - length) / 2, BAR, length, BAR / 2);
      context.fill();
    }
  }
}
