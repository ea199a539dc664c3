"""Networks that turn pixels into features: backbone, pooling, runtime."""
