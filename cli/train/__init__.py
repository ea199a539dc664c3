"""Commands that train and export an embedder."""
