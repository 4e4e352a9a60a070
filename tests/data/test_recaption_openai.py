"""Captions from a real HTTP server on loopback that misbehaves."""

import json

import pytest

from tests.data.caption_server import CaptionServer, caption_of, completion, picture, picture_in, request, scripted
from tokenflow.data.recaption_backend import CaptionConfig, CaptionerUnusable
from tokenflow.data.recaption_openai import OpenAICaptioner, Pace, ServerConfig, served_model


class Time:
    """A clock that only sleeping moves, and every look a little."""

    def __init__(self, look: float = 0.0):
        self.now = 1000.0
        self.look = look
        self.slept: list[float] = []

    def clock(self) -> float:
        self.now += self.look
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def make(url, *, time=None, model="tiny", key=None, config=None, **server):
    time = time or Time()
    options = {"concurrency": 1, "timeout": 30.0, **server}
    return OpenAICaptioner(
        model,
        config=config or CaptionConfig(),
        server=ServerConfig(base_url=url, **options),
        key=key,
        clock=time.clock,
        sleep=time.sleep,
        jitter=lambda: 0.5,
    )


def ask(server, count=1, **options):
    return list(make(server.url, **options).answers(request(position) for position in range(count)))


def test_every_picture_gets_its_own_caption_whatever_the_order():
    with CaptionServer() as server:
        answers = ask(server, count=20, concurrency=7)
        sent = {caption_of(picture_in(body)) for body in server.requests}
    assert sorted(answer.position for answer in answers) == list(range(20))
    assert len({answer.text for answer in answers}) == 20
    assert {answer.text for answer in answers} == sent
    assert not any(answer.failure or answer.cut for answer in answers)


def test_a_request_is_a_chat_completion_with_the_picture_and_the_prompt():
    with CaptionServer() as server:
        config = CaptionConfig(max_tokens=77, temperature=0.5)
        captioner = make(server.url + "/", config=config, key="secret", model="a/b")
        list(captioner.answers([request(0, prompt="Was ist das?")]))
        body, headers = server.requests[0], server.headers[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("a/b", 77, 0.5)
    image, text = body["messages"][0]["content"]
    assert image["type"] == "image_url" and text == {"type": "text", "text": "Was ist das?"}
    assert headers["Authorization"] == "Bearer secret"


def test_large_pictures_are_shown_smaller():
    import io

    from PIL import Image

    with CaptionServer() as server:
        captioner = make(server.url, config=CaptionConfig(max_pixels=64 * 64))
        list(captioner.answers([request(0, image=picture(0, size=(400, 100)))]))
        shown = Image.open(io.BytesIO(picture_in(server.requests[0])))
    assert shown.size == (128, 32)


@pytest.mark.parametrize(
    "trouble",
    [
        (500, {}),
        (503, {}),
        (429, {}),
        (408, {}),
        "close",
        b"",
        b'{"choices": [{"mess',
        b"<html>a proxy</html>",
        b'{"choices": []}',
        b'{"error": {"message": "out of memory"}}',
        b"[]",
        b"null",
        b'{"choices": [{"message": {"content": 7}}]}',
        b"\xff\xfe",
    ],
    ids=str,
)
def test_trouble_that_may_pass_is_tried_again(trouble):
    time = Time()
    with scripted(trouble, trouble) as server:
        (answer,) = ask(server, time=time)
        assert len(server.requests) == 3
    assert answer.text.startswith("A picture") and not answer.failure
    assert time.slept == [1.0, 2.0]


def test_an_answer_cut_off_in_the_middle_is_tried_again():
    whole = completion("A dog.")
    with scripted((200, {"Content-Length": str(len(whole) + 10)})) as server:
        (answer,) = ask(server)
        assert len(server.requests) == 2
    assert answer.text.startswith("A picture")


def test_pauses_double_up_to_the_longest_and_the_last_trouble_is_told():
    time = Time()
    with CaptionServer(lambda number, body: (500, {})) as server:
        (answer,) = ask(server, time=time, tries=6, first_pause=2.0, longest_pause=10.0)
    assert time.slept == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert answer.failure == "failed" and "6 tries" in answer.detail and "trouble 500" in answer.detail


def test_retry_after_is_honoured_in_seconds_and_as_a_date():
    time = Time()
    date = {"Date": "Mon, 02 Jan 2040 10:00:00 GMT", "Retry-After": "Mon, 02 Jan 2040 10:01:30 GMT"}
    with scripted((429, {"Retry-After": "7"}), (503, date), (429, {"Retry-After": "soon"})) as server:
        (answer,) = ask(server, time=time)
    assert answer.text and time.slept == [7.0, 90.0, 4.0]


def test_retry_after_holds_for_requests_of_other_threads():
    time = Time()
    pace = Pace(None, clock=time.clock, sleep=time.sleep)
    pace.pause(30)
    pace.wait()
    pace.wait()
    assert time.slept == [30.0]


def test_requests_begin_no_faster_than_the_rate():
    time = Time()
    with CaptionServer() as server:
        ask(server, count=9, time=time, requests_per_second=4)
    assert time.slept == [0.25] * 8


def test_a_server_that_hangs_runs_into_the_time_out_and_is_tried_again():
    with scripted("hang") as server:
        (answer,) = ask(server, timeout=0.5, tries=50)
        assert len(server.requests) >= 2
    assert answer.text.startswith("A picture")


def test_a_server_that_dribbles_for_ever_runs_into_the_time_out():
    with scripted("dribble") as server:
        (answer,) = ask(server, time=Time(look=10.0))
    assert answer.text.startswith("A picture")


def test_a_server_that_is_not_there_is_a_failure_not_a_crash():
    with CaptionServer() as server:
        pass
    (answer,) = ask(server, tries=2)
    assert answer.failure == "failed" and "refused" in answer.detail.lower()


@pytest.mark.parametrize(
    ("status", "told"), [(401, "--key_env"), (403, "--key_env"), (404, "--base_url"), (405, "/v1"), (307, "--base_url")]
)
def test_what_no_request_can_get_past_stops_at_once(status, told):
    with CaptionServer(lambda number, body: (status, {})) as server:
        with pytest.raises(CaptionerUnusable, match=told) as caught:
            ask(server, count=50, model="mine", key="secret")
        assert len(server.requests) <= 2
    assert str(status) in str(caught.value) and "secret" not in str(caught.value)


def test_a_request_that_the_server_refuses_costs_only_itself():
    with scripted((400, {})) as server:
        answers = ask(server, count=3)
        assert len(server.requests) == 3
    assert [answer.failure for answer in answers] == ["failed", "", ""]
    assert "trouble 400" in answers[0].detail


def test_pictures_that_cannot_be_shown_are_not_sent():
    pictures = [b"", b"no picture", picture(0, size=(900, 2))]
    with CaptionServer() as server:
        answers = list(make(server.url).answers(request(n, image=content) for n, content in enumerate(pictures)))
        assert not server.requests
    assert [answer.failure for answer in answers] == ["bad_picture"] * 3


def test_an_answer_at_the_limit_of_tokens_is_marked():
    parts = {"choices": [{"message": {"content": [{"type": "text", "text": "A"}, {"type": "text", "text": " dog"}]}}]}
    behaviours = completion("A dog with a", "length"), completion(None), json.dumps(parts).encode()
    with scripted(*behaviours) as server:
        answers = ask(server, count=3)
    assert [(answer.text, answer.cut) for answer in answers] == [("A dog with a", True), ("", False), ("A dog", False)]


def test_requests_are_taken_only_as_they_can_be_worked_on():
    taken = []

    def requests():
        for position in range(100):
            taken.append(position)
            yield request(position)

    with CaptionServer() as server:
        answers = make(server.url, concurrency=4).answers(requests())
        next(answers)
        assert len(taken) <= 4
        answers.close()
        assert len(server.requests) <= 4


def test_the_only_model_of_a_server_is_found_and_several_are_named():
    with CaptionServer(models=("qwen",)) as server:
        assert served_model(ServerConfig(base_url=server.url)) == "qwen"
        with pytest.raises(CaptionerUnusable, match="--base_url"):
            served_model(ServerConfig(base_url=server.url.removesuffix("/v1")))
    with CaptionServer(models=("a", "b")) as server:
        with pytest.raises(CaptionerUnusable, match="'a', 'b'"):
            served_model(ServerConfig(base_url=server.url))
    with pytest.raises(CaptionerUnusable, match="Start it"):
        served_model(ServerConfig(base_url=server.url))


def test_options_that_make_no_sense_are_refused():
    for options in ({"concurrency": 0}, {"tries": 0}, {"timeout": 0.0}, {"requests_per_second": -1.0}):
        with pytest.raises(ValueError, match="expected"):
            ServerConfig(**options)
    for url in ("localhost:8000", "ftp://x/v1", "http://", ""):
        with pytest.raises(ValueError, match="http://localhost:8000/v1"):
            make(url)
