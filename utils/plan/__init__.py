"""What a run will take, before a weight is read."""
