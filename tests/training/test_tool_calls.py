"""Questions from chats with tools, and how answers to them are judged."""

import pytest

from server.model.checkpoint.locate import BUNDLED
from training.errors import RunError
from training.tool_calls import Outcome, Question, judge, measure_calls, read_question, serving
from training.tool_chats import call_messages, render
from training.tool_tasks import Task

TOOL = {
    "type": "function",
    "function": {
        "name": "light",
        "description": "Switch a light.",
        "parameters": {"type": "object", "properties": {"state": {"enum": ["on", "off"]}}, "required": ["state"]},
    },
}
TASK = Task("light", TOOL, "Light on!", {"state": "on"}, "ok", "It is on.")
CALL = {"name": "light", "arguments": {"state": "on"}}
SYSTEM = {"role": "system", "content": "Be brief."}
HELLO = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
ASK = {"role": "user", "content": TASK.user}
QUESTION = Question([ASK], [TOOL], [CALL])


def message(*calls):
    return {"tool_calls": [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]}


def test_a_chat_is_read_up_to_its_first_call():
    chat = render([SYSTEM, *HELLO, ASK, *call_messages([TASK]), *HELLO], [TOOL])
    assert read_question(chat) == Question([SYSTEM, *HELLO, ASK], [TOOL], [CALL])


def test_a_chat_without_calls_is_read_up_to_its_first_answer():
    assert read_question(render([*HELLO, *HELLO], [TOOL])) == Question(HELLO[:1], [TOOL], [])


@pytest.mark.parametrize("text", ["", "no chat", render(HELLO, []), render([ASK], [TOOL])])
def test_other_text_is_no_question(text):
    assert read_question(text) is None


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (message(("light", '{"state": "on"}')), Outcome(True, True, True, True)),
        (message(("light", '{"state": "off"}')), Outcome(True, True, True, False)),
        (message(("light", '{"state": "dim"}')), Outcome(True, False, True, False)),
        (message(("light", '{"state": "o')), Outcome(True, False, True, False)),
        (message(("lamp", '{"state": "on"}')), Outcome(True, False, False, False)),
        (message(("light", '{"state": "on"}'), ("light", "{}")), Outcome(True, False, False, False)),
        ({"content": "It is on.", "tool_calls": None}, Outcome(False, False, False, False)),
    ],
    ids=["right", "wrong value", "not in the schema", "cut off", "not listed", "one call too many", "text"],
)
def test_an_answer_is_compared_with_the_chat(answer, outcome):
    assert judge(QUESTION, answer) == outcome


def test_text_is_right_where_the_chat_calls_nothing():
    assert judge(Question([ASK], [TOOL], []), {"content": "No."}) == Outcome(False, False, True, True)


@pytest.mark.slow
def test_forced_calls_of_the_bundled_model_are_valid():
    chats = [render([ASK, *call_messages([TASK])], [TOOL]), render(HELLO, [TOOL])]
    counts = measure_calls(BUNDLED, chats)
    assert {title: each["asked"] for title, each in counts.items()} == dict.fromkeys(counts, 1)
    assert counts["required"]["valid"] == 1


@pytest.mark.slow
def test_a_model_that_cannot_be_served_is_named(tmp_path):
    with pytest.raises(RunError, match=f"serve {tmp_path}.* did not start"), serving(tmp_path):
        pass
