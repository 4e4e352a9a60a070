"""`slurm/submit_all.sh` as it comes: each stage's recipe can use what the stage before will have made."""

import json
import re
from dataclasses import replace
from pathlib import Path

from tokenflow.config import RECIPES, Launch, load_recipe
from tokenflow.tasks import generation_plan, understanding_plan
from tokenflow.tasks.decoder_recipe import DecoderRecipe
from tokenflow.tasks.generation_recipe import GenerationRecipe
from tokenflow.tasks.tokenizer_recipe import TokenizerRecipe
from tokenflow.tasks.understanding_recipe import UnderstandingRecipe
from tokenflow.tokenizer.config import to_dict

SLURM = Path(__file__).parents[2] / "slurm"
STAGES = {
    1: ("stage1_tokenizer.sh", "tokenizer_pretrain", TokenizerRecipe),
    2: ("stage2_decoder.sh", "decoder_finetune", DecoderRecipe),
    3: ("stage3_generation.sh", "gen_pretrain", GenerationRecipe),
    4: ("stage4_align.sh", "mllm_align", UnderstandingRecipe),
    5: ("stage5_sft.sh", "mllm_sft", UnderstandingRecipe),
}


def default(stage):
    """The recipe that a stage of the chain takes."""
    script, pipeline, kind = STAGES[stage]
    chain = re.search(rf"^STAGE{stage}_RECIPE=.*:-(.+)}}$", (SLURM / "submit_all.sh").read_text(), re.MULTILINE)
    alone = re.search(r"^RECIPE=.*:-(.+)}$", (SLURM / script).read_text(), re.MULTILINE)
    return load_recipe(kind, RECIPES / pipeline / f"{(chain or alone)[1]}.yaml")


def test_the_chains_own_recipes_fit_each_other(tmp_path):
    made = default(1).model.config()
    (tmp_path / "config.json").write_text(json.dumps({"library": "tokenflow", "tokenizer": to_dict(made)}))
    decoder, generation = default(2), replace(default(3), tokenizer=str(tmp_path))
    assert {default(1).data.image_size, decoder.data.image_size, generation.data.image_size} == {made.image_size}
    assert default(1).model.preset == decoder.preset
    launch = Launch(output=tmp_path, ds_config=None, resume="auto", init_from=None, dry_run=True)
    # raises where scales, codebook or widths differ
    assert any(line.startswith("generator in all") for line in generation_plan.plan(generation, launch))
    for stage in (4, 5):
        recipe = replace(default(stage), tokenizer=str(tmp_path), continue_from=None, language="absent")
        side = made.scales[-1]
        assert any(f"takes {side**2} of" in line for line in understanding_plan.plan(recipe, launch))
