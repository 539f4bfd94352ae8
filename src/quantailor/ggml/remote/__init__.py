"""llama.cpp's RPC servers: layers on other machines."""
