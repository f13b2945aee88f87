"""How bytes come and go: sockets, TLS, HTTP/1.1, deadlines, limits.

Read ``listener`` first, then ``event_loop`` (its thread), ``connection`` (one
client), ``framing`` (requests out of bytes), ``request_cycle`` and ``response``.
``tls`` has certificates and contexts. What a request means is decided in
:mod:`bpbroker.frontend`.
"""
