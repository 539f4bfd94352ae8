"""Files of a verdict: what they are asked beside their divergences, and what is made of all that the store has of them."""
