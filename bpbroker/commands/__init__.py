"""The commands of ``bpbroker``, a module for each thing that an operator looks after.

Read ``scope`` first (which broker a command is about), then ``local`` (how it asks a running one) and ``start``.
"""
