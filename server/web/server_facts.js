/** The version and the uptime of the server, in the header. */

import { byId, write } from "./dom.js";
import { seconds } from "./format.js";

/** @typedef {import("./experts.js").Totals} Totals */

export class ServerFacts {
  constructor() {
    this.line = byId("server-facts");
    this.version = "";
  }

  async loadVersion() {
    try {
      const { version } = await (await fetch("/version", { cache: "no-store" })).json();
      this.version = version;
    } catch {
      this.version = ""; // the connection status reports a server that can't be reached
    }
    this.write("");
  }

  /** @param {Totals} totals */
  show({ uptime_seconds: uptime }) {
    this.write(`up ${seconds(uptime)}`);
  }

  /** @param {string} uptime empty while it is unknown */
  write(uptime) {
    const version = this.version && `version ${this.version}`;
    write(this.line, [version, uptime].filter(Boolean).join(" · "));
  }
}
