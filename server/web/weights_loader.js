/** The form that loads or replaces an expert variant or an adapter from a folder of the server. */

import { request } from "./api.js";
import { byId, write } from "./dom.js";
import { plural } from "./format.js";

/** @typedef {"variant" | "adapter"} Kind */

/** @type {Record<Kind, string>} what makes a folder loadable */
const KINDS = { variant: "weights of experts", adapter: "an adapter" };

export class WeightsLoader {
  /**
   * @param {(kind: Kind, name: string) => boolean} isLoaded
   * @param {(kind: Kind, name: string, path: string) => Promise<boolean>} load returns true if it succeeded
   */
  constructor(isLoaded, load) {
    this.isLoaded = isLoaded;
    this.box = /** @type {HTMLDetailsElement} */ (byId("weights-loader"));
    this.kind = /** @type {HTMLSelectElement} */ (byId("weights-kind"));
    this.name = /** @type {HTMLInputElement} */ (byId("weights-name"));
    this.path = /** @type {HTMLInputElement} */ (byId("weights-path"));
    this.note = byId("weights-folders-note");
    /** @type {Record<Kind, string[]>} */
    this.folders = { variant: [], adapter: [] };
    /** @type {Record<Kind, string>} */
    this.roots = { variant: "", adapter: "" };
    byId("weights-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.submit(load);
    });
    this.name.addEventListener("input", () => this.writeButton());
    this.path.addEventListener("change", () => this.suggestName());
    this.kind.addEventListener("change", () => this.listFolders());
    this.box.addEventListener("toggle", () => this.box.open && void this.loadFolders());
  }

  get isOffered() {
    return !this.box.hidden;
  }

  /**
   * Offer to load what the server has a folder for.
   *
   * @param {string | null} variants
   * @param {string | null} adapters
   */
  offer(variants, adapters) {
    /** @type {[Kind, string | null][]} */
    const folders = [["variant", variants], ["adapter", adapters]];
    const options = folders.filter(([, folder]) => folder !== null);
    this.box.hidden = !options.length;
    if (options.map(([kind]) => kind).join() !== [...this.kind.options].map((each) => each.value).join()) {
      this.kind.replaceChildren(...options.map(([kind]) => new Option(kind)));
    }
    this.roots = { variant: variants ?? "", adapter: adapters ?? "" };
    this.writeNote();
    this.writeButton();
  }

  /** Ask the server which folders it could load. */
  async loadFolders() {
    try {
      const { variants, adapters } = await (await request("/v1/folders")).json();
      this.folders = { variant: variants ?? [], adapter: adapters ?? [] };
    } catch {
      this.folders = { variant: [], adapter: [] }; // the path can be typed all the same
    }
    this.listFolders();
  }

  listFolders() {
    const paths = this.folders[/** @type {Kind} */ (this.kind.value)] ?? [];
    byId("weights-folders").replaceChildren(...paths.map((path) => new Option(path)));
    this.writeNote();
    this.writeButton();
  }

  writeNote() {
    const kind = /** @type {Kind} */ (this.kind.value);
    const paths = this.folders[kind] ?? [];
    const found = paths.length ? `${plural(paths.length, "folder")} to choose from` : `No folder with ${KINDS[kind] ?? ""} was found`;
    write(this.note, `${found} below ${this.roots[kind] ?? ""}.`);
  }

  /** Suggest the name of the folder, unless the user has entered another one. */
  suggestName() {
    if (!this.name.value) this.name.value = this.path.value.trim().replace(/\/+$/, "").split("/").at(-1) ?? "";
    this.writeButton();
  }

  /** @param {(kind: Kind, name: string, path: string) => Promise<boolean>} load */
  async submit(load) {
    const kind = /** @type {Kind} */ (this.kind.value);
    if (!(await load(kind, this.name.value.trim(), this.path.value.trim()))) return;
    this.name.value = this.path.value = "";
    this.writeButton();
  }

  writeButton() {
    const isTaken = this.isLoaded(/** @type {Kind} */ (this.kind.value), this.name.value.trim());
    write(byId("weights-load"), isTaken ? "Replace" : "Load");
  }
}
