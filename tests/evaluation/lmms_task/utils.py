"""What shapes.yaml names."""

from PIL import Image


def pictures(doc):
    return [Image.open(name) for name in doc["images"]]


def prompt(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def marks(doc, results):
    return {"shapes_exact": float(results[0].strip() == doc["answer"])}
