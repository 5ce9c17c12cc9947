"""How loud libraries may be."""


def quiet_libraries() -> None:
    """Libraries' own bars and notes would bury the run's; errors still show."""
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
