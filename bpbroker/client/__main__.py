"""``python -m bpbroker.client`` is ``bpclient``."""

from bpbroker.client.cli.main import main

main()
