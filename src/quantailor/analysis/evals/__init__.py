"""What a file does with a text, beside its divergence: each evaluation is a list of items, which every file answers by itself."""
