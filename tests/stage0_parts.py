"""What stage 0 starts from: a language model and a vision tower, saved by transformers."""

import json
from pathlib import Path

import torch
from tiny_checkpoints import randomise, tiny_tokenizer
from tiny_llava import text_config, vision_config


def language_model(folder: Path, text: str, dtype=torch.float32, vocab_size: int = 290) -> Path:
    """A language model whose tokenizer has no `<image>`, and whose rows are all taken."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(text_config(text, vocab_size=vocab_size))
    randomise(model, 3)
    model.to(dtype).save_pretrained(folder)
    kind = model.config.model_type
    tiny_tokenizer(kind).save_pretrained(folder)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    kept = [token for token in tokenizer["added_tokens"] if token["content"] != "<image>"]
    tokenizer["added_tokens"] = kept
    tokenizer["model"]["vocab"]["<picture>"] = tokenizer["model"]["vocab"].pop("<image>")
    path.write_text(json.dumps(tokenizer))
    return folder


def vision_tower(folder: Path, tower: str, with_text: bool = False) -> Path:
    """A vision model alone, or inside a model of images and text."""
    import transformers

    config = vision_config(tower)
    kind = "CLIP" if config.model_type == "clip_vision_model" else "Siglip"
    if with_text:
        small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
        small |= {"num_attention_heads": 2, "vocab_size": 50}
        if kind == "CLIP":
            small |= {"projection_dim": 32}
        whole = getattr(transformers, f"{kind}Config")(
            text_config=small, vision_config=config.to_dict()
        )
        model = getattr(transformers, f"{kind}Model")(whole)
    else:
        model = getattr(transformers, f"{kind}VisionModel")(config)
    randomise(model, 4)
    model.save_pretrained(folder)
    return folder
