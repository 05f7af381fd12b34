"""Makes tasks for tools from documents of the corpus.

Each maker takes a random generator first, so that the same seed gives the same tasks, and returns None for a document
that does not fit. ``FROM_DOCUMENTS`` has the makers of each domain, with their weights.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from training import tool_words as words
from training.tool_tasks import MAX_VALUE, Json, Task, happens, make_tool, one_of, shorten, text, usable

LONGEST_TURN = 160  # characters of a user's turn in a dialogue
LONGEST_QUESTION = 90  # characters of a search
SHORTEST_RECIPE = 40  # characters


def define(rng: random.Random, document: str) -> Task | None:
    """Look a word up, from ``dictionary``."""
    found = re.match(r"(.+?) \((?:noun|verb|adjective|adverb)\)\n(?:1\. )?(.+)", document)
    if not found or not usable(found[1]):
        return None
    word, gloss = found[1], shorten(re.split(r" (?:Example|Synonyms)", found[2])[0])
    key = rng.choice(["word", "term", "word", "query"])
    tool = make_tool(
        rng,
        "define_word look_up_word define dictionary get_definition lookup_definition",
        rng.choice(["Look up the meaning of a word.", "Returns the definition of a word.", "Dictionary of English."]),
        {key: text("The word to look up.")},
        [key],
    )
    user = rng.choice(
        [
            'What does "{}" mean?',
            "Define {}.",
            "What is the meaning of {}?",
            "Please look up the word {}.",
            "{}: what is that?",
        ]
    ).format(word)
    return Task("define", tool, user, {key: word}, gloss, rng.choice(['"{}" means: {}', "{}: {}"]).format(word, gloss))


def recipe(rng: random.Random, document: str) -> Task | None:
    """Find a recipe, from ``recipes``."""
    title, _, body = document.partition("\n")
    dish = title.strip(" .").split(",")[0].lower()
    if not usable(dish) or len(body.strip()) < SHORTEST_RECIPE:
        return None
    key = rng.choice(["dish", "name", "recipe", "query"])
    tool = make_tool(
        rng,
        "find_recipe search_recipes get_recipe recipe recipe_search",
        rng.choice(["Find a recipe for a dish.", "Returns a recipe.", "Search the cookbook."]),
        {key: text("Name of the dish.")},
        [key],
    )
    user = rng.choice(
        [
            "How do I make {}?",
            "Find me a recipe for {}.",
            "I want to cook {}.",
            "Give me the recipe for {}.",
            "What goes into {}?",
        ]
    ).format(dish)
    result = shorten(re.sub(r"^\W*\d+\. ", "", body.strip()))
    return Task(
        "recipe", tool, user, {key: dish}, result, rng.choice(["For {}: {}", "Here is {}. {}"]).format(dish, result)
    )


def command_help(rng: random.Random, document: str) -> Task | None:
    """Explain a command, from ``shell``."""
    command, _, body = document.partition("\n")
    summary = shorten(body.strip().partition("\n")[0])
    if not usable(command) or not summary or summary.startswith("#"):
        return None
    key = rng.choice(["command", "name", "program"])
    tool = make_tool(
        rng,
        "command_help man explain_command get_help man_page",
        rng.choice(["Explain a shell command.", "Returns the manual page of a command.", "Help for the shell."]),
        {key: text("The command.")},
        [key],
    )
    user = rng.choice(
        ["What does {} do?", "Explain the command {}.", "How do I use {}?", "What is `{}` for?", "Help me with {}."]
    ).format(command)
    return Task(
        "command_help", tool, user, {key: command}, summary, rng.choice(["{}: {}", "`{}`: {}"]).format(command, summary)
    )


def run_command(rng: random.Random, document: str) -> Task | None:
    """Run a command, from an example in ``shell``."""
    examples = [
        (what, line)
        for what, line in re.findall(r"^# (.+):\n(.+)$", document, re.MULTILINE)
        if usable(line) and usable(what)
    ]
    if not examples:
        return None
    what, line = rng.choice(examples)
    key = rng.choice(["command", "cmd", "script"])
    tool = make_tool(
        rng,
        "run_command execute shell run_shell bash",
        rng.choice(["Run a shell command.", "Executes a command and returns its output."]),
        {key: text("The command line.")},
        [key],
    )
    user = rng.choice(["Run `{1}`.", "Execute {1}", "{0}: {1}", "Please run this: {1}"]).format(what, line)
    result = rng.choice(["exit status 0", "ok", "done", "error: permission denied", "error: not found"])
    answer = f"It failed: {result[7:]}." if result.startswith("error") else f"Done: {line}"
    return Task("run_command", tool, user, {key: line}, result, answer)


def calculate(rng: random.Random, document: str) -> Task | None:
    """Evaluate an expression, from ``math``."""
    found = re.findall(r"(?<![\d.$])(\d+(?: ?[-+*/x] ?\d+)+) ?= ?\$?(\d+(?:\.\d+)?)(?![\d/])", document)
    if not found:
        return None
    shown, value = rng.choice(found)
    expression = re.sub(r" ?([-+*/x]) ?", lambda sign: f" {'*' if sign[1] == 'x' else sign[1]} ", shown)
    key = rng.choice(["expression", "formula", "expr"])
    tool = make_tool(
        rng,
        "calculate calculator evaluate compute eval_expression",
        rng.choice(["Evaluate an arithmetic expression.", "A calculator.", "Computes a result."]),
        {key: text("For example 2 + 3 * 4.")},
        [key],
    )
    asked = rng.choice([shown, expression])
    user = rng.choice(["What is {}?", "Calculate {}.", "How much is {}?", "Compute {} for me.", "{} = ?"]).format(asked)
    answer = rng.choice(["{} is {}.", "{} = {}", "The answer is {1}."]).format(expression, value)
    return Task("calculate", tool, user, {key: expression}, value, answer)


def first_user_turn(document: str) -> str:
    found = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", document, re.DOTALL)
    return found[1].strip() if found else ""


def order_drink(rng: random.Random, document: str) -> Task | None:
    """Order the drink that a ``dialogue`` asks for."""
    user = first_user_turn(document)
    lower = user.lower()
    drink = next((each for each in words.DRINKS if re.search(rf"\b{each}\b", lower)), None)
    if drink is None or len(user) > LONGEST_TURN:
        return None
    properties: Json = {"drink": text("The drink.")}
    arguments: Json = {"drink": drink}
    for key, values in (("size", words.SIZES), ("milk", words.MILKS)):
        value = next((each for each in values if re.search(rf"\b{each}\b", lower)), None)
        if value or happens(rng, 0.3):
            properties[key] = one_of(values)
        if value:
            arguments[key] = value
    tool = make_tool(
        rng,
        "order_drink order_coffee order place_order coffee_order",
        rng.choice(["Order a drink at the coffee bar.", "Places an order.", "Coffee orders."]),
        properties,
        ["drink"],
    )
    minutes = rng.randint(2, 20)
    result = rng.choice(['{{"ready_in_minutes": {}}}', "ready in {} minutes"]).format(minutes)
    return Task("order_drink", tool, user, arguments, result, f"Your {drink} will be ready in {minutes} minutes.")


def find_movie(rng: random.Random, document: str) -> Task | None:
    """Find the film that a ``dialogue`` asks for."""
    turns = re.findall(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", document, re.DOTALL)
    user, movie = next(
        ((turn, movie) for turn in turns for movie in words.MOVIES if re.search(rf"\b{movie}\b", turn)), ("", "")
    )
    if not movie or len(user) > LONGEST_TURN:
        return None
    key = rng.choice(["movie", "title", "film"])
    tool = make_tool(
        rng,
        "find_showtimes showtimes search_movies movie_times find_movie",
        rng.choice(["Find the showtimes of a movie.", "Cinema programme."]),
        {key: text("Title of the movie.")},
        [key],
    )
    time = f"{rng.randint(1, 11)}:{rng.choice(['00', '15', '30', '45'])} pm"
    return Task("find_movie", tool, user, {key: movie}, time, f"{movie} is shown at {time}.")


def look_up_condition(rng: random.Random, document: str) -> Task | None:
    """Look an illness up, from ``medical_qa``."""
    user = first_user_turn(document)
    found = re.match(
        r"(?:What (?:is|are|causes)|How to diagnose|Who is at risk for|What are the (?:symptoms|treatments|"
        r"genetic changes|complications) (?:of|for|related to)|Is|How many people are affected by) "
        r"(?:\(are\) )?(?:the |a )?(.+?)(?: inherited)? ?\?$",
        user,
    )
    if not found or not usable(found[1]):
        return None
    key = rng.choice(["condition", "disease", "topic", "name"])
    tool = make_tool(
        rng,
        "look_up_condition medical_search find_disease health_info get_condition",
        rng.choice(["Look up a medical condition.", "Returns facts about a disease.", "Health encyclopedia."]),
        {key: text("Name of the condition.")},
        [key],
    )
    result = shorten(document.rsplit("<|im_start|>assistant\n", 1)[-1].removesuffix("<|im_end|>").lstrip("- "))
    return Task("look_up_condition", tool, user, {key: found[1]}, result, result)


def look_up_section(rng: random.Random, document: str) -> Task | None:
    """Look a section of the code up, from ``legal``."""
    found = re.match(r"Section (\S+)\. (.+)", document)
    if not found or not usable(found[1]):
        return None
    section, title = found[1], shorten(found[2])
    key = rng.choice(["section", "number", "id"])
    tool = make_tool(
        rng,
        "look_up_section get_section legal_code find_law read_statute",
        rng.choice(["Returns a section of the legal code.", "Look up the law."]),
        {key: text("Number of the section.")},
        [key],
    )
    user = rng.choice(
        ["What does section {} say?", "Look up section {} of the code.", "What is section {} about?", "Read me {}."]
    ).format(section)
    return Task("look_up_section", tool, user, {key: section}, title, f"Section {section} is about this: {title}")


def search_web(rng: random.Random, document: str) -> Task | None:
    """Search for the question of a chat, from ``medical_qa`` or ``chat``."""
    question = first_user_turn(document)
    answer = document.rsplit("<|im_start|>assistant\n", 1)[-1].removesuffix("<|im_end|>")
    if (
        not question
        or len(question) > LONGEST_QUESTION
        or not usable(question[:MAX_VALUE])
        or '"' in question
        or "\n" in question
    ):
        return None
    key = rng.choice(["query", "q", "question"])
    tool = make_tool(
        rng,
        "search_web web_search search google find_pages",
        rng.choice(["Search the web.", "Returns pages that match a query."]),
        {key: text("What to search for.")},
        [key],
    )
    query = question.rstrip("?. ")
    user = rng.choice(["Search the web: {}", "Search for this: {}", "Look this up online: {}", "Google {}"]).format(
        query
    )
    result = shorten(answer)
    return Task("search_web", tool, user, {key: query}, result, result)


FROM_DOCUMENTS: dict[str, tuple[tuple[Callable[[random.Random, str], Task | None], float], ...]] = {
    "dictionary": ((define, 1.0),),
    "recipes": ((recipe, 0.7),),
    "shell": ((command_help, 0.5), (run_command, 0.7)),
    "math": ((calculate, 1.0),),
    "dialogue": ((order_drink, 0.8), (find_movie, 0.8)),
    "medical_qa": ((look_up_condition, 0.8), (search_web, 0.5)),
    "legal": ((look_up_section, 0.5),),
}
