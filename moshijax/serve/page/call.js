// One call over the WebSocket /v1/realtime, as docs/protocol.md describes it.

import * as troubles from "./troubles.js";

const PATH = "v1/realtime";
/** Milliseconds between two pings, and without an answer until the connection counts as lost. */
const PING_EVERY = 2000;
const SILENT_FOR = 8000;
/** Milliseconds until the server answers at all. */
const OPEN_WITHIN = 10000;
/** Bytes that may wait in the socket; half a second of sound. What the network does not take is left out, not delayed. */
const WAITING = 24000;

/**
 * A call. What happens in it goes to `listener`, an object with methods `audio(ArrayBuffer)`,
 * `text({text, start, end, ahead})`, `turn(phase)`, `cut()` (the caller's speech stopped an answer), `dropped(frames)`,
 * `roundtrip(milliseconds)`, `problem(message)` and, once and last, `over(trouble)`. The times of a text are seconds of the call; `ahead` is how long after all sound so far it is spoken.
 */
export class Call {
  /** @param {import("./server.js").Server} server @param {object} listener */
  constructor(server, listener) {
    this.server = server;
    this.listener = listener;
    this.interrupting = 0;
    this.heard = 0; // when the last message came
    this.isOver = false;
    this.problem = null;
  }

  /**
   * Connect, begin with the settings that are given, and wait until the model listens.
   *
   * @param {object} settings fields of the event `session.update`
   * @throws {Trouble} there is no call, for a reason that it tells
   */
  open(settings) {
    this.socket = new WebSocket(this.server.address(PATH, "ws"));
    this.socket.binaryType = "arraybuffer";
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.starting.fail(troubles.noUpgrade(this.server.host)), OPEN_WITHIN);
      this.starting = {
        created: () => {
          clearTimeout(timer);
          this.#event("session.update", { session: { ...settings, audio: "binary" } });
        },
        started: () => {
          this.starting = null;
          this.timer = setInterval(() => this.#ping(), PING_EVERY);
          this.#ping();
          resolve();
        },
        fail: (trouble) => {
          clearTimeout(timer);
          this.close();
          reject(trouble);
        },
      };
      this.socket.onmessage = ({ data }) => this.#receive(data);
      this.socket.onclose = () => this.#closed();
    });
  }

  /** Send a piece of the microphone. @returns {boolean} whether the network took it. @param {Int16Array} samples */
  send(samples) {
    if (this.socket.readyState !== WebSocket.OPEN || this.socket.bufferedAmount > WAITING) return false;
    this.socket.send(samples);
    return true;
  }

  /** Give a synthesis all that it is to speak. */
  say(text) {
    this.#event("input_text.append", { text, done: true });
  }

  /** Have the server drop what waits to be sent; what is on its way is dropped here. */
  interrupt() {
    this.interrupting++;
    this.#event("response.cancel");
  }

  /** Let the caller's turn of a half-duplex call be over. */
  endTurn() {
    this.#event("input_audio_buffer.commit");
  }

  /** Hang up; the listener hears nothing more. */
  close() {
    this.isOver = true;
    clearInterval(this.timer);
    this.socket?.close();
  }

  #event(type, fields = {}) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify({ type, ...fields }));
  }

  #receive(data) {
    this.heard = performance.now();
    if (this.isOver) return;
    if (typeof data !== "string") {
      if (!this.interrupting) this.listener.audio(data);
      return;
    }
    const event = JSON.parse(data);
    switch (event.type) {
      case "session.created":
        this.starting.created();
        break;
      case "session.updated":
        this.#event("session.start");
        break;
      case "session.started":
        this.starting?.started();
        break;
      case "response.text.delta":
        if (!this.interrupting) this.#text(event);
        break;
      case "response.cancelled":
        if (this.interrupting) this.interrupting--;
        else this.listener.cut();
        break;
      case "turn.changed":
        this.listener.turn(event.phase);
        break;
      case "input_audio_buffer.dropped":
        this.listener.dropped(event.frames);
        break;
      case "pong":
        this.listener.roundtrip(this.heard - event.id);
        break;
      case "error":
        this.problem = event.error;
        if (this.starting) this.starting.fail(troubles.refused(event.error.message));
        else this.listener.problem(event.error.message);
        break;
      case "session.ended":
        // An error before it, named as the reason, tells more.
        this.#over(
          troubles.ended(event.reason, event.seconds, this.problem?.code === event.reason ? this.problem.message : undefined),
        );
        break;
    }
  }

  #text({ delta, start_ms, end_ms, at_ms }) {
    this.listener.text({ text: delta, start: start_ms / 1000, end: end_ms / 1000, ahead: (start_ms - at_ms) / 1000 });
  }

  #ping() {
    if (performance.now() - this.heard > SILENT_FOR) {
      this.#over(troubles.lost());
      return;
    }
    this.#event("ping", { id: performance.now() });
  }

  async #closed() {
    if (this.isOver) return;
    if (this.starting) this.starting.fail(await this.server.whyRefused(PATH));
    else this.#over(troubles.lost());
  }

  #over(trouble) {
    this.close();
    this.listener.over(trouble);
  }
}
