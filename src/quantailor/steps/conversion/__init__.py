"""From a Hugging Face directory to GGUF: the 16-bit base, and the vision tower or audio encoder as a file of its own."""
