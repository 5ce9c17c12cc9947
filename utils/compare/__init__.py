"""Many runs on one page: what each came to, what one has over another, and what a flag changes."""
