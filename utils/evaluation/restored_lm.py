"""lm_eval's own command line and options, with our model type added. A merged checkpoint does not need it.

    python -m utils.evaluation.restored_lm --model restorelcc \
        --model_args pruned=PRUNED,restoration=OUT/restoration --tasks arc_easy
"""

from pathlib import Path

import lm_eval.__main__
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from models.compact import in_dense_shapes
from models.loading import has_tokenizer, load_config, load_tokenizer, resolve
from models.restoration import check_belongs, load_restoration
from utils.common.commands import DEFAULT_CACHE, run
from utils.common.errors import UserError


@register_model("restorelcc")
class RestoredLM(HFLM):
    """A pruned checkpoint (folder, hub id or short name) with a run's OUT/restoration attached, not merged.

    tokenizer: its folder or name, if the pruned folder has none. All other arguments are HFLM's (dtype, device, ...).
    """

    def __init__(self, pruned: str = "", restoration: str = "", tokenizer: str | None = None, **kwargs):
        if not (pruned and restoration):
            raise UserError("--model_args: give pruned=PRUNED,restoration=OUT/restoration")
        folder = resolve(pruned, "pruned", DEFAULT_CACHE)
        load_config(folder, "pruned")
        learned, about = load_restoration(Path(restoration).expanduser(), "restoration")
        check_belongs(about, folder, "pruned")
        folder, _ = in_dense_shapes(folder, DEFAULT_CACHE)
        if tokenizer is None and not has_tokenizer(folder):
            raise UserError(f"pruned: {pruned} has no tokenizer; add tokenizer=PATH to --model_args")
        source = resolve(tokenizer, "tokenizer", DEFAULT_CACHE) if tokenizer is not None else folder
        super().__init__(pretrained=str(folder), tokenizer=load_tokenizer(source, "tokenizer"), **kwargs)
        learned.attach(self.model).requires_grad_(False)


def main() -> None:
    """lm_eval's command line; a user's mistake in our arguments is one line and exit 2."""
    run(lm_eval.__main__.cli_evaluate)


if __name__ == "__main__":
    main()
