// Plays the model's voice at the rate of the loudspeaker.

import { JitterBuffer } from "./jitter-buffer.js";
import { RATE, toFloat } from "./pcm.js";
import { Resampler } from "./resample.js";

/** Seconds between two reports. */
const REPORT = 0.1;

/**
 * Takes messages: `{audio}`, an ArrayBuffer of 16-bit samples at 24 kHz; `{mark, ahead}`, a name for the place that many
 * samples after them; `{flush: true}`. Sends `{mark, frame}` when a mark is played, with the context's sample at which it
 * is, and now and then `{buffered, underruns, dropped}`, in seconds, times and seconds.
 */
class Playback extends AudioWorkletProcessor {
  constructor() {
    super();
    this.buffer = new JitterBuffer(RATE);
    this.resampler = new Resampler(RATE, sampleRate);
    this.samples = new Float32Array(4096);
    this.sinceReport = 0;
    this.port.onmessage = ({ data }) => {
      if (data.audio) this.buffer.push(toFloat(new Int16Array(data.audio)));
      else if (data.flush) this.buffer.flush();
      else this.buffer.mark(data.mark, data.ahead);
    };
  }

  process(_inputs, [[output]]) {
    const samples = this.samples.subarray(0, this.resampler.needed(output.length));
    for (const { name, offset } of this.buffer.read(samples)) {
      this.port.postMessage({ mark: name, frame: currentFrame + Math.round((offset * sampleRate) / RATE) });
    }
    this.resampler.process(samples, output);
    this.sinceReport += output.length;
    if (this.sinceReport >= REPORT * sampleRate) {
      this.sinceReport = 0;
      const { buffered, underruns, dropped } = this.buffer;
      this.port.postMessage({ buffered: buffered / RATE, underruns, dropped: dropped / RATE });
    }
    return true;
  }
}

registerProcessor("playback", Playback);
