"""Chats with a right choice of the model ``auto``: one question, another topic, a follow-up, no topic.

They were written before the choice was tuned, and are not among the examples of the bundled adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from training.errors import DemoError

ANSWER = "All right."  # of the assistant, which is not compared
BASE = None
LEGAL, PYTHON, RECIPES = ADAPTERS = "legal", "python", "recipes"


@dataclass(frozen=True)
class Chat:
    """The turns of a user, and the adapter for the answer to the last one; None for the base model."""

    turns: Sequence[str]
    adapter: str | None
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat with an answer after each turn but the last."""
        *before, last = self.turns
        earlier = [
            message
            for turn in before
            for message in ({"role": "user", "content": turn}, {"role": "assistant", "content": ANSWER})
        ]
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*system, *earlier, {"role": "user", "content": last}]


ONE_QUESTION = (
    Chat(["How do I boil rice?"], RECIPES),
    Chat(["How long do I bake a sponge cake?"], RECIPES),
    Chat(["What can I cook with chicken and carrots?"], RECIPES),
    Chat(["Give me a recipe for onion soup."], RECIPES),
    Chat(["def fibonacci(n):"], PYTHON),
    Chat(["Write a function that sorts a list of numbers."], PYTHON),
    Chat(["How do I read a file line by line in Python?"], PYTHON),
    Chat(["class Queue:\n    def __init__(self):"], PYTHON),
    Chat(["What are the duties of the Mayor under this chapter?"], LEGAL),
    Chat(["What is the fine for a person who violates this section?"], LEGAL),
    Chat(["Who may apply for a license, and when does it expire?"], LEGAL),
    Chat(["May the Council amend a regulation?"], LEGAL),
)
ANOTHER_TOPIC = (
    Chat(["What is the fine for selling without a license?", "How do I roast a leg of lamb?"], RECIPES),
    Chat(["What is the fine for selling without a license?", "def is_prime(n):"], PYTHON),
    Chat(["How do I make apple pie?", "Write a Python class for a bank account."], PYTHON),
    Chat(["How do I make apple pie?", "When must the Board submit its annual report to the Council?"], LEGAL),
    Chat(["import json\n\ndef load(path):", "Which spices go into a curry?"], RECIPES),
    Chat(["import json\n\ndef load(path):", "Is a tenant entitled to notice before an eviction?"], LEGAL),
    Chat(
        [
            "How do I make apple pie?",
            "And how long does it bake?",
            "Thanks! Now write a loop that prints the numbers up to ten.",
        ],
        PYTHON,
    ),
    Chat(["Write a loop in Python.", "Can you add a docstring?", "What do I need for pancakes?"], RECIPES),
    Chat(["How do I fry fish?", "Who are you?"], BASE),
    Chat(["def add(a, b):\n    return a + b", "Tell me a story about a king."], BASE),
    Chat(["What does section 12 say about fees?", "What is the weather like today?"], BASE),
    Chat(["Which sauce goes with beef?", "Thank you! What is the capital of France?"], BASE),
)
FOLLOW_UP = (
    Chat(["How do I boil rice?", "And then?"], RECIPES),
    Chat(["Give me a recipe for pumpkin bread with butter and eggs.", "How much of that?"], RECIPES),
    Chat(["How do I roast potatoes in the oven?", "Why?"], RECIPES),
    Chat(["How do I make apple pie?", "And how long?", "Go on."], RECIPES),
    Chat(["def factorial(n):\n    if n == 0:\n        return 1", "Continue."], PYTHON),
    Chat(["How do I read a CSV file in Python?", "And then?"], PYTHON),
    Chat(["Write a class with a constructor and a method.", "Explain that again."], PYTHON),
    Chat(["import re\n\nclass Parser:", "Go on."], PYTHON),
    Chat(["What are the duties of the Mayor under this chapter?", "And then?"], LEGAL),
    Chat(["What is the penalty for violating this section?", "Is that all?"], LEGAL),
    Chat(["Who may be appointed to the Board?", "And for how long?"], LEGAL),
    Chat(["(a) The Director shall issue a permit to an applicant who", "Continue."], LEGAL),
)
NO_TOPIC = (
    Chat(["Hello! How are you?"], BASE),
    Chat(["Tell me a joke."], BASE),
    Chat(["Who was Napoleon?"], BASE),
    Chat(["What is 17 plus 25?"], BASE),
    Chat(["I have a headache. What should I do?"], BASE),
    Chat(["Hi", "Nice to meet you. What can you do?"], BASE),
    Chat(["Write a poem about the sea.", "And then?"], BASE),
    Chat(["What does the word brave mean?"], BASE),
)
SYSTEM_PROMPT = (
    Chat(["How do I boil rice?"], RECIPES, "You are a helpful assistant."),
    Chat(["def fibonacci(n):"], PYTHON, "You are a cook who loves food and knows every recipe."),
    Chat(["What do I need for pancakes?"], RECIPES, "You are a lawyer. Answer with sections of the code."),
    Chat(["Hello! How are you?"], BASE, "You are an expert Python programmer."),
)
CHATS = {
    "one question": ONE_QUESTION,
    "another topic": ANOTHER_TOPIC,
    "a follow-up": FOLLOW_UP,
    "no topic": NO_TOPIC,
    "a system prompt": SYSTEM_PROMPT,
}


def chosen_for(client: httpx.Client, messages: list[dict[str, str]]) -> str:
    """Return the model that ``auto`` chooses for a chat."""
    response = client.post("/v1/chat/completions", json={"model": "auto", "messages": messages, "max_tokens": 1})
    if response.is_error:
        raise DemoError(f"the server refuses a chat for the model auto: {response.text}")
    return str(response.json()["model"])


def measure_chats(client: httpx.Client, base: str) -> dict[str, dict[str, int]]:
    """Return how many chats of each kind there are, and for how many ``auto`` chooses the right model."""
    return {
        kind: {
            "chats": len(chats),
            "right": sum(chosen_for(client, chat.messages) == (chat.adapter or base) for chat in chats),
        }
        for kind, chats in CHATS.items()
    }
