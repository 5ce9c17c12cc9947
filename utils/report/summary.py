"""What a run did and found, in sentences computed from its numbers, without the names of private folders."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath

from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report.tables import MODELS, ScoreRow, agreement_rows, answers_row, mean_row, score_rows

NAMES = {
    EMBEDDED: EMBEDDED_ID.partition("/")[2],
    "magnitude": "magnitude pruning",
    "wanda": "Wanda",
    "sparsegpt": "SparseGPT",
    "slimgpt": "SlimGPT",
}
"""How models and pruners are written, by their names on the command line."""

SELECTIONS = {
    "contrastive": "chosen by contrastive probing",
    "gap": "those with the largest activation gap",
    "random": "chosen at random",
    "lofit": "chosen by LoFiT's first step",
}
"""How heads were chosen, by the names of -head_selection."""


def shown_name(name: object) -> str:
    """A model or method as a reader should see it: a local folder by its own name only; in one line."""
    text = " ".join(hide_path(str(name)).split())
    is_relative_path = text.startswith(".") or text.count("/") > 1  # a hub id is owner/name
    return NAMES.get(text, Path(text).name if is_relative_path else text)


def hide_path(text: str) -> str:
    """An absolute path, or one below a home directory, becomes the name of its file or folder; other text stays."""
    text = text.removeprefix("file://")
    if text.startswith(("/", "~")):
        return Path(text).name or text
    return PureWindowsPath(text).name if re.match(r"[A-Za-z]:[\\/]", text) else text


def hide_paths(command: str) -> str:
    """A shell command with each absolute path in it, `-flag=/a/path` included, cut to its last name."""
    try:
        words = shlex.split(command)
    except ValueError:
        words = command.split()
    hidden = []
    for word in words:
        flag, equals, value = word.partition("=")
        hidden.append(flag + equals + hide_path(value) if equals and "/" not in flag else hide_path(word))
    return shlex.join(hidden)


def pruned_how(run: dict, proof: dict) -> str:
    """How the model was pruned, as far as it is known: "pruned with Wanda at 50 %"."""
    pruning = run.get("pruning") or {}
    if method := pruning.get("method"):
        text = f"pruned with {shown_name(method)}"
        return text + (f" at {_level(pruning['sparsity'])}" if pruning.get("sparsity") is not None else "")
    if proof.get("weights"):
        return f"pruned elsewhere to {_percent(proof['zeros_pruned'] / proof['weights'])} zeros"
    return "pruned elsewhere"


def title(run: dict, proof: dict) -> str:
    """What was pruned and restored, in one line."""
    dense = shown_name((run.get("models") or {}).get("dense", "A model"))
    restored = "not restored" if restores_nothing(run) else f"restored with {restored_how(run)}"
    return f"{dense}, {pruned_how(run, proof)}, {restored}"


def restores_nothing(run: dict) -> bool:
    """Whether the run was asked to restore nothing (-method none, or -num_epoch 0 of a method that is trained)."""
    method, epochs = run.get("method") or {}, (run.get("arguments") or {}).get("num_epoch")
    return not method["restores"] if "restores" in method else epochs == 0


def restored_how(run: dict) -> str:
    """What it was restored with."""
    return (run.get("method") or {}).get("title") or "RestoreLCC"


def summary(results: dict, run: dict, history: list[dict]) -> str:
    """One paragraph of what was done, what came of it and how sure that is."""
    sentences = [what_was_done(results, run)]
    sentences.append(validation_sentence(results, history))
    sentences += findings(results)
    if limit := (run.get("arguments") or {}).get("eval_limit"):
        sentences.append(limited(limit))
    if any("loss" in row for row in history) and any(row.difference for row in score_rows(results)):
        seed = f" ({run['seed']})" if run.get("seed") is not None else ""
        sentences.append(
            f"This is one run with one seed{seed}: its standard errors cover the questions asked, "
            "not what another seed would give."
        )
    sentences.append(proof_sentence(results.get("proof") or {}))
    return " ".join(sentence for sentence in sentences if sentence)


def validation_sentence(results: dict, history: list[dict]) -> str:
    """The validation loss before and after training, and the pruned model's where that is another; "" if unknown."""
    losses = [row["valid_loss"] for row in history if row.get("valid_loss") is not None]
    if not losses:
        return ""
    first, last, pruned = losses[0], losses[-1], (results.get("validation") or {}).get("pruned")
    trained = len(losses) > 1
    # Heads whose b begins near zero begin near the pruned model's; a closed form begins elsewhere.
    near = pruned is None or (abs(first - pruned) < 0.01 * pruned if trained else first == pruned)
    went = f"went from {first:.3f} before training to {last:.3f} at its end" if trained else f"is {first:.3f}"
    other = "" if near else f"; the pruned model's is {pruned:.3f}"
    return f"Validation loss {went}{other}."


def limited(limit: int | float) -> str:
    """What -eval_limit left of each task."""
    return f"Only the first {limit:g} questions or documents of each task were evaluated."


def what_was_done(results: dict, run: dict) -> str:
    """The models, the share of zeros, the heads and the training in a sentence or two."""
    heads, head_count = ((results.get("heads") or {}).get(name) for name in ("trained", "count"))
    models, arguments, proof = run.get("models") or {}, run.get("arguments") or {}, results.get("proof") or {}
    dense, pruned = shown_name(models.get("dense", "The model")), models.get("pruned")
    text = f"{dense} was {pruned_how(run, proof)}"
    if not run.get("pruning") and pruned:
        text += f" (`{shown_name(pruned)}`)"
    elif proof.get("weights"):
        text += f" ({_percent(proof['zeros_pruned'] / proof['weights'])} of its linear weights are zero)"
    if restores_nothing(run):
        return text + ". Nothing was trained: the restored model is the pruned one."
    text += f" and restored with {restored_how(run)}"
    if heads and head_count:
        text += f" in {len(heads)} of its {head_count} attention heads"
        if selection := SELECTIONS.get((results.get("heads") or {}).get("selection")):
            text += f" ({selection})"
    if parameters := (run.get("method") or {}).get("parameters"):
        text += f", {parameters:,} trained numbers"
    trained = (run.get("method") or {}).get("parameters") != 0
    if trained and arguments.get("num_train_samples") and arguments.get("num_epoch"):
        epochs = arguments["num_epoch"]
        text += f", trained on {arguments['num_train_samples']} samples for {epochs:g} epoch{'s' * (epochs != 1)}"
        if loss := (run.get("method") or {}).get("loss"):
            text += f" by {loss}"
    return text + "."


def verdict(results: dict, run: dict) -> str:
    """What the run came to, in one plain sentence; only what is beyond 2 standard errors counts as better or worse."""
    proof, losses = results.get("proof") or {}, results.get("validation") or {}
    if proof and not proof.get("passed"):
        return "The merged checkpoint failed its proof: do not use or publish it."
    if restores_nothing(run):
        return "Nothing was restored: this is the pruned model."
    rose = loss_rose(losses.get("start"), losses.get("restored"))
    rose = rose or loss_rose(losses.get("pruned"), losses.get("restored"))  # by a closed form, if not in training
    end = f"; {rose}." if rose else "."
    rows = [row for row in score_rows(results) if row.verdict]
    if not rows:
        unknown = "Nothing was scored on both the pruned and the restored model: whether it is better is not known"
        return unknown + end
    better, worse = (sum(row.verdict == word for row in rows) for word in ("better", "worse"))
    tasks = f"{len(rows)} task{'s' * (len(rows) > 1)}"
    if better and worse:
        text = f"The result is mixed: better on {better} of {tasks}, worse on {worse}"
    elif better:
        text = f"Restoring helped: better on {better} of {tasks}, worse on none"
    elif worse:
        text = f"Restoring made the model worse on {worse} of {tasks}, and better on none"
    else:
        text = f"No measurable effect on the score of {'the task' if len(rows) == 1 else f'any of {tasks}'}"
    found = headline(results)
    if found and not worse:
        what, row = found
        text += f", {'with' if better else 'but'} {row.texts()[2]} of the gap in {what} recovered"
    answers = answers_row(results)
    if answers and answers.verdict == "worse":
        text += "; the right answers became less likely"
    return text + end


def loss_rose(before: float | None, after: float | None) -> str | None:
    """What is said of a validation loss that is higher after training than before; None of another, or one unknown."""
    if before is None or after is None or after <= before:
        return None
    return f"the validation loss rose from {before:.3f} to {after:.3f}"


def headline(results: dict) -> tuple[str, ScoreRow] | None:
    """(what it is of, the row) of the recovered share that stands for the run: a mean's, else a task's, if better."""
    named = [("mean accuracy", mean_row(results)), ("the right answers’ likelihood", answers_row(results))]
    named += [(f"{row.task}’s {row.metric.replace('_', ' ')}", row) for row in score_rows(results)]
    return next(
        ((what, row) for what, row in named if row and row.verdict == "better" and row.recovered is not None), None
    )


def findings(results: dict) -> list[str]:
    """Sentences on what restoring changed; a difference within 2 standard errors is never called a gain or a loss."""
    rows = [row for row in score_rows(results) if row.verdict]
    if not rows:
        return ["No task was evaluated on both the pruned and the restored model: nothing is said about quality."]
    better, worse, undirected, unknown = (
        [row for row in rows if row.verdict == verdict] for verdict in ("better", "worse", "differs", "no stderr")
    )
    unclear = [row for row in rows if row.verdict in ("within noise", "equal")]
    sentences = []
    if better and worse:
        sentences.append(f"The result is mixed: better on {_list(better)}, but **worse** on {_list(worse)}.")
    elif better:
        sentences.append(f"Restoring helped on {_list(better)}.")
    elif worse:
        sentences.append(f"Restoring made the model **worse** on {_list(worse)}.")
    if unclear and (better or worse or undirected):
        sentences.append(f"Within noise (2 standard errors of the paired difference): {_list(unclear)}.")
    elif unclear:
        sentences.append(
            "Restoring had no measurable effect: the paired difference is within 2 standard errors "
            f"on {_list(unclear)}."
        )
    if undirected:
        sentences.append(
            f"Beyond noise, but which direction is better was not recorded, so not judged: {_list(undirected)}."
        )
    if unknown:
        sentences.append(f"Without a standard error, so not claimed as a gain or a loss: {_list(unknown)}.")
    flipped = agreement_rows(results, "flipped")
    for text, row in (
        ("Accuracy, {}", mean_row(results)),
        ("Bits a byte of the right answers, {}", answers_row(results)),
        ("Answers that are not the dense model's, {}", flipped[-1] if flipped else None),
    ):
        if row and row.verdict:
            sentences.append(f"{text.format(row.task)}: {_measured(row)}.")
    return sentences


def _measured(row: ScoreRow) -> str:
    """The score of each model, and what the difference says."""
    scores, difference, _ = row.texts()
    unit = " %" if row.percent else ""
    measured = ", ".join(f"{_bare(scores[name])}{unit} {name}" for name in MODELS if name in row.scores)
    return f"{measured} ({difference}, {'no standard error' if row.verdict == 'no stderr' else row.verdict})"


def proof_sentence(proof: dict) -> str:
    """Whether the merged checkpoint keeps what it must."""
    if not proof:
        return ""
    if proof.get("passed") and proof.get("zeros", "kept") != "kept":
        before, after = (_percent(proof[name] / proof["weights"]) for name in ("zeros_pruned", "zeros_restored"))
        return (
            "The merged checkpoint was read back and is what was trained. **Merging it filled zeros**: "
            f"{before} of the linear weights were zero, {after} are."
        )
    if proof.get("passed") and any(name.endswith("weight") for name in proof.get("changed_tensors", [])):
        return (
            "The merged checkpoint was read back: every zero of the pruned one is kept, and nothing else was touched."
        )
    if proof.get("passed"):
        return "The merged checkpoint was read back and kept every weight and every zero of the pruned one."
    return "**The proof of the merged checkpoint FAILED: do not use or publish it** (see below which promise broke)."


def sparsity_sentence(before: Sequence[float], after: Sequence[float]) -> str:
    """The zeros of each layer in one sentence, for when pruned and restored agree."""
    low, high = min(before), max(before)
    each = f"{_percent(low)}" if _percent(low) == _percent(high) else f"from {_percent(low)} to {_percent(high)}"
    same = "the same before and after restoring" if list(before) == list(after) else "**not the same after restoring**"
    return f"Zeros in the linear weights of each of the {len(before)} layers: {each}, {same}."


ZEROS = """\
Stock PyTorch stores and multiplies zeros like any other number: unstructured zeros alone make this checkpoint neither
smaller nor faster there. They pay off in compressed storage and in runtimes with sparse kernels. A 2:4 pattern can
run on the sparse tensor cores of NVIDIA GPUs (Ampere and later) once the weights are converted to that format.
Only structured pruning, which removes whole heads or channels, makes the plain model smaller. """
"""What zeros buy at inference and what they don't."""


def zeros_buy(proof: dict) -> str:
    """The same, and what restoring did to them."""
    kept = proof.get("zeros", "kept") == "kept"
    return ZEROS + ("Restoring took none of them away." if kept else "Those that merging filled buy nothing any more.")


def _list(rows: list[ScoreRow], most: int = 4) -> str:
    texts = [_change(row) for row in rows[:most]] + ([f"{len(rows) - most} more"] if len(rows) > most else [])
    return texts[0] if len(texts) == 1 else ", ".join(texts[:-1]) + " and " + texts[-1]


def _change(row: ScoreRow) -> str:
    """`task` (metric from pruned to restored, share of the gap where that is a claim)."""
    scores, difference, recovered = row.texts()
    if {"pruned", "restored"} <= set(row.scores):
        numbers = f"{_bare(scores['pruned'])} → {_bare(scores['restored'])}" + (" %" if row.percent else "")
    else:
        numbers = difference
    share = f", {recovered} of the gap recovered" if row.verdict == "better" and row.recovered is not None else ""
    return f"`{row.task}` ({row.metric} {numbers}{share})"


def _bare(text: str) -> str:
    return text.split(" ±")[0]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _level(sparsity: object) -> str:
    """ "0.5" and 0.5 as "50 %"; a pattern such as "2:4" as it is."""
    try:
        return _percent(float(sparsity))
    except (TypeError, ValueError):
        return " ".join(str(sparsity).split())
