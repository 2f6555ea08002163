"""Fields that SGLang adds to OpenAI's requests and that are not offered here, each with what to do instead."""

from __future__ import annotations

from typing import Final

from tandem.gateway.api.fields import Unsupported

_OWN_AFFAIR: Final = "Leave it out; it is the gateway's own affair here."
_TEXT_ONLY: Final = "Prompts and answers are text only."
_TOKENS: Final = "Use /generate, which takes and returns token ids."
_INSIDE: Final = "Leave it out; what goes on inside the engine is not returned."

OF_SGLANG: Final = {
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "routed_dp_rank",
            "disagg_prefill_dp_rank",
            "data_parallel_rank",
        ),
        Unsupported(_OWN_AFFAIR),
    ),
    "cache_salt": Unsupported("Leave it out."),
    "custom_logit_processor": Unsupported("Code is not taken from clients."),
    "custom_params": Unsupported("Leave it out.", ({},)),
    "extra_key": Unsupported("Leave it out."),
    "images_config": Unsupported(_TEXT_ONLY, ({},)),
    "lora_path": Unsupported("LoRA adapters are not offered."),
    "mm_processor_kwargs": Unsupported(_TEXT_ONLY, ({},)),
    "no_stop_trim": Unsupported("Leave it out.", (False,)),
    "return_cached_tokens_details": Unsupported("'usage' has the count of cached tokens.", (False,)),
    "return_hidden_states": Unsupported("Hidden states are not offered.", (False,)),
    "return_routed_experts": Unsupported(_INSIDE, (False,)),
    "return_spec_tokens_details": Unsupported(_INSIDE, (False,)),
    "return_token_ids": Unsupported(_TOKENS, (False,)),
    "rid": Unsupported("Send the header 'X-Request-Id'."),
    "routed_experts_start_len": Unsupported(_INSIDE, (0,)),
    "session_id": Unsupported("Use 'prompt_cache_key', or the header 'X-Session-Id'."),
    "session_params": Unsupported("Send the whole prompt each time; its prefix is cached."),
    "stop_regex": Unsupported("Use 'stop'.", ([],)),
    "watermark": Unsupported("Answers bear no watermark."),
}
"""Those of chats and completions."""
OF_SGLANG_CHATS: Final = {
    "input_ids": Unsupported(_TOKENS),
    "max_dynamic_patch": Unsupported(_TEXT_ONLY),
    "min_dynamic_patch": Unsupported(_TEXT_ONLY),
    "return_flat_raw_output_top_logprobs": Unsupported("Use 'logprobs' and 'top_logprobs'.", (False,)),
    "return_flat_raw_top_logprobs_b64": Unsupported("Use 'logprobs' and 'top_logprobs'.", (True, False)),
    "return_input_ids_in_sglext": Unsupported(_TOKENS, (False,)),
    "return_meta_info": Unsupported("Use /generate, whose answers have 'meta_info'.", (False,)),
    "return_output_ids_in_sglext": Unsupported(_TOKENS, (False,)),
    "return_prompt_token_ids": Unsupported("Use /v1/tokenize.", (False,)),
    "return_sampling_mask": Unsupported(_INSIDE, (False,)),
    "sampling_logprobs_mode": Unsupported("Use 'logprobs' and 'top_logprobs'."),
    "reasoning": Unsupported("Use 'reasoning_effort'.", ({},)),
    "task": Unsupported("Put it into 'messages'."),
    "thinking": Unsupported("Use 'reasoning_effort', or 'chat_template_kwargs' as the model's template has it."),
    "use_audio_in_video": Unsupported(_TEXT_ONLY, (False,)),
    "video_config": Unsupported(_TEXT_ONLY, ({},)),
}
"""Those of chats only."""
OF_SGLANG_COMPLETIONS: Final = {"custom_labels": Unsupported("Leave it out.", ({},))}
"""Those of completions only."""
OF_GENERATE: Final = {
    **dict.fromkeys(
        (
            "bootstrap_host",
            "bootstrap_port",
            "bootstrap_room",
            "bootstrap_pair_key",
            "data_parallel_rank",
            "decode_tp_size",
            "disagg_prefill_dp_rank",
            "http_worker_ipc",
            "kv_hints",
            "num_items_assigned",
            "received_time",
            "routed_dp_rank",
        ),
        Unsupported(_OWN_AFFAIR),
    ),
    **dict.fromkeys(
        (
            "audio_data",
            "encoder_urls",
            "image_data",
            "image_max_dynamic_patch",
            "images_config",
            "input_embeds",
            "max_dynamic_patch",
            "min_dynamic_patch",
            "mm_content_hashes",
            "mm_hashes",
            "mm_processor_kwargs",
            "modalities",
            "need_wait_for_mm_inputs",
            "positional_embed_overrides",
            "video_config",
            "video_data",
            "video_max_dynamic_patch",
        ),
        Unsupported("This server takes text and token ids only."),
    ),
    "use_audio_in_video": Unsupported("This server takes text and token ids only.", (False,)),
    **dict.fromkeys(
        (
            "return_bytes",
            "return_entropy",
            "return_flat_raw_output_top_logprobs",
            "return_flat_raw_top_logprobs",
            "return_flat_raw_top_logprobs_b64",
            "return_indexer_topk",
            "return_routed_experts",
            "return_sampling_mask",
        ),
        Unsupported(_INSIDE, (False,)),
    ),
    "cache_salt": Unsupported("Leave it out."),
    "custom_labels": Unsupported("Leave it out.", ({},)),
    "custom_logit_processor": Unsupported("Code is not taken from clients."),
    "extra_key": Unsupported("Leave it out."),
    "external_trace_header": Unsupported("Send the header 'traceparent'."),
    "lora_id": Unsupported("LoRA adapters are not offered."),
    "lora_path": Unsupported("LoRA adapters are not offered."),
    "max_thinking_tokens": Unsupported("Leave it out."),
    "multi_item_delimiter_indices": Unsupported("Scoring is not offered."),
    "priority": Unsupported("Send the header 'X-Request-Priority'."),
    "require_reasoning": Unsupported("Use /v1/chat/completions, which tells reasoning from answers.", (False,)),
    "return_hidden_states": Unsupported("Hidden states are not offered.", (False,)),
    "return_prompt_token_ids": Unsupported("Use /v1/tokenize.", (False,)),
    "routed_experts_start_len": Unsupported(_INSIDE, (0,)),
    "sampling_logprobs_mode": Unsupported("Use 'return_logprob' and 'top_logprobs_num'."),
    **dict.fromkeys(("conversation_id", "routing_key", "session_id"), Unsupported("Send the header 'X-Session-Id'.")),
    "session_params": Unsupported("Send the whole prompt each time; its prefix is cached."),
    "token_ids_logprob": Unsupported("Use 'top_logprobs_num'."),
    "token_indices_to_pool": Unsupported("Embeddings are not offered."),
    "watermark": Unsupported("Answers bear no watermark."),
}
"""Those of /generate."""
