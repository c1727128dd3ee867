"""Win rates, lengths, repetition, language match and KL of the trained models."""
