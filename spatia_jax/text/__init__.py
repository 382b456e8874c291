"""From a user's words to token ids."""

from spatia_jax.text.prompts import NEGATIVE_PROMPT, SUFFIX
from spatia_jax.text.tokenizer import Tokenizer, clean, train_tokenizer

__all__ = ["NEGATIVE_PROMPT", "SUFFIX", "Tokenizer", "clean", "train_tokenizer"]
