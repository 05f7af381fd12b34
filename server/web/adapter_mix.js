/** The adapters that the playground adds to the model, each with a factor. */

import { byId, make, report, write } from "./dom.js";

const MAX_ADAPTERS = 16;

export class AdapterMix {
  /** @param {() => void} onChange */
  constructor(onChange) {
    this.onChange = onChange;
    this.box = byId("adapter-mix");
    this.list = byId("mix-list");
    this.input = /** @type {HTMLInputElement} */ (byId("mix-name"));
    this.result = byId("mix-result");
    /** @type {string[]} */
    this.names = [];
    /** @type {Map<string, HTMLInputElement>} the field of each factor, by adapter */
    this.fields = new Map();
    byId("mix-add").addEventListener("click", () => this.addTyped());
    this.input.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      this.addTyped();
    });
  }

  /** @param {string[]} names of adapters that the key may use; others are removed from the mix */
  offer(names) {
    this.names = names;
    this.box.hidden = !names.length;
    byId("mix-names").replaceChildren(...names.map((name) => new Option(name)));
    for (const name of this.fields.keys()) if (!names.includes(name)) this.remove(name);
  }

  addTyped() {
    const name = this.input.value.trim();
    if (!name) return;
    if (!this.names.includes(name)) report(this.result, `There is no adapter ${name}.`, true);
    else if (this.fields.has(name)) report(this.result, `${name} is added already.`, true);
    else if (this.fields.size === MAX_ADAPTERS) report(this.result, `At most ${MAX_ADAPTERS} adapters can be added.`, true);
    else {
      report(this.result, "");
      this.input.value = "";
      this.add(name);
    }
  }

  /** @param {string} name */
  add(name) {
    const field = make("input");
    field.type = "number";
    field.step = "0.05";
    field.value = "1";
    field.required = true;
    field.setAttribute("aria-label", `Factor of ${name}`);
    field.addEventListener("input", this.onChange);
    const button = make("button", "", "Remove");
    button.type = "button";
    button.setAttribute("aria-label", `Remove ${name}`);
    button.addEventListener("click", () => {
      this.remove(name);
      this.input.focus();
    });
    const item = make("li");
    const label = make("bdi");
    write(label, name);
    item.append(label, field, button);
    this.list.append(item);
    this.fields.set(name, field);
    this.onChange();
  }

  /** @param {string} name */
  remove(name) {
    this.fields.get(name)?.closest("li")?.remove();
    this.fields.delete(name);
    this.onChange();
  }

  /** @returns {string} such as "law × 0.5, code × 1"; empty for none */
  describe() {
    return [...this.fields].map(([name, field]) => `${name} × ${field.value || "?"}`).join(", ");
  }

  /** @returns {{name: string, weight: number}[] | null} null if a factor is invalid, which the browser reports */
  read() {
    const entries = [...this.fields];
    if (!entries.every(([, field]) => field.reportValidity())) return null;
    return entries.map(([name, field]) => ({ name, weight: field.valueAsNumber }));
  }
}
