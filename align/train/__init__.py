"""Losses, the fused LM head, log-probabilities and the one trainer for SFT and preference optimization."""
