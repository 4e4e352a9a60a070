from pipelines.demo_report import GATES, GOALS, MUST_BEAT, missed_gates, missed_goals


def reached(**changes):
    metrics = dict(GATES) | dict.fromkeys(MUST_BEAT, 1.0) | dict.fromkeys(MUST_BEAT.values(), 0.5)
    steps = {"single_step": 0.5, "multi_step": 0.5, "single_step_error": 0.02}
    metrics |= {f"generation.{name}": value for name, value in steps.items()}
    return metrics | {name.replace("__", "."): value for name, value in changes.items()}


def test_every_number_just_reached_misses_nothing():
    assert missed_gates(reached()) == []


def test_what_is_below_is_named_with_both_numbers():
    assert missed_gates(reached(tokenizer__psnr=25.0)) == ["tokenizer.psnr 25.000 < 26.0"]
    assert missed_gates(reached(decoder__psnr=0.5)) == ["decoder.psnr 0.500 is not above decoder.psnr_base 0.500"]


def test_refinement_may_lose_a_standard_error_and_no_more():
    assert missed_gates(reached(generation__multi_step=0.485)) == []
    (message,) = missed_gates(reached(generation__multi_step=0.47))
    assert "multi_step 0.470 is below single_step 0.500" in message


def test_goals_are_at_least_the_gates_and_named_until_reached():
    assert all(goal >= GATES[name] for name, goal in GOALS.items())
    assert missed_goals(reached()) == [f"{name} {GATES[name]:.3f} of {goal}" for name, goal in GOALS.items()]
    assert missed_goals(reached(**{name.replace(".", "__"): goal for name, goal in GOALS.items()})) == []
