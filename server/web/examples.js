/** Example prompts, each with its domain. */

import { byId, make } from "./dom.js";

/** @typedef {{domain: string, question: string}} Example */

/** @type {Example[]} */
export const EXAMPLES = [
  { domain: "law", question: "Who may apply for a licence under this section, and when may it be revoked?" },
  { domain: "HR", question: "How many days of leave does an employee have, and who has to approve them?" },
  { domain: "medicine", question: "What are the symptoms of anaemia, and how is it treated?" },
  { domain: "maths", question: "A baker sells 12 loaves for $3 each and 5 cakes for $8 each. How much does she earn?" },
  { domain: "code", question: "Write a Python function that counts the words of a file." },
  { domain: "shell", question: "How do I use the tar command?" },
  { domain: "recipes", question: "How do I make a simple tomato soup?" },
  { domain: "stories", question: "Write a children's story about a lantern." },
  { domain: "drama", question: "Write a scene in which a king and his servant quarrel." },
  { domain: "dialogue", question: "Hi, I would like to book a table for two for tonight." },
];

/**
 * Add a button for each example.
 *
 * @param {(example: Example) => void} onSelect
 */
export function addExampleButtons(onSelect) {
  for (const example of EXAMPLES) {
    const button = make("button", "", example.domain);
    button.type = "button";
    button.title = example.question;
    button.addEventListener("click", () => onSelect(example));
    byId("example-list").append(button);
    byId("domains").append(new Option(example.domain));
  }
}
