"""How bytes come and go: sockets, TLS, HTTP/1.1, deadlines, limits.

Read ``listener`` first, then ``event_loop`` (its thread), ``connection`` (one
client, its phases as a table), ``request_parser`` (bytes to a request),
``request_cycle`` and ``response`` (a request to bytes). ``policy`` has what all
connections share, ``tls`` certificates and streams. ``wsgi`` runs our
application on another server. What a request means is decided in
:mod:`bpbroker.frontend`.
"""
