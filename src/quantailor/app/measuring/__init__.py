"""How far a measurement is, what it will cost and what it says."""
