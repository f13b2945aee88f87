"""Recipes: what servers need from each other, made of a broker's calls.

They are the same for a client and for an extension's method: ``coordination``
has the methods of both, ``calls`` says what a recipe needs of the side that it
runs on. Then read ``session``: a client's session renews itself in a thread with
a connection of its own. ``lock`` stands on it, ``election`` and ``once`` on that;
``watch``, ``barrier``, ``batch`` and ``take`` need neither. No constructor talks to
the broker; a race that is lost is a return value or an error with a name of its own.
"""
