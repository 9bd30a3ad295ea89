// Evens out audio that arrives in bursts: little delay, none that accumulates, no clicks.

/** Seconds that can be held; of more, the oldest are dropped. */
const CAPACITY = 2;
/** Seconds that playback lags behind the first arrival, so that later frames may come later than it: at first, and at most. */
const MARGIN = 0.04;
const LARGEST_MARGIN = 0.24;
/** Seconds added to the margin each time that the buffer has run empty. */
const MARGIN_STEP = 0.02;
/** Seconds over which the delay is watched, and by how much more than the margin it may be. */
const WATCH = 2;
const SLACK = 0.04;
/** Seconds in which sound fades in, and in which the sound before and after a cut blend. */
const FADE = 0.005;

/**
 * Mono samples in the order they came, and marks between them.
 *
 * Playback of what arrives in an empty buffer begins a margin later. If the buffer runs empty, there is silence until more
 * arrives, and a larger margin. What stays in the buffer for all of the watch time is delay without use, and is cut out.
 */
export class JitterBuffer {
  /** @param {number} rate samples per second */
  constructor(rate) {
    this.rate = rate;
    this.samples = new Float32Array(CAPACITY * rate);
    this.written = 0;
    this.position = 0;
    this.marks = [];
    this.margin = MARGIN;
    this.playing = false;
    this.countdown = 0;
    this.gain = 0;
    this.last = 0;
    this.lowest = Infinity;
    this.watched = 0;
    this.underruns = 0;
    this.dropped = 0;
  }

  /** Samples that wait. */
  get buffered() {
    return this.written - this.position;
  }

  /** @param {Float32Array} samples */
  push(samples) {
    if (!this.playing && this.buffered === 0) this.countdown = Math.round(this.margin * this.rate);
    for (const sample of samples) {
      if (this.buffered === this.samples.length) this.#cut(this.buffered - Math.round(this.margin * this.rate));
      this.samples[this.written++ % this.samples.length] = sample;
    }
  }

  /**
   * Remember a place `ahead` samples after what has been pushed. `read` returns its name when the sample there is played,
   * or when there is none and the buffer has run empty.
   */
  mark(name, ahead = 0) {
    this.marks.push({ name, position: this.written + ahead });
  }

  /** Forget all that waits. */
  flush() {
    this.position = this.written;
    this.marks = [];
    this.playing = false;
  }

  /**
   * Fill `output` with what is to be played now.
   *
   * @param {Float32Array} output
   * @returns {{name: any, offset: number}[]} the marks that are reached, and at which sample of `output`
   */
  read(output) {
    const reached = [];
    for (let i = 0; i < output.length; i++) {
      output[i] = this.#next();
      const isEmpty = !this.playing && this.buffered === 0;
      while (this.marks.length && this.marks[0].position < this.position + isEmpty) {
        reached.push({ name: this.marks.shift().name, offset: i });
      }
    }
    this.#watch(output.length);
    return reached;
  }

  #next() {
    if (this.playing && this.buffered === 0) {
      this.playing = false;
      this.underruns++;
      this.margin = Math.min(this.margin + MARGIN_STEP, LARGEST_MARGIN);
    }
    if (!this.playing) {
      if (this.buffered === 0 || this.countdown-- > 0) {
        this.last *= 0.97;
        return this.last;
      }
      this.playing = true;
      this.gain = 0;
      this.lowest = Infinity;
      this.watched = 0;
    }
    this.gain = Math.min(1, this.gain + 1 / (FADE * this.rate));
    this.last = this.gain * this.samples[this.position++ % this.samples.length];
    return this.last;
  }

  #watch(count) {
    if (!this.playing) return;
    this.lowest = Math.min(this.lowest, this.buffered);
    this.watched += count;
    if (this.watched < WATCH * this.rate) return;
    const excess = this.lowest - Math.round(this.margin * this.rate);
    if (excess > SLACK * this.rate) this.#cut(excess);
    this.lowest = Infinity;
    this.watched = 0;
  }

  /** Drop the oldest samples; those before the cut blend into those after it. */
  #cut(count) {
    const blend = Math.min(Math.round(FADE * this.rate), count, this.buffered - count);
    for (let i = 0; i < blend; i++) {
      const after = (this.position + count + i) % this.samples.length;
      const weight = (i + 1) / (blend + 1);
      this.samples[after] = weight * this.samples[after] + (1 - weight) * this.samples[(this.position + i) % this.samples.length];
    }
    this.position += count;
    this.dropped += count;
  }
}
