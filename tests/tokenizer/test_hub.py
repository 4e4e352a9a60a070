"""Push and load through huggingface_hub, over HTTP, to a hub on the loopback interface."""

import os
import subprocess
import sys

from tests.tokenizer.hub import running_hub

CLIENT = """
import sys, torch
from tokenflow import TokenFlowTokenizer
from tokenflow.tokenizer.presets import preset

name = "someone/model"
first = TokenFlowTokenizer(preset("tokenflow-nano"))
second = TokenFlowTokenizer(preset("tokenflow-nano"))
equal = lambda one, other: all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))

print(first.push_to_hub(name, private=True, max_shard_size="1MB", commit_message="First", metrics={"PSNR": 20.5}))
assert equal(TokenFlowTokenizer.from_pretrained(name), first)
second.push_to_hub(name, revision="next", token="hf_other")
assert equal(TokenFlowTokenizer.from_pretrained(name), first)
assert equal(TokenFlowTokenizer.from_pretrained(name, revision="next"), second)
second.push_to_hub(name, commit_message="One file")
assert equal(TokenFlowTokenizer.from_pretrained(name), second)
assert equal(TokenFlowTokenizer.from_pretrained(name, revision="0" * 39 + "1"), first)
try:
    TokenFlowTokenizer.from_pretrained(name, revision="nowhere")
except OSError as error:
    assert "at revision 'nowhere'" in str(error), error
else:
    raise AssertionError("loaded a revision that is not there")
"""


COMPOSED = """
import sys, torch
from pathlib import Path
from tests.evaluation.tiny_image_to_text import tiny_model as understanding
from tests.tasks.tiny_text_to_image import tiny_model as generation

folder, prompts = Path(sys.argv[1]), ["a red circle"]
for build, say in (
    (generation, lambda model: model.generate_codes(prompts).tolist()),
    (understanding, lambda model: model.answer([torch.zeros(3, 32, 32)], ["what is it?"], max_new_tokens=6)),
):
    models = [build(folder / f"{build.__module__}{seed}", seed=seed) for seed in (0, 1)]
    name, said = f"someone/{build.__module__}", [say(model) for model in models]
    assert said[0] != said[1]
    address = models[0].push_to_hub(name, max_shard_size="20KB")
    assert say(type(models[0]).from_pretrained(name)) == said[0]
    models[1].push_to_hub(name)
    assert say(type(models[0]).from_pretrained(name)) == said[1]
    assert say(type(models[0]).from_pretrained(name, revision=address.rsplit("/", 1)[1])) == said[0]
"""


def run_client(code, hub, folder, *arguments):
    settings = {
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",  # its protocol is not spoken by the small hub; files travel by Git LFS
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_TOKEN": "hf_secret",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    environment = os.environ | settings | {"HF_ENDPOINT": hub.address}
    command = [sys.executable, "-c", code, *arguments]
    client = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert client.returncode == 0, client.stderr[-3000:]
    return client


def test_generators_and_multimodal_models_go_to_the_hub_with_both_their_tokenizers(tmp_path):
    with running_hub() as hub:
        run_client(COMPOSED, hub, tmp_path, str(tmp_path / "models"))
        last = list(hub.commits.values())[-1]
    wanted = {"model.safetensors", "image_tokenizer/model.safetensors", "text_tokenizer/tokenizer_config.json"}
    assert wanted | {"config.json", "README.md"} <= set(last)
    assert not [name for name in last if "-of-" in name]


def test_what_is_pushed_loads_from_the_hub_at_every_revision(tmp_path):
    with running_hub() as hub:
        client = run_client(CLIENT, hub, tmp_path)
    assert client.stdout.strip() == f"{hub.address}/someone/model/commit/{1:040x}"

    created = [(token, values) for path, token, values in hub.requests if path == "/api/repos/create"]
    assert created[0][1].get("private") is True or created[0][1].get("visibility") == "private"
    assert [token for token, _ in created] == ["Bearer hf_secret", "Bearer hf_other", "Bearer hf_secret"]
    messages = [(where, values["summary"]) for path, where, values in hub.requests if path == "commit"]
    assert messages == [("main", "First"), ("next", "Upload TokenFlow tokenizer"), ("main", "One file")]

    first, _, last = list(hub.commits.values())[1:]
    shards = {f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)}
    assert shards | {"README.md", "config.json", "model.safetensors.index.json"} <= set(first)
    assert b"| PSNR | 20.5 |" in first["README.md"]
    # Shards of the first upload must not stay beside the one file: a loader could take either.
    assert {name for name in last if name.startswith("model")} == {"model.safetensors"}
