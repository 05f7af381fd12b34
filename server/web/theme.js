/** Light or dark: as the system is, or as the switch says. */

const CHOICE = "greenroom-theme"; // of localStorage
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
export function offerThemes(select, onChange) {
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
