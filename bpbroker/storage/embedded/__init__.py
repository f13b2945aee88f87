"""The embedded store: a SQLite journal beside the configuration file.

Read ``store`` first, then ``journal`` (its files, read without changing them)
and ``wal`` (a torn tail told from damage).
"""
