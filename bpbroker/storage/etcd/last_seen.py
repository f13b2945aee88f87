"""What a broker saw last of its etcd cluster: a file beside its configuration, read at the next start.

A cluster that is restored while no broker runs goes back unseen: there is no
connection that could notice. So the id of the registry and of the cluster and the revision
that was reached are noted now and then. A start that finds less, or another cluster with the same registry, knows.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from bpbroker import files
from bpbroker.errors import Unavailable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LastSeen:
    """The latest revision of a registry that was seen."""

    registry: str
    cluster: str
    revision: int
    """Of etcd."""


class LastSeenFile:
    """Reads and writes the file.

    Args:
        path: where it is; None to remember nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._noted = self._read()
        self._ended = False

    def _read(self) -> LastSeen | None:
        if self._path is None:
            return None
        try:
            found = json.loads(self._path.read_bytes())
            return LastSeen(str(found["registry"]), str(found["cluster"]), int(found["revision"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be used, and a restored etcd cluster may go unnoticed: %r", self._path, error)
            return None

    def lost(self, registry: str, cluster: str, revision: int) -> int:
        """Return up to which revision of etcd the registry had a history that is not there any more; 0: it is there."""
        noted = self._noted
        if noted is None or noted.registry != registry or (noted.cluster == cluster and noted.revision <= revision):
            return 0
        return max(noted.revision, revision)

    def note(self, registry: str, cluster: str, revision: int) -> None:
        """Remember how far it goes now; the file is written only if that is further."""
        now = LastSeen(registry, cluster, revision)
        if self._path is None or now == self._noted or not registry or not cluster or self._ended:
            return
        try:
            files.replace(self._path, [json.dumps(asdict(now)).encode()], renaming=self._renaming())
        except (OSError, Unavailable) as error:
            logger.warning("%s cannot be written: %s", self._path, error)
        else:
            self._noted = now

    def end(self) -> None:
        """Write no more, for another one has taken this one's place; from any thread."""
        self._ended = True

    @contextmanager
    def _renaming(self) -> Iterator[None]:
        if self._ended:  # the disk made it wait
            raise Unavailable("the broker's registry was replaced meanwhile")
        yield
