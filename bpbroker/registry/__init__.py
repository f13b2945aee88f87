"""What the registry does, without a thread: pure functions, and state that its actor alone touches.

Read ``entry`` (one entry's value), ``writes`` (what each write does to it),
``index`` (all entries), ``waiters`` (reads that wait) and ``replies``. The
registry actor (``actors/registry.py``) owns all of it.
"""
