"""The built-in world in LLaVA's format: descriptions to align on, questions to tune on, and both as text without
pictures for a language model that has read nothing yet.

Conversations name pictures as `write_shapes` does with the same seed and split, so that its shards serve for them.
"""

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from tokenflow.data.captions import plural
from tokenflow.data.conversations import IMAGE_MARK
from tokenflow.data.files import replacing, write_json
from tokenflow.data.questions import Question, questions
from tokenflow.data.shape_shards import scene_key
from tokenflow.data.shapes import Scene, SceneObject, SceneSampler, Split, corner, relation

WorldFile = Literal["captions", "names", "corners", "sides", "relations", "questions", "text", "corpus"]
WORLD_FILES: dict[WorldFile, str] = {
    "captions": "captions.jsonl",
    "names": "names.jsonl",
    "corners": "corners.jsonl",
    "sides": "sides.jsonl",
    "relations": "relations.jsonl",
    "questions": "questions.jsonl",
    "text": "text.jsonl",
    "corpus": "corpus.txt",
}
"""Pictures with descriptions; with one question for a shape or a colour; for the corner that one of several objects is
in; for where one of two lies from the other, of those side by side and of all; with questions of every kind;
descriptions with questions; the last as plain lines."""
MANIFEST = "conversations.json"
_VERSION = 3
DESCRIBE = ("describe the picture.", "what is in the picture?", "what do you see?")
"""Asks for a description."""
_NUMBERS = ("", "a", "two", "three")


def description(scene: Scene, *, variant: int = 0) -> str:
    """All that the built-in questions may ask about a scene, in words; variants differ in order."""
    rng = random.Random(f"{scene.phrasing}/description/{variant}")
    items = list(scene.objects)
    rng.shuffle(items)
    nouns = [f"a {item.colour} {item.shape}" for item in items]
    if scene.kind == "single":
        place = next((q.answer for q in questions(scene) if q.kind == "where"), "")
        return f"{nouns[0]} at the {place}" if place else f"{nouns[0]} in the middle"
    if scene.kind == "group":
        return f"{_NUMBERS[len(items)]} {items[0].colour} {plural(items[0].shape)}"
    if scene.kind == "triple":
        return f"{nouns[0]}, {nouns[1]} and {nouns[2]}"
    return f"{nouns[0]} {relation(*items)} {nouns[1]}"


def write_conversations(
    directory: str | Path,
    *,
    num_scenes: int,
    seed: int,
    split: Split = "train",
    files: tuple[WorldFile, ...] = get_args(WorldFile),
    turns: int = 8,
) -> dict[WorldFile, Path]:
    """Write conversations about scenes 0 to `num_scenes` - 1 of the world; complete files are left alone.

    Args:
        directory: Where the files of WORLD_FILES go; made if need be.
        num_scenes: Scenes; every file has one conversation about each, but for `corners` (one about each object of a
            pair or triple), `sides` and `relations` (one about each pair, `sides` about those side by side).
        seed: Of the scenes: that of the shards whose pictures are to be used.
        split: Of the scenes.
        files: Which to write.
        turns: Questions a conversation at most, drawn anew for every file.

    Returns:
        The file of each kind.

    Raises:
        ValueError: Numbers that make no sense, or an unknown kind of file.
    """
    if num_scenes < 1 or turns < 1:
        raise ValueError(f"num_scenes {num_scenes} and turns {turns} must both be at least 1")
    if unknown := set(files) - set(WORLD_FILES):
        raise ValueError(f"unknown kinds of file {', '.join(sorted(unknown))}; expected {', '.join(WORLD_FILES)}")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    source = {"version": _VERSION, "num_scenes": num_scenes, "seed": seed, "split": split, "turns": turns}
    manifest = _manifest(directory)
    for kind in files:
        path = directory / WORLD_FILES[kind]
        entry = manifest.get(kind)
        if entry and entry["source"] == source and path.is_file() and path.stat().st_size == entry["bytes"]:
            continue
        digest = _write(path, _lines(kind, num_scenes=num_scenes, seed=seed, split=split, turns=turns))
        manifest[kind] = {"source": source, "bytes": path.stat().st_size, "sha256": digest}
        write_json(directory / MANIFEST, manifest)
    return {kind: directory / WORLD_FILES[kind] for kind in files}


def write_lessons(directory: str | Path, *, num_scenes: int, seed: int) -> dict[str, Path]:
    """What a small model of this world is taught, in order: to talk, to look, to answer.

    Args:
        directory: Where the files go; made if need be.
        num_scenes: Scenes of training that each file is about.
        seed: Of the scenes: that of the shards whose pictures are to be used.

    Returns:
        `text` and `rare_text`, conversations without pictures, the second about the pairs that no training picture
        shows (people have read of more than they have seen); `captions`; `names`, the one thing that every other answer
        needs; `corners`, `sides` and `relations`, learned in this order or hardly at all: they take two
        objects found by their names at once; `questions`, few a conversation, since later ones can be answered from
        earlier ones.
    """
    found: dict[str, Path] = {}
    turns: dict[WorldFile, int] = {"text": 6, "captions": 1, "questions": 4}
    turns |= dict.fromkeys(("names", "corners", "sides", "relations"), 1)
    for kind, most in turns.items():
        found |= write_conversations(directory, num_scenes=num_scenes, seed=seed, files=(kind,), turns=most)
    rare = write_conversations(
        Path(directory) / "rare",
        num_scenes=max(1, num_scenes // 4),
        seed=seed,
        split="heldout",
        files=("text",),
        turns=turns["text"],
    )
    return {**found, "rare_text": rare["text"]}


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    return json.loads(path.read_text()) if path.is_file() else {}


def _write(path: Path, lines: Iterator[str]) -> str:
    """Write a file whole; its sha256."""
    digest = hashlib.sha256()
    with replacing(path) as partial, partial.open("wb") as stream:
        for line in lines:
            content = line.encode() + b"\n"
            digest.update(content)
            stream.write(content)
    return digest.hexdigest()


def _lines(kind: WorldFile, *, num_scenes: int, seed: int, split: Split, turns: int) -> Iterator[str]:
    sampler = SceneSampler(seed, split)
    for index in range(num_scenes):
        scene = sampler[index]
        rng = random.Random(f"{scene.phrasing}/{kind}/{index}")
        key = scene_key(split, index)
        if kind in ("corners", "sides", "relations"):
            asked = _corners_asked(scene, rng) if kind == "corners" else _relation_asked(scene, rng)
            asked = [pair for pair in asked if kind != "sides" or pair[1] in ("left", "right")]
            yield from (_about_picture([pair], key=key, id=f"{kind}-{key}-{n}") for n, pair in enumerate(asked))
            continue
        pairs = [(item.question, item.answer) for item in _drawn(questions(scene), rng)[:turns]]
        told = description(scene, variant=rng.randrange(8))
        if kind == "corpus":
            yield " ".join([f"{told}.", *(f"{question} {answer}." for question, answer in pairs)])
            continue
        if kind == "text":
            # telling again in other words is what alignment asks of the language model
            retold = (rng.choice(DESCRIBE), description(scene, variant=rng.randrange(8)))
            pairs = [retold, *pairs[: turns - 1]] if rng.random() < 0.5 else pairs
            yield _line({"id": f"{kind}-{key}", "conversations": _turns(pairs, opening=f"{told}. ")})
            continue
        if kind != "questions":
            pairs = [(rng.choice(DESCRIBE), told)] if kind == "captions" else [_name_asked(scene, rng)]
        yield _about_picture(pairs, key=key, id=f"{kind}-{key}")


def _about_picture(pairs: list[tuple[str, str]], *, key: str, id: str) -> str:
    return _line({"id": id, "image": f"{key}.png", "conversations": _turns(pairs, opening=f"{IMAGE_MARK}\n")})


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"))


def _relation_asked(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """Where one object of a pair lies from the other, either way round; nothing in other scenes."""
    if scene.kind != "pair":
        return []
    known = [(item.question, item.answer) for item in questions(scene) if item.kind == "where"]
    return rng.sample(known, min(1, len(known)))


def _corners_asked(scene: Scene, rng: random.Random) -> list[tuple[str, str]]:
    """In which corner each of several objects is, by a name that no other has; those without either are left out."""
    if scene.kind not in ("pair", "triple"):
        return []
    borne = Counter(name for item in scene.objects for name in _names(item))
    found = []
    for item in scene.objects:
        unique = [name for name in _names(item) if borne[name] == 1]
        place = corner(item)
        if unique and place:
            found.append((f"where is the {rng.choice(unique)}?", place))
    return found


def _names(item: SceneObject) -> tuple[str, str, str]:
    return item.shape, f"{item.colour} object", f"{item.colour} {item.shape}"


def _name_asked(scene: Scene, rng: random.Random) -> tuple[str, str]:
    """One object's shape or colour, asked for by the other; the shape where all objects are alike."""
    kinds = ("shape",) if scene.kind in ("single", "group") else ("colour", "shape")
    item = rng.choice([item for item in questions(scene) if item.kind in kinds])
    return item.question, item.answer


def _drawn(asked: list[Question], rng: random.Random) -> list[Question]:
    """Questions in a random order in which every kind comes once before any comes twice."""
    rng.shuffle(asked)
    seen: Counter[str] = Counter()
    rounds = []
    for item in asked:
        rounds.append(seen[item.kind])
        seen[item.kind] += 1
    return [asked[place] for place in sorted(range(len(asked)), key=rounds.__getitem__)]


def _turns(pairs: list[tuple[str, str]], *, opening: str) -> list[dict[str, str]]:
    found = []
    for number, (question, answer) in enumerate(pairs):
        found.append({"from": "human", "value": question if number else opening + question})
        found.append({"from": "gpt", "value": answer})
    return found
