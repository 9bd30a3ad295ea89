// The call as both sides heard it: audio, words and their times, and the files that are made of them.

import { RATE, peak } from "./pcm.js";

const WAV_HEADER = 44;

/**
 * A growing recording. Left is the model and right the user, as in the data sets that moshijax trains on.
 */
export class Recording {
  /**
   * @param {{title: string, began: Date, speaker: string, facts: [string, string][]}} about what is said of the call
   *   where it is saved; `speaker`: whose words they are, by the labels of data sets
   */
  constructor(about) {
    this.about = about;
    this.pieces = [];
    this.peaks = { model: [], user: [] };
    this.words = [];
    this.length = 0;
    this.firstFrame = null;
  }

  get seconds() {
    return this.length / RATE;
  }

  /** Add a piece of both sides, as the capture worklet sends it. */
  append({ microphone, model, frame }) {
    this.firstFrame ??= frame;
    this.pieces.push({ model, user: microphone });
    this.peaks.model.push(peak(model));
    this.peaks.user.push(peak(microphone));
    this.length += model.length;
  }

  /** Seconds in the recording of a sample of the context, which counts `rate` in a second. */
  timeOf(frame, rate) {
    return Math.max(0, (frame - (this.firstFrame ?? frame)) / rate);
  }

  /**
   * Add text that the model began to say at a time. Text without a space before it continues the last word.
   *
   * @returns the word: `{text, start, end}`, times in seconds
   */
  addText(text, start, end) {
    const last = this.words.at(-1);
    if (last && !/^\s/.test(text)) {
      last.text += text.trimEnd();
      last.end = end;
      return last;
    }
    if (last) last.end = Math.min(last.end, start);
    const word = { text: text.trim(), start, end };
    this.words.push(word);
    return word;
  }

  get text() {
    return this.words.map((word) => word.text).join(" ");
  }

  /** The audio as a WAV file: stereo, 16 bits, 24 kHz. */
  wav() {
    const file = new DataView(new ArrayBuffer(WAV_HEADER + 4 * this.length));
    const ascii = (at, text) => [...text].forEach((letter, i) => file.setUint8(at + i, letter.charCodeAt(0)));
    ascii(0, "RIFF");
    file.setUint32(4, file.byteLength - 8, true);
    ascii(8, "WAVEfmt ");
    file.setUint32(16, 16, true); // bytes of the format
    file.setUint16(20, 1, true); // PCM
    file.setUint16(22, 2, true); // channels
    file.setUint32(24, RATE, true);
    file.setUint32(28, 4 * RATE, true); // bytes in a second
    file.setUint16(32, 4, true); // bytes of a sample of all channels
    file.setUint16(34, 16, true); // bits of a sample
    ascii(36, "data");
    file.setUint32(40, 4 * this.length, true);
    let at = WAV_HEADER;
    for (const { model, user } of this.pieces) {
      for (let i = 0; i < model.length; i++, at += 4) {
        file.setInt16(at, model[i], true);
        file.setInt16(at + 2, user[i], true);
      }
    }
    return new Blob([file], { type: "audio/wav" });
  }

  /** The transcript in the form that `moshijax data prepare` reads beside a recording. */
  transcript() {
    const alignments = this.words.map(({ text, start, end }) => [text, [round(start), round(end)], this.about.speaker]);
    return new Blob([JSON.stringify({ alignments }, null, 1) + "\n"], { type: "application/json" });
  }
}

function round(seconds) {
  return Math.round(1000 * seconds) / 1000;
}
