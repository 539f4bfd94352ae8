"""Which family a configuration belongs to."""

from __future__ import annotations

from collections.abc import Mapping

from quantailor.errors import UnsupportedModelError
from quantailor.models.convert.families.deepseek import DeepseekV2, DeepseekV3
from quantailor.models.convert.families.family import Family
from quantailor.models.convert.families.gemma import Gemma2, Gemma3
from quantailor.models.convert.families.gpt_oss import GptOss
from quantailor.models.convert.families.llama import Granite, Llama, Mistral, Mixtral, SmolLM3
from quantailor.models.convert.families.olmo import Olmo2
from quantailor.models.convert.families.phi import Phi3
from quantailor.models.convert.families.qwen import Qwen2, Qwen2Moe, Qwen3, Qwen3Moe
from quantailor.models.json_files import OTHER_WAY, JsonObject, mapping

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


def family_of(config: JsonObject, place: str) -> Family:
    """The family of config.json. Raises UnsupportedModelError where it is none that we know."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(name) if isinstance(name, str) else None
    if family is None:
        raise UnsupportedModelError(
            f"{place} has the architecture {str(name)[:80]!r}, which Quantailor's own conversion does not support", remedy=OTHER_WAY
        )
    quantized = config.get("quantization_config")
    if quantized is not None and mapping(quantized).get("quant_method") not in family.quantizations:
        raise UnsupportedModelError(
            f"{place} describes a quantized checkpoint that Quantailor's own conversion cannot read",
            remedy=f"Start from the 16-bit model. {OTHER_WAY}",
        )
    return family(config, place)
