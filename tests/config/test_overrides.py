"""The grammar of ``key=value``; test_compose.py shows with whole configurations that prompts survive it."""

import pytest

from nfsd3d.config.overrides import each_value, group_values, parse_override, quote, split_prompts
from nfsd3d.errors import InputError


@pytest.mark.parametrize(
    ("value", "prompts"),
    [
        ("a, b", ["a", "b"]),
        ('"a, b","c"', ["a, b", "c"]),
        ("it's red, it's blue", ["it's red", "it's blue"]),
        ("'x, y' , z", ["x, y", "z"]),
        (r'"say \"hi\", you"', ['say "hi", you']),
        ("one", ["one"]),
        ("", [""]),
    ],
)
def test_prompts_of_a_sweep(value, prompts):
    assert split_prompts(value) == prompts


@pytest.mark.parametrize("value", ['"open', '"a" b,c', "'a, b", 'a, "b'])
def test_unbalanced_quotes_in_a_sweep(value):
    with pytest.raises(InputError, match="quotes"):
        split_prompts(value)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("prompt=a, (b) and ${c}", "a, (b) and \\${c}"),
        ("run_dir=a b, c", "a b, c"),
        ("run_dir=null", None),
        ("train.steps=5", 5),
    ],
)
def test_prompts_and_paths_are_quoted_and_the_rest_is_not(override, value):
    assert parse_override(quote(override)).value() == value


def test_a_sweep_separates_paths_too():
    assert quote("prior.model=a,b", sweep=True) == "prior.model=a,b"
    assert parse_override(quote("prompt=a,b", sweep=True)).is_sweep_override()


def test_the_values_of_a_group():
    fixed, swept = parse_override("distill=sds"), parse_override("prior=auto,sd21")
    assert (group_values(fixed), group_values(swept)) == (["sds"], ["auto", "sd21"])
    assert [*each_value(fixed), *each_value(swept)] == ["distill=sds", "prior=auto", "prior=sd21"]
