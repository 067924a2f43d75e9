"""SeFi-IDE (Li et al. 2024, arXiv 2402.00631): one picture, one word, five stages of two vectors each.

No official code exists. What the project page states, what its ancestor ProSpect's code shows and what is inferred is said at
each place: [page], [ProSpect], [inferred].
"""
