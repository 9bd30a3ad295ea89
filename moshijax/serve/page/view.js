// What the page shows, and what was chosen on it. Knows no call and no sound.

import { Side } from "./levels.js";
import { Transcript, clock } from "./transcript.js";

const CALL = {
  idle: { status: "Not on a call", button: "Start call" },
  connecting: { status: "Connecting …", button: "Cancel" },
  calling: { status: "On a call", button: "Hang up" },
};
const SPEECH = {
  idle: { status: "Ready to speak", button: "Speak" },
  connecting: CALL.connecting,
  calling: { status: "Speaking", button: "Stop" },
};
/** What stands where words will be, by the use of the model. */
const HINTS = {
  conversation: "What the model says appears here while you hear it.",
  recognition: "What you say appears here, a moment later.",
  synthesis: "The words appear here while they are spoken.",
  translation: "The translation appears here while you hear it.",
  answer: "Ask a question. The answer appears here while you hear it.",
};
/** What the status says of a half-duplex call, by whose turn it is. */
const TURNS = {
  listening: "Half duplex: listening to you",
  answering: "Half duplex: thinking",
  speaking: "Half duplex: speaking; speak to stop it",
};
const NONE = "–";
/** The hottest that a model is asked to be; it would be noise beyond. */
const HIGHEST = 2;
const SEEDS = 2 ** 32;

/** The elements of the page by what they mean. */
export class View {
  constructor() {
    const by = (id) => document.getElementById(id);
    this.status = by("status");
    this.model = by("model");
    this.trouble = by("trouble");
    this.figures = { clock: by("clock"), roundtrip: by("roundtrip"), buffered: by("buffered"), dropped: by("dropped") };
    this.buttons = { call: by("call"), mute: by("mute"), interrupt: by("interrupt"), done: by("done") };
    this.save = by("save");
    this.settings = by("settings");
    this.form = this.settings.querySelector("form");
    this.speak = by("speak");
    this.sides = {
      model: new Side(document.querySelector(".side.model")),
      user: new Side(document.querySelector(".side.user")),
    };
    this.transcript = new Transcript(by("transcript"), by("spoken"));
    // On a small screen the call comes first.
    if (matchMedia("(max-width: 820px)").matches) this.settings.open = false;
    for (const slider of this.form.querySelectorAll("[type=range]")) {
      slider.oninput = () => showValue(slider);
    }
    this.labels = CALL;
    this.setPhase("idle");
    this.showLevels({ model: [], user: [] });
  }

  /** @param {"idle" | "connecting" | "calling"} phase */
  setPhase(phase) {
    this.phase = phase;
    if (phase !== "calling") this.turn = null;
    this.status.textContent = this.phaseText;
    this.status.dataset.phase = phase;
    this.buttons.call.textContent = this.labels[phase].button;
    this.buttons.call.dataset.phase = phase;
    this.buttons.mute.disabled = phase !== "calling";
    this.buttons.interrupt.disabled = phase !== "calling";
    this.buttons.done.disabled = phase !== "calling";
  }

  /** Show whose turn it is. @param {"listening" | "answering" | "speaking"} turn */
  showTurn(turn) {
    this.turn = turn;
    this.status.textContent = this.phaseText;
    this.buttons.done.disabled = turn !== "listening";
  }

  /** What the status says: of a half-duplex call, whose turn it is. */
  get phaseText() {
    return this.turn ? TURNS[this.turn] : this.labels[this.phase].status;
  }

  /** Show what the server says of its model, and offer what can be chosen; what was chosen stays. @param {object} info */
  setInfo({ callers, ...info }) {
    const known = JSON.stringify(info);
    if (known === this.known) return;
    this.known = known;
    this.model.textContent = `${info.model} · moshijax ${info.version}`;
    document.title = `${info.model} – moshijax`;
    this.transcript.hint.textContent = HINTS[info.use];
    this.labels = info.text_in ? SPEECH : CALL;
    this.setPhase(this.phase);
    for (const element of document.querySelectorAll(".user, .microphone, #mute")) element.hidden = !info.audio_in;
    for (const element of document.querySelectorAll(".side.model, #interrupt")) element.hidden = !info.audio_out;
    this.buttons.done.hidden = info.use !== "answer";
    this.speak.hidden = !info.text_in;
    this.speak.querySelector("textarea").maxLength = info.text_limit;
    for (const slider of this.form.querySelectorAll("[type=range]")) {
      slider.parentElement.hidden = !(slider.name in info.sampling);
      if (slider.parentElement.hidden) continue;
      const { default: value, min, max } = info.sampling[slider.name];
      Object.assign(slider, { min: min ?? 0, max: Math.min(max ?? HIGHEST, HIGHEST), value });
      showValue(slider);
    }
    const { voice_prompt: voice, role, text_prompt: told } = this.form.elements;
    offer(voice, info.voice_prompts);
    offer(role, Object.keys(info.text_prompts));
    role.onchange = () => (told.value = info.text_prompts[role.value] ?? "");
    told.maxLength = info.text_limit;
    told.parentElement.hidden = !info.text_prompt;
  }

  /** Offer microphones that the browser names, and keep what is chosen. @param {MediaDeviceInfo[]} devices */
  setMicrophones(devices) {
    const select = this.form.elements.microphone;
    const chosen = select.value;
    select.replaceChildren(select.options[0], ...devices.map(({ deviceId, label }) => new Option(label, deviceId)));
    select.value = devices.some(({ deviceId }) => deviceId === chosen) ? chosen : "";
  }

  /** What was chosen for the next call; without a seed, a random one. */
  choices() {
    const value = (name) => this.form.elements[name].value;
    const settings = {
      seed: value("seed") === "" ? Math.floor(Math.random() * SEEDS) : Number(value("seed")),
    };
    for (const slider of this.form.querySelectorAll("[type=range]")) {
      if (!slider.parentElement.hidden) settings[slider.name] = Number(slider.value);
    }
    for (const name of ["voice_prompt", "text_prompt"]) if (value(name)) settings[name] = value(name);
    return { settings, microphone: value("microphone"), headphones: this.form.elements.headphones.checked };
  }

  /** Whether all is there that a call needs; if not, the page shows what is missing. */
  isComplete() {
    return this.speak.hidden || this.speak.reportValidity();
  }

  /** What is to be spoken. */
  get text() {
    return this.speak.querySelector("textarea").value.trim();
  }

  /**
   * Show what is wrong, and offer a way out of it.
   *
   * @param {import("./troubles.js").Trouble} trouble
   * @param {() => void} [act] what its button does
   */
  showTrouble(trouble, act) {
    const [text, button] = this.trouble.children;
    // A screen reader reads it again if it is set again.
    if (text.textContent !== trouble.text) text.textContent = trouble.text;
    button.hidden = !trouble.action;
    button.textContent = trouble.action ?? "";
    button.onclick = () => {
      this.clearTrouble();
      act();
    };
    this.trouble.hidden = false;
  }

  /** Whether a trouble is shown that has a button. */
  get offersAction() {
    return !this.trouble.hidden && !this.trouble.children[1].hidden;
  }

  clearTrouble() {
    if (this.trouble.contains(document.activeElement)) this.buttons.call.focus();
    this.trouble.hidden = true;
  }

  /** Tell a screen reader, and everybody for a moment, what has happened. */
  note(text) {
    this.status.textContent = text;
    clearTimeout(this.noteTimer);
    this.noteTimer = setTimeout(() => (this.status.textContent = this.phaseText), 4000);
  }

  get isMuted() {
    return this.buttons.mute.getAttribute("aria-pressed") === "true";
  }

  setMuted(muted) {
    this.buttons.mute.setAttribute("aria-pressed", muted);
  }

  /** Begin with an empty page. */
  clearCall() {
    this.clearTrouble();
    this.transcript.clear();
    this.save.hidden = true;
    for (const figure of ["roundtrip", "buffered", "dropped"]) this.figures[figure].textContent = NONE;
    this.figures.clock.textContent = clock(0);
  }

  /** Show the newest peaks of both sides, in [0, 1]. @param {{model: number[], user: number[]}} peaks */
  showLevels(peaks) {
    for (const [name, side] of Object.entries(this.sides)) side.show(peaks[name]);
  }

  showClock(seconds) {
    this.figures.clock.textContent = clock(seconds);
  }

  showRoundtrip(milliseconds) {
    this.figures.roundtrip.textContent = `${Math.round(milliseconds)} ms`;
  }

  showBuffered(seconds) {
    this.figures.buffered.textContent = `${Math.round(1000 * seconds)} ms`;
  }

  showDropped(seconds) {
    this.figures.dropped.textContent = seconds ? `${seconds.toFixed(1)} s` : "none";
  }
}

function showValue(slider) {
  slider.parentElement.querySelector("output").textContent = Number(slider.value).toFixed(2);
}

/** Offer names to choose from, or none of them; without names there is nothing to see. */
function offer(select, names) {
  select.replaceChildren(new Option("None", ""), ...names.map((name) => new Option(name)));
  select.parentElement.hidden = !names.length;
}
