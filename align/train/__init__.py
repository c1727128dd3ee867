"""Losses, log-probabilities and the one trainer for SFT, DPO and SimPO."""
