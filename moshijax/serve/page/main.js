// The buttons of the page: one call after the other.

import { microphones } from "./audio.js";
import { Conversation } from "./conversation.js";
import { savedCall } from "./saved-call.js";
import { Server, checkSlots } from "./server.js";
import * as troubles from "./troubles.js";
import { View } from "./view.js";

/** Milliseconds after which a server that takes no calls is asked again. */
const ASK_AGAIN = 3000;
/** Milliseconds after which a file that is saved is on the disk. */
const KEEP = 60_000;

const server = new Server(location);
const view = new View();

/** The call in progress; null while there is none. @type {Conversation | null} */
let conversation = null;
/** Of the last call that was heard. @type {import("./recording.js").Recording | null} */
let recording = null;

async function start() {
  if (!view.isComplete()) return;
  view.clearTrouble();
  view.setPhase("connecting");
  const starting = new Conversation(server, view, (trouble) => finish(trouble));
  conversation = starting;
  try {
    await starting.open();
  } catch (trouble) {
    if (conversation === starting) finish(trouble);
    return;
  }
  if (conversation !== starting) return;
  recording = starting.recording;
  view.setPhase("calling");
  listMicrophones();
}

/** Go back to where a call can be started, and say why, if nobody asked for it. @param {troubles.Trouble} [trouble] */
function finish(trouble) {
  conversation?.close();
  conversation = null;
  view.setPhase("idle");
  view.setMuted(false);
  view.showLevels({ model: [], user: [] });
  view.save.hidden = !recording?.length;
  if (trouble) view.showTrouble(trouble, start);
}

function mute() {
  view.setMuted(!view.isMuted);
  conversation.setMuted(view.isMuted);
}

async function listMicrophones() {
  view.setMicrophones(await microphones());
}

async function save(kind) {
  const made = { wav: () => recording.wav(), json: () => recording.transcript(), html: () => savedCall(recording) };
  const link = document.createElement("a");
  const began = recording.about.began.toISOString().slice(0, 19).replaceAll(":", "-");
  link.href = URL.createObjectURL(await made[kind]());
  link.download = `call-${began}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), KEEP);
}

/** Show what the server is; until it takes calls, ask again and again. */
async function showServer() {
  let trouble = null;
  try {
    const info = await server.info();
    view.setInfo(info);
    checkSlots(info);
  } catch (error) {
    trouble = error;
    setTimeout(showServer, ASK_AGAIN);
  }
  // What a call ended with stays until its button is pressed.
  if (conversation || view.offersAction) return;
  if (trouble) view.showTrouble({ text: trouble.text });
  else view.clearTrouble();
}

view.buttons.call.onclick = () => (conversation ? finish() : start());
view.buttons.mute.onclick = mute;
view.buttons.done.onclick = () => conversation.endTurn();
view.buttons.interrupt.onclick = () => conversation.interrupt();
for (const button of view.save.querySelectorAll("button")) button.onclick = () => save(button.dataset.save);
navigator.mediaDevices?.addEventListener("devicechange", listMicrophones);

if (isSecureContext) {
  showServer();
  listMicrophones();
} else {
  view.buttons.call.disabled = true;
  view.showTrouble(troubles.insecure(location));
}
