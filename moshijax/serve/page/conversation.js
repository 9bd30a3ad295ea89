// One call with its sound, from the button until it is over: what comes from where goes to whom.

import { Audio } from "./audio.js";
import { Call } from "./call.js";
import { RATE } from "./pcm.js";
import { Recording } from "./recording.js";
import { checkSlots } from "./server.js";
import * as troubles from "./troubles.js";

/** The mark behind all sound of a call. */
const END = "end";

/** Holds a call, its sound and its recording together, and shows all on the page. */
export class Conversation {
  /**
   * @param {import("./server.js").Server} server
   * @param {import("./view.js").View} view
   * @param {(trouble: troubles.Trouble | null) => void} over called if the call ends by itself; null: it was complete
   */
  constructor(server, view, over) {
    this.server = server;
    this.view = view;
    this.over = over;
    this.left = { microphone: 0, server: 0, playback: 0 }; // seconds that were left out
    this.isClosed = false;
  }

  /** Open the sound, then the call; if it was closed meanwhile, nothing stays open. @throws {troubles.Trouble} */
  async open() {
    this.info = await this.server.info();
    this.view.setInfo(this.info);
    checkSlots(this.info);
    this.choices = this.view.choices();
    this.audio = await Audio.open({ ...this.choices, listens: this.info.audio_in }, this.#soundEvents()).catch((error) => {
      throw troubles.microphone(error);
    });
    this.call = new Call(this.server, this.#callEvents());
    if (!this.isClosed) await this.call.open(this.choices.settings);
    if (this.isClosed) return this.close();
    this.view.clearCall();
    this.recording = new Recording(about(this.info, this.choices.settings));
    if (this.info.text_in) this.call.say(this.view.text);
    if (this.audio.suspended) this.#showSuspended();
  }

  /** Hang up. */
  close() {
    this.isClosed = true;
    this.call?.close();
    this.audio?.close();
  }

  /** Let the model's sound that waits go unheard, here and on the server. */
  interrupt() {
    this.call.interrupt();
    this.audio.flush();
  }

  /** Let the caller's turn be over, where calls are half duplex. */
  endTurn() {
    this.call.endTurn();
  }

  setMuted(muted) {
    this.audio.setMuted(muted);
  }

  #soundEvents() {
    return {
      piece: (piece) => this.#takePiece(piece),
      mark: (mark, frame) => this.#reach(mark, frame),
      buffer: ({ buffered, dropped }) => {
        this.view.showBuffered(buffered);
        this.#leaveOut("playback", dropped);
      },
      suspended: (isSuspended) => (isSuspended ? this.#showSuspended() : this.view.clearTrouble()),
      unplugged: () => this.#replaceMicrophone(),
    };
  }

  #callEvents() {
    return {
      audio: (audio) => this.audio.play(audio),
      text: (text) => this.#takeText(text),
      turn: (phase) => this.view.showTurn(phase),
      cut: () => this.audio.flush(),
      dropped: (frames) => this.#leaveOut("server", this.left.server + (frames * this.info.frame_ms) / 1000),
      roundtrip: (milliseconds) => this.view.showRoundtrip(milliseconds),
      problem: (message) => this.view.showTrouble(troubles.problem(message)),
      over: (trouble) => (trouble ? this.over(trouble) : this.audio.mark(END, 0)),
    };
  }

  #takePiece(piece) {
    if (!this.recording || this.isClosed) return;
    this.recording.append(piece);
    this.view.showLevels(this.recording.peaks);
    this.view.showClock(this.recording.seconds);
    if (this.info.audio_in && !this.call.isOver && !this.call.send(piece.microphone)) {
      this.#leaveOut("microphone", this.left.microphone + piece.microphone.length / RATE);
    }
  }

  /** Show words when their sound is played; without sound, at once. */
  #takeText({ text, start, end, ahead }) {
    if (this.info.audio_out) this.audio.mark({ text, seconds: end - start }, Math.round(ahead * RATE));
    else this.view.transcript.show(this.recording.addText(text, start, end));
  }

  #reach(mark, frame) {
    if (mark === END) return this.over(null);
    const start = this.recording.timeOf(frame, this.audio.rate);
    this.view.transcript.show(this.recording.addText(mark.text, start, start + mark.seconds));
  }

  #leaveOut(where, seconds) {
    this.left[where] = seconds;
    this.view.showDropped(this.left.microphone + this.left.server + this.left.playback);
  }

  #showSuspended() {
    this.view.showTrouble(troubles.suspended(), () => this.audio.resume());
  }

  async #replaceMicrophone() {
    try {
      this.view.note(`Microphone unplugged; now using ${await this.audio.replaceMicrophone()}`);
    } catch {
      if (!this.isClosed) this.view.showTrouble(troubles.unplugged(), () => this.#replaceMicrophone());
    }
  }
}

/** What is kept of a call beside its sound and words. */
function about(info, settings) {
  const facts = [["Model", `${info.model} (moshijax ${info.version})`]];
  const names = {
    voice_prompt: "Voice prompt",
    text_prompt: "Text prompt",
    temperature: "Temperature of the voice",
    text_temperature: "Temperature of the words",
    seed: "Seed",
  };
  for (const [key, name] of Object.entries(names)) if (key in settings) facts.push([name, String(settings[key])]);
  const speaker = info.audio_out ? "SPEAKER_MAIN" : "SPEAKER_USER";
  return { title: `Call with ${info.model}`, began: new Date(), speaker, facts };
}
