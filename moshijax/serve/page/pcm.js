// Samples as the server sends and takes them: 16 bits, mono, little endian, as are all devices with a browser.

/** Samples per second on the wire and in recordings. */
export const RATE = 24000;

/** @param {Float32Array} samples in [-1, 1]; what is louder is clipped */
export function toInt16(samples) {
  return Int16Array.from(samples, (sample) => Math.round(32767 * Math.max(-1, Math.min(1, sample))));
}

/** @param {Int16Array} samples */
export function toFloat(samples) {
  return Float32Array.from(samples, (sample) => sample / 32767);
}

/** The largest magnitude, in [0, 1]. @param {Int16Array} samples */
export function peak(samples) {
  let largest = 0;
  for (const sample of samples) largest = Math.max(largest, Math.abs(sample));
  return Math.min(1, largest / 32767);
}
