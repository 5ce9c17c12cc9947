"""How loud libraries may be."""

import warnings


def quiet_libraries() -> None:
    """Libraries' own bars and notes would bury the run's; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    # Of torch, about the argument that the Trainer's ddp_broadcast_buffers becomes.
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
