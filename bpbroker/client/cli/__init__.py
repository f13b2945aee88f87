"""``bpclient``: the client on a command line.

Read ``main`` first, then ``parser`` (fast, without click), ``shared_options`` and
``command_table``; ``click_tree`` is the same command line as click's, for help and errors.
Longer commands have modules named after them, such as ``session_lock_once``.
"""
