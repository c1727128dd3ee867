"""Rows, artifacts, fingerprints, chat tokenisation, seeds and errors: what every other package stands on."""
