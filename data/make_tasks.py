"""Make the rows of the bundled evaluation tasks: `python -m data.make_tasks` writes data/tasks/*.jsonl.

Facts come from data/facts.py, sums are drawn here, and the two tasks about responses share the rows of
data/bundled/heldout.jsonl, which no training or validation file contains. No model is needed; everything follows
from SEED.
"""

import json
import re
from difflib import SequenceMatcher
from pathlib import Path
from random import Random

from data.facts import GROUPS, SINGLE
from data.families import FAMILIES
from data.families.family import draw_rows
from data.loading import BUNDLED_FOLDER, alpaca_prompt
from utils.common.files import write_text

SEED = 42
TASKS_FOLDER = Path(__file__).parent / "tasks"

RESPONSE_ROWS = 280
HELDOUT_ROWS = 220
ARITHMETIC_ROWS = 300
CHOICES = 4
RELATED_ROWS = 40
MAX_RESPONSE_WORDS = 22
MAX_PROMPT_WORDS = 30

SHOTS = "6 - 4 = 2\n5 + 7 = 12\n3 * 2 = 6\n"
"""The solved sums before each question of `bundled_arithmetic`; none of them is asked."""

Json = dict[str, object]


def main() -> None:
    """Write the four files."""
    for name, rows in make_tasks().items():
        write_text(TASKS_FOLDER / f"{name}.jsonl", as_jsonl(rows))
        print(f"data/tasks/{name}.jsonl: {len(rows)} rows")


def make_tasks() -> dict[str, list[Json]]:
    """The rows of each task, by its name."""
    heldout = read_rows(BUNDLED_FOLDER / "heldout.jsonl")
    training = read_rows(BUNDLED_FOLDER / "train.jsonl") + read_rows(BUNDLED_FOLDER / "valid.jsonl")
    for_choice, for_likelihood = share(heldout)
    return {
        "bundled_response": response_rows(for_choice, heldout),
        "bundled_heldout": heldout_rows(for_likelihood),
        "bundled_facts": fact_rows(),
        "bundled_arithmetic": arithmetic_rows(training),
    }


def as_jsonl(rows: list[Json]) -> str:
    """One JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_rows(file: Path) -> list[Json]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def share(heldout: list[Json]) -> tuple[list[Json], list[Json]]:
    """Held-out rows for choosing (short ones) and, disjoint from them, for likelihood."""
    short = [row for row in heldout if len(_words(row["output"])) <= MAX_RESPONSE_WORDS]
    short = [row for row in short if len(_words(_question(row))) <= MAX_PROMPT_WORDS]
    for_choice = short[:RESPONSE_ROWS]
    chosen = {(row["instruction"], row["input"]) for row in for_choice}
    rest = [row for row in heldout if (row["instruction"], row["input"]) not in chosen]
    return for_choice, rest[:HELDOUT_ROWS]


def response_rows(rows: list[Json], heldout: list[Json]) -> list[Json]:
    """Each row's prompt with its response, and the responses of related rows put into the row's own words."""
    random = Random(f"{SEED}/response")
    pools = {
        family.name: [vars(row) for row in draw_rows(family, RELATED_ROWS, SEED + 1)]
        if family.computed
        else [row for row in heldout if row["family"] == family.name]
        for family in FAMILIES
    }
    result = []
    for row in rows:
        others = related(row, pools[row["family"]]) or related(row, heldout)
        choices, answer = shuffled(row["output"], others, random)
        result.append({"prompt": _prompt(row), "choices": choices, "answer": answer, "family": row["family"]})
    return result


def related(row: Json, pool: list[Json]) -> list[str]:
    """The responses of the rows whose prompts are most like this one's, with this prompt's words in them.

    Where two prompts differ in "having a pet" and "meditation", the one becomes the other in the response too. Wrong
    choices therefore speak of the right subject, and only what they say of it is another's. Empty if the pool has
    too few.
    """
    own = _words(_question(row))
    matchers = [(SequenceMatcher(None, _words(_question(other)), own, autojunk=False), other) for other in pool]
    matchers.sort(key=lambda pair: -pair[0].ratio())
    found: dict[str, None] = {}
    for matcher, other in matchers:
        response = in_words_of(matcher, other["output"])
        if response.lower() != row["output"].lower() and len(_words(response)) <= 2 * MAX_RESPONSE_WORDS:
            found[response] = None
        if len(found) == CHOICES - 1:
            return list(found)
    return []


def in_words_of(matcher: SequenceMatcher, text: str) -> str:
    """The text with each span that only the matcher's first sequence of words has turned into the second's."""
    swaps = {
        " ".join(matcher.a[i:j]).lower(): " ".join(matcher.b[k:m])
        for kind, i, j, k, m in matcher.get_opcodes()
        if kind == "replace"
    }
    if not swaps:
        return text
    spans = "|".join(re.escape(span).replace(r"\ ", r"\W+") for span in sorted(swaps, key=len, reverse=True))

    def swap(match: re.Match) -> str:
        new = swaps.get(" ".join(_words(match[0])).lower(), match[0])
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return re.sub(rf"\b(?:{spans})\b", swap, text, flags=re.IGNORECASE)


def heldout_rows(rows: list[Json]) -> list[Json]:
    """Prompts with their responses."""
    return [{"prompt": _prompt(row), "response": row["output"], "family": row["family"]} for row in rows]


def fact_rows() -> list[Json]:
    """The facts in a random order; the wrong choices of a group's subject are other answers of the group."""
    random = Random(f"{SEED}/facts")
    rows = []
    for sentence, pairs in GROUPS.items():
        facts = [pair.split(":") for pair in pairs]
        answers = sorted({answer for _, answer in facts})
        for subject, answer in facts:
            wrong = random.sample([other for other in answers if other != answer], CHOICES - 1)
            rows.append((_begin(sentence.format(subject)), answer, wrong))
    rows += [(sentence, answer, wrong.split(", ")) for sentence, answer, wrong in SINGLE]
    random.shuffle(rows)
    result = []
    for sentence, answer, wrong in rows:
        choices, place = shuffled(answer, wrong, random)
        result.append({"prompt": sentence, "choices": choices, "answer": place})
    return result


def arithmetic_rows(training: list[Json]) -> list[Json]:
    """Sums, differences and products after a few solved ones; none of them occurs in a training row."""
    random = Random(f"{SEED}/arithmetic")
    seen = " ".join(f"{row['instruction']} {row['input']} {row['output']}" for row in training) + SHOTS
    rows: dict[str, Json] = {}
    while len(rows) < ARITHMETIC_ROWS:
        sign, a, b, answer = random.choice((_sum, _difference, _product))(random)
        question = f"{a} {sign} {b} ="
        if re.search(rf"(?<!\d){a} {re.escape(sign)} {b} =", seen.replace("×", "*")) or question in rows:
            continue
        near = {answer + step for step in (-4, -3, -2, -1, 1, 2, 3, 4)}
        wrong = random.sample(sorted(n for n in near if n >= 0 and n != answer), CHOICES - 1)
        choices, place = shuffled(str(answer), [str(n) for n in wrong], random)
        rows[question] = {"prompt": SHOTS + question, "choices": choices, "answer": place}
    return list(rows.values())


def shuffled(right: str, wrong: list[str], random: Random) -> tuple[list[str], int]:
    """The choices in a random order, and the place of the right one."""
    choices = [right, *wrong]
    random.shuffle(choices)
    return choices, choices.index(right)


def _sum(random: Random) -> tuple[str, int, int, int]:
    a, b = random.randint(1, 30), random.randint(1, 12)
    return "+", a, b, a + b


def _difference(random: Random) -> tuple[str, int, int, int]:
    a = random.randint(3, 20)
    b = random.randint(1, a - 1)
    return "-", a, b, a - b


def _product(random: Random) -> tuple[str, int, int, int]:
    a, b = random.randint(1, 12), random.randint(1, 10)
    return "*", a, b, a * b


def _prompt(row: Json) -> str:
    return alpaca_prompt(row["instruction"], row["input"])


def _words(text: str) -> list[str]:
    return re.findall(r"[\w']+", text)


def _question(row: Json) -> str:
    return f"{row['instruction']} {row['input']}"


def _begin(sentence: str) -> str:
    """The sentence with a capital letter; the rest of it as it is."""
    return sentence[0].upper() + sentence[1:]


if __name__ == "__main__":
    main()
