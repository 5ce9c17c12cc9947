"""Make the bundled set: `python -m data.make_bundled` writes train, valid and heldout.jsonl in data/bundled/.

Rows of the computed families come from their functions alone. Those of the written families are answered greedily
by the dense embedded model, in its own chat form; an answer is cut at its last whole sentence and dropped where it
is empty, repeats itself or was given before. Everything follows from SEED; the written answers also depend on the
arithmetic of the machine (bf16), so a second machine may write some of them differently.
"""

import json
import re
from collections import Counter
from pathlib import Path
from random import Random

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from data.families import FAMILIES
from data.families.family import Family, Row, draw_rows
from data.loading import BUNDLED_FOLDER
from models.loading import load_model, load_tokenizer, resolve
from utils.common.commands import DEFAULT_CACHE, Parser, run
from utils.common.errors import UserError
from utils.common.files import write_text
from utils.common.flag_types import at_least
from utils.common.names import EMBEDDED
from utils.common.progress import progress

SEED = 42

SIZES = {"heldout": (260, 260), "valid": (125, 125), "train": (1030, 970)}
"""Rows of each file from the computed and from the written families, in the order in which they are given out."""

COMPUTED_DRAFTS = 30
WRITTEN_DRAFTS = 48

MAX_NEW_TOKENS = 64
MAX_SENTENCES = 3

SYSTEM = "You are a helpful assistant. Answer briefly, in one to three sentences."

Drafts = dict[str, list[Row]]
"""Rows with their answers, by the name of their family."""


REFUSAL = re.compile(
    r"\b(?:I cannot|I can't|I'm unable|unable to assist|happy to (?:help|assist)|as an AI|AI assistant)\b"
    r"|SmolLM|Hugging Face"
)

# "2." opens a point of a numbered list, "Dr." a name, "2 lbs." an amount: none of them ends a sentence.
SENTENCE_END = re.compile(r"(?<!\d)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\blbs)(?<!\boz)[.!?][\"')\]]*(?=\s|$)")


def main() -> None:
    """Write the three files."""
    arguments = parser().parse_args()
    folder = arguments.output_dir
    if folder.resolve() != BUNDLED_FOLDER and any((folder / f"{name}.jsonl").exists() for name in SIZES):
        raise UserError(f"-output_dir: {folder} holds files of the names that are written; give another folder")

    folder = resolve(EMBEDDED, "-base_model_name", arguments.cache_dir)
    tokenizer = load_tokenizer(folder, "-base_model_name")
    model = load_model(folder, torch.bfloat16, "cpu", "-base_model_name")
    computed = split(computed_drafts(), {name: sizes[0] for name, sizes in SIZES.items()})
    written = split(
        written_drafts(model, tokenizer, arguments.batch_size), {name: sizes[1] for name, sizes in SIZES.items()}
    )
    for name in SIZES:
        rows = computed[name] + written[name]
        Random(f"{SEED}/{name}").shuffle(rows)
        write_text(arguments.output_dir / f"{name}.jsonl", "".join(f"{row}\n" for row in rows))
        print(f"{arguments.output_dir / name}.jsonl: {len(rows)} rows")


def parser() -> Parser:
    """Every flag of the command line."""
    flags = Parser(prog="python -m data.make_bundled", description=__doc__.splitlines()[0])
    flags.flag("batch_size", default=48, type=at_least(1), metavar="N", help="answers written at a time")
    flags.flag("output_dir", default=BUNDLED_FOLDER, type=Path, metavar="DIR", help="where to write")
    flags.flag("cache_dir", default=DEFAULT_CACHE, type=Path, metavar="DIR", help="where GGUF models are unpacked")
    return flags


def computed_drafts() -> Drafts:
    """The rows of the computed families."""
    return {family.name: draw_rows(family, COMPUTED_DRAFTS, SEED) for family in FAMILIES if family.computed}


def written_drafts(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> Drafts:
    """The rows of the written families, answered by the model; the ones it answered badly are left out."""
    families = [family for family in FAMILIES if not family.computed]
    drafts = [(family, row) for family in families for row in draw_rows(family, WRITTEN_DRAFTS, SEED)]
    answers = write_answers(model, tokenizer, [row for _, row in drafts], batch_size)
    return keep_good(drafts, answers)


def keep_good(drafts: list[tuple[Family, Row]], answers: list[str]) -> Drafts:
    """The rows whose answers are whole sentences that were not given before."""
    kept: Drafts = {}
    seen = set()
    for (family, row), answer in zip(drafts, answers, strict=True):
        output = clean(answer)
        if output and output not in seen:
            seen.add(output)
            kept.setdefault(family.name, []).append(Row(row.instruction, row.input, output))
    return kept


@torch.inference_mode()
def write_answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, rows: list[Row], batch_size: int
) -> list[str]:
    """The model's greedy answers, at most MAX_NEW_TOKENS long, in its chat form and padded on the left."""
    prompts = [
        tokenizer.apply_chat_template(
            [
                {
                    "role": "system",
                    "content": SYSTEM,
                },
                {"role": "user", "content": f"{row.instruction}\n\n{row.input}".strip()},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
        for row in rows
    ]
    order = sorted(range(len(rows)), key=lambda i: (len(prompts[i]), i))
    answers = [""] * len(rows)
    for start in progress(range(0, len(order), batch_size), desc="writing answers", unit="batch"):
        chosen = order[start : start + batch_size]
        batch = tokenizer(
            [prompts[i] for i in chosen],
            return_tensors="pt",
            padding=True,
            padding_side="left",
            add_special_tokens=False,
        )
        tokens = model.generate(
            **batch, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        texts = tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)
        for i, text in zip(chosen, texts, strict=True):
            answers[i] = text
    return answers


def clean(answer: str) -> str | None:
    """The answer's first whole sentences, as far as nothing is repeated; None if no usable one is left.

    A short line without a full stop (a name, a slogan) is taken whole.
    """
    text = re.sub(r"\n{2,}", "\n", answer.strip())
    if "[" in text or REFUSAL.search(text):
        return None
    kept, seen = 0, set()
    for end in [match.end() for match in SENTENCE_END.finditer(text)][:MAX_SENTENCES]:
        words = re.findall(r"[\w']+", text[kept:end].lower())
        runs = list(zip(words, words[1:], words[2:], words[3:], strict=False))
        if len({*seen, *runs}) < len(seen) + len(runs):
            break
        seen.update(runs)
        kept = end
    if not SENTENCE_END.search(text) and "\n" not in text and len(text.split()) <= 12:
        kept = len(text)
    text = text[:kept].strip()
    if text.count('"') % 2 or (text.startswith('"') and text.endswith('"') and text.count('"') == 2):
        text = text.replace('"', "")
    return text if len(text.split()) >= 2 else None


def split(drafts: Drafts, sizes: dict[str, int]) -> dict[str, list[str]]:
    """JSON lines for each file, taken from the families in turn so that all of them are in all files.

    A row of "heldout" has an answer that no other row of its family has: what the tasks ask for is then in no
    training answer.
    """
    alone = {name: Counter(row.output for row in rows) for name, rows in drafts.items()}
    taken: set[tuple[str, str]] = set()
    result = {}
    for file, size in sizes.items():
        lines: list[str] = []
        pools = [
            [row for row in rows if file != "heldout" or alone[name][row.output] == 1] for name, rows in drafts.items()
        ]
        pools = [[row for row in pool if (row.instruction, row.input) not in taken] for pool in pools]
        for depth in range(max(map(len, pools))):
            for name, pool in zip(drafts, pools, strict=True):
                if depth < len(pool) and len(lines) < size:
                    row = pool[depth]
                    taken.add((row.instruction, row.input))
                    content = {"instruction": row.instruction, "input": row.input, "output": row.output, "family": name}
                    lines.append(json.dumps(content, ensure_ascii=False))
        if len(lines) < size:
            raise ValueError(f"{file} wants {size} rows, the families have only {len(lines)} left")
        result[file] = lines
    return result


if __name__ == "__main__":
    run(main)
