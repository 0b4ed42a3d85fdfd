"""Small checkpoints of published towers, as on the hub: weights, config, tokenizer and processor."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    PeAudioConfig,
    PeAudioFeatureExtractor,
    PeAudioModel,
    PeAudioProcessor,
    PeAudioVideoConfig,
    PeAudioVideoModel,
    PeAudioVideoProcessor,
    PeVideoModel,
    PeVideoVideoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Processor,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
    TimesformerConfig,
    TimesformerForVideoClassification,
    TimmWrapperConfig,
    VideoMAEImageProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

WORDS = "a at bark bell cat dog dogs falls in purrs rain rings runs sings someone the twice two".split()
SIZES = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
WIDTH, HEIGHT, IMAGE, PATCH, POSITIONS = 24, 16, 16, 8, 12

SPECIAL_TOKENS = {
    "clip": (["<|startoftext|>", "<|endoftext|>"], "<|startoftext|> $A <|endoftext|>", "<|endoftext|>"),
    "siglip": (["<unk>", "</s>"], "$A </s>", "</s>"),
    "siglip2": (["<pad>", "<eos>"], "$A <eos>", "<pad>"),
    "clap": (["<s>", "<pad>", "</s>"], "<s> $A </s>", "<pad>"),
    "pe_audio": (["[CLS]", "[PAD]", "[SEP]"], "[CLS] $A [SEP]", "[PAD]"),
}
SPECIAL_TOKENS["pe_audio_video"] = SPECIAL_TOKENS["pe_audio"]
"""For each kind: special tokens, how a text becomes a sequence, and the padding token."""

CLAP_EXTRACTOR = {
    "feature_size": 8,
    "sampling_rate": 16000,
    "hop_length": 160,
    "max_length_s": 1,
    "fft_window_size": 512,
    "frequency_min": 50,
    "frequency_max": 7000,
    "truncation": "rand_trunc",
    "padding": "repeatpad",
}
PE_EXTRACTOR = {"sampling_rate": 8000, "hop_length": 40}
WHISPER_EXTRACTOR = {"feature_size": 8, "chunk_length": 1}
AST_EXTRACTOR = {"num_mel_bins": 16, "max_length": 64, "mean": -4.0, "std": 3.0}
PE_IMAGES = {
    "size": {"height": 16, "width": 16},
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
}
TIMESFORMER_PROCESSOR = {
    "size": {"shortest_edge": 16},
    "crop_size": {"height": 16, "width": 16},
    "image_mean": [0.4, 0.45, 0.5],
    "image_std": [0.2, 0.25, 0.3],
}


def tiny_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """
    Return a tokenizer of words (for SigLIP 2, of letters) with the special tokens of a kind of checkpoint; in CLIP's,
    the token that ends a text is the last of all.
    """
    special, template, pad = SPECIAL_TOKENS[kind]
    if kind == "siglip2":  # `AutoTokenizer` loads this class whatever was saved
        letters = [*special, "<bos>", "<unk>", "<mask>", "▁", *sorted(set("".join(WORDS)))]
        vocabulary = {token: number for number, token in enumerate(letters)}
        letter_tokenizer = Siglip2Tokenizer(vocabulary, [], model_max_length=POSITIONS, padding_side="right")
        letter_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single=template, special_tokens=[("<eos>", 1)]
        )
        return letter_tokenizer
    names = [*special, "<word>"] if kind != "clip" else ["<word>"]
    tokens = [*names, *WORDS] if kind != "clip" else [*names, *WORDS, *special]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<word>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(token, vocabulary[token]) for token in special]
    )
    end = special[-1]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        eos_token=end,
        unk_token="<word>",
        model_max_length=POSITIONS,
        padding_side="right",
    )


def tiny_config(
    kind: str,
) -> CLIPConfig | SiglipConfig | Siglip2Config | ClapConfig | PeAudioConfig | PeAudioVideoConfig:
    """Return the config of a checkpoint with several towers."""
    tokenizer = tiny_tokenizer(kind)
    text = SIZES | {"vocab_size": len(tokenizer), "hidden_size": 16, "max_position_embeddings": POSITIONS}
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": 0}
    vision = SIZES | {"hidden_size": 24, "image_size": IMAGE, "patch_size": PATCH}
    if kind == "clip":
        return CLIPConfig(text_config=text | ids, vision_config=vision, projection_dim=12)
    if kind == "siglip":
        return SiglipConfig(text_config=text | ids | {"projection_size": 24}, vision_config=vision)
    if kind == "siglip2":
        del vision["image_size"]
        return Siglip2Config(
            text_config=text | ids | {"projection_size": 24}, vision_config=vision | {"num_patches": 4}
        )
    if kind.startswith("pe_audio"):
        codec = {"downsampling_ratios": [4, 10], "encoder_hidden_size": 4, "codebook_dim": 6, "hidden_size": 16}
        audio = SIZES | {"hidden_size": 24, "head_dim": 12, "dac_config": codec}
        text |= ids | {"model_type": "modernbert"}
        if kind == "pe_audio":
            return PeAudioConfig(text_config=text, audio_config=audio)
        size = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": IMAGE, "patch_size": PATCH}
        frames = TimmWrapperConfig(architecture="vit_pe_core_tiny_patch16_384", num_labels=10, model_args=size)
        joint = SIZES | {"hidden_size": 24, "head_dim": 12}
        video = joint | {"model_type": "pe_video_encoder", "vision_config": frames.to_dict()}
        joint |= {"audio_config": audio | {"model_type": "pe_audio_encoder"}, "video_config": video}
        config = PeAudioVideoConfig(text_config=text, audio_video_config=joint)
        config.audio_video_config.video_config.vision_config.num_labels = 10  # which the stock class loses
        return config
    audio = {
        "spec_size": 32,
        "num_mel_bins": CLAP_EXTRACTOR["feature_size"],
        "window_size": 2,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
        "depths": [2, 2],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "hidden_dropout_prob": 0.0,
    }
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text |= {"max_position_embeddings": POSITIONS + 2}
    return ClapConfig(text_config=text | ids | dropout, audio_config=audio, projection_dim=12)


def randomize(model: PreTrainedModel) -> PreTrainedModel:
    """Give random values to all weights, statistics and scales."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.startswith("logit_"):
                tensor.fill_(4.7 if "scale" in name else -3.0)  # above CLIP's limit
            elif "dac_encoder" in name:  # a codec with random weights of that size explodes
                continue
            elif "running_" in name:
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    if isinstance(model, CLIPModel):
        model.logit_scale.data.fill_(3.0)
    return model.eval()


STOCK_MODELS = {"clip": CLIPModel, "siglip": SiglipModel, "siglip2": Siglip2Model, "clap": ClapModel}


def stock_processor(kind: str):
    """Return the processor of a kind of checkpoint."""
    tokenizer = tiny_tokenizer(kind)
    if kind == "clip":
        size = {"size": {"shortest_edge": IMAGE}, "crop_size": {"height": IMAGE, "width": IMAGE}}
        return CLIPProcessor(CLIPImageProcessor(**size), tokenizer)
    if kind == "siglip":
        return SiglipProcessor(SiglipImageProcessor(size={"height": IMAGE, "width": IMAGE}), tokenizer)
    if kind == "siglip2":
        return Siglip2Processor(Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=4), tokenizer)
    if kind == "pe_audio":
        return PeAudioProcessor(PeAudioFeatureExtractor(**PE_EXTRACTOR), tokenizer)
    if kind == "pe_audio_video":
        parts = PeAudioFeatureExtractor(**PE_EXTRACTOR), PeVideoVideoProcessor(**PE_IMAGES)
        return PeAudioVideoProcessor(*parts, tokenizer)
    return ClapProcessor(ClapFeatureExtractor(**CLAP_EXTRACTOR), tokenizer)


def write_checkpoint(folder: Path, kind: str) -> str:
    """Write a checkpoint with its processor; return the folder."""
    torch.manual_seed(0)
    if kind == "ast":
        values = SIZES | {"hidden_size": 16, "patch_size": 16, "frequency_stride": 10, "time_stride": 10}
        config = ASTConfig(
            **values, num_mel_bins=AST_EXTRACTOR["num_mel_bins"], max_length=AST_EXTRACTOR["max_length"]
        )
        randomize(ASTForAudioClassification(config)).save_pretrained(folder)
        ASTFeatureExtractor(**AST_EXTRACTOR).save_pretrained(folder)
    elif kind == "whisper":
        config = WhisperConfig(
            d_model=16,
            encoder_layers=2,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=24,
            decoder_ffn_dim=24,
            num_mel_bins=WHISPER_EXTRACTOR["feature_size"],
            max_source_positions=50,
            max_target_positions=8,
            vocab_size=20,
            **{f"{name}_token_id": 1 for name in ("pad", "bos", "eos", "decoder_start")},
        )
        randomize(WhisperForConditionalGeneration(config)).save_pretrained(folder)
        WhisperFeatureExtractor(**WHISPER_EXTRACTOR).save_pretrained(folder)
    elif kind == "timesformer":
        config = TimesformerConfig(**SIZES, hidden_size=16, image_size=16, patch_size=8, num_frames=4)
        randomize(TimesformerForVideoClassification(config)).save_pretrained(folder)
        VideoMAEImageProcessor(**TIMESFORMER_PROCESSOR).save_pretrained(folder)
    else:
        stock_class = {"pe_audio": PeAudioModel, "pe_audio_video": PeAudioVideoModel, **STOCK_MODELS}[kind]
        randomize(stock_class(tiny_config(kind))).save_pretrained(folder)
        stock_processor(kind).save_pretrained(folder)
    return str(folder)


def stock_pe_av(folder: str, clip: str) -> PreTrainedModel:
    """Load the part of a PE-AV checkpoint for texts and one other modality with the stock class."""
    stock_class = {"audio": PeAudioModel, "video": PeVideoModel}[clip]
    config = AutoConfig.from_pretrained(folder)
    pair = getattr(config, f"{clip}_config") if config.model_type == "pe_audio_video" else config
    if clip == "video":
        pair.video_config.vision_config.num_labels = 10  # saved as num_classes, which the stock class does not read
    stock = stock_class.from_pretrained(folder, config=pair)
    return stock.eval()
