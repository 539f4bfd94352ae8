"""Structure: every tensor of a model, and what its files say of it."""
