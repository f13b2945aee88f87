"""``python -m bpbroker`` is ``bpbroker``."""

from bpbroker.cli import main

main()
