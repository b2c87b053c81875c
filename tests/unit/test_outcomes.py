"""What an answer that failed says."""

import pytest

from app.routing.outcomes import Failure, not_found_failure


@pytest.mark.parametrize("body, failure", [
    (b'{"detail":"model not found: x"}', Failure.MODEL_NOT_FOUND), (b'{"detail":"no"}', None),
    (b'{"detail":"model not found \xff"}', None), (b'{"\xff":1}', None), (b"\xff", None),
    (b'{"detail":1}', None), (b"[", None), (b"[" * 5000, None), (b"", None)])
def test_a_404_says_that_the_model_is_not_there_or_nothing(body, failure):
    """002-R12"""
    assert not_found_failure(body) is failure
