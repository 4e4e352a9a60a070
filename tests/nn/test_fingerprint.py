import dataclasses

import torch
from torch import nn

from tokenflow import TokenFlowTokenizer
from tokenflow.nn.fingerprint import fingerprint
from tokenflow.tokenizer.presets import preset


def test_it_is_of_names_values_and_kinds():
    first, same = nn.Linear(3, 2), nn.Linear(3, 2)
    same.load_state_dict(first.state_dict())
    assert fingerprint(first) == fingerprint(same)
    assert fingerprint(nn.Sequential(first)) != fingerprint(first)
    assert fingerprint(same.to(torch.bfloat16)) != fingerprint(first)
    with torch.no_grad():
        first.bias[0] += 1
    assert fingerprint(first) != fingerprint(same.float())


def test_the_configuration_counts_but_not_where_first_weights_came_from():
    config = preset("tokenflow-nano")
    tokenizer = TokenFlowTokenizer(config)
    fingerprints = []
    for other in (config, config.with_pretrained("runs/teacher"), dataclasses.replace(config, commitment_weight=0.5)):
        tokenizer.config = other
        fingerprints.append(fingerprint(tokenizer))
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
