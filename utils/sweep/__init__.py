"""Many runs from one small file: each a process of its own, done when its files say so, and one table of them all."""
