"""Numbers of the official code (cvlab-kaist/DreamMatcher @1c8fe19, fp32, CPU), reproduced by ours."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from closeness import RUN, close
from einops import rearrange
from safetensors import safe_open

from dreammatcher.attention import foreground
from dreammatcher.matching.appearance import match_appearance, trusted
from dreammatcher.matching.correspondence import confidence, match
from dreammatcher.matching.descriptors import descriptors, resize

FIXTURES = Path(__file__).parent / "fixtures"


class Fixture:
    def __init__(self, name: str):
        with safe_open(FIXTURES / f"{name}.safetensors", framework="pt") as file:
            self.metadata = file.metadata()
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  safe_open is no dict
        self.size, self.heads = int(self.metadata["size"]), int(self.metadata["heads"])

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def mask(self, row: int, token: str) -> torch.Tensor:
        column = self["cross_attn_maps"][:, row, :, int(self.metadata[token])]
        return foreground([rearrange(layer, "(h w) -> 1 1 h w", h=16) for layer in column], (self.size, self.size))

    def match(self):
        grid = (self.size, self.size)
        return match(resize(self["ref_descriptor"], grid), resize(self["tgt_descriptor"], grid))


@pytest.fixture(params=["ama_32", "ama_64"])
def official(request) -> Fixture:
    return Fixture(request.param)


def test_descriptors_have_the_official_cosines(official):
    features = [[official[f"{side}_feat_half"], official[f"{side}_feat_full"]] for side in ("ref", "tgt")]
    ours = descriptors(*features, pca=features[0][0].shape[1])
    flat = [rearrange(x, "1 c h w -> (h w) c") for x in ours]
    official_flat = [rearrange(official[f"{side}_descriptor"], "1 c h w -> (h w) c") for side in ("ref", "tgt")]
    chosen = torch.arange(0, 4096, 7)
    assert close(flat[1][chosen] @ flat[0].T, official_flat[1][chosen] @ official_flat[0].T)


def test_flows_equal_the_official_flows(official):
    matches = official.match()
    # The file names a flow after its way, not after its grid: "target_to_ref" lies on the target's grid.
    assert torch.equal(matches.flow, official["flow_target_to_ref"])
    assert torch.equal(matches.reverse_flow, official["flow_ref_to_target"])


def test_foreground_masks_equal_the_official_masks(official):
    for row, side, token in ((2, "ref_mask", "ref_token"), (3, "tgt_mask", "tgt_token")):
        assert close(official.mask(row, token).flatten(), official[side], RUN)


def test_injected_attention_equals_the_official_output(official):
    matches, mask = official.match(), official.mask(3, "tgt_token")
    weight = trusted(mask, confidence(matches, mask, float(official.metadata["cc_thres"])))
    q, k, v = (rearrange(official[name], "(r h) n d -> r h n d", h=official.heads) for name in "qkv")
    expected = official["output"]
    for reference_row, target_row in ((0, 1), (2, 3)):
        values = [rearrange(v[row], "h n d -> 1 n (h d)") for row in (target_row, reference_row)]
        value = rearrange(match_appearance(*values, matches.indices, weight), "1 n (h d) -> 1 h n d", h=official.heads)
        out = torch.nn.functional.scaled_dot_product_attention(q[None, target_row], k[None, target_row], value)
        assert close(rearrange(out, "1 h n d -> n (h d)"), expected[target_row], RUN)
