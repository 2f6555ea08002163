"""Fields that SGLang adds to OpenAI's requests and that are not offered here, each with what to do instead."""

from __future__ import annotations

from typing import Final

from tandem.gateway.fields import Unsupported

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
