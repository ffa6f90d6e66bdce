"""What a posterior predicts: by its mean, its draws, or the linearised model; answers, completions, written texts."""
