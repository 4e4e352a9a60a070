import logging

import pytest

from tokenflow.evaluation.lmms_requests import AnswerOptions, answer_options, batches, question_text


def test_a_task_that_says_nothing_gets_greedy_answers_of_our_length():
    for task in ({}, {"until": ["\n\n"]}, {"temperature": 0, "top_p": None, "num_beams": 1, "do_sample": False}):
        assert answer_options(task, max_new_tokens=7) == AnswerOptions(max_new_tokens=7)


def test_a_task_that_samples_is_obeyed_unless_it_says_that_it_does_not_sample():
    task = {"max_new_tokens": 16, "temperature": 0.7, "top_p": 0.9}
    assert answer_options(task, max_new_tokens=7) == AnswerOptions(max_new_tokens=16, temperature=0.7, top_p=0.9)
    assert answer_options(task | {"do_sample": False}, max_new_tokens=7).temperature == 0


def test_beam_search_is_refused_and_unknown_options_are_named(caplog):
    with pytest.raises(ValueError, match="num_beams 5"):
        answer_options({"num_beams": 5}, max_new_tokens=7)
    with caplog.at_level(logging.WARNING):
        answer_options({"repetition_penalty": 1.1, "image_aspect_ratio": "pad"}, max_new_tokens=7)
    assert "repetition_penalty" in caplog.text and "image_aspect_ratio" not in caplog.text


def test_marks_of_pictures_are_left_out_of_questions():
    assert question_text("<image>\nWhat is in <image> that is not in it?") == "What is in  that is not in it?"
    assert question_text("no picture") == "no picture"


def test_batches_hold_every_request_once_with_equal_options_and_the_longest_first():
    short, long = AnswerOptions(max_new_tokens=4), AnswerOptions(max_new_tokens=9)
    requests = [((short, long)[place % 3 == 0], "x" * (7 * place % 11), place) for place in range(20)]
    found = list(batches(requests, batch_size=4))
    assert sorted(place for _, places in found for place in places) == list(range(20))
    for options, places in found:
        assert len(places) <= 4 and all(requests[place][0] == options for place in places)
    for wanted in (short, long):
        lengths = [len(requests[place][1]) for options, places in found if options == wanted for place in places]
        assert lengths == sorted(lengths, reverse=True)
