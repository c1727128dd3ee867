"""Documents to taxonomy, instructions, evolution, answers and the SFT set, with quality gates."""
