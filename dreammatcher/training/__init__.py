"""Learning a subject: what every method that trains shares, and the recipes. Pure torch."""
