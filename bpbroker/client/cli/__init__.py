"""``bpclient``: the client on a command line.

Read ``main`` first, then ``parser`` (fast, without click), ``options`` and
``commands``; ``click_tree`` is the same command line as click's, for help and errors.
"""
