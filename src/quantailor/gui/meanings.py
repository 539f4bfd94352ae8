"""What figures that stand on several screens are and how they come about, in the words of a tooltip."""

from __future__ import annotations

SIZE = "Of the whole file, header and vocabulary included: counted to the byte, not estimated."
BITS = "The bytes of all tensors times 8, over the number of their weights; tensors that keep their type are included."
KLD = (
    "How far the file's probabilities of the next token are from the original's: their KL divergence in nats, 0 where they are the same."
    " It is predicted from probes; the interval holds it with 95 % probability. Verify measures it on text that no earlier step has seen."
)
MEASURED = (
    "How far the file's probabilities of the next token are from the base's: the mean of their KL divergence over the tokens of a text, in"
    " nats, with its standard error over chunks. The prediction is for the text that was probed; another text may give another figure."
)
EVENNESS = (
    "How evenly a layer's router spreads the text over its experts: the entropy of their shares over its largest value, of the most uneven"
    " and of the most even layer. 1: all alike; 0: one expert does everything."
)
