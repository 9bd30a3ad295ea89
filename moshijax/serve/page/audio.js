// The browser's side of the sound: microphone, loudspeaker, and the worklets between them and the call.

/** @typedef {{headphones: boolean, microphone: string, listens: boolean}} AudioOptions */

/**
 * An open microphone and loudspeaker. Everything runs at the rate that the browser has; the worklets convert.
 *
 * What it has to say goes to `listener`, an object with methods `piece({microphone, model, frame})`, `mark(name, frame)`,
 * `buffer({buffered, underruns, dropped})`, `suspended(isSuspended)` and `unplugged()`.
 */
export class Audio {
  /**
   * Must be called while a click or a key press is handled: browsers start sound for nothing else.
   *
   * @param {AudioOptions} options `listens`: a microphone is needed
   * @param {object} listener
   * @throws {DOMException} by whose name `troubles.js` tells what is wrong with the microphone
   */
  static async open(options, listener) {
    const context = new AudioContext({ latencyHint: "interactive" });
    const audio = new Audio(context, options, listener);
    try {
      const modules = ["capture", "playback"].map((name) =>
        context.audioWorklet.addModule(new URL(`${name}-worklet.js`, import.meta.url)),
      );
      if (options.listens) await audio.#openMicrophone();
      await Promise.all(modules);
      audio.#connect();
      // Some browsers leave this without an answer while they do not allow sound, so nothing waits for it.
      context.resume().catch(() => {});
    } catch (error) {
      audio.close();
      throw error;
    }
    return audio;
  }

  constructor(context, options, listener) {
    this.context = context;
    this.options = options;
    this.listener = listener;
    this.muted = false;
    this.stream = null;
  }

  /** Samples per second of the browser's sound. */
  get rate() {
    return this.context.sampleRate;
  }

  /** Seconds from the end of the worklet to the ear, as far as the browser knows. */
  get outputLatency() {
    return (this.context.baseLatency ?? 0) + (this.context.outputLatency ?? 0);
  }

  get suspended() {
    return this.context.state !== "running";
  }

  async #openMicrophone() {
    const processed = !this.options.headphones;
    const constraints = {
      channelCount: 1,
      echoCancellation: processed,
      noiseSuppression: processed,
      autoGainControl: processed,
    };
    if (this.options.microphone) constraints.deviceId = { ideal: this.options.microphone };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio: constraints });
    for (const track of this.stream.getAudioTracks()) {
      track.enabled = !this.muted;
      track.onended = () => this.listener.unplugged();
    }
  }

  #connect() {
    const mono = { channelCount: 1, channelCountMode: "explicit", channelInterpretation: "speakers" };
    this.playback = new AudioWorkletNode(this.context, "playback", { numberOfInputs: 0, outputChannelCount: [1] });
    this.capture = new AudioWorkletNode(this.context, "capture", { numberOfInputs: 2, numberOfOutputs: 0, ...mono });
    this.playback.connect(this.context.destination);
    this.playback.connect(this.capture, 0, 1);
    this.#connectMicrophone();
    this.capture.port.onmessage = ({ data }) => this.listener.piece(data);
    this.playback.port.onmessage = ({ data }) => {
      if ("mark" in data) this.listener.mark(data.mark, data.frame);
      else this.listener.buffer(data);
    };
    this.context.onstatechange = () => {
      if (this.context.state !== "closed") this.listener.suspended(this.suspended);
    };
  }

  #connectMicrophone() {
    if (!this.stream) return;
    this.source = this.context.createMediaStreamSource(this.stream);
    this.source.connect(this.capture, 0, 0);
  }

  /** Take the microphone that the browser now offers, after the last one was unplugged. */
  async replaceMicrophone() {
    this.source?.disconnect();
    this.#release();
    await this.#openMicrophone();
    this.#connectMicrophone();
    return this.stream.getAudioTracks()[0].label;
  }

  /** Play 16-bit samples at 24 kHz after those before them. @param {ArrayBuffer} audio */
  play(audio) {
    this.playback.port.postMessage({ audio }, [audio]);
  }

  /** Have `name` reported when playback comes to the place `ahead` samples after all audio so far. */
  mark(name, ahead) {
    this.playback.port.postMessage({ mark: name, ahead });
  }

  /** Drop what waits to be played. */
  flush() {
    this.playback.port.postMessage({ flush: true });
  }

  setMuted(muted) {
    this.muted = muted;
    for (const track of this.stream?.getAudioTracks() ?? []) track.enabled = !muted;
  }

  /** Start sound that the browser or the system has paused; again only in a click or a key press. */
  resume() {
    return this.context.resume();
  }

  close() {
    this.#release();
    if (this.context.state !== "closed") this.context.close();
  }

  #release() {
    for (const track of this.stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    this.stream = null;
  }
}

/** The microphones by name; the names are known once one was allowed. @returns {Promise<MediaDeviceInfo[]>} */
export async function microphones() {
  const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
  return devices.filter(({ kind, deviceId, label }) => kind === "audioinput" && deviceId && label);
}
