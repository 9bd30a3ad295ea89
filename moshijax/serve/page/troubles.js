// What can go wrong, in sentences that say what to do.

/**
 * @typedef {object} Trouble
 * @property {string} text what happened and what to do
 * @property {string} [action] what the button beside it says; without it there is no button
 */

/** @returns {Trouble} for a page that was not loaded over TLS or from this machine */
export function insecure(address) {
  return {
    text:
      `Browsers open the microphone only for pages that come over https, or from localhost, and this one came from ` +
      `http://${address.host}. Start the server with "moshijax serve --tls" and open https://${address.host}, ` +
      `or put it behind a proxy that speaks https.`,
  };
}

/** @returns {Trouble} for what `getUserMedia` was refused with */
export function microphone(error) {
  switch (error.name) {
    case "NotAllowedError":
    case "SecurityError":
      return {
        text:
          "The microphone is not allowed. Allow it for this page: in the browser, by the symbol beside the address; " +
          "on some systems also in the privacy settings. Then try again.",
        action: "Try again",
      };
    case "NotFoundError":
    case "OverconstrainedError":
      return { text: "There is no microphone. Connect one, then try again.", action: "Try again" };
    case "NotReadableError":
    case "AbortError":
      return {
        text: "The microphone does not open. Close other programs that use it, or choose another one, then try again.",
        action: "Try again",
      };
    default:
      return { text: `The sound does not start (${error.message}). Reload the page, or try another browser.` };
  }
}

/** @returns {Trouble} for a microphone that is gone and has no successor */
export function unplugged() {
  return {
    text: "The microphone was unplugged, and there is no other. The model hears silence. Connect one, then continue.",
    action: "Use microphone",
  };
}

/** @returns {Trouble} for sound that the browser does not run */
export function suspended() {
  return { text: "The browser has paused the sound, so neither side hears the other.", action: "Resume sound" };
}

/** @returns {Trouble} for a server that has no room */
export function busy(callers) {
  return {
    text: `All slots are taken: ${callers} ${callers === 1 ? "call is" : "calls are"} going on. Try again when one ends.`,
    action: "Try again",
  };
}

/** @returns {Trouble} for a server that ends its work */
export function draining() {
  return {
    text: "The server is about to stop and takes no new calls. Try again in a minute, when it may be back.",
    action: "Try again",
  };
}

/** @returns {Trouble} for a server that does not answer */
export function unreachable(host) {
  return {
    text: `The server at ${host} does not answer. See that it runs and that you are on its network, then try again.`,
    action: "Try again",
  };
}

/** @returns {Trouble} for a server that answers, but whose WebSocket does not open */
export function noUpgrade(host) {
  return {
    text:
      `The server answers, but the live connection to ${host} does not open. Most often a proxy between you and ` +
      `the server does not pass WebSocket upgrades on: its administrator finds the settings in docs/deployment.md.`,
    action: "Try again",
  };
}

/** @returns {Trouble} for an answer that refuses the call and says why */
export function refused(message) {
  return { text: sentence(message), action: "Try again" };
}

/** @returns {Trouble} for something that the server could not do, while the call continues */
export function problem(message) {
  return { text: sentence(message) };
}

/** @returns {Trouble} for a connection that broke during a call */
export function lost() {
  return {
    text: "The connection was lost and the call is over. What was said is kept below. Reconnect to begin a new call.",
    action: "Reconnect",
  };
}

/** @returns {Trouble | null} for a call that the server ended; null if it came to its end. @param {string} [message] why */
export function ended(reason, seconds, message) {
  const after = `after ${Math.round(seconds)} seconds`;
  switch (reason) {
    case "complete":
      return null;
    case "time_limit":
      return { text: `The call ended ${after}, which is the longest that this server allows.`, action: "New call" };
    case "shutdown":
      return {
        text: `The server is about to stop, so the call ended ${after}. It may be back in a minute.`,
        action: "New call",
      };
    case "idle":
      return { text: `The server heard nothing of this page for too long, and ended the call ${after}.`, action: "New call" };
    default:
      return { text: sentence(`The server ended the call ${after}: ${message ?? reason.replaceAll("_", " ")}`), action: "New call" };
  }
}

function sentence(message) {
  return message[0].toUpperCase() + message.slice(1) + (/[.!?]$/.test(message) ? "" : ".");
}
