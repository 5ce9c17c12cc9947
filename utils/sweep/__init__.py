"""Many runs from one small file: each a process of its own, done when its results.json stands; one table of them."""
