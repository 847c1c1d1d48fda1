"""Which options of timm's models a configuration may set: those that describe their shape.

A configuration may come with a file of weights from anywhere. timm takes options that open
further files (``checkpoint_path``, ``pretrained_cfg``, ``cache_dir``), so that only those of a
list are passed on, with plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from cosa.core.declared import Misfit, Within, check
from cosa.core.errors import UserError, did_you_mean

_Count = Annotated[int, Within(-1, 65536)]
"""Of channels, blocks, pixels: as ``cosa.core.ranges.CHANNELS``; -1 is "none" to some models."""
_Number = Annotated[float, Within(-65536, 65536)]
"""Ratios and rates, of which none is beyond a count."""

COUNTS = """
    img_size patch_size patch_sizes patch_kernel patch_stride embed_dim embed_dims dim dims
    base_dim base_dims depth depths depth_token_only serial_depths parallel_depth layers stages
    num_heads heads num_kv_heads head_dim key_dim qk_dim partial_dim hidden_sizes num_levels
    window_size window_sizes pretrained_window_sizes window_ratio mask_unit_size q_pool q_stride
    reg_tokens num_reg_tokens channels widths cardinality base_width stem_width stem_size stem_chs
    stem_hidden_dim stem_kernel_size kernel_size kernel_sizes down_kernel_size down_patch_size
    down_stride down_pad repmixer_kernel_size local_conv_size pool_size block_reduce_first
    num_features num_init_features growth_rate growth_rates num_blocks_list block_config bn_size
    sr_ratios focal_levels focal_windows d2_scales global_block_counts global_attn_indexes
    global_pos_size initial_chs final_chs ch_div num_vit cls_attn_layers neck_chans
    swiglu_align_to ref_feat_shape rel_pos_dim rope_mrope_section stride strides pooling_scale
    stem_stride
""".split()
"""Whole numbers, or lists of them."""

NUMBERS = """
    mlp_ratio mlp_ratios init_values ls_init_value layer_scale layer_scale_init_value
    layer_scale_init_values res_scale_init_values layerscale_value norm_eps expand_ratio
    expansion_ratio mbconv_expand_ratio conv_ratio attn_ratio bottle_ratio bottleneck_width_ratio
    transition_compression_ratio mix_block_ratio se_ratio width width_mult width_factor depth_mult
    dim_mul head_mul cls_ratio eta head_init_scale rope_temperature rope_grid_offset
    rope_shift_coords rope_jitter_coords rope_rescale_coords drop_rate pos_drop_rate
    proj_drop_rate attn_drop_rate drop_path_rate drop_block_rate mlp_ratio_token_only
""".split()
"""Numbers, or lists of them."""

SWITCHES = """
    qkv_bias qkv_fused qk_norm proj_bias conv_bias mlp_bias head_bias class_token no_embed_class
    pre_norm final_norm fc_norm pool_include_prefix swiglu_mlp scale_mlp scale_mlp_norm
    scale_attn_norm scale_attn_inner attn_only_layer_scale use_abs_pos_emb use_rot_pos_emb
    rope_rotate_half use_rel_pos_bias use_shared_rel_pos_bias shared_rel_pos use_abs_pos
    use_rel_pos use_rope use_pos_emb use_pos_embed use_post_norm use_pre_transformer_norm
    use_post_transformer_norm use_fc_norm always_partition linear ffn cpe_act channel_attn_v2
    avg_down replace_stem_pool zero_init_last preact basic conv_mlp use_grn head_norm
    head_norm_first fix_stem fix_init se_from_exp downsample_block is_downsample_block downsamples
    se_downsamples use_overlap_down normalize_modulator tokens_norm stem_norm stem_mid_norm
    use_layer_scale use_lab aa_stem_only mask_unit_attn use_expand_proj sep_pos_embed
    abs_win_pos_embed use_conv lkc_use_act stem_use_scale_branch outlook_attention distilled
    distillation legacy
""".split()
"""true or false, or lists of them."""

WORDS = """
    global_pool pos_embed act_layer dw_act_layer attn_act_layer norm_layer norm_layer_cl aa_layer
    se_layer stem_type pad_type attn_type attn_types rope_type rope_grid_indexing rel_pos_type
    down_op downsample block_type types token_mixers
""".split()
"""Names of timm's, or lists of them: it looks them up in tables."""


def _one_or_more(kind: Any) -> Any:
    """Such a value, None, or a list, or list of lists, of these."""
    return kind | None | tuple[kind | None | tuple[kind | None, ...], ...]


OPTIONS: dict[str, Any] = {
    name: _one_or_more(kind)
    for names, kind in (
        (COUNTS, _Count), (NUMBERS, _Number), (SWITCHES, bool), (WORDS, str),
    ) for name in names
}
"""Name -> declared type."""


def check_options(options: Mapping[str, Any]) -> None:
    """Hold options of ``model.encoder_options`` against the list.

    Raises:
        UserError: one is none of a model's shape, or set by the network, or has another value.
    """
    for name, value in options.items():
        where = f"model.encoder_options.{name}"
        if name not in OPTIONS:
            raise UserError(f"{where} is none of the options that describe an encoder's shape and "
                            "are not set by the network"
                            f"{did_you_mean(str(name), OPTIONS) or ': remove it'}")
        try:
            check(OPTIONS[name], value)
        except Misfit as error:
            raise UserError(f"{where}{error.place} {error.told}") from error
