"""Batches of token ids and their attention masks; training and reward scoring both stand on it."""
