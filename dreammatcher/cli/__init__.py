"""Commands of a terminal. They put methods, host and Toybox together, and nothing but their shims imports them."""
