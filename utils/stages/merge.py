"""Merge what was trained, prove the result, and score it: read once, for both."""

from dataclasses import dataclass

from models.checkpoint import Checkpoint
from models.loading import has_tokenizer
from models.merge import Proof, compact_and_prove, merge_and_prove
from utils.evaluation.task_loading import EvalPlan
from utils.samples import Samples
from utils.stages.context import LazyModel, Models, Run
from utils.stages.examples import answers
from utils.stages.measure import Measured, scored
from utils.stages.train import SAVED, Trained


@dataclass(frozen=True)
class Merged:
    """The proof, with the merged model that it loaded, and the proof of the compact one where there is one."""

    proof: Proof
    compact: dict | None


def merge(run: Run, models: Models, trained: Trained) -> Merged:
    """Merge into the result's model/, and into compact/ where the pruned checkpoint came in smaller shapes."""
    pruned = models.pruned.folder
    proof = merge_and_prove(
        pruned,
        run.folder / SAVED,
        run.folder / "model",
        tokenizer_from=pruned if has_tokenizer(pruned) else models.tokenizer_from,
        reference=trained.reference,
    )
    compact = None
    if models.compact:
        proof.model = None  # two of them, and a wider one to compare with, may be too many
        compact = compact_and_prove(run.folder / "model", run.folder / "compact", trained.reference).record
        print("      as small as the pruned checkpoint: compact/")
    return Merged(proof, compact)


def score_merged(run: Run, models: Models, samples: Samples, plan: EvalPlan, merged: Merged) -> Measured:
    """The merged model's scores and answers; it is gone afterwards."""
    checkpoint = Checkpoint(run.folder / "model", "-output_dir")
    proved, merged.proof.model = merged.proof.model, None
    with LazyModel(checkpoint, run.dtype, lambda: proved or run.load(checkpoint)) as model:
        return Measured([], scored(run, models, plan, model, "restored"), answers(run, models, samples, model))
