// What the server says outside of calls.

import * as troubles from "./troubles.js";

/** Where the server is. A token in the page's own address goes along with everything that is asked of it. */
export class Server {
  /** @param {URL | Location} page the address that the page came from */
  constructor(page) {
    this.host = page.host;
    this.base = new URL(".", page.href);
    this.token = new URLSearchParams(page.search).get("token");
  }

  /** The address of something that the server has. @param {string} path @param {string} [scheme] "http" or "ws" */
  address(path, scheme = "http") {
    const address = new URL(path, this.base);
    address.protocol = address.protocol.replace("http", scheme);
    if (this.token) address.searchParams.set("token", this.token);
    return address;
  }

  /** What the server says of its model and its callers. @throws {troubles.Trouble} it does not answer, or does not work */
  async info() {
    const ready = await this.#ask("ready");
    if (!ready.ok) throw refusal(ready);
    const info = await this.#ask("api/info");
    if (!info.ok) throw refusal(info);
    return info.body;
  }

  /** Why a WebSocket was refused: browsers do not tell, but the same address answers a plain request. */
  async whyRefused(path) {
    try {
      const answer = await this.#ask(path);
      return answer.body.error ? refusal(answer) : troubles.noUpgrade(this.host);
    } catch (trouble) {
      return trouble;
    }
  }

  async #ask(path) {
    let response;
    try {
      response = await fetch(this.address(path), { cache: "no-store" });
    } catch {
      throw troubles.unreachable(this.host);
    }
    const body = await response.json().catch(() => ({}));
    return { ok: response.ok, status: response.status, body };
  }
}

/** Check that there is a slot for one more call. @param {object} info of the server @throws {troubles.Trouble} there is none */
export function checkSlots({ callers, slots }) {
  if (callers >= slots) throw troubles.busy(callers);
}

function refusal({ status, body }) {
  const { code, message, callers } = body.error ?? {};
  if (code === "busy") return troubles.busy(callers);
  if (code === "draining") return troubles.draining();
  return troubles.refused(message ?? `The server answers with status ${status}`);
}
