from tokenflow.data.settings import first_difference

STORED = {"size": 256, "prompt": {"name": "short", "text": "describe"}, "old": 1}


def test_equal_settings_have_no_difference_and_what_is_not_asked_for_does_not_count():
    assert first_difference({"size": 256, "prompt": dict(STORED["prompt"])}, STORED) is None


def test_only_what_differs_is_named_however_deep_it_lies():
    asked = {**STORED, "prompt": {"name": "short", "text": "look"}}
    assert first_difference(asked, STORED) == "prompt.text is look, there describe"
    assert first_difference({"prompt": {"name": "short"}}, STORED) == "prompt.text is None, there describe"
    assert first_difference({"new": 3}, STORED) == "new is 3, there None"
