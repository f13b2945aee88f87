"""Installing the broker as a service of the operating system: init.d, systemd, nssm.

Read ``steps`` first, then ``machine`` (what was found), ``linux`` and ``windows`` (what is to be done there).

What is to be done is a :class:`~bpbroker.service.steps.Plan`, made by pure functions
from what was found on the machine; carrying it out is a few lines in
:mod:`bpbroker.service.execute`.
"""
