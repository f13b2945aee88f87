"""Other people's code: modules in the lib folder, each run in processes of its own.

Authors of extensions import :class:`Error`, :class:`Request` and
:class:`Registry` from here. Readers begin with ``modules`` (where modules are
and what they offer), then ``child`` (the broker's side of one process) and
``child_main`` (what runs inside it). ``process_pool`` and ``call_results``
belong to the extension's actor, ``idempotency`` keeps results of calls that may
be repeated, ``installing`` and ``trial`` serve the command line.
"""

from bpbroker.extensions.rh import Error, Registry, Request

__all__ = ["Error", "Registry", "Request"]
