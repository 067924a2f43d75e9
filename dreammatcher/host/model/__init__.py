"""The host's model object: what is read out of it, changed in it for a call, and compared of it."""
