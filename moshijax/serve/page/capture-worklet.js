// Takes in both sides of the call as they sound: the microphone, and what the loudspeaker plays.

import { RATE, toInt16 } from "./pcm.js";
import { Resampler } from "./resample.js";

/** Samples of a piece: 40 ms, half a frame of the model. */
const PIECE = 960;

/**
 * Input 0 is the microphone, input 1 what is played. Both come out of the port in pieces of the same time:
 * `{microphone, model}`, Int16Array at 24 kHz, and `frame`, the context's sample at which the piece began.
 */
class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.sides = [0, 1].map(() => ({
      resampler: new Resampler(sampleRate, RATE),
      samples: new Float32Array(2 * PIECE),
    }));
    this.filled = 0;
    this.sent = 0;
    this.silence = new Float32Array(128);
  }

  process(inputs) {
    this.start ??= currentFrame;
    let count = 0;
    this.sides.forEach(({ resampler, samples }, index) => {
      // An input without a source has no channel.
      count = resampler.process(inputs[index][0] ?? this.silence, samples.subarray(this.filled));
    });
    this.filled += count;
    if (this.filled >= PIECE) this.#send();
    return true;
  }

  #send() {
    const [microphone, model] = this.sides.map(({ samples }) => {
      const piece = toInt16(samples.subarray(0, PIECE));
      samples.copyWithin(0, PIECE, this.filled);
      return piece;
    });
    const frame = this.start + Math.round((this.sent * sampleRate) / RATE);
    this.port.postMessage({ microphone, model, frame }, [microphone.buffer, model.buffer]);
    this.sent += PIECE;
    this.filled -= PIECE;
  }
}

registerProcessor("capture", Capture);
