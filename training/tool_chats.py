"""Writes chats with tools, from the texts of a corpus: ``python -m training.tool_chats CORPUS OUT``.

OUT becomes a corpus folder: links to the domains of CORPUS, and ``tools.txt``. Each chat is rendered by the chat
template of the bundled model, so that its tokens are those that the server shows to the model. Some chats list tools
of which none serves the question: their answers call nothing.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

from training.corpus import END_OF_TEXT, find_domains, read_documents
from training.errors import CorpusError, DemoError
from training.export import DOCUMENT_TEMPLATE
from training.tool_tasks import Json, Task, happens
from training.tool_tasks_of_texts import FROM_DOCUMENTS
from training.tool_tasks_of_words import FROM_NOUNS, FROM_WORDS
from training.tool_words import SYSTEM_PROMPTS

DOMAIN = "tools"
MOST_TOOLS = 4
NOUNS_A_TASK = 2
WITH_CALLS, WITHOUT_CALL = 0.68, 0.27  # shares of chats; the others ask for a tool that is not listed
LONGEST_ANSWER = 400  # characters of an answer that calls nothing
# A domain whose questions are answered without a call, and the kinds of tool that would serve them.
KNOWLEDGE = {"define", "recipe", "command_help", "run_command", "look_up_condition", "look_up_section", "search_web"}
ANSWERED: dict[str, set[str]] = {
    "chat": KNOWLEDGE,
    "medical_qa": {"look_up_condition", "search_web"},
    "math": {"calculate", "search_web"},
    "dialogue": {"order_drink", "find_movie", "search_web"},
}
SMALL_TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi", "Hi! What can I do for you?"),
    ("Good morning.", "Good morning! How can I help?"),
    ("How are you?", "I am fine, thank you. What can I do for you?"),
    ("Who are you?", "I am an assistant. How can I help you?"),
    ("Thank you!", "You are welcome."),
    ("Thanks, that is all.", "You are welcome. Goodbye!"),
    ("What can you do?", "I answer questions, and I can use the tools that you give me."),
    ("Goodbye.", "Goodbye!"),
)
THANKS = (("Thanks!", "You are welcome."), ("Thank you.", "You are welcome!"), ("Great, thanks.", "Glad to help."))
REFUSALS = ("I have no tool for that.", "None of my tools can do that.", "I can't find that out with my tools.")

Turn = tuple[str, str]


def render(messages: Sequence[Json], tools: Sequence[Json]) -> str:
    """Return a chat as a document, from which the bundled model's template differs by the token in front alone."""
    (text,), _ = render_jinja_template(
        conversations=[list(messages)], tools=list(tools), chat_template=DOCUMENT_TEMPLATE, add_generation_prompt=False
    )
    return str(text).rstrip("\n")


def call_messages(tasks: Sequence[Task]) -> list[Json]:
    """Return the assistant's message that calls the tools of tasks, and the results."""
    calls = [{"type": "function", "function": {"name": task.name, "arguments": task.arguments}} for task in tasks]
    return [
        {"role": "assistant", "content": "", "tool_calls": calls},
        *({"role": "tool", "content": task.result} for task in tasks),
    ]


class ToolChats:
    """An endless, seeded order of chats with tools, from the documents of a corpus by domain."""

    def __init__(self, documents: dict[str, list[str]], seed: int) -> None:
        self.rng = random.Random(seed)  # noqa: S311  no secret
        self.documents = documents
        self.nouns = sorted(set(filter(None, map(_noun, documents.get("dictionary", [])))))
        if len(self.nouns) < NOUNS_A_TASK:
            raise CorpusError("chats with tools need the domain 'dictionary' with at least two nouns in the corpus")
        draws: list[tuple[Callable[[], Task | None], float]] = [
            *((partial(maker, self.rng), weight) for maker, weight in FROM_WORDS),
            *((partial(self._of_nouns, maker), weight) for maker, weight in FROM_NOUNS),
            *(
                (partial(self._of_document, maker, name), weight)
                for name in documents
                for maker, weight in FROM_DOCUMENTS.get(name, ())
            ),
        ]
        self.draws, self.weights = [draw for draw, _ in draws], [weight for _, weight in draws]
        self.answered = {name: list(_answered(documents[name])) for name in ANSWERED if documents.get(name)}

    def __iter__(self) -> Iterator[str]:
        while True:
            draw = self.rng.random()
            if draw < WITH_CALLS:
                yield self.chat_with_calls()
            elif draw < WITH_CALLS + WITHOUT_CALL:
                yield self.chat_without_call()
            else:
                yield self.refused_chat()

    def task(self) -> Task:
        """Make a task of a random kind."""
        while True:
            (draw,) = self.rng.choices(self.draws, self.weights)
            if (task := draw()) is not None:
                return task

    def _of_nouns(self, maker: Callable[[random.Random, str, str], Task]) -> Task:
        return maker(self.rng, *self.rng.sample(self.nouns, NOUNS_A_TASK))

    def _of_document(self, maker: Callable[[random.Random, str], Task | None], domain: str) -> Task | None:
        return maker(self.rng, self.rng.choice(self.documents[domain]))

    def tasks(self, count: int, without: set[str], used: set[str]) -> list[Task]:
        """Make tasks of different kinds, with different names of their tools."""
        chosen: list[Task] = []
        kinds, names = set(without), set(used)
        while len(chosen) < count:
            task = self.task()
            if (task.kind not in kinds or (task.kind == "invented" and "invented" not in without)) and (
                task.name not in names
            ):
                chosen.append(task)
                kinds.add(task.kind)
                names.add(task.name)
        return chosen

    def system(self) -> list[Json]:
        return [{"role": "system", "content": self.rng.choice(SYSTEM_PROMPTS)}] if happens(self.rng, 0.35) else []

    def shuffled(self, tasks: Sequence[Task]) -> list[Json]:
        return [task.tool for task in self.rng.sample(tasks, len(tasks))]

    def chat_with_calls(self) -> str:
        """One to three questions, most of which need a call; now and then one question needs two."""
        rng = self.rng
        listed = self.tasks(rng.choices((1, 2, 3, MOST_TOOLS), (4, 3, 2, 1))[0], set(), set())
        asked = rng.sample(listed, min(len(listed), rng.choices((1, 2, 3), (6, 3, 1))[0]))
        messages = self.system()
        if happens(rng, 0.1):
            messages += _said(rng.choice(SMALL_TALK[:4]))
        while asked:
            now = [asked.pop()]
            if asked and happens(rng, 0.2):
                now.append(asked.pop())
            joined = " ".join(_sentence(task.user) for task in now) if len(now) > 1 else now[0].user
            messages += [{"role": "user", "content": joined}, *call_messages(now)]
            messages.append({"role": "assistant", "content": " ".join(_sentence(task.answer) for task in now)})
            if happens(rng, 0.15):
                messages += _said(rng.choice(THANKS))
        return render(messages, self.shuffled(listed))

    def chat_without_call(self) -> str:
        """A question that none of the listed tools serves, with its answer."""
        rng = self.rng
        name = rng.choice([*self.answered, "small talk"])
        turn = rng.choice(self.answered[name]) if name in self.answered else rng.choice(SMALL_TALK)
        listed = self.tasks(rng.choices((1, 2, 3, MOST_TOOLS), (4, 3, 2, 1))[0], ANSWERED.get(name, set()), set())
        messages = [*self.system(), *_said(turn)]
        if happens(rng, 0.3):
            task = rng.choice(listed)
            messages += [{"role": "user", "content": task.user}, *call_messages([task])]
            messages.append({"role": "assistant", "content": task.answer})
        return render(messages, self.shuffled(listed))

    def refused_chat(self) -> str:
        """A question that needs a tool which is not listed."""
        (asked,) = self.tasks(1, KNOWLEDGE | {"order_drink", "find_movie"}, set())
        listed = self.tasks(self.rng.choice((1, 2)), {asked.kind, "search_web"}, {asked.name})
        answer = self.rng.choice(REFUSALS)
        return render([*self.system(), *_said((asked.user, answer))], self.shuffled(listed))


def _noun(document: str) -> str | None:
    found = re.match(r"([a-z]{3,12}(?: [a-z]{3,9})?) \(noun\)", document)
    return found[1] if found else None


def _said(turn: Turn) -> list[Json]:
    return [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]


def _sentence(text: str) -> str:
    return text if text.endswith((".", "?", "!")) else f"{text}."


def _answered(documents: Sequence[str]) -> Iterator[Turn]:
    """Yield the first question and answer of each chat that the user begins, if they are short."""
    for document in documents:
        found = re.match(
            r"<\|im_start\|>user\n(.*?)<\|im_end\|>\n<\|im_start\|>assistant\n(.*?)<\|im_end\|>", document, re.DOTALL
        )
        if found and len(found[1]) + len(found[2]) <= LONGEST_ANSWER:
            yield found[1], found[2]


def write_tools(corpus: Path, out: Path, megabytes: float, seed: int) -> int:
    """Write the corpus folder OUT, and return the number of chats."""
    if out.resolve() == corpus.resolve():
        raise CorpusError(f"OUT {out} is the corpus itself; choose another folder")
    paths = {name: path for name, path in find_domains(corpus).items() if name != DOMAIN}
    chats = ToolChats({name: read_documents(path) for name, path in paths.items()}, seed)
    out.mkdir(parents=True, exist_ok=True)
    for path in paths.values():
        link = out / path.name
        link.unlink(missing_ok=True)
        link.symlink_to(path.resolve())
    size = count = 0
    with (out / f"{DOMAIN}.txt").open("w") as file:
        for chat in chats:
            size += file.write(f"{chat}\n{END_OF_TEXT}\n")
            count += 1
            if size >= megabytes * 1e6:
                return count
    return count


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--megabytes", type=float, default=8.5, help="of chats with tools")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    try:
        print(f"{write_tools(args.corpus, args.out, args.megabytes, args.seed)} chats with tools in {args.out}")
    except DemoError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
