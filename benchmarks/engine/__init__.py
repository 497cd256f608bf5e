"""The native engine against vLLM's CPU build, this model's own matrix products, and limits of memory and start."""
