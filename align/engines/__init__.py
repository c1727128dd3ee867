"""One protocol for text generation: vLLM, transformers, OpenAI-compatible servers and replay."""
