"""Agreement of lm-eval over HTTP with lm-eval on transformers: ``python -m benchmarks.lm_eval_agreement [MODEL]``.

Writes two multiple-choice tasks from the sentences of ``docs/``: the second half of a sentence, and its next token.
Then runs lm-eval's ``hf`` model, and its ``local-completions`` against a server in float32, once with all experts in
memory and once paged. Prints how far the log-likelihoods of the choices differ. The last line is one JSON object.

``--lm-eval`` is the Python of an environment with lm-eval: ``pip install "lm_eval[hf,api]"``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
from tokenizers import Tokenizer

from benchmarks.serving_processes import serving
from server.model.checkpoint.locate import BUNDLED

DOCS = Path(__file__).parents[1] / "docs"
NUM_CHOICES = 4
MIN_WORDS = 10
TASKS = ("second_half", "next_token")
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{context}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Question:
    """A text and its possible continuations, of which one is the original."""

    context: str
    choices: list[str]
    answer: int


@dataclass(frozen=True)
class Choice:
    """A choice as lm-eval scores it."""

    logprob: float
    is_greedy: bool


@dataclass(frozen=True)
class Agreement:
    """The difference between a server's scores and those of transformers."""

    server: str
    num_choices: int
    max_difference: float  # nats
    num_greedy_differences: int
    same_answers: int  # questions for which both prefer the same choice
    num_questions: int


def sentences() -> Iterator[list[str]]:
    """Yield the words of each long sentence of the documentation, without code and tables."""
    for page in sorted(DOCS.glob("*.md")):
        prose = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
        for paragraph in prose.split("\n\n"):
            if re.match(r"[A-Z]", paragraph):
                for sentence in re.split(r"(?<=[.:]) ", " ".join(paragraph.split())):
                    if len(words := sentence.split(" ")) >= MIN_WORDS:
                        yield words


def half_questions(num_questions: int) -> list[Question]:
    """Ask for the second half of a sentence; the other choices are those of the sentences after it."""
    halves = []
    for words, _ in zip(sentences(), range(num_questions), strict=False):
        middle = len(words) // 2
        halves.append((" ".join(words[:middle]), " " + " ".join(words[middle:])))
    return [_question(halves, place) for place in range(len(halves))]


def token_questions(num_questions: int, tokenizer: Tokenizer) -> list[Question]:
    """Ask for the word in the middle of a sentence, where that is one token."""
    places = []
    for words in sentences():
        middle = len(words) // 2
        word = " " + words[middle]
        if len(tokenizer.encode(word, add_special_tokens=False).ids) == 1:
            places.append((" ".join(words[:middle]), word))
    return [_question(places, place) for place in range(min(num_questions, len(places)))]


def _question(pairs: Sequence[tuple[str, str]], place: int) -> Question:
    choices = [pairs[(place + step) % len(pairs)][1] for step in range(NUM_CHOICES)]
    answer = place % NUM_CHOICES
    choices[0], choices[answer] = choices[answer], choices[0]
    return Question(pairs[place][0], choices, answer)


def write_tasks(folder: Path, tokenizer: Tokenizer, num_questions: int) -> None:
    for name, questions in zip(
        TASKS, (half_questions(num_questions), token_questions(num_questions, tokenizer)), strict=True
    ):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(asdict(question)) + "\n" for question in questions))
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file))


def run_lm_eval(python: str, tasks: Path, output: Path, model: str, arguments: str) -> dict[str, list[list[Choice]]]:
    """Run lm-eval, and return the scores of all choices by task and question."""
    command = [python, "-m", "lm_eval", "--model", model, "--model_args", arguments, "--tasks", ",".join(TASKS)]
    command += ["--include_path", str(tasks), "--output_path", str(output), "--log_samples", "--device", "cpu"]
    command += ["--batch_size", "8"]
    subprocess.run(command, check=True, env=os.environ | OFFLINE, stdout=sys.stderr)
    scores = {}
    for task in TASKS:
        (file,) = output.rglob(f"samples_{task}_*.jsonl")
        samples = sorted(map(json.loads, file.read_text("utf-8").splitlines()), key=lambda sample: sample["doc_id"])
        scores[task] = [
            [Choice(float(logprob), str(is_greedy) == "True") for logprob, is_greedy in sample["filtered_resps"]]
            for sample in samples
        ]
    return scores


def agreement(server: str, expected: Sequence[Sequence[Choice]], found: Sequence[Sequence[Choice]]) -> Agreement:
    pairs = [pair for one, other in zip(expected, found, strict=True) for pair in zip(one, other, strict=True)]
    same = [_best(one) == _best(other) for one, other in zip(expected, found, strict=True)]
    return Agreement(
        server,
        len(pairs),
        max(abs(one.logprob - other.logprob) for one, other in pairs),
        sum(one.is_greedy != other.is_greedy for one, other in pairs),
        sum(same),
        len(same),
    )


def _best(choices: Sequence[Choice]) -> int:
    return max(range(len(choices)), key=lambda place: choices[place].logprob)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, default=BUNDLED, metavar="MODEL", help="checkpoint folder")
    parser.add_argument("--lm-eval", default=sys.executable, metavar="PYTHON", help="Python with lm-eval")
    parser.add_argument("--questions", type=int, default=200, help="questions in each task")
    parser.add_argument("--paged-memory", default="25%", help="--host-expert-memory of the paged server")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (tasks := folder / "tasks").mkdir()
        write_tasks(tasks, Tokenizer.from_file(str(model / "tokenizer.json")), arguments.questions)
        expected = run_lm_eval(
            arguments.lm_eval, tasks, folder / "hf", "hf", f"pretrained={model},dtype=float32,trust_remote_code=False"
        )
        for name, memory in (("in memory", "100%"), ("paged", arguments.paged_memory)):
            with serving([str(model), "--dtype", "float32", "--host-expert-memory", memory]) as server:
                served = httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]
                options = f"model={served},base_url={server.url}/v1/completions,tokenizer={model}"
                options += ",tokenizer_backend=huggingface,num_concurrent=2"
                scores = run_lm_eval(arguments.lm_eval, tasks, folder / name, "local-completions", options)
            found += [agreement(f"{name}, {task}", expected[task], scores[task]) for task in TASKS]
    for each in found:
        print(
            f"{each.server:24} {each.num_choices} choices: largest difference {each.max_difference:.2g} nats, "
            f"{each.num_greedy_differences} differ in is_greedy; "
            f"{each.same_answers} of {each.num_questions} answers are equal"
        )
    print(json.dumps([asdict(each) for each in found]))


if __name__ == "__main__":
    main()
