"""``python -m bpbroker.client`` is ``bpclient``."""

from bpbroker.client.cli import main

main()
