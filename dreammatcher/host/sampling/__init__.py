"""Begin and end of a sampling run, of an evaluation of the model and of a call, and the row of each chunk of a call."""
