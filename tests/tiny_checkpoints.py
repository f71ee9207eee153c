"""Makers of tiny random Hugging Face LLaVA-NeXT checkpoints, saved by transformers itself.

Every parameter is drawn large enough to matter in the logits (norms and biases included), heads and
ffn sizes divide by two (TP=2; by eight with 8 heads), the vocabulary is no multiple of 128, and
attention is grouped.
"""

from __future__ import annotations

from pathlib import Path

import torch

TEXT_LAYERS = 4
VISION_LAYERS = 3
VOCAB_SIZE = 300
TOKENIZER_VOCAB = 290
CLIP_TILE, SIGLIP_TILE, PATCH = 56, 58, 14  # 58 // 14 = 4: the last two pixel rows are never seen

SPECIAL_TOKENS = [
    "<unk>",
    "<s>",
    "</s>",
    "<pad>",
    "<image>",
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
IMAGE_TOKEN_ID = SPECIAL_TOKENS.index("<image>")

_CORPUS = [
    "What is in the image? A red square on a black background.",
    "USER: describe the picture. ASSISTANT: the picture shows two cats on the grass.",
    "A chat between a curious user and an artificial intelligence assistant.",
    "system\nYou are a helpful assistant.\nuser\nHow many dogs are there?\nassistant\nThree.\n",
]

MEAN_STD = {
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
    "siglip": ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
}


def tiny_tokenizer(text: str = "llama"):
    """A byte-level BPE tokenizer with the special tokens of every conversation template.

    Llama and Mistral put `<s>` in front when special tokens are asked for; Qwen2 has no BOS.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCAB,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    if text == "qwen2":
        return PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>"
        )
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", SPECIAL_TOKENS.index("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )


def _text_config(text: str, tied: bool, heads: int, layers: int, hidden: int, ffn: int):
    from transformers import LlamaConfig, MistralConfig, Qwen2Config

    common = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": tied,
    }
    if text == "llama":
        return LlamaConfig(
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            rms_norm_eps=1e-5,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            **common,
        )
    if text == "mistral":
        return MistralConfig(
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            rms_norm_eps=1e-5,
            sliding_window=None,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            **common,
        )
    if text == "qwen2":
        return Qwen2Config(
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
            rms_norm_eps=1e-6,
            bos_token_id=None,
            eos_token_id=7,
            pad_token_id=5,
            **common,
        )
    raise ValueError(f"text {text!r}: expected llama, qwen2 or mistral")


def _vision_config(vision: str, heads: int):
    from transformers import CLIPVisionConfig, SiglipVisionConfig

    common = {
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": VISION_LAYERS,
        "num_attention_heads": heads,
        "patch_size": PATCH,
    }
    if vision == "clip":
        return CLIPVisionConfig(image_size=CLIP_TILE, projection_dim=32, **common)
    if vision == "siglip":
        return SiglipVisionConfig(image_size=SIGLIP_TILE, vision_use_head=False, **common)
    raise ValueError(f"vision {vision!r}: expected clip or siglip")


def randomise(model: torch.nn.Module, seed: int) -> None:
    """Redraw every parameter: weights std 0.08, norm weights 1 + 0.2 n, biases 0.1 n."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
        is_norm = "norm" in "".join(name.split(".")[-2:-1])
        if is_norm and name.endswith("weight"):
            noise = 1.0 + 0.2 * noise
        else:
            noise = noise * (0.1 if parameter.dim() == 1 else 0.08)
        parameter.data.copy_(noise)


def _processor(vision: str, tokenizer, pinpoints: list[list[int]], tile: int):
    from transformers import LlavaNextProcessor
    from transformers.models.llava_next.image_processing_pil_llava_next import (
        LlavaNextImageProcessorPil,
    )

    mean, std = MEAN_STD[vision]
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile} if vision == "clip" else {"height": tile, "width": tile},
        crop_size={"height": tile, "width": tile},
        do_center_crop=vision == "clip",
        image_grid_pinpoints=pinpoints,
        image_mean=mean,
        image_std=std,
    )
    return LlavaNextProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
        num_additional_image_tokens=1 if vision == "clip" else 0,
        image_token="<image>",
    )


def tiny_llava_next(
    path: str | Path,
    text: str = "llama",
    vision: str = "clip",
    seed: int = 0,
    tied: bool = False,
    dtype: torch.dtype = torch.float32,
    heads: int = 4,
    layers: int = TEXT_LAYERS,
    hidden: int = 64,
    ffn: int = 112,
) -> Path:
    """Write a tiny LlavaNext folder (weights, config, tokenizer, processor) and return its path.

    text: llama | qwen2 | mistral; vision: clip (tile 56, layer -2) | siglip (tile 58, layer -1).
    heads: query heads of the language model and of the tower; layers, hidden, ffn: of the language
    model.
    The image token is id 4 (`<image>`). Names are those that `save_pretrained` writes.
    """
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    path = Path(path)
    tile = CLIP_TILE if vision == "clip" else SIGLIP_TILE
    grids = [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
    pinpoints = [[rows * tile, columns * tile] for rows, columns in grids]
    config = LlavaNextConfig(
        text_config=_text_config(text, tied, heads, layers, hidden, ffn),
        vision_config=_vision_config(vision, heads),
        image_token_index=IMAGE_TOKEN_ID,
        image_grid_pinpoints=pinpoints,
        image_seq_length=(tile // PATCH) ** 2,
        vision_feature_layer=-2 if vision == "clip" else -1,
        vision_feature_select_strategy="default" if vision == "clip" else "full",
        tie_word_embeddings=tied,
    )
    model = LlavaNextForConditionalGeneration(config)
    randomise(model, seed)
    model.to(dtype).save_pretrained(path)
    _processor(vision, tiny_tokenizer(text), pinpoints, tile).save_pretrained(path)
    return path
