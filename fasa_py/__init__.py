"""Text generation from GGUF models on one machine, for long contexts."""
