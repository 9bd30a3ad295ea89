// Band-limited conversion between sample rates, in pieces of any length.

/** Zero crossings of the sinc on each side of its centre. */
const CROSSINGS = 32;
/** Shape of the Kaiser window: about 80 dB of attenuation outside the band. */
const KAISER_BETA = 8;
/** Edge of the band, as a part of the lower of the two Nyquist frequencies; five sixths of the band are kept. */
const CUTOFF = 0.922;

/**
 * Converts one channel from one rate to another. How the input is cut into pieces does not change the output.
 *
 * Output n is the input's value at n * from / to, interpolated by a windowed sinc. With rates in their lowest terms,
 * from / to = step / phases, there are only `phases` different filters; all are computed once.
 */
export class Resampler {
  /**
   * @param {number} from sample rate of the input, in whole Hz
   * @param {number} to sample rate of the output, in whole Hz
   */
  constructor(from, to) {
    const divisor = greatestCommonDivisor(from, to);
    this.step = from / divisor;
    this.phases = to / divisor;
    this.filters = filters(this.step, this.phases);
    this.taps = this.filters[0].length;
    // The input that filters still need. Half a filter of silence stands before the first sample.
    this.input = new Float32Array(4 * this.taps);
    this.length = this.taps / 2 - 1;
    this.phase = 0;
  }

  /** How many input samples the next `count` outputs need beyond those given so far. */
  needed(count) {
    if (count === 0) return 0;
    const last = Math.floor((this.phase + (count - 1) * this.step) / this.phases);
    return Math.max(0, last + this.taps - this.length);
  }

  /** How many outputs `count` more input samples give. */
  available(count) {
    const windows = this.length + count - this.taps + 1;
    return windows <= 0 ? 0 : Math.ceil((windows * this.phases - this.phase) / this.step);
  }

  /**
   * Take samples in and write the outputs that they complete, as many as `output` holds; the rest come next time.
   *
   * @param {Float32Array} samples
   * @param {Float32Array} output
   * @returns {number} how many outputs were written
   */
  process(samples, output) {
    if (this.length + samples.length > this.input.length) {
      const larger = new Float32Array(2 * (this.length + samples.length));
      larger.set(this.input.subarray(0, this.length));
      this.input = larger;
    }
    this.input.set(samples, this.length);
    this.length += samples.length;
    let start = 0;
    let phase = this.phase;
    let written = 0;
    while (start + this.taps <= this.length && written < output.length) {
      const filter = this.filters[phase];
      let sum = 0;
      for (let tap = 0; tap < this.taps; tap++) sum += filter[tap] * this.input[start + tap];
      output[written++] = sum;
      phase += this.step;
      start += Math.floor(phase / this.phases);
      phase %= this.phases;
    }
    // An output further on than all input so far begins with samples that have not come yet.
    const used = Math.min(start, this.length);
    this.input.copyWithin(0, used, this.length);
    this.length -= used;
    this.phase = phase + (start - used) * this.phases;
    return written;
  }
}

function greatestCommonDivisor(a, b) {
  return b === 0 ? a : greatestCommonDivisor(b, a % b);
}

/** The filter of every phase, each scaled to pass a constant unchanged. */
function filters(step, phases) {
  const stretch = Math.max(1, step / phases);
  const half = Math.ceil(CROSSINGS * stretch);
  return Array.from({ length: phases }, (_, phase) => {
    const filter = new Float32Array(2 * half);
    let sum = 0;
    for (let tap = 0; tap < 2 * half; tap++) {
      const time = (tap - (half - 1) - phase / phases) / stretch;
      filter[tap] = sinc(CUTOFF * time) * kaiser(time / CROSSINGS);
      sum += filter[tap];
    }
    return filter.map((value) => value / sum);
  });
}

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function kaiser(x) {
  return Math.abs(x) > 1 ? 0 : besselI0(KAISER_BETA * Math.sqrt(1 - x * x)) / besselI0(KAISER_BETA);
}

function besselI0(x) {
  let term = 1;
  let sum = 1;
  for (let k = 1; term > sum * 1e-12; k++) {
    term *= (x / (2 * k)) ** 2;
    sum += term;
  }
  return sum;
}
