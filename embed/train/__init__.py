"""Training an embedder: settings, losses, sampling, the loop, distillation."""
