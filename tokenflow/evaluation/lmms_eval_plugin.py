"""The entry point that lmms-eval loads to learn of `--model tokenflow`; light, since every lmms-eval run loads it."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Where lmms-eval finds the model."""
    return ModelManifest(model_id="tokenflow", simple_class_path="tokenflow.evaluation.lmms_eval_model.TokenFlowModel")
