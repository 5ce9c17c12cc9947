"""What a run did and found, in sentences computed from its numbers, without the names of private folders.

`code` and **strong** in a sentence are ours; a name that somebody else chose holds no backtick.
"""

import re
import shlex
from pathlib import Path, PureWindowsPath

from utils.common.names import EMBEDDED, EMBEDDED_ID
from utils.report.tables import ScoreRow, mean_rows, score_rows

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
    """A model or pruner as a reader should see it: a local folder by its own name only."""
    text = in_line(name)
    is_relative_path = text.startswith(".") or text.count("/") > 1  # a hub id is owner/name
    return NAMES.get(text, Path(text).name if is_relative_path else text)


def in_line(name: object) -> str:
    """A name that somebody else chose, in one line, without what marks code in our sentences."""
    return " ".join(hide_path(str(name)).replace("`", "'").replace("**", "*").split())


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


def hide_home(text: str) -> str:
    """A last guard: whatever path slipped through names no home directory."""
    home = str(Path.home())
    return text if home == "/" else re.sub(re.escape(home) + r"(?=[/\s\"'`]|$)", "~", text)


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
    restored = "not restored" if restores_nothing(run) else f"restored with {_restored_how(run)}"
    return f"{dense}, {pruned_how(run, proof)}, {restored}"


def restores_nothing(run: dict) -> bool:
    """Whether the run was asked to restore nothing (-method none, or -num_epoch 0 of a method that is trained)."""
    method, epochs = run.get("method") or {}, (run.get("arguments") or {}).get("num_epoch")
    return not method["restores"] if "restores" in method else epochs == 0


def _restored_how(run: dict) -> str:
    return in_line((run.get("method") or {}).get("title") or "RestoreLCC")


def what_was_done(results: dict, run: dict) -> str:
    """The models, the share of zeros, the heads and the training in a sentence or two."""
    heads = results.get("heads") or {}
    models, arguments, proof = run.get("models") or {}, run.get("arguments") or {}, results.get("proof") or {}
    method, pruned = run.get("method") or {}, models.get("pruned")
    text = f"{shown_name(models.get('dense', 'The model'))} was {pruned_how(run, proof)}"
    if not run.get("pruning") and pruned:
        text += f" (`{shown_name(pruned)}`)"
    elif proof.get("weights"):
        text += f" ({_percent(proof['zeros_pruned'] / proof['weights'])} of its linear weights are zero)"
    if restores_nothing(run):
        return text + ". Nothing was trained: the restored model is the pruned one."
    text += f" and restored with {_restored_how(run)}"
    if heads.get("trained") and heads.get("count"):
        text += f" in {len(heads['trained'])} of its {heads['count']} attention heads"
        if selection := SELECTIONS.get(heads.get("selection")):
            text += f" ({selection})"
    if method.get("parameters"):
        text += f", {method['parameters']:,} trained numbers"
    if method.get("parameters") != 0 and arguments.get("num_train_samples") and arguments.get("num_epoch"):
        epochs = arguments["num_epoch"]
        text += f", trained on {arguments['num_train_samples']} samples for {epochs:g} epoch{'s' * (epochs != 1)}"
        if method.get("loss"):
            text += f" by {method['loss']}"
    return text + "."


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
        text += f", {'with' if better else 'but'} {row.texts['recovered']} of the gap in {what} recovered"
    if any(row.metric.startswith("answer") and row.verdict == "worse" for row in mean_rows(results)):
        text += "; the right answers became less likely"
    return text + end


def loss_rose(before: float | None, after: float | None) -> str | None:
    """What is said of a validation loss that is higher after training than before; None of another, or one unknown."""
    if before is None or after is None or after <= before:
        return None
    return f"the validation loss rose from {before:.3f} to {after:.3f}"


def headline(results: dict) -> tuple[str, ScoreRow] | None:
    """(what it is of, the row) of the recovered share that stands for the run: a mean's, else a task's, if better."""
    means = {"accuracy": "mean accuracy", "answer bits/byte": "the right answers’ likelihood"}
    named = [(means[row.metric], row) for row in mean_rows(results)]
    named += [(f"{row.task}’s {row.metric.replace('_', ' ')}", row) for row in score_rows(results)]
    return next(((what, row) for what, row in named if row.verdict == "better" and row.recovered is not None), None)


def proof_sentence(proof: dict) -> str:
    """Whether the merged checkpoint keeps what it must."""
    if not proof:
        return ""
    if not proof.get("passed"):
        return "**The proof of the merged checkpoint FAILED: do not use or publish it** (see which promise broke)."
    if proof.get("zeros", "kept") != "kept":
        before, after = (_percent(proof[name] / proof["weights"]) for name in ("zeros_pruned", "zeros_restored"))
        return (
            "The merged checkpoint was read back and is what was trained. **Merging it filled zeros**: "
            f"{before} of the linear weights were zero, {after} are."
        )
    if any(name.endswith("weight") for name in proof.get("changed_tensors", [])):
        return (
            "The merged checkpoint was read back: it kept every zero of the pruned one, and nothing else was touched."
        )
    return "The merged checkpoint was read back and kept every weight and every zero of the pruned one."


def sparsity_sentence(proof: dict) -> str:
    """The zeros of each layer in one sentence; "" where they were not counted."""
    before, after = proof.get("sparsity_pruned"), proof.get("sparsity_restored")
    if not before or not after:
        return ""
    ends = [dict.fromkeys((_percent(min(shares)), _percent(max(shares)))) for shares in (before, after)]
    pruned, restored = map(" to ".join, ends)
    same = "the same before and after restoring"
    told = same if list(before) == list(after) else f"and {restored} after restoring: **not the same**"
    return f"Zeros in the linear weights of each of the {len(before)} layers: {pruned}, {told}."


def shown_facts(run: dict) -> list[tuple[str, str]]:
    """(what, value): seed, device, models, versions, and hashes of the inputs."""
    facts = {name: run.get(name) for name in ("seed", "device", "started")}
    facts |= {f"{name} model": shown_name(value) for name, value in (run.get("models") or {}).items() if value}
    facts |= {f"version of {name}": value for name, value in (run.get("versions") or {}).items()}
    facts |= {f"SHA-256 of {hide_path(str(name))}": value for name, value in (run.get("inputs") or {}).items()}
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def shown_arguments(run: dict) -> list[tuple[str, str]]:
    """(flag, value), without this machine's folders."""
    given = (run.get("arguments") or {}).items()
    parts = {f"-{name}": value if isinstance(value, list | tuple) else [value] for name, value in given}
    return [(name, " ".join(hide_path(str(part)) for part in value)) for name, value in parts.items()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def _level(sparsity: object) -> str:
    """ "0.5" and 0.5 as "50 %"; a pattern such as "2:4" as it is."""
    try:
        return _percent(float(sparsity))
    except (TypeError, ValueError):
        return shown_name(sparsity)
