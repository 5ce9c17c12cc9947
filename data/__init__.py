"""Training samples: loaders, the bundled set and the offline evaluation tasks."""
