"""What models take of memory, as llama.cpp accounts for it."""
