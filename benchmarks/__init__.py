"""Speed as ratios within one run: what is compared is measured turn by turn on the same machine."""
