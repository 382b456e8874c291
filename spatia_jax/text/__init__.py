"""From a user's words to token ids."""

from spatia_jax.text.prompts import NEGATIVE_PROMPT, with_suffix
from spatia_jax.text.tokenizer import Tokenizer, clean, find_tokenizer, train_tokenizer

__all__ = ["NEGATIVE_PROMPT", "Tokenizer", "clean", "find_tokenizer", "train_tokenizer", "with_suffix"]
