"""What a user may do next, by what a run found: each with its command."""

import shlex

from utils.report.summary import hide_path, restores_nothing
from utils.report.tables import score_rows


def next_steps(results: dict, run: dict) -> list[tuple[str, str]]:
    """(what for, command), to be run where the run was started; the folder is named as a reader should see it."""
    arguments = run.get("arguments") or {}
    out = hide_path(str(arguments.get("output_dir") or "output"))
    again = f"python RestoreLCC_train.py -config {_quoted(out, '/run.json')}"
    proof = results.get("proof") or {}
    if proof and not proof.get("passed"):
        return [("Run it again from the start: what the proof found broken is above.", f"{again} -output_dir {out}-2")]
    tasks = f"--tasks arc_easy --device {(run.get('device') or 'cpu').split()[0] if _is_cpu(run) else 'cuda'}"
    steps = [
        (
            "Score the merged model on any task of lm_eval, with its own command.",
            f"lm_eval --model hf --model_args pretrained={_quoted(out, '/model')} {tasks}",
        )
    ]
    rows = [row for row in score_rows(results) if row.verdict]
    clear = any(row.verdict in ("better", "worse") for row in rows)
    if not restores_nothing(run):
        seed = (run.get("seeds") or {}).get("training", run.get("seed"))
        if seed is not None:
            other = f"{out}-seed{seed + 1}"
            steps.append(
                (
                    "Another seed, from the same caches: how much of this is chance?",
                    f"{again} -train_seed {seed + 1} -output_dir {_quoted(other)}\n"
                    f"python -m utils.compare {_quoted(out)} {_quoted(other)} -output compare.html",
                )
            )
        if arguments.get("base_model_name") and not arguments.get("allow_dense"):
            dense = hide_path(str(arguments["base_model_name"]))
            steps.append(
                (
                    "The control: the same training of the dense model. What it gains, no restoring explains.",
                    f"{again} -pruned_model_path {_quoted(dense)} -allow_dense -output_dir {_quoted(out, '-control')}",
                )
            )
        if arguments.get("lr") and (not clear or any(row.verdict == "worse" for row in rows)):
            rate = arguments["lr"] / 3
            steps.append(
                (
                    "A smaller learning rate, where nothing or too little became better.",
                    f"{again} -lr {rate:.1g} -output_dir {_quoted(out, f'-lr{rate:.1g}')}",
                )
            )
    if limit := arguments.get("eval_limit"):
        steps.append(
            (
                "Four times the questions halve the standard errors.",
                f"{again} -eval_limit {4 * limit} -output_dir {_quoted(out, '-more')}",
            )
        )
    steps.append(("Draw this page again from its record.", f"python -m utils.report {_quoted(out)}"))
    return steps


def _quoted(*parts: str) -> str:
    return shlex.quote("".join(parts))


def _is_cpu(run: dict) -> bool:
    return str(run.get("device") or "cpu").startswith("cpu")
