"""The shared store: an etcd cluster, through its HTTPS gateway.

Read ``store`` first, then ``commits`` (each happens once, whatever happens on
the way), ``keys`` (what is under which key) and ``gateway`` (the way there).
"""
