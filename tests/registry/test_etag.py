from __future__ import annotations

from bpbroker.registry.entry import encode
from bpbroker.registry.etag import etag


def test_etag_is_a_digest_of_the_content() -> None:
    one, other = encode({"a": 1}), encode({"a": 2})
    assert etag(one) == etag(encode({"a": 1})) != etag(other)
    assert etag(one).startswith('"')
    assert len(etag(one)) == 34
