"""What a request means: which message goes to which actor, and what is sent back.

Read ``application`` first, then ``actions`` (the built-in methods),
``parameters`` and ``control`` (what the command line asks of a running
broker); ``access_keys`` and ``access_log`` are about the caller. The state kept
here is about requests alone: wrong keys (``access_keys``), uses of keys that are
not written down yet (``key_uses``), ``request_counts``, and in ``pages`` the sessions of people who have signed in.
"""
