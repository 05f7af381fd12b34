/** The light or dark theme: the system's, or the one that the user picked. */

const CHOICE = "greenroom-theme"; // key in localStorage
const SYSTEM = matchMedia("(prefers-color-scheme: dark)");

/** @returns {boolean} */
export function isDark() {
  const choice = document.documentElement.dataset.theme;
  return choice ? choice === "dark" : SYSTEM.matches;
}

/**
 * @param {HTMLSelectElement} select
 * @param {() => void} onChange
 */
export function initThemePicker(select, onChange) {
  /** @param {string} choice */
  const apply = (choice) => {
    if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
    else delete document.documentElement.dataset.theme;
  };
  const saved = localStorage.getItem(CHOICE) ?? "system";
  apply(saved);
  select.value = document.documentElement.dataset.theme ?? "system";
  select.addEventListener("change", () => {
    apply(select.value);
    localStorage.setItem(CHOICE, select.value);
    onChange();
  });
  SYSTEM.addEventListener("change", onChange);
}
