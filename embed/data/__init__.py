"""Pictures and labels on disk, and their manifest."""
