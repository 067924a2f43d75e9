"""DreamMatcher (Nam et al., CVPR 2024): correspondence, appearance matching, guidance, inversion. Pure torch."""
