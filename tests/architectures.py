"""Tiny configurations of every architecture, with the variants that compute differently."""

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CONV = {
    **SMALL,
    "conv_dim": [16] * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
WHISPER = {
    "d_model": 32,
    "encoder_layers": 3,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_layers": 1,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "num_mel_bins": 80,
}
CONV_INPUT = "Wav2Vec2FeatureExtractor"
# Every architecture with its variants: class of the configuration, changes, preprocessor.
ARCHITECTURES: dict[str, tuple[str, dict[str, object], str]] = {
    "hubert": ("HubertConfig", CONV, CONV_INPUT),
    "hubert large": ("HubertConfig", {**CONV, **LARGE, "conv_bias": True}, CONV_INPUT),
    "hubert batch norm": ("HubertConfig", {**CONV, "conv_pos_batch_norm": True}, CONV_INPUT),
    "wavlm": ("WavLMConfig", CONV, CONV_INPUT),
    "wavlm large": ("WavLMConfig", {**CONV, **LARGE}, CONV_INPUT),
    "wav2vec2": ("Wav2Vec2Config", CONV, CONV_INPUT),
    "wav2vec2 adapter": ("Wav2Vec2Config", {**CONV, **LARGE, "adapter_attn_dim": 8}, CONV_INPUT),
    "data2vec": (
        "Data2VecAudioConfig",
        {**CONV, "num_conv_pos_embeddings": 3, "conv_pos_kernel_size": 5},
        CONV_INPUT,
    ),
    "w2v-bert": ("Wav2Vec2BertConfig", {**SMALL, "vocab_size": 8}, "SeamlessM4TFeatureExtractor"),
    "w2v-bert relative": (
        "Wav2Vec2BertConfig",
        {**SMALL, "vocab_size": 8, "position_embeddings_type": "relative"},
        "SeamlessM4TFeatureExtractor",
    ),
    "whisper": ("WhisperConfig", WHISPER, "WhisperFeatureExtractor"),
}
