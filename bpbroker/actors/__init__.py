"""The broker's actors: each owns one piece of state; all others send it messages.

Read ``base`` first (what all of them have: an ``inbox``, deadlines, replies), then ``registry``, which has
``registry_sessions``, ``registry_locks`` and ``registry_waiting`` beside it in its thread, and commits through a
``registry_backend``: ``registry_local`` or ``registry_shared``. ``config_store`` and ``backup`` have a ``worker`` for
long work. ``healthcheck`` pings all of them; ``supervisor`` replaces those that are dead or stuck.
"""
