"""The method itself, in the order of its equations, and what runs, evaluates and reports it."""
