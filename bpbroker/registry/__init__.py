"""What the registry does, without a thread: pure functions, and state that only its actor touches.

Read ``entry_values`` (one entry's value; its tag is made in ``bpbroker.record.Record``), ``view`` (what a write
meets), ``writes`` (what each kind of write does to it; sessions, locks and numbers have modules beside it),
``memory`` (the entries, the writes that wait for a commit, the reads that wait), which stands on ``index`` and
``waiting_reads``, and ``replies``. For a store with other writers there are ``replica`` (what is known of it)
and ``reads``; ``changes`` are the values that pass between the registry and a store.

The actor ``actors/registry.py`` owns all of it. How it commits and reads is in
``actors/registry_local.py`` and ``actors/registry_shared.py``.
"""
