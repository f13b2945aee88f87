"""What a request means: which message goes to which actor, and what is sent back.

Read ``application`` first, then ``actions`` (the built-in methods),
``parameters`` and ``control`` (what the command line asks of a running
broker); ``access_keys`` and ``access_log`` are about the caller. No state but
wrong keys is kept here.
"""
