"""One room, one job: everything between loading a model and reading the report."""
