"""Rewriting against a real server on the loopback interface, errors and all, and by a tiny local language model."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenflow.evaluation.prompt_rewriting import (
    EndpointRewriter,
    LocalRewriter,
    RewritingConfig,
    build_rewriter,
    cleaned,
    rewrite_all,
)
from tokenflow.language.text_tokenizer import load_text_tokenizer, train_sentencepiece


class Server:
    """Answers by a list of steps: a status, a body, or seconds to wait first; the last step repeats."""

    def __init__(self, *steps):
        self.requests = []
        outer, queue = self, list(steps)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, dict(self.headers), body))
                status, answer, wait = queue.pop(0) if len(queue) > 1 else queue[0]
                time.sleep(wait)
                said = body["messages"][-1]["content"]
                content = answer if answer is not None else chat(f'"A vivid {said}"')
                try:
                    self.send_response(status)
                    self.end_headers()
                    self.wfile.write(content.encode())
                except OSError:
                    pass  # the client has left

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()


def chat(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


FINE = (200, None, 0)


def config(server, **fields):
    defaults = {"timeout_seconds": 5.0, "pause_seconds": 0.0, "attempts": 3}
    return RewritingConfig(by="endpoint", url=server.url, model="m", **{**defaults, **fields})


def test_the_endpoint_is_asked_as_openais_and_the_answer_is_cleaned(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with Server(FINE) as server:
        assert EndpointRewriter(config(server))("red circle") == "A vivid red circle"
        ((path, headers, body),) = server.requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body["model"] == "m" and [m["role"] for m in body["messages"]] == ["system", "user"]
    assert body["messages"][1]["content"] == "red circle"


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server(FINE) as server:
        EndpointRewriter(config(server))("x")
        assert "Authorization" not in server.requests[0][1]


@pytest.mark.parametrize(
    "failure", [(503, "busy", 0), (429, "slow down", 0), (200, "not json", 0), (200, '{"choices": []}', 0)]
)
def test_a_passing_failure_is_asked_again(failure):
    with Server(failure, failure, FINE) as server:
        assert EndpointRewriter(config(server))("x") == "A vivid x"
        assert len(server.requests) == 3


def test_a_slow_answer_is_asked_again():
    with Server((200, None, 0.6), FINE) as server:
        assert EndpointRewriter(config(server, timeout_seconds=0.2))("x") == "A vivid x"


def test_after_the_last_attempt_the_error_names_endpoint_and_answer():
    with Server((503, "out of service", 0)) as server:
        with pytest.raises(ConnectionError, match=r"127.0.0.1.* in 3 attempts; the last answer: 503 .*out of service"):
            EndpointRewriter(config(server))("x")
        assert len(server.requests) == 3


def test_a_refusal_is_not_asked_again():
    with Server((401, "bad key", 0)) as server:
        with pytest.raises(ConnectionError, match=r"refused: 401 .*bad key"):
            EndpointRewriter(config(server))("x")
        assert len(server.requests) == 1


def test_no_server_is_an_error_that_names_the_address():
    with Server(FINE) as server:
        pass
    with pytest.raises(ConnectionError, match="Is the server up"):
        EndpointRewriter(config(server, attempts=2))("x")


def test_answers_become_one_line_and_an_empty_one_leaves_the_prompt():
    assert cleaned(" “A red\n circle.” ", prompt="x") == "A red circle."
    assert cleaned("  \n", prompt="a dog") == "a dog"


def test_rewritten_prompts_are_kept_beside_the_originals_and_not_asked_again(tmp_path):
    path, asked, done = tmp_path / "prompts.jsonl", [], []

    def rewrite(prompt):
        if prompt == "c" and len(asked) == 2:
            raise ConnectionError("gone")
        asked.append(prompt)
        return prompt.upper()

    by = {"by": "endpoint", "model": "m"}
    with pytest.raises(ConnectionError):
        rewrite_all(["a", "b", "c"], rewrite, path, by=by, progress=done.append)
    asked.append("-")
    assert rewrite_all(["a", "b", "c", "a"], rewrite, path, by=by, progress=done.append) == ["A", "B", "C", "A"]
    assert asked == ["a", "b", "-", "c"] and len(done) == 6
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["prompt"], row["rewritten"]) for row in rows] == [("a", "A"), ("b", "B"), ("c", "C")]
    assert rewrite_all(["a"], str.title, path, by={**by, "model": "other"}, progress=done.append) == ["A"]
    assert [json.loads(line)["by"]["model"] for line in path.read_text().splitlines()] == ["other"]


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    texts = [f"a {colour} {shape} and more" for colour in ("red", "blue") for shape in ("circle", "square", "star")]
    train_sentencepiece(texts, folder, vocabulary_size=290)
    text = load_text_tokenizer(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(text), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_local_model_rewrites_the_same_way_each_time(language_model):
    rewrite = build_rewriter(RewritingConfig(by="local", model=str(language_model), max_tokens=5))
    assert isinstance(rewrite, LocalRewriter)
    first = rewrite("a red circle")
    assert first and first == rewrite("a red circle") and "\n" not in first


def test_a_chat_template_is_used_where_there_is_one(language_model):
    rewrite = LocalRewriter(RewritingConfig(by="local", model=str(language_model), max_tokens=2))
    seen = []
    rewrite.text_tokenizer.chat_template = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    generate = rewrite.model.generate
    rewrite.model.generate = lambda **inputs: seen.append(inputs["input_ids"]) or generate(**inputs)
    rewrite("a red star")
    assert "<user>a red star" in rewrite.text_tokenizer.decode(seen[0][0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": "endpoint"}, "needs a model"),
        ({"by": "endpoint", "model": "m", "url": "localhost:80"}, "expected http://"),
        ({"by": "local", "model": "m", "attempts": 0}, "attempts 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        RewritingConfig(**fields)


def test_nobody_rewrites_by_default():
    assert build_rewriter(RewritingConfig()) is None
