"""Runs the authors' text-to-image code for benchmarks/generation.py, in an environment of its own, and times it.

    PYTHONPATH=CHECKOUT/t2i PYTHON benchmarks/peer_generation.py FOLDER

CHECKOUT is a copy of github.com/ByteVisionLab/TokenFlow, PYTHON has what that needs, FOLDER is what
`peer.write_work` wrote; the answer is FOLDER/result.json. Nothing of theirs is edited or replaced. What differs from
their script is said from outside:

- the image tokenizer: their tower takes an image tokenizer of released weights; here it is a class derived from theirs
  that holds their quantizer, with our codebooks, and no encoder and decoder: it keeps the codes in place of decoding
- their builder of the modules beside the transformer is called as in their training, on that tower
- ids of padding and image tokens, which their script looks up in the tokenizer, and prompts of ids in place of text
- fp32 on the CPU: their script alone moves the model to a GPU
- `tokenizer_model_max_length`, the length up to which they prepare inputs and masks, is the shortest that holds the
  sequence (their training says 2048)
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from llava_t2i.mm_utils import VQType
from llava_t2i.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
from llava_t2i.model.multimodal_encoder.vision_tokenizer import VQTower
from safetensors.torch import load_file
from tokenizer.vq_model import VectorQuantizer
from torch import Tensor, nn


class Codebooks(nn.Module):
    """What their tower asks of an image tokenizer while codes are sampled."""

    def __init__(self, tables: list[Tensor], scales: list[int]) -> None:
        super().__init__()
        self.n_embed, widths = len(tables[0]), [table.shape[1] for table in tables]
        self.embed_dim = sum(widths)
        self.scale_rq_layers = scales
        self.quantize = VectorQuantizer(
            self.n_embed, self.embed_dim, beta=1.0, entropy_loss_ratio=0.0, l2_norm=True, show_usage=False, split=widths
        )
        self.quantize.embedding_vqkd.weight.data.copy_(tables[0])
        self.quantize.embedding_vqgan.weight.data.copy_(tables[1])
        self.device, self.dtype = tables[0].device, tables[0].dtype


class CodesTower(VQTower):
    """Their tower over codebooks alone; `codes` are those of the last image."""

    def __init__(self, codebooks: Codebooks) -> None:
        nn.Module.__init__(self)
        self.vision_tower_name, self.vq_type = "codebooks", VQType.TOKEN_FLOW
        self.vq_model = [codebooks]  # in a list, as theirs: no part of the model's weights
        self.is_loaded, self.image_size = True, 16 * codebooks.scale_rq_layers[-1]
        self.codes: Tensor | None = None

    def load_model(self, device_map: object = None) -> None:
        """Nothing: it is there."""

    def decode_to_img_pt(self, codes_Bl: Tensor) -> Tensor:
        """Keep the codes; the picture is left out."""
        self.codes = codes_Bl
        return torch.zeros(len(codes_Bl), 3, 1, 1)


def peer_model(folder: Path, work: SimpleNamespace) -> tuple[LlavaLlamaForCausalLM, CodesTower]:
    """Their model with our weights, every key of them."""
    config = LlavaConfig.from_pretrained(folder, attn_implementation="eager")
    config.tokenizer_model_max_length = work.max_length
    model = LlavaLlamaForCausalLM(config)
    tables = load_file(folder / "codebooks" / "model.safetensors")
    tower = CodesTower(Codebooks([tables["semantic"], tables["pixel"]], work.scales))
    model.model.vision_tower = tower
    options = {"mm_projector_type": config.mm_projector_type, "mm_patch_merge_type": config.mm_patch_merge_type}
    options |= dict.fromkeys(("vision_tower", "mm_vision_select_layer", "mm_vision_select_feature"))
    model.get_model().initialize_vision_modules(SimpleNamespace(**options, pretrain_mm_mlp_adapter=None))
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    model.config.use_cache = False
    model.pad_token_id, model.image_token_start, model.image_token_end = work.ids
    return model.eval(), tower


def main() -> None:
    folder = Path(sys.argv[1])
    work = SimpleNamespace(**json.loads((folder / "work.json").read_text()))
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    model, tower = peer_model(folder, work)

    def image(top_k: list[int], top_p: list[float]) -> float:
        """Milliseconds of one image."""
        prompts = [torch.tensor(work.text), torch.tensor(work.negative)]
        start = time.perf_counter()
        with torch.inference_mode():
            model.autoregressive_infer_cfg(
                B=1, prefix_text_codes=prompts, g_seed=0, cfg=work.guidance_scale, topk_list=top_k, topp_list=top_p
            )
        return 1e3 * (time.perf_counter() - start)

    image([1], [0.0])  # to warm up, and to compare
    greedy = tower.codes[0].tolist()
    times = [image(work.top_k, work.top_p) for _ in range(work.repeats)]
    result = {"ms": min(times), "greedy": greedy, "threads": torch.get_num_threads(), "torch": torch.__version__}
    (folder / "result.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
