"""One run from start to end, its settings and its folder."""
