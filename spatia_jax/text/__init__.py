"""From a user's words to token ids."""

from spatia_jax.text.prompts import NEGATIVE_PROMPT, SUFFIX
from spatia_jax.text.tokenizer import Tokenizer, clean, find_tokenizer, train_tokenizer

__all__ = ["NEGATIVE_PROMPT", "SUFFIX", "Tokenizer", "clean", "find_tokenizer", "train_tokenizer"]
