"""When a sampling run, an evaluation of the model and a call begin and end, and which row each chunk of a call is."""
