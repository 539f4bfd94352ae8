"""Which family a configuration belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping

from quantailor.errors import ConverterNeededError, UnsupportedModelError
from quantailor.models.convert.checkpoint import READABLE_METHODS, refuse_arrays
from quantailor.models.convert.families.deepseek import DeepseekV2, DeepseekV3
from quantailor.models.convert.families.family import Family
from quantailor.models.convert.families.gemma import Gemma2, Gemma3
from quantailor.models.convert.families.gpt_oss import GptOss
from quantailor.models.convert.families.llama import Granite, Llama, Mistral, Mixtral, SmolLM3
from quantailor.models.convert.families.olmo import Olmo2
from quantailor.models.convert.families.phi import Phi3
from quantailor.models.convert.families.qwen import Qwen2, Qwen2Moe, Qwen3, Qwen3Moe
from quantailor.models.json_files import OTHER_WAY, JsonObject
from quantailor.models.safetensors_file import StoredArray

FAMILIES: Mapping[str, type[Family]] = {
    "LlamaForCausalLM": Llama,
    "LLaMAForCausalLM": Llama,
    "MistralForCausalLM": Mistral,
    "MixtralForCausalLM": Mixtral,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "Qwen2MoeForCausalLM": Qwen2Moe,
    "Qwen3MoeForCausalLM": Qwen3Moe,
    "Gemma2ForCausalLM": Gemma2,
    "Gemma3ForCausalLM": Gemma3,
    "Gemma3ForConditionalGeneration": Gemma3,
    "Phi3ForCausalLM": Phi3,
    "GraniteForCausalLM": Granite,
    "Olmo2ForCausalLM": Olmo2,
    "SmolLM3ForCausalLM": SmolLM3,
    "DeepseekV2ForCausalLM": DeepseekV2,
    "DeepseekV3ForCausalLM": DeepseekV3,
    "GptOssForCausalLM": GptOss,
}

_HEAD = re.compile(r"(\w+)For(?:SequenceClassification|TokenClassification|RewardModel|ProcessRewardModel)|\w+WithValueHead")
_WRAPPER = re.compile(
    r"Peft(?:Model\w*)?|OptimizedModule|DistributedDataParallel|FullyShardedDataParallel|DeepSpeedEngine|AutoModel\w*"
    r"|(?:FSDP|DDP|Peft|Compiled)(?P<inner>\w+)"
)
"""Classes around a model, which training scripts write in place of its own; `inner` is the model's own where the name says it."""


def family_of(config: JsonObject, arrays: Mapping[str, StoredArray], place: str, where: str) -> Family:
    """The family of a checkpoint.

    Args:
        config: config.json.
        arrays: all arrays by name.
        place: how messages call config.json.
        where: how they call the checkpoint.

    Raises:
        ConverterNeededError: a family that we do not know.
        ModelError: what nobody can convert; see `checkpoint.refuse_arrays`.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    refuse_arrays(config, arrays, where, methods=() if family is None else (*READABLE_METHODS, *family.quantizations))
    if not isinstance(name, str):
        raise UnsupportedModelError(
            f"{place} has architectures = {str(names)[:80]!r}, which should list the model's class",
            remedy='Write it there as the model\'s own repository has it, e.g. "architectures": ["LlamaForCausalLM"]',
        )
    if family is None and (head := _HEAD.fullmatch(name)) and (head[1] is None or f"{head[1]}ForCausalLM" in FAMILIES):
        raise UnsupportedModelError(
            f"{place} has the architecture {name!r}, which scores texts and does not predict next tokens",
            remedy="Use the language model itself",
        )
    if family is None and (wrapper := _WRAPPER.fullmatch(name)):
        inner = wrapper["inner"] if wrapper["inner"] in FAMILIES else "LlamaForCausalLM"
        raise UnsupportedModelError(
            f"{place} has the architecture {name[:80]!r}, a class around the model's own",
            remedy=f'Write the model\'s class there as its repository has it, e.g. "architectures": ["{inner}"]',
        )
    if family is None:
        raise ConverterNeededError(
            f"{place} has the architecture {name[:80]!r}, which Quantailor's own conversion does not support", remedy=OTHER_WAY
        )
    return family(config, place)
