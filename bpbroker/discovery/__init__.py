"""Finding a broker: datagrams, the sockets for them, tokens that say which broker to trust.

Read ``datagram`` first (what is asked and answered; pure), then ``udp`` (the
broker's sockets), ``interfaces`` and ``jointoken``. The discovery actor owns
the sockets; the client's side is ``client/discovery.py``.
"""
