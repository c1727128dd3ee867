"""align: post-training of language models, from documents to M2."""

__version__ = "0.1.0"
