"""Recipes: what servers need from each other, made of a broker's calls.

Read ``session`` first: a session renews itself in a thread with a connection of
its own. ``lock`` stands on it, ``election`` and ``once`` on that; ``watch``,
``barrier``, ``batch`` and ``take`` need neither. Each is made by a method of
:class:`bpbroker.client.Client`. No constructor talks to the broker; a race that
is lost is a return value or an error with a name of its own.
"""
