"""The member by which SDKs show an error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.error_member import fields_of_changed, with_error_member

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(
        inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@given(detail=JSON, others=st.dictionaries(st.text(), JSON, max_size=3),
       indent=st.sampled_from([None, 2]), ascii_only=st.booleans())
def test_the_old_members_stay_byte_for_byte_behind_the_new_one(detail, others, indent, ascii_only):
    """002-R25"""
    others.pop("error", None)
    members = {**others, "detail": detail}
    try:
        body = json.dumps(members, indent=indent, ensure_ascii=ascii_only).encode()
    except UnicodeEncodeError:
        return
    changed = with_error_member(429, body)
    assert changed.endswith(body[1:]) and changed.startswith(b'{"error": {')
    error = json.loads(changed).pop("error")
    assert json.loads(changed) == {"error": error, **members}
    assert set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str)


@pytest.mark.parametrize("detail, message", [
    ("Invalid token.", "Invalid token."), ({"message": "Quota used up.", "x": 1}, "Quota used up."),
    ({"reason": "odd"}, '{"reason": "odd"}'), ([{"loc": ["body"], "msg": "m"}],
                                               '[{"loc": ["body"], "msg": "m"}]'),
    (None, "null"), ({"message": 5}, '{"message": 5}'), ("", "")])
def test_the_message_is_the_detail_as_text_or_its_message(detail, message):
    """002-R25"""
    changed = json.loads(with_error_member(400, json.dumps({"detail": detail}).encode()))
    assert changed["error"] == {"message": message, "type": "invalid_request_error",
                                "param": None, "code": None}


@pytest.mark.parametrize("body, message", [
    (rb'{"detail": "a\ud800b", "n": "\udfff"}', "a\ufffdb"),
    (rb'{"detail": {"message": "\ud83d\ude00\ud83d"}}', "\U0001f600\ufffd"),
    (rb'{"detail": ["\udc00", "\\ud800"]}', r'["\ufffd", "\\ud800"]')])
def test_a_lone_surrogate_is_replaced_in_the_message_and_stays_where_it_was(body, message):
    """002-R25"""
    changed = with_error_member(400, body)
    assert changed.endswith(body[1:])
    assert json.loads(changed)["error"]["message"] == message


def test_the_fields_of_a_changed_body_tell_of_its_own_bytes():
    """002-R56"""
    kept = [("Content-Type", "application/json"), ("Last-Modified", "x"), ("X-Digest", "y")]
    told = [(name, "x") for name in ("ETAG", "Content-MD5", "Digest", "repr-digest",
                                     "Content-Digest", "Signature", "Signature-Input")]
    assert fields_of_changed([*told, ("content-length", "1"), *kept], b"abc") == [
        ("content-length", "3"), *kept]


@pytest.mark.parametrize("status, kind", [
    (400, "invalid_request_error"), (404, "invalid_request_error"), (413, "invalid_request_error"),
    (422, "invalid_request_error"), (401, "authentication_error"), (403, "permission_error"),
    (402, "insufficient_quota"), (429, "rate_limit_error"), (500, "server_error"),
    (503, "server_error"), (599, "server_error"), (418, "api_error"), (426, "api_error")])
def test_the_type_goes_by_the_status(status, kind):
    """002-R25"""
    assert json.loads(with_error_member(status, b'{"detail": "x"}'))["error"]["type"] == kind


@pytest.mark.parametrize("body", [
    b"", b"[]", b'"detail"', b"{}", b'{"error": {}}', b'{"detail": "x", "error": null}',
    b'{"error": "y", "detail": "x"}', b'{"detail": "x"', b'{"detail": "x"} more', b"<html>",
    b'\xef\xbb\xbf{"detail": "x"}', b'{"detail": "\xff"}', b'{"detail": NaN}',
    b'{"detail": ' + b"[" * 5000 + b"]" * 5000 + b"}"])
def test_what_is_no_such_error_is_left_as_it_is(body):
    """002-R25"""
    assert with_error_member(400, body) is None


def test_white_space_before_the_object_does_no_harm():
    """002-R25"""
    assert json.loads(with_error_member(500, b'\r\n {"detail": "x"}\n'))["detail"] == "x"
