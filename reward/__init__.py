"""Reward models, scoring, rank agreement and preference pairs."""
