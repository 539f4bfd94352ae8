"""Strategies: edited, compared, predicted."""
