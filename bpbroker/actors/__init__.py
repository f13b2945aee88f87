"""The broker's actors: each owns one piece of state; all others send it messages."""
