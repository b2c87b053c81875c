"""Finding and replacing the top-level model, against the standard library as oracle."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.errors import ApiError
from app.routing import model_field
from app.routing.model_field import find_model

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text() | st.sampled_from(["model", '"model":', '\\"model\\":"x"', "{\"model\":1}"]),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(
        st.text(max_size=5) | st.sampled_from(["model", "stream", "Model", "model "]),
        children, max_size=4), max_leaves=12)
OTHERS = st.dictionaries(
    st.text(max_size=6).filter(lambda key: key not in ("model", "stream")), VALUES, max_size=5)


def dumped(document, ascii_only, indent):
    # Lone surrogates cannot be written as UTF-8, only as escapes.
    text = json.dumps(document, ensure_ascii=ascii_only, indent=indent)
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=400)
@given(model=NAMES, new=NAMES, others=OTHERS, at=st.integers(0, 5),
       ascii_only=st.booleans(), indent=st.sampled_from([None, 2]), stream=st.booleans())
def test_only_the_value_changes_whatever_else_the_body_holds(
        model, new, others, at, ascii_only, indent, stream):
    """002-R8"""
    items = list(others.items())
    items[at:at] = [("model", model), ("stream", stream)]
    body = dumped(dict(items), ascii_only, indent)
    try:
        body.decode()
    except UnicodeDecodeError:
        return
    field = find_model(body)
    assert (field.model, field.stream) == (model, stream)
    changed = b"".join(field.body_for(new))
    assert json.loads(changed) == dict(items) | {"model": new}
    assert changed.startswith(body[:field.start]) and changed.endswith(body[field.end:])
    assert json.loads(body[field.start:field.end]) == model


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\model 1eE.+-u0trufalsn\n').map(
    lambda text: text.encode()))
def test_what_the_standard_library_refuses_is_refused(body):
    """002-R2"""
    def no_constant(name):
        raise ValueError(name)

    try:
        document = json.loads(body.decode(), parse_constant=no_constant)
    except (ValueError, RecursionError):
        with pytest.raises(ApiError) as caught:
            find_model(body)
        assert caught.value.code == "invalid_json"
        return
    try:
        found = find_model(body).model
    except ApiError as error:
        assert error.code in ("invalid_body", "missing_model")
    else:
        assert document["model"] == found


def test_every_spelling_of_the_key_is_the_key():
    """002-R9"""
    spellings = [f"\\u{ord(letter):04x}" for letter in "model"]
    for mask in range(32):
        key = "".join(spelled if mask >> n & 1 else letter
                      for n, (letter, spelled) in enumerate(zip("model", spellings)))
        body = ('{"a":1,"%s" : "x"}' % key).encode()
        assert b"".join(find_model(body).body_for("y")) == body.replace(b'"x"', b'"y"')
        with pytest.raises(ApiError, match="more than once"):
            find_model(('{"model":"x","%s":"y"}' % key).encode())


@pytest.mark.parametrize("body, code", [
    (b'{"model":"\\ud83d\\ude00"}', None), (b'{"model":"\\ud83d"}', "missing_model"),
    (b'{"model":"\\ude00\\ud83d"}', "missing_model"),
    (b'{"x":"\\\\ud800","model":"m"}', None), (b'{"x":"\\\\\\ud800","model":"m"}', None)])
def test_surrogates_matter_in_the_model_and_nowhere_else(body, code):
    """002-R3"""
    if code is None:
        assert find_model(body).model in ("m", "\U0001f600")
    else:
        with pytest.raises(ApiError) as caught:
            find_model(body)
        assert caught.value.code == code


def test_more_keys_of_that_name_than_can_be_told_apart_in_time_are_refused():
    """002-R9"""
    nested = b'{"model":"m","x":[' + b",".join([b'{"model":1}'] * 999) + b"]}"
    assert find_model(nested).model == "m"
    for body in (nested.replace(b"]}", b',{"model":1}]}'),
                 b"{" + b'"model":1,' * 100_000 + b'"a":1}'):
        with pytest.raises(ApiError) as caught:
            find_model(body)
        assert caught.value.code == "invalid_body"


def test_a_value_longer_than_any_name_is_no_name():
    """002-R3"""
    assert find_model(b'{"model":"%s"}' % (b"m" * 10_000)).model == "m" * 10_000
    with pytest.raises(ApiError) as caught:
        find_model(b'{"model":"%s"}' % (b"\\n" * 500_000))
    assert caught.value.code == "missing_model"


def test_what_is_no_object_may_hold_lone_surrogates_too():
    """002-R2"""
    with pytest.raises(ApiError) as caught:
        find_model(b'[{"\\ud800":"a"}]')
    assert caught.value.code == "invalid_body"


@pytest.mark.parametrize("filler", [
    b"[" + b"[]," * 300_000 + b"0]", b"[" + b"1," * 500_000 + b"0]", b'"' + b"x" * 10**6 + b'"',
    b'"' + b"\\ud800" * 170_000 + b'"', b"9" * 10**6])
def test_a_body_of_a_mebibyte_is_searched_whatever_fills_it(filler):
    """002-R8"""
    body = b'{"x":' + filler + b',"model":"m","stream":true}'
    assert b"".join(find_model(body).body_for("n")) == body.replace(b'"m"', b'"n"')


@pytest.mark.parametrize("member, expected", [
    (b'"prompt_cache_key":"one"', "one"), (b'"prompt_cache_key" : "\\u00e9\\n\xc3\xa9"', "é\né"),
    (b'"prompt_cache_key":"\\ud800"', "\ufffd"), (b'"prompt_cache_key":""', ""),
    (b'"prompt_cache_key":1', ""), (b'"prompt_cache_key":null', ""),
    (b'"prompt_cache_key":["one"]', ""), (b'"prompt_cache_key":{"a":"one"}', ""),
    (b'"x":{"prompt_cache_key":"one"}', ""), (b'"Prompt_cache_key":"one"', "")])
def test_a_prompt_cache_key_is_a_string_at_the_top_level(member, expected):
    """005-R14"""
    for body in (b'{"model":"a",%s}', b'{%s , "model":"a"}'):
        assert find_model(body % member).prompt_cache_key == expected


PARTS = st.sampled_from([
    "a", "x" * 100, "\u00e9", "\u20ac", "\U0001f600", "\\n", "\\\\", '\\"', "\\/", "\\u0041",
    "\\u00e9", "\\u1fff", "\\ud7ff", "\\uD83D\\uDE00",
    "\\ud83d\\ude00", "\\\\ud8", "\\\\uD8"])


def keys_of(text, more=""):
    """Return what the client key takes in of a prompt_cache_key, given as JSON text."""
    body = f'{{"model":"a",{more}"prompt_cache_key":{text}}}'.encode()
    return find_model(body).prompt_cache_key[:512].encode()[:512]


@given(st.lists(PARTS, max_size=12), PARTS, st.integers(0, 700) | st.just(4000),
       st.lists(PARTS, max_size=12))
def test_the_beginning_of_a_prompt_cache_key_is_that_of_the_whole(before, part, times, after):
    """005-R14: wherever the cut comes, and also where a lone surrogate stands elsewhere."""
    text = f'"{"".join(before)}{part * times}{"".join(after)}"'
    whole = json.loads(text).encode()[:512]
    assert keys_of(text) == whole
    assert keys_of(text, '"x":"\\ud800",') == whole


def test_a_lone_surrogate_in_a_prompt_cache_key_costs_that_character():
    """005-R14"""
    for text in (r'"\udc00a\ud83d\ude00\ud83d"', r'"\uDC00a\uD83D\uDE00\uD83D"'):
        assert keys_of(text).decode() == "\ufffda\U0001f600\ufffd"


def test_of_a_huge_prompt_cache_key_only_the_beginning_is_decoded(monkeypatch):
    """005-R14"""
    decoded, loads = [], json.loads
    monkeypatch.setattr(model_field.json, "loads",
                        lambda text: decoded.append(len(text)) or loads(text))
    for filler in ("x", "\\n", "\\u0041", "\U0001f600", "\u00e9", "\\ud800"):
        for before in ("", "a"):
            text = f'"{before}{filler * 100_000}"'
            field = find_model(f'{{"model":"a","prompt_cache_key":{text}}}'.encode())
            decoded.clear()
            assert 512 <= len(field.prompt_cache_key.encode()) < 4000
            assert all(length < 4000 for length in decoded)
