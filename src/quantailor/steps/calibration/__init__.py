"""What a text says of a model: importance matrices and input covariances."""
