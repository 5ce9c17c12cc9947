"""What a run did and found, in words computed from its record, without the names of private folders."""

import os
import re
import shlex
from pathlib import Path

from utils.common.names import EMBEDDED, EMBEDDED_ID, counted
from utils.report.tables import JUDGED, ScoreRow, mean_rows, score_rows, share_text

NAMES = {  # how models and pruners are written, by their names on the command line
    EMBEDDED: EMBEDDED_ID.partition("/")[2], "magnitude": "magnitude pruning", "wanda": "Wanda",
    "sparsegpt": "SparseGPT", "slimgpt": "SlimGPT",
}  # fmt: skip


def shown_name(name: object) -> str:
    """A model or pruner as a reader should see it: a local folder by its own name only."""
    text = in_line(name)
    is_relative_path = text.startswith(".") or text.count("/") > 1  # a hub id is owner/name
    return NAMES.get(text, Path(text).name if is_relative_path else text)


def in_line(name: object) -> str:
    """A name that somebody else chose, in one line."""
    return " ".join(hide_path(str(name)).split())


def hide_path(text: str) -> str:
    """An absolute path, or one below a home directory, becomes the name of its file or folder; other text stays."""
    text = text.removeprefix("file://")
    return Path(text).name or text if text.startswith(("/", "~")) else text


def hide_paths(command: str) -> str:
    """A shell command with each absolute path in it, `-flag=/a/path` included, cut to its last name."""
    words = (re.fullmatch(r"(--?\w+=)?(.*)", word, re.DOTALL).groups("") for word in shlex.split(command))
    return shlex.join(flag + hide_path(value) for flag, value in words)


def hide_home(text: str) -> str:
    """Replace the home directory by ~: a last guard, for a path that slipped through."""
    home = os.path.expanduser("~")  # stays "~" for a user without a home
    return text if home == "/" else re.sub(rf"(?<![\w.<-]){re.escape(home)}(?![\w.-])", "~", text)


def pruned_how(run: dict, proof: dict) -> str:
    """How the model was pruned, as far as it is known: "pruned with Wanda at 50 %"."""
    pruning = run.get("pruning") or {}
    if method := pruning.get("method"):
        sparsity = pruning.get("sparsity")
        try:
            level = share_text(float(sparsity))
        except (TypeError, ValueError):  # a pattern such as 2:4
            level = shown_name(sparsity)
        return f"pruned with {shown_name(method)}" + (f" at {level}" if sparsity is not None else "")
    if unpruned(proof):
        return "left unpruned"
    zeros = f" to {share_text(proof['zeros_pruned'] / proof['weights'])} zeros" if proof.get("weights") else ""
    return f"pruned elsewhere{zeros}"


def title(run: dict, proof: dict) -> str:
    """What was pruned and restored, in one line."""
    dense = shown_name((run.get("models") or {}).get("dense", "A model"))
    restored = "not restored" if restores_nothing(run) else restored_how(run, proof)
    return f"{dense}, {pruned_how(run, proof)}, {restored}"


def unpruned(proof: dict) -> bool:
    """Whether the model that was trained has no zeros: a control."""
    return proof.get("zeros_pruned") == 0


def restores_nothing(run: dict) -> bool:
    """Whether nothing was restored (-method none, or -num_epoch 0 of a method that is trained)."""
    return not (run.get("method") or {}).get("restores", True)


def restored_how(run: dict, proof: dict) -> str:
    """What was done to the model: "restored with LoRA"."""
    title = in_line((run.get("method") or {}).get("title") or "RestoreLCC")
    return f"{'trained' if unpruned(proof) else 'restored'} with {title}"


def verdict(results: dict, run: dict) -> str:
    """The result of the run in one plain sentence; only what is beyond noise counts as better or worse."""
    losses = results.get("validation") or {}
    if restores_nothing(run):
        return "Nothing was restored: this is the pruned model."
    # It rose in training, or else by a closed form.
    rose = [loss_rose(losses.get(before), losses.get("restored")) for before in ("start", "pruned")]
    end = next((f"; {text}." for text in rose if text), ".")
    verdicts = verdicts_of(results)
    if not verdicts:
        if end == "." and loss_rose(losses.get("restored"), losses.get("pruned")):  # arguments swapped: it fell
            end = "; the validation loss fell from {pruned:.3f} to {restored:.3f}.".format(**losses)
        return f"No score of the pruned and the restored model could be judged: whether it is better is not known{end}"
    better, worse = verdicts.count("better"), verdicts.count("worse")
    tasks = counted(len(verdicts), "task")
    whole = "the task" if len(verdicts) == 1 else f"any of {tasks}"
    what = "Training" if unpruned(results.get("proof") or {}) else "Restoring"
    text = {
        (False, False): f"No measurable effect on the score of {whole}",
        (True, True): f"The result is mixed: better on {better} of {tasks}, worse on {worse}",
        (True, False): f"{what} helped: better on {better} of {tasks}, worse on none",
        (False, True): f"{what} made the model worse on {worse} of {tasks}, and better on none",
    }[better > 0, worse > 0]
    if (found := headline(results)) and not worse:
        text += f", {'with' if better else 'but'} {found[1].texts['recovered']} of the gap in {found[0]} recovered"
    if any(row.metric.startswith("answer") and row.verdict == "worse" for row in mean_rows(results)):
        text += "; the right answers became less likely"
    return text + end


def verdicts_of(results: dict) -> list[str]:
    """The verdict on each task whose main metric was judged."""
    return [row.verdict for row in score_rows(results) if row.verdict in JUDGED]


def loss_rose(before: float | None, after: float | None) -> str | None:
    """A phrase if the validation loss is higher after training than before; None if it is not, or one is unknown."""
    if before is None or after is None or round(after, 3) <= round(before, 3):  # as they are shown
        return None
    return f"the validation loss rose from {before:.3f} to {after:.3f}"


def headline(results: dict) -> tuple[str, ScoreRow] | None:
    """(name, row) of the first row with a recovered share and the verdict better; means over tasks come first."""
    means = {"accuracy": "mean accuracy", "answer bits/byte": "the right answers’ likelihood"}
    named = [(means[row.metric], row) for row in mean_rows(results)]
    named += [(f"{row.task}’s {row.metric.replace('_', ' ')}", row) for row in score_rows(results)]
    return next(((what, row) for what, row in named if row.verdict == "better" and row.recovered is not None), None)


def shown_facts(run: dict) -> list[tuple[str, str]]:
    """(what, value): seed, device, models, versions, and hashes of the inputs."""
    facts = {name: run.get(name) for name in ("device", "started")}
    facts |= {f"seed of {name}": value for name, value in (run.get("seeds") or {}).items()}
    facts |= {f"{name} model": shown_name(value) for name, value in (run.get("models") or {}).items() if value}
    facts |= {f"version of {name}": value for name, value in (run.get("versions") or {}).items()}
    facts |= {f"SHA-256 of {name}": value for name, value in (run.get("inputs") or {}).items()}
    return [(name, str(value)) for name, value in facts.items() if value is not None]
