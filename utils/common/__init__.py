"""What every package needs: errors, files, cache, record, flags, processes. It imports nothing of ours."""
