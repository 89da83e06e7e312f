"""The target `toy-hybrid`: a Llama, some of whose layers have a moving average in place of attention."""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedConfig, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from radistill.conversion.assembly import assemble
from radistill.conversion.targets import Target, TargetSettings
from radistill.models.architectures import Architecture
from radistill.models.loading import Model
from toy.mixer import AVERAGE, Average, AverageGeometry


class ToyConfig(LlamaConfig):
    model_type = "toy-hybrid"


class ToyLayer(LlamaDecoderLayer):
    def __init__(self, config: ToyConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.padding: Tensor | None = None
        if config.layer_types[layer_idx] == "linear_attention":
            del self.self_attn
            self.average = Average(config, layer_idx)

    def forward(self, hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if hasattr(self, "self_attn"):
            return super().forward(hidden_states, **kwargs)
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        mixed = self.average(self.input_layernorm(hidden_states), attention_mask=self.padding, cache=cache)
        hidden_states = hidden_states + mixed
        return hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))


class ToyModel(LlamaModel):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.layers = nn.ModuleList([ToyLayer(config, layer) for layer in range(config.num_hidden_layers)])

    def forward(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **kwargs: Any) -> Any:
        for layer in self.layers:
            layer.padding = attention_mask
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **kwargs)


class ToyForCausalLM(LlamaForCausalLM):
    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.model = ToyModel(config)
        self.post_init()


class ToySettings(TargetSettings):
    """Shape of the moving averages."""

    kind: Literal["toy-hybrid"] = "toy-hybrid"
    width: int = 24
    decay: float = 0.8


class ToyHybrid(Target):
    settings = ToySettings
    model_types = ("toy-hybrid",)
    mixers = (AVERAGE,)
    architecture = Architecture(ssm=("average",), mixer=AVERAGE)

    def check(self, config: PreTrainedConfig) -> list[str]:
        return [] if config.model_type == "llama" else [f"architecture {config.model_type}"]

    def geometry(self, config: PreTrainedConfig, settings: ToySettings) -> AverageGeometry:
        return AverageGeometry(settings.width, settings.decay)

    def build(
        self, model: Model, replace: Sequence[int], settings: ToySettings, *, share: bool = False
    ) -> PreTrainedModel:
        fields = model.network.config.to_dict()
        layers = range(model.anatomy.num_layers)
        fields |= {
            "layer_types": ["linear_attention" if layer in replace else "full_attention" for layer in layers],
            "average_width": settings.width,
            "average_decay": settings.decay,
        }
        for name in ("model_type", "architectures"):
            fields.pop(name)
        config = ToyConfig(**fields)
        config.dtype = model.network.dtype
        config._attn_implementation = model.network.config._attn_implementation
        return assemble(
            ToyForCausalLM,
            config,
            model.network.state_dict(),
            lambda name: (name,),
            new=tuple(f"model.layers.{layer}.average." for layer in replace),
            dropped=tuple(f"model.layers.{layer}.self_attn." for layer in replace),
            share=share,
        )
