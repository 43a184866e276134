"""Names that a request could not tell apart, or could not carry, are refused where they are accepted."""

import unicodedata

import pytest

from models.checkpoint import ModelConfig
from models.names import check_class_names, check_model_name, class_key


@pytest.mark.parametrize(
    "spelling",
    ["Café", " café\n", "CAFÉ", unicodedata.normalize("NFD", "café"), unicodedata.normalize("NFD", "CAFÉ")],
)
def test_spellings_of_one_class_have_one_key(spelling):
    assert class_key(spelling) == class_key("café")


def test_different_classes_have_different_keys():
    assert len({class_key(name) for name in ("cafe", "café", "caf é", "caffé")}) == 4


@pytest.mark.parametrize("names", [["0", "1", "10", "2"], ["ship", "cat "], ["Zug", "Züge", "👩‍🚀"], ["a b", "ab"]])
def test_names_that_differ_are_taken(names):
    check_class_names(names)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a", ""], "'' is empty"),
        (["a", "  "], "is empty"),
        (["Cat", "dog", "cat"], "'Cat' and 'cat' are the same"),
        (["cat", " cat "], "'cat' and ' cat ' are the same"),
        (["café", unicodedata.normalize("NFD", "café")], "are the same but for case, blanks or Unicode form"),
        (["a", "a"], "are the same"),
        (["a\nb"], "control character"),
        (["\ud800"], "control character"),
    ],
)
def test_names_that_a_request_cannot_tell_apart_are_refused_with_a_sentence(names, says):
    with pytest.raises(ValueError, match=says):
        check_class_names(names)
    with pytest.raises(ValueError, match=says):  # so a checkpoint with such names is neither written nor loaded
        ModelConfig("dit", {}, class_names=names)


@pytest.mark.parametrize("name", ["dit", "dit-2", "my model", "modèle", "a.b", ".hidden", "a%2Fb", "v1?"])
def test_model_names_that_are_one_segment_of_a_path_are_taken(name):
    check_model_name(name)


@pytest.mark.parametrize("name", ["", "org/unet", "x\n", " x", "x ", ".", "..", "a\x00b", "/"])
def test_other_model_names_are_refused(name):
    with pytest.raises(ValueError, match="model name"):
        check_model_name(name)
