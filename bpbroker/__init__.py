"""bpbroker: an actor-model message broker for application installation.

Nothing is imported here: ``import bpbroker.client`` must stay cheap, because
starting the client is most of what a one-shot call costs.
"""

__version__ = "1.0.0"

DEFAULT_PORT = 20443
"""UDP and TCP."""
