"""Last stage: write results.json, run.json, the rows, the report and the model's card, and print the tables."""

import shlex
import sys
import textwrap

from models.checkpoint import pruned_layer
from models.compact import RECORD
from models.families import FAMILIES, dropped_by
from utils.common.commands import WIDTH
from utils.common.files import digest, read_json, without_nan, write_json, write_text
from utils.common.methods import Options, parts_of
from utils.common.names import DISTILL
from utils.common.record import device_name, versions
from utils.distillation import WEIGHT
from utils.evaluation.comparison import summarise
from utils.evaluation.outcomes import LOSS, VALIDATION, KeptRows, write_rows
from utils.report.card import model_card
from utils.report.page import EXAMPLES, write_report
from utils.report.records import heads_record
from utils.report.summary import verdict
from utils.report.tables import proof_table, score_table
from utils.samples import Samples
from utils.stages.context import Models, Run
from utils.stages.measure import Measured, examples_record
from utils.stages.rank import SCORE_NAMES, Ranked
from utils.stages.train import Trained
from utils.training import TrainingSettings, tokens_read


def write_results(
    run: Run,
    models: Models,
    samples: Samples,
    ranked: Ranked | None,
    trained: Trained,
    proofs: list[dict],
    measured: dict[str, Measured],
) -> None:
    """Write all that a person or a later run reads. proofs: of model/, and of compact/ where there is one. measured: of
    the three models.
    """
    evaluations = {name: each.evaluation for name, each in measured.items()}
    results = {
        **summarise(evaluations),
        "validation": trained.validation,
        **dict(zip(("proof", "proof_compact"), proofs, strict=False)),
    }
    if ranked:
        chosen = ranked.heads if trained.parameters else []
        selection, found = run.args.head_selection, (ranked.scores, chosen, ranked.sizes)
        heads = heads_record(*found, trained.restoration.of_heads)
        results["heads"] = {"selection": selection, "score_name": SCORE_NAMES[selection], **heads}
        if ranked.spectrum:
            results["spectrum"] = ranked.spectrum
    results, record = without_nan(results), without_nan(run_record(run, models, samples, trained))
    # Numbers first: a picture that cannot be drawn must not cost hours of training.
    write_json(run.folder / "run.json", record)
    write_json(run.folder / "results.json", results)
    validated = {}
    if trained.training.valid_rows:
        asked = digest([[sample.ids, sample.prompt_length] for sample in samples.valid])
        validated = {VALIDATION: {LOSS: KeptRows(trained.training.valid_rows, "mean", False, asked)}}
    write_rows(run.folder / "logs" / "rows.json.gz", evaluations, {"restored": validated})
    if samples.valid:
        answers = {name: each.answers for name, each in measured.items()}
        write_json(run.folder / EXAMPLES, examples_record(models, samples, answers))
    write_text(run.folder / "model" / "README.md", model_card(results, record))
    report = write_report(run.folder)
    print(f"\n{score_table(results)}\n\n{proof_table(results['proof'])}")
    output = run.args.output_dir
    model = output / "model"
    print(f"\n{textwrap.fill(verdict(results, record), WIDTH)}")
    print(f"\nreport: {output / report.name}\nmodel:  {model}")
    for runtime, lost in dropped_by(trained.restoration.terms, models.config).items():
        said = f"note:   {runtime} drops what was restored in the biases of {lost} (docs/running.md)"
        print(textwrap.fill(said, WIDTH, subsequent_indent=8 * " "))
    loading = shlex.quote(f"pretrained={model}")
    print(f"next:   lm_eval --model hf --model_args {loading} --tasks arc_easy --device {run.device}")


def method_record(run: Run, trained: Trained) -> dict:
    """How the model was restored, in words and numbers."""
    restoration = trained.restoration
    parts = parts_of(run.args.method, Options.of(run.args))
    # If nothing was trained, only a closed form restores.
    done = [part.spec for part in parts if part.name != "none" and (trained.parameters or not part.spec.needs.training)]
    weights = [name for name in restoration.terms if name.endswith(".weight")]
    kind = "constants" if restoration.terms else "nothing"  # what a merge touches
    if restoration.zeros == "reported":
        kind = "dense"
    elif weights:  # `mask`: weights change, but none of their zeros
        kind = "mask" if any(pruned_layer(name) is not None for name in weights) else "norms"
    loss = "cross-entropy"
    if run.args.loss == DISTILL:
        loss = f"{1 - WEIGHT:g} cross-entropy + {WEIGHT:g} KL to the dense model, + KL on calibration text"
    return {
        "name": run.args.method,
        "title": ", ".join(spec.title for spec in done) or "nothing",
        "about": done[0].about if len(done) == 1 else "",
        "parameters": trained.parameters,
        "loss": loss if trained.parameters else None,
        "restores": len(restoration.terms) > 0,
        "zeros": restoration.zeros,
        "kind": kind,
    }


def trained_tokens(run: Run, samples: Samples) -> int:
    """Tokens that training read: of samples, of LoFiT's first step, and under distillation a text window per step."""
    args, how = run.args, (samples.train, TrainingSettings.of(run.args), run.processes.count)
    if not args.trains:
        return 0
    lofit = run.needs.heads and args.head_selection == "lofit"  # its first step is a training, too, without text
    return tokens_read(*how, args.calib_length * (args.loss == DISTILL)) + lofit * tokens_read(*how)


def run_record(run: Run, models: Models, samples: Samples, trained: Trained) -> dict:
    """The content of run.json: flags, models, inputs, device and versions, and each stage's time and memory."""
    args, texts, family = run.args, samples.texts, read_json(models.dense.folder / "config.json")["model_type"]
    record = models.pruned.folder / RECORD
    pruning = read_json(record) if record.is_file() else None
    if pruning and not args.pruned_model_path:  # from the cache: the run that made it may have used other names
        pruning["base_model"] = args.base_model_name
        if pruning["calibration"]:
            pruning["calibration"]["calib_data"] = args.calib_data
    return {
        "command": shlex.join(["python", *sys.argv]),
        "arguments": args.as_json(),
        "seeds": {"calibration": args.calibration_seed, "data": args.samples_seed, "training": args.training_seed},
        "started": run.record.started,
        "device": device_name(run.device),
        "processes": run.processes.count,
        "versions": {**versions(), "restorelcc": run.version},
        "models": {"dense": args.base_model_name, "pruned": args.pruned_model_path},
        "family": family,
        "written_as": "LlamaForCausalLM" if FAMILIES[family].as_llama is not None else None,
        "method": method_record(run, trained),
        "pruning": pruning,
        "inputs": {
            "dense model": models.dense.fingerprint,
            "pruned model": models.given.fingerprint,
            "training samples": digest([[text.prompt for text in texts], [text.response for text in texts]]),
        },
        "training": {"samples": len(samples.train), "tokens": trained_tokens(run, samples)},
        "stages": run.record.stages,
    }
