"""What lasts: the stores, the configuration file, backups, the lock.

Read ``base`` first: it says what a store must do; ``embedded`` and ``etcd`` are the two kinds.
``config_file`` reads and writes ``bpbroker.json``, ``sources`` lays the global
file, the own file and one run's options over each other,
``backups`` keeps copies of it, ``offline`` works on the files of a stopped
broker, ``lock_file`` lets one process at a time have them. The registry actor owns
the store, the config store actor the file, the backup actor the copies.
"""
