"""A prefill and a decode engine on SGLang in processes of their own, driven over JSON lines."""
