"""Running one broker: everything around the actors.

Read ``plan`` (what this run was told), ``prepare`` (checks before anything
starts), ``actors`` (how each is made) and ``mainloop`` in this order;
``daemon``,
``pidfile``, ``sdnotify`` and ``logs`` are the ties to the operating system.
"""
