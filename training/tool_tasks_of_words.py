"""Makes tasks for tools from lists of words: everyday tools, and tools that exist nowhere.

Each maker takes a random generator first, so that the same seed gives the same tasks. ``FROM_WORDS`` and
``FROM_NOUNS`` have the makers with their weights; the latter also take two nouns.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from training import tool_words as words
from training.tool_tasks import Json, Task, happens, make_tool, one_of, text


def city_of(rng: random.Random) -> str:
    return rng.choice(words.LONG_CITIES) if happens(rng, 0.15) else rng.choice(words.CITIES)


def weather(rng: random.Random) -> Task:
    city, sky, degrees = city_of(rng), rng.choice(words.SKIES), rng.randint(-15, 38)
    key = rng.choice(["city", "city", "location", "place"])
    properties: Json = {
        key: text(rng.choice(["The city.", "Name of the city, for example Paris.", "City and country."]))
    }
    arguments: Json = {key: city}
    required = [key]
    asked = rng.choice(
        [
            "What is the weather in {}?",
            "Is it warm in {}?",
            "How is the weather in {} today?",
            "Will it rain in {}?",
            "Weather in {}?",
            "What's the weather like in {}?",
            "Do I need a coat in {}?",
            "How cold is it in {} now?",
            "Tell me the temperature in {}.",
            "Is it raining in {}?",
        ]
    ).format(city)
    if happens(rng, 0.4):
        units = rng.choice([("celsius", "fahrenheit"), ("metric", "imperial"), ("C", "F")])
        properties["unit"] = one_of(units)
        unit = units[0]
        if happens(rng, 0.4):
            unit = rng.choice(units)
            asked = asked.rstrip("?.") + f" in {unit}?"
            arguments["unit"] = unit
        elif happens(rng, 0.5):
            required = [key, "unit"]
            arguments["unit"] = unit
    tool = make_tool(
        rng,
        "get_weather weather current_weather get_current_weather weather_forecast get_forecast",
        rng.choice(
            ["The weather of a city.", "Get the current weather.", "Returns the weather in a place.", "Get weather"]
        ),
        properties,
        required,
    )
    result = rng.choice(['{{"temperature": {0}, "sky": "{1}"}}', "{0} degrees, {1}", "It has {0} degrees, with {1}."])
    answer = rng.choice(["It has {0} degrees in {2}, with {1}.", "In {2} it is {0} degrees, with {1}."])
    return Task("weather", tool, asked, arguments, result.format(degrees, sky), answer.format(degrees, sky, city))


def local_time(rng: random.Random) -> Task:
    city, time = city_of(rng), f"{rng.randint(0, 23):02}:{rng.randint(0, 59):02}"
    key = rng.choice(["city", "location", "place"])
    tool = make_tool(
        rng,
        "get_time local_time current_time clock time_in",
        rng.choice(["The local time of a city.", "Returns the time."]),
        {key: text("The city.")},
        [key],
    )
    user = rng.choice(["What time is it in {}?", "Tell me the time in {}.", "How late is it in {}?", "Time in {}?"])
    return Task("local_time", tool, user.format(city), {key: city}, time, f"It is {time} in {city}.")


def reminder(rng: random.Random) -> Task:
    chore, time = rng.choice(words.CHORES), f"{rng.randint(6, 22)}:{rng.choice(['00', '15', '30', '45'])}"
    key = rng.choice(["text", "task", "what"])
    when = rng.choice(["time", "at"])
    tool = make_tool(
        rng,
        "set_reminder remind create_reminder add_reminder",
        rng.choice(["Set a reminder.", "Reminds the user of a task."]),
        {key: text("What to remember."), when: text("The time.")},
        [key, when],
    )
    user = rng.choice(["Remind me to {} at {}.", "Please remind me at {1} to {0}.", "Set a reminder: {} at {}."])
    return Task(
        "reminder",
        tool,
        user.format(chore, time),
        {key: chore, when: time},
        "ok",
        f"I will remind you to {chore} at {time}.",
    )


def timer(rng: random.Random) -> Task:
    minutes = rng.randint(1, 90)
    key = rng.choice(["minutes", "duration", "min"])
    tool = make_tool(
        rng,
        "set_timer start_timer timer",
        rng.choice(["Start a timer.", "Sets a timer in minutes."]),
        {key: {"type": "integer", "description": "Minutes."}},
        [key],
    )
    user = rng.choice(
        ["Set a timer for {} minutes.", "Start a timer of {} minutes.", "Wake me in {} minutes.", "Timer: {} min"]
    )
    return Task(
        "timer", tool, user.format(minutes), {key: minutes}, "started", f"The timer runs for {minutes} minutes."
    )


def email(rng: random.Random) -> Task:
    person, subject = rng.choice(words.PEOPLE), rng.choice(words.SUBJECTS)
    to, about = rng.choice(["to", "recipient", "name"]), rng.choice(["subject", "topic", "about"])
    tool = make_tool(
        rng,
        "send_email send_message write_email send_mail message",
        rng.choice(["Send an email.", "Sends a message to a person."]),
        {to: text("The recipient."), about: text("The subject.")},
        [to, about],
    )
    user = rng.choice(
        ["Write to {} about {}.", "Send {} an email about {}.", "Tell {} about {}.", "Mail {} about {}, please."]
    )
    return Task(
        "email",
        tool,
        user.format(person, subject),
        {to: person, about: subject},
        rng.choice(["sent", '{"status": "sent"}']),
        f"I wrote to {person} about {subject}.",
    )


def translate(rng: random.Random, noun: str, other: str) -> Task:
    language = rng.choice(words.LANGUAGES)
    key, to = rng.choice(["text", "word", "phrase"]), rng.choice(["language", "to", "target"])
    tool = make_tool(
        rng,
        "translate translate_text translator",
        rng.choice(["Translate a text.", "Translates into another language."]),
        {key: text("The text."), to: text("The language.")},
        [key, to],
    )
    user = rng.choice(
        ["Translate {} into {}.", "How do you say {} in {}?", "What is {} in {}?", 'Translate "{}" to {}.']
    )
    return Task(
        "translate",
        tool,
        user.format(noun, language),
        {key: noun, to: language},
        other,
        f"{noun} is {other} in {language}.",
    )


def stock(rng: random.Random) -> Task:
    company, symbol = rng.choice(list(words.COMPANIES.items()))
    price = f"{rng.randint(5, 900)}.{rng.randint(10, 99)}"
    by_name = happens(rng, 0.5)
    key = "company" if by_name else rng.choice(["symbol", "ticker"])
    value = company if by_name else symbol
    tool = make_tool(
        rng,
        "get_stock_price stock_price stock quote get_quote",
        rng.choice(["The price of a stock.", "Returns the price of a share."]),
        {key: text("The company." if by_name else "The symbol, for example AAPL.")},
        [key],
    )
    user = rng.choice(
        ["What is the stock price of {}?", "How much is a share of {}?", "Price of {}?", "How is {} doing?"]
    )
    shown = value if happens(rng, 0.7) else company
    return Task("stock", tool, user.format(shown), {key: value}, price, f"A share of {shown} costs {price} dollars.")


def currency(rng: random.Random) -> Task:
    amount, (one, two) = rng.randint(1, 999), rng.sample(words.CURRENCIES, 2)
    value = round(amount * rng.uniform(0.1, 9), 2)
    keys = rng.choice([("amount", "from", "to"), ("value", "source", "target")])
    tool = make_tool(
        rng,
        "convert_currency exchange convert currency_converter",
        rng.choice(["Convert an amount of money.", "Exchange rates."]),
        {keys[0]: {"type": "number"}, keys[1]: text("Currency."), keys[2]: text("Currency.")},
        list(keys),
    )
    user = rng.choice(["How much is {} {} in {}?", "Convert {} {} to {}.", "{} {} in {}?"]).format(amount, one, two)
    arguments = dict(zip(keys, (amount, one, two), strict=True))
    return Task("currency", tool, user, arguments, str(value), f"{amount} {one} are {value} {two}.")


def light(rng: random.Random) -> Task:
    room, on = rng.choice(words.ROOMS), happens(rng, 0.5)
    switch = rng.choice(["on", "state", "enabled"])
    is_flag = switch != "state"
    tool = make_tool(
        rng,
        "set_light switch_light light control_light",
        rng.choice(["Switch a light.", "Turns the light of a room on or off."]),
        {"room": text("The room."), switch: {"type": "boolean"} if is_flag else one_of(("on", "off"))},
        ["room", switch],
    )
    word = "on" if on else "off"
    user = rng.choice(["Turn {1} the light in the {0}.", "Switch the {0} light {1}.", "Light {1} in the {0}, please."])
    return Task(
        "light",
        tool,
        user.format(room, word),
        {"room": room, switch: on if is_flag else word},
        "ok",
        f"The light in the {room} is {word}.",
    )


def without_arguments(rng: random.Random) -> Task:
    subject, result = rng.choice(
        [
            ("date", f"2026-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"),
            ("battery", f"{rng.randint(1, 100)}%"),
            ("position", city_of(rng)),
            ("volume", str(rng.randint(0, 10))),
            ("user", rng.choice(words.PEOPLE)),
            ("calendar", rng.choice(words.CHORES)),
            ("score", f"{rng.randint(0, 5)} to {rng.randint(0, 5)}"),
        ]
    )
    tool = make_tool(
        rng,
        f"get_{subject} get_{subject} current_{subject} read_{subject} {subject}",
        rng.choice([f"Returns the {subject}.", f"Get the current {subject}.", f"The {subject}."]),
        {},
        [],
    )
    user = rng.choice(["What is the {}?", "Tell me the {}.", "What is the current {}?", "Check the {}, please."])
    return Task("without_arguments", tool, user.format(subject), {}, result, f"The {subject} is {result}.")


def invented(rng: random.Random, noun: str, other: str) -> Task:
    """A tool that exists nowhere, so that names are copied from the list and not remembered."""
    makers: tuple[Callable[[], Any], ...] = (
        lambda: city_of(rng),
        lambda: rng.choice(words.PEOPLE),
        lambda: other,
        lambda: rng.randint(2, 9999),
        lambda: f"{rng.choice('ABCDEFGHKLMNPRSTX')}{rng.randint(10, 999)}",
    )
    value = rng.choice(makers)()
    key = rng.choice(["name", "id", "item", "key", "subject", "input", "value", noun])
    flat = noun.replace(" ", "_")
    key = key.replace(" ", "_")
    verb = rng.choice(["get", "find", "fetch", "check", "read", "list", "show", "count"])
    tool = make_tool(
        rng,
        f"{verb}_{flat} {verb}_{flat} {flat}_{verb} {flat}",
        rng.choice(
            [
                f"{verb.capitalize()} the {noun}.",
                f"Returns the {noun}.",
                f"Access to the {noun}.",
                f"The {noun} of something.",
            ]
        ),
        {key: {"type": "integer"} if isinstance(value, int) else text(f"The {key.replace('_', ' ')}.")},
        [key],
    )
    user = rng.choice(
        [
            "{2} the {0} of {1}.",
            "What is the {0} of {1}?",
            "{2} the {0} for {1}, please.",
            "I need the {0} of {1}.",
            "Tell me the {0} for {1}.",
        ]
    ).format(noun, value, verb.capitalize())
    result = rng.choice([str(rng.randint(1, 5000)), rng.choice(words.PEOPLE), rng.choice(words.ROOMS), city_of(rng)])
    shown = rng.choice([result, json.dumps({flat: result})])
    return Task("invented", tool, user, {key: value}, shown, f"The {noun} of {value} is {result}.")


FROM_WORDS: tuple[tuple[Callable[[random.Random], Task], float], ...] = (
    (weather, 3.0),
    (local_time, 1.0),
    (reminder, 0.8),
    (timer, 0.8),
    (email, 0.8),
    (stock, 0.7),
    (currency, 0.7),
    (light, 0.7),
    (without_arguments, 0.7),
)
FROM_NOUNS: tuple[tuple[Callable[[random.Random, str, str], Task], float], ...] = ((invented, 5.0), (translate, 0.7))
