"""The small base model that ships with Headrace: corpus, tokenizer, pre-training."""
