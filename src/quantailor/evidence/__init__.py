"""What is known of a model: which measurements, probes and mixes count."""
