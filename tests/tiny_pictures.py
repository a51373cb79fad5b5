"""Tiny models that see, of random weights: transformers' own LLaVA, and its BLIP-2 over an OPT.

``save_seeing`` and ``save_querying`` write a directory as save_pretrained does, with a processor.
``picture`` draws pictures that differ, and ``picture_file`` puts one into a folder.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing

from tests import tiny_language as language
from tests.tiny_models import _stir

SIDE, PATCH = 16, 8
PLACES = (SIDE // PATCH) ** 2
QUERIES = 6  # places of a picture in BLIP-2
IMAGE = "<image>"
POSITIONS = 128


def seeing_tokenizer() -> Any:
    """The tiny language's, with a token for the place of a picture."""
    tokenizer = language.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(IMAGE, special=True)]})
    tokenizer.model_max_length = POSITIONS
    return tokenizer


def seeing_model(tokenizer: Any, seed: int = 0, width: int = 32) -> Any:
    """A LLaVA of two vision blocks and three text blocks."""
    vision = hf.CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    text = hf.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = hf.LlavaConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=PLACES,
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.LlavaForConditionalGeneration(config).float().eval()
        _stir(model)
    return model.requires_grad_(False)


def seeing_processor(tokenizer: Any) -> Any:
    """The processor that belongs to the model."""
    size = {"height": SIDE, "width": SIDE}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = hf.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    return hf.LlavaProcessor(
        images,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def save_seeing(folder: Path, seed: int = 0) -> Path:
    """Write a model directory with tokenizer and processor; return it."""
    tokenizer = seeing_tokenizer()
    seeing_model(tokenizer, seed).save_pretrained(folder)
    seeing_processor(tokenizer).save_pretrained(folder)
    return folder


def picture(number: int, size: tuple[int, int] = (20, 18)) -> Image.Image:
    """A picture of random colours, the same for the same number."""
    width, height = size
    generator = torch.Generator().manual_seed(number)
    coarse = torch.randint(256, (3, 3, 3), generator=generator).to(torch.uint8)
    return Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.NEAREST)


def picture_file(folder: Path, number: int, form: str = "png") -> Path:
    """The picture in a file."""
    path = folder / f"picture-{number}.{form}"
    picture(number).save(path)
    return path


# -- BLIP-2's class


def querying_tokenizer() -> Any:
    """The tiny language's, with a token that begins every text, as OPT's."""
    tokenizer = seeing_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    begin = tokenizer.convert_tokens_to_ids("<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", begin)]
    )
    return tokenizer


def querying_model(tokenizer: Any, seed: int = 0, text: Any = None) -> Any:
    """A BLIP-2 of two vision blocks, a Q-Former of two, and an OPT of three; or another `text`."""
    vision = hf.Blip2VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    former = hf.Blip2QFormerConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        cross_attention_frequency=1,
        vocab_size=8,
    )
    text = text or hf.OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        ffn_dim=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        max_position_embeddings=POSITIONS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=0,
    )
    config = hf.Blip2Config(
        vision_config=vision.to_dict(),
        qformer_config=former.to_dict(),
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.Blip2ForConditionalGeneration(config).float().eval()
        _stir(model)
    return model.requires_grad_(False)


def querying_processor(tokenizer: Any) -> Any:
    """The processor that belongs to the model: pictures stand before the token that begins."""
    size = {"height": SIDE, "width": SIDE}
    return hf.Blip2Processor(hf.BlipImageProcessor(size=size), tokenizer, num_query_tokens=QUERIES)


def save_querying(folder: Path, seed: int = 0, text: Any = None) -> Path:
    """Write a model directory with tokenizer and processor; return it."""
    tokenizer = querying_tokenizer()
    querying_model(tokenizer, seed, text).save_pretrained(folder)
    querying_processor(tokenizer).save_pretrained(folder)
    return folder
