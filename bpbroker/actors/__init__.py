"""The broker's actors: each owns one piece of state, everybody else sends it messages."""
