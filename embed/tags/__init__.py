"""Tags: heads, hierarchy, captions, detector."""
