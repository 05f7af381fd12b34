/** The tiers panel: one gauge of resident experts per tier. */

import { byId, make, write } from "./dom.js";
import { DISK } from "./experts.js";
import { count, seconds, size } from "./format.js";

/**
 * @typedef {import("./experts.js").Experts} Experts
 * @typedef {import("./experts.js").Totals} Totals
 * @typedef {{share: number, amount: string, note: string}} Reading
 */

const UPDATE_INTERVAL_MS = 250;
/** @type {Record<string, string>} */
const TITLES = { device: "Device memory", host: "Host memory", disk: "Disk", download: "Download" };

/** @param {NonNullable<Totals["download"]>} download */
function describeDownload({ held_bytes, total_bytes, seconds_left, reason }) {
  const waits = reason ? `; the rest waits: ${reason}` : "";
  const left = seconds_left === null ? waits : seconds_left ? `, ${seconds(seconds_left)} left` : ", complete";
  return {
    share: total_bytes ? held_bytes / total_bytes : 0,
    amount: `${size(held_bytes)} of ${size(total_bytes)}`,
    note: `of the model's files on the disk${left}`,
  };
}

export class Tiers {
  /** @param {HTMLElement} box */
  constructor(box) {
    this.box = box;
    this.deviceKey = byId("device-key"); // entry of the heatmap's legend
    /** @type {Map<string, {amount: HTMLElement, meter: HTMLElement, bar: HTMLElement, note: HTMLElement}>} */
    this.gauges = new Map();
    this.shownAt = -Infinity;
  }

  /**
   * @param {Totals} totals
   * @param {Experts} experts
   * @param {number} now
   */
  show(totals, experts, now) {
    if (now - this.shownAt < UPDATE_INTERVAL_MS) return;
    this.shownAt = now;
    const { device, host, disk } = totals.tiers;
    this.deviceKey.hidden = !device;
    for (const [name, tier] of /** @type {const} */ ([["device", device], ["host", host]])) {
      if (!tier) continue;
      this.write(name, {
        share: tier.num_slots ? tier.num_resident / tier.num_slots : 0,
        amount: `${count(tier.num_resident)} of ${count(tier.num_slots)} slots`,
        note: `${size(tier.resident_bytes)} of ${size(tier.budget_bytes)}, ${count(tier.num_pinned)} pinned`,
      });
    }
    const onDisk = experts.residency.reduce((sum, tier) => sum + (tier === DISK ? 1 : 0), 0);
    this.write("disk", {
      share: disk.num_experts ? onDisk / disk.num_experts : 0,
      amount: `${count(onDisk)} of ${count(disk.num_experts)} experts`,
      note: `not in memory; all experts together ${size(disk.total_bytes)}`,
    });
    if (totals.download) this.write("download", describeDownload(totals.download));
  }

  /**
   * @param {string} name
   * @param {Reading} reading
   */
  write(name, { share, amount, note }) {
    const gauge = this.gauges.get(name) ?? this.add(name);
    const percentage = Math.round(100 * share);
    write(gauge.amount, amount);
    write(gauge.note, note);
    gauge.meter.setAttribute("aria-valuenow", String(percentage));
    gauge.meter.setAttribute("aria-valuetext", `${amount}, ${note}`);
    gauge.bar.style.width = `${percentage}%`;
  }

  /** @param {string} name */
  add(name) {
    const title = make("p", "tier-name");
    const amount = make("span");
    title.append(make("span", "", TITLES[name]), amount);
    const meter = make("div", "meter");
    meter.setAttribute("role", "meter");
    meter.setAttribute("aria-label", TITLES[name]);
    const bar = make("div", name);
    meter.append(bar);
    const note = make("p", "tier-note");
    const box = make("div");
    box.append(title, meter, note);
    this.box.append(box);
    const gauge = { amount, meter, bar, note };
    this.gauges.set(name, gauge);
    return gauge;
  }
}
