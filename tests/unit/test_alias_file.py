"""The file of aliases: what it may say, and what is said of mistakes in it."""

import pytest

from app.alias_file import read_aliases
from app.config import ConfigError, load_config
from app.config_parsers import BadFile
from app.routing.aliases import BUILT_IN, Alias


def problems_of(text):
    with pytest.raises(BadFile) as caught:
        read_aliases("aliases.toml", text)
    return list(caught.value.problems)


def test_a_file_adds_aliases_and_narrows_the_built_in_ones():
    """002-R50"""
    aliases = read_aliases("aliases.toml", """
        [[alias]]
        name = "gpt-4o"
        models = ["deepseek-ai/*", "zai-org/GLM-[x]-TEE"]
        [[alias]]
        name = "chutesai/AutoPilot"
        tiers = [["Qwen/*", "moonshotai/*"], ["*"]]
        exclude = ["*Guard*", "*ocr*"]
        confidential = true
        min_context = 65536
    """).aliases
    assert aliases == {**BUILT_IN, "gpt-4o": Alias(
        "gpt-4o", (("deepseek-ai/*", "zai-org/GLM-[x]-TEE"),)), "chutesai/AutoPilot": Alias(
        "chutesai/AutoPilot", (("Qwen/*", "moonshotai/*"), ("*",)), ("*Guard*", "*ocr*"), True,
        65536)}


@pytest.mark.parametrize("path, text", [("", None), ("empty.toml", "")])
def test_without_an_alias_in_a_file_there_are_the_built_in_ones(path, text):
    """002-R50"""
    assert read_aliases(path, text).aliases == BUILT_IN


@pytest.mark.parametrize("lines, problem", [
    ('name = "a,b"', "alias 'a,b', key name: expected visible ASCII without a comma."),
    ('name = "a b"', "alias 'a b', key name: expected visible ASCII without a comma."),
    ('name = ""', "alias number 1, key name: expected visible ASCII without a comma."),
    ('name = 5', "alias number 1, key name: expected a string."),
    ('models = ["a"]', "alias number 1, key name: expected, and missing."),
    ('name = "x"\nmodels = "a"', "alias 'x', key models: expected an array."),
    ('name = "x"\nmodels = []', "alias 'x', key models: expected at least one item."),
    ('name = "x"\nmodels = ["a", ""]',
     "alias 'x', key models[1]: expected a model id, or a glob with * and ?."),
    ('name = "x"\ntiers = ["a"]', "alias 'x', key tiers[0]: expected an array."),
    ('name = "x"\ntiers = [["a", 5]]', "alias 'x', key tiers[0][1]: expected a string."),
    ('name = "x"\nmodels = ["a"]\ntiers = [["a"]]',
     "alias 'x', key tiers: expected no tiers beside models."),
    ('name = "x"\nconfidential = "yes"', "alias 'x', key confidential: expected true or false."),
    ('name = "x"\nmin_context = true',
     "alias 'x', key min_context: expected a whole number of at least 1."),
    ('name = "x"\nmodel = ["a"]', "alias 'x', key model: not a key of an alias."),
    ('name = "x"\n"a\\nb" = 1', "alias 'x', key 'a\\nb': not a key of an alias."),
    ('name = "x"\n"" = 1', "alias 'x', key '': not a key of an alias."),
    ('name = "x"\n_schema = 1', "alias 'x', key _schema: not a key of an alias."),
    ('name = "x"\n[[alias]]\nname = "x"', "alias 'x', key name: expected no name twice.")])
def test_a_mistake_is_a_sentence_with_alias_and_key(lines, problem):
    """002-R50"""
    assert problems_of("[[alias]]\n" + lines) == [problem]


def test_what_is_no_table_is_a_sentence_too():
    """002-R50"""
    assert problems_of("alias = [1]") == ["alias number 1: expected a table."]


@pytest.mark.parametrize("text", ["alias = 3", "[alias]\nname = 'x'", "[[aliases]]\nname = 'x'"])
def test_a_file_that_is_something_else_is_refused(text):
    """002-R50"""
    assert problems_of(text) == ["aliases.toml: expected [[alias]] tables and nothing else."]


def test_a_mistake_in_the_syntax_names_its_line():
    """002-R50"""
    [problem] = problems_of("[[alias]]\nname = \n")
    assert problem.startswith("aliases.toml is not TOML: ") and "line 2" in problem


def test_all_mistakes_are_reported_with_those_of_the_other_variables(tmp_path):
    """002-R50, 001-R3"""
    path = tmp_path / "aliases.toml"
    path.write_text('[[alias]]\nname = "x"\nmodels = 1\n[[alias]]\nname = "y"\nwhat = 1\n')
    with pytest.raises(ConfigError) as caught:
        load_config({"ALIASES_FILE": str(path), "MAX_ATTEMPTS": "many"})
    assert str(caught.value).splitlines() == [
        "ALIASES_FILE: alias 'x', key models: expected an array.",
        "ALIASES_FILE: alias 'y', key what: not a key of an alias.",
        "MAX_ATTEMPTS: got 'many', expected a whole number of at least 1."]


def test_a_file_that_cannot_be_read_is_reported(tmp_path):
    """002-R50, 001-R23"""
    (tmp_path / "latin").write_bytes(b"# \xe9\n")
    (tmp_path / "large").write_bytes(b"#" * (1 << 20) + b"\n")
    (tmp_path / "device").symlink_to("/dev/null")
    for name, says in (("missing", "No such file"), ("latin", "UTF-8"), (".", "Not a regular file"),
                       ("device", "Not a regular file"), ("large", "Larger than 1 MiB")):
        with pytest.raises(ConfigError, match=says):
            load_config({"ALIASES_FILE": str(tmp_path / name)})


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path):
    """002-R50"""
    (tmp_path / "aliases.toml").write_bytes(b'\xef\xbb\xbf[[alias]]\nname = "x"\n')
    assert "x" in load_config({"ALIASES_FILE": str(tmp_path / "aliases.toml")}).aliases_file.aliases


def test_a_path_with_a_line_break_stays_within_its_sentence(tmp_path):
    """001-R3"""
    path = tmp_path / "a\nb"
    for text in ("[", "x = 1"):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_config({"ALIASES_FILE": str(path)})
        assert len(str(caught.value).splitlines()) == 1


def test_the_configuration_shows_the_path_alone(tmp_path):
    """001-R5"""
    path = tmp_path / "aliases.toml"
    path.write_text('[[alias]]\nname = "x"\n')
    assert load_config({"ALIASES_FILE": str(path)}).effective()["ALIASES_FILE"] == str(path)
