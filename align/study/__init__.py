"""Studies: one recipe in several arms and seeds, as ordinary runs, and what they say together."""
