"""Makes what ships in toybox: renders the training pictures, trains the model and the judge."""
