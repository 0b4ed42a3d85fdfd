"""Cost of retrieval: counted floating-point operations of every caption with every clip, and of re-ranking.

python benchmarks/retrieval_cost.py [--num_clips 1000] [--num_captions 1000]

Three ways to rank all clips for all captions, on models of base size with random weights (which do not affect counts):

- ALPRO's architecture as its reference evaluates it: for every clip all captions in chunks of 64; the clip's tower
  once per chunk, the text tower once per pair, captions padded to 40 tokens, all fusion layers for all tokens.
- The same architecture in our implementation: each tower once per clip and once per caption, no padding, the last
  fusion layer only for the classification token; and with matching only for the first 100 clips of a caption.
- Our crossformer, a pair of 40 text tokens and 693 clip tokens: `merge` against `cross_attention` with a cached clip.
"""

import argparse
import time
from collections.abc import Callable

import common
import numpy as np
import torch
from transformers import BertConfig, TimesformerConfig, ViTConfig

from simple_multimodal.alpro import AlproConfig, AlproForRetrieval
from simple_multimodal.models.fusion.crossformer import Crossformer, Stream

PADDED, CHUNK, TOP_K = 40, 64, 100
CAPTION_TOKENS = np.clip(np.random.default_rng(0).poisson(9.3, 1000) + 2, 4, PADDED)  # MSR-VTT: 9.3 words on average


def counted(call: Callable[[], object]) -> float:
    """Count the floating-point operations of a call."""
    with torch.no_grad(), common.operation_counter() as counter:
        call()
    return float(counter.get_total_flops())


def timed(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        with torch.no_grad():
            call()
        seconds.append(time.process_time() - start)
    return min(seconds)


def text_batch(num_rows: int, num_tokens: int, length: int) -> dict[str, torch.Tensor]:
    ids = torch.full((num_rows, num_tokens), 5)
    return {"input_ids": ids, "attention_mask": (torch.arange(num_tokens) < length).long().expand(num_rows, -1)}


class Alpro:
    """Unit costs of ALPRO's architecture: a clip, a caption, a pair."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        config = AlproConfig(
            text_config=BertConfig().to_dict(),
            video_config=TimesformerConfig(num_frames=8, layer_norm_eps=1e-6).to_dict(),
        )
        self.model = AlproForRetrieval(config).eval()
        pixels = torch.zeros(1, 8, 3, 224, 224)
        self.clip_batch = {"pixel_values_videos": pixels, "video_mask": torch.ones(1, dtype=torch.bool)}
        with torch.no_grad():
            self.clip = self.model.encode_clip(self.clip_batch)[1]

    def text(self, num_tokens: int) -> Stream:
        with torch.no_grad():
            return self.model.encode_text(text_batch(1, num_tokens, num_tokens))[1]

    def full_fusion(self) -> object:
        """Run all fusion layers for all tokens of a padded caption and a clip, as the reference computes a pair."""
        text, video = self.text(PADDED), self.clip["video"]
        states = torch.cat([text.states, video.states], dim=1)
        layers = self.model.alpro.text_encoder.encoder.layer[self.model.config.fusion_layer :]
        for layer in layers:
            output = layer(states)
            states = output[0] if isinstance(output, tuple) else output
        return states

    def costs(self, measure: Callable[[Callable[[], object]], float]) -> dict[str, float]:
        lengths = sorted(set(CAPTION_TOKENS.tolist()))
        weights = np.array([(CAPTION_TOKENS == length).mean() for length in lengths])
        texts = {length: self.text(length) for length in lengths}
        text = [measure(lambda n=n: self.model.encode_text(text_batch(1, n, n))) for n in lengths]
        pair = [measure(lambda n=n: self.model.matching_logits(texts[n], self.clip)) for n in lengths]
        return {
            "clip": measure(lambda: self.model.encode_clip(self.clip_batch)),
            "text": float(np.dot(weights, text)),
            "pair": float(np.dot(weights, pair)),
            "padded text": measure(lambda: self.model.encode_text(text_batch(1, PADDED, PADDED))),
            "full pair": measure(self.full_fusion),
        }


def ways(cost: dict[str, float], num_clips: int, num_captions: int) -> dict[str, float]:
    """Return the cost of ranking all clips for all captions."""
    pairs = num_clips * num_captions
    towers = num_clips * cost["clip"] + num_captions * cost["text"]
    chunks = -(-num_captions // CHUNK)
    return {
        "reference": num_clips * chunks * cost["clip"] + pairs * (cost["padded text"] + cost["full pair"]),
        "ours, every pair": towers + pairs * cost["pair"],
        f"ours, {TOP_K} re-ranked": towers + num_captions * min(TOP_K, num_clips) * cost["pair"],
        "ours, embeddings alone": towers,
    }


def crossformer_pairs(measure: Callable[[Callable[[], object]], float]) -> dict[str, float]:
    """Return the cost of a pair of 40 text tokens and 693 clip tokens in each form, six layers of base size."""
    num_texts = 16
    results = {}
    texts = Stream(torch.zeros(num_texts, PADDED, 768), torch.ones(num_texts, PADDED, dtype=torch.bool))
    rows = torch.zeros(num_texts, dtype=torch.long)
    for form in ("merge", "co_attention", "cross_attention"):
        torch.manual_seed(0)
        sizes = {"text": 768, "video": 768}
        fusion = Crossformer(ViTConfig(num_hidden_layers=6), form=form, token_sizes=sizes).eval()
        clip = {"video": Stream(torch.zeros(1, 693, 768), torch.ones(1, 693, dtype=torch.bool))}
        with torch.no_grad():
            side = fusion.cache_clip(clip)
        if side is clip:
            side = {m: stream.select(rows) for m, stream in clip.items()}
        results[form] = measure(lambda fusion=fusion, side=side: fusion.fuse(texts, side, num_queries=1)) / num_texts
        results[f"{form}, all tokens"] = measure(lambda fusion=fusion, side=side: fusion.fuse(texts, side)) / num_texts
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num_clips", type=int, default=1000)
    parser.add_argument("--num_captions", type=int, default=1000)
    options = parser.parse_args()
    alpro = Alpro()
    results = {}
    for unit, measure in (("GFLOPs", counted), ("CPU seconds", timed)):
        scale = 1e9 if unit == "GFLOPs" else 1.0
        cost = {name: value / scale for name, value in alpro.costs(measure).items()}
        total = ways(cost, options.num_clips, options.num_captions)
        pairs = {name: value / scale for name, value in crossformer_pairs(measure).items()}
        results[unit] = {"units": cost, "totals": total, "crossformer pair": pairs}
        print(f"{unit}, ALPRO's architecture, {options.num_captions} captions x {options.num_clips} clips")
        for name, value in cost.items():
            print(f"  one {name:24s}{value:14.4g}")
        for name, value in total.items():
            print(f"  {name:28s}{value:14.4g}   {total['reference'] / value:8.2f} times less than the reference")
        for name, value in pairs.items():
            print(f"  pair, {name:28s}{value:12.4g}   {pairs['merge, all tokens'] / value:8.2f} times less than merge")
    common.save("retrieval_cost", results)


if __name__ == "__main__":
    main()
