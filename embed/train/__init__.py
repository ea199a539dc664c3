"""Training of an embedder: settings, tasks, losses, sampling and the training loop."""
